//! Changes of a group's members and of what it requires: one waits for those before it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shardhost_groups::{
    CaughtUp, Group, LogIndex, Membership, MembershipChange, MembershipError, Requirement,
};
use shardhost_proto::admin as wire;
use shardhost_proto::admin::membership_step::Kind as StepKind;
use shardhost_proto::log;
use shardhost_storage::convert::membership_to_message;
use tonic::{Response, Status};

use super::{node_id, timeout_of};
use crate::refusals::{of_capabilities, of_membership};

/// A change waits for the one before it for so long, then it looks whether it may begin.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks at least.
const PAUSE: Duration = Duration::from_millis(10);

/// Makes a change when those before it are applied: only one can be under way. When that takes too
/// long, what was refused last is still known.
pub(super) struct AfterOthers<F> {
    change: F,
    refused: Arc<Mutex<Option<MembershipError>>>,
}

pub(super) fn after_others<M, C>(
    group: &Group,
    make: M,
) -> AfterOthers<impl Future<Output = Result<Arc<Membership>, MembershipError>>>
where
    M: Fn() -> C,
    C: Future<Output = Result<Arc<Membership>, MembershipError>>,
{
    let (group, refused) = (group.clone(), Arc::new(Mutex::new(None)));
    let last = Arc::clone(&refused);
    let change = async move {
        loop {
            match make().await {
                // Busy: the one before is about to be proposed.
                Err(
                    error @ (MembershipError::ConfigChangePending { .. }
                    | MembershipError::Busy { .. }),
                ) => *last.lock() = Some(error),
                changed => return changed,
            }
            group.wait_for(|status| status.pending_change.is_none(), LOOK_AGAIN).await;
            // What the status says may be of a moment ago.
            tokio::time::sleep(PAUSE).await;
            last.lock().take();
        }
    };
    AfterOthers { change, refused }
}

pub(super) async fn membership_reply(
    timeout_ms: u64,
    after: AfterOthers<impl Future<Output = Result<Arc<Membership>, MembershipError>>>,
) -> Result<Response<wire::MembershipReply>, Status> {
    let changed = tokio::time::timeout(timeout_of(timeout_ms), after.change).await;
    let membership = changed
        .map_err(|_| match after.refused.lock().take() {
            Some(error) => of_membership(&error),
            None => Status::deadline_exceeded("the change continues; look at the members"),
        })?
        .map_err(|error| of_membership(&error))?;
    let membership = Some(membership_to_message(&membership));
    Ok(Response::new(wire::MembershipReply { membership }))
}

pub(super) fn requirement_of(message: log::Requirement) -> Result<Requirement, Status> {
    let names = message.capabilities;
    let asked = match message.soft {
        true if !names.is_empty() => Requirement::soft(names),
        _ => Requirement::hard(names),
    };
    asked.map_err(|error| of_capabilities(&error))
}

pub(super) fn with_step(
    change: MembershipChange,
    step: &wire::MembershipStep,
) -> Result<MembershipChange, Status> {
    let node = node_id(step.node)?;
    Ok(match step.kind() {
        StepKind::AddVoter => change.add_voter(node),
        StepKind::AddLearner => change.add_learner(node),
        StepKind::Promote => change.promote(node, caught_up(step)),
        StepKind::Demote => change.demote(node),
        StepKind::Remove => change.remove(node),
        StepKind::Unspecified => {
            let message = format!("this node knows no membership step {}", step.kind);
            return Err(Status::invalid_argument(message));
        }
    })
}

/// Entries that a learner may lack when nothing else is said.
const DEFAULT_MAX_LAG: u64 = 1_024;

fn caught_up(step: &wire::MembershipStep) -> CaughtUp {
    use wire::membership_step::CaughtUp as Wire;
    match step.caught_up {
        Some(Wire::AtLeast(index)) => CaughtUp::AtLeast(LogIndex::new(index)),
        Some(Wire::Unchecked(true)) => CaughtUp::Unchecked,
        Some(Wire::MaxLag(lag)) => CaughtUp::MaxLag(lag),
        _ => CaughtUp::MaxLag(DEFAULT_MAX_LAG),
    }
}
