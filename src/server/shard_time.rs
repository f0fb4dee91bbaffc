//! An operator moves the time of a queue shard forward.

use shardhost_groups::Group;
use tonic::{Code, Status};

use super::refusals::{of_proposal, refusal};
use crate::shards::queue::{MAX_TIME_MS, MAX_VISIBILITY_MS, QueueCommand};
use crate::shards::time::ShardTimes;
use shardhost_proto::shard_map::QUEUE_KIND;

/// Proposes a command that does nothing and carries a later time; returns that time. This host must
/// lead the group.
///
/// Never backwards: what a receipt or an id promises lasts at least as long as was said.
pub(super) async fn advance(group: &Group, times: &ShardTimes, by_ms: u64) -> Result<u64, Status> {
    if group.kind() != QUEUE_KIND {
        let message =
            format!("group {} is a {}: only a queue has a time", group.id(), group.kind());
        return Err(refusal(Code::FailedPrecondition, "NO_QUEUE", message, []));
    }
    if !(1..=MAX_VISIBILITY_MS).contains(&by_ms) {
        let message = format!("the time moves by 1 to {MAX_VISIBILITY_MS} ms, not by {by_ms}");
        return Err(Status::invalid_argument(message));
    }
    let time_ms = times.now_ms(group.id()).saturating_add(by_ms);
    if time_ms > MAX_TIME_MS {
        let message = "the time of the shard is at its end: the year 9999";
        return Err(refusal(Code::FailedPrecondition, "END_OF_TIME", message, []));
    }
    let command = QueueCommand::ack(time_ms, std::iter::empty());
    group.propose(command).await.map_err(|error| of_proposal(&error))?;
    Ok(time_ms)
}
