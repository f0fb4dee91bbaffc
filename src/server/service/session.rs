//! How the session of a request becomes part of its command, and its refusal a failure.

use shardhost_proto::client::{Failure, FailureReason, Session};

use super::failure::failure;
use super::pipeline::Plan;
use crate::shards::session::{SessionRefusal, SessionTag};

/// Puts a write into the session that the request names, at the time of the shard. A read takes no
/// part in one.
pub(super) fn join(plan: Plan, session: Option<Session>, now_ms: impl FnOnce() -> u64) -> Plan {
    match (plan, session) {
        (Plan::Write(command), Some(session)) => {
            let Session { id, start, sequence, lowest_unanswered } = session;
            let now_ms = now_ms();
            let tag = SessionTag { id, start, sequence, lowest_unanswered, now_ms };
            match tag.check() {
                Ok(()) => Plan::Write(tag.wrap(&command)),
                Err(error) => Plan::Invalid(error.to_string()),
            }
        }
        (plan, _) => plan,
    }
}

/// The shard refused a write because of its session.
pub(super) fn refused(refusal: SessionRefusal) -> Failure {
    let session_start = refusal.next_start();
    Failure { session_start, ..failure(FailureReason::SessionOver, refusal) }
}
