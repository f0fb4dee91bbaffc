//! The errors of a group for a client: what it may do next, and which node to ask.

use shardhost_groups::error::QueryError;
use shardhost_groups::{LeaderHint, ProposalRejection, ProposeError, ReadError};
use shardhost_proto::client::{Failure, FailureReason};
use shardhost_storage::GroupId;

use super::GroupLookup;
use super::directory::tag_of;
use shardhost_proto::shard_map::ShardMap;

/// A failure without a leader to ask.
pub(super) fn failure(reason: FailureReason, message: impl ToString) -> Failure {
    Failure { reason: reason.into(), message: message.to_string(), ..Failure::default() }
}

/// This host has no replica of the group, or one of another kind.
pub(super) fn unknown_group(group: GroupId, kind: &str) -> Failure {
    let message = format!("this node serves no {kind} shard in group {group}");
    failure(FailureReason::UnknownGroup, message)
}

/// The request follows from another map of shards than the one that this node uses, if it knows one.
pub(super) fn wrong_map(map: Option<&ShardMap>) -> Failure {
    let message = match map {
        Some(map) => format!("the request is for another map of shards; the cluster has {map}"),
        None => "this node has not read the map of shards from the catalog yet".to_owned(),
    };
    Failure { map: map.map(tag_of), ..failure(FailureReason::WrongMap, message) }
}

/// A write was not acknowledged.
pub(super) fn of_proposal(error: &ProposeError, lookup: &dyn GroupLookup) -> Failure {
    let reason = match error {
        // Another entry took its place, or the host is going: the next leader takes it.
        ProposeError::NotLeader { .. } | ProposeError::Superseded { .. } => {
            FailureReason::NotLeader
        }
        ProposeError::Rejected { reason, .. } => of_rejection(reason),
        ProposeError::Faulted { .. } => FailureReason::GroupFailed,
        // Also whatever is added later: what is not known to be definite is not.
        _ => FailureReason::OutcomeUnknown,
    };
    with_leader(failure(reason, error), error.leader_hint(), lookup)
}

const fn of_rejection(reason: &ProposalRejection) -> FailureReason {
    match reason {
        ProposalRejection::Busy | ProposalRejection::Paused => FailureReason::Overloaded,
        ProposalRejection::NotServing(_) => FailureReason::NotServing,
        ProposalRejection::Failed(_) => FailureReason::GroupFailed,
        ProposalRejection::TooLarge { .. } | ProposalRejection::Empty => FailureReason::Invalid,
        // Stopping, a term that passed, and what is added later: all definite, try elsewhere.
        _ => FailureReason::NotLeader,
    }
}

/// A write took effect, or was found not to apply, and its answer is too long for the memory that is left.
pub(super) fn unanswered(reason: FailureReason) -> Failure {
    let text = "the answer is too long for what this node may keep for its clients now; take fewer \
                answers at once, and read them";
    failure(reason, text)
}

/// A read found no place.
pub(super) fn too_many_reads() -> Failure {
    let text = "reads of this group wait for its state machine, and it may have no more";
    failure(FailureReason::Overloaded, text)
}

/// A read was not answered.
pub(super) fn of_read(error: &ReadError, lookup: &dyn GroupLookup) -> Failure {
    let (reason, hint) = match error {
        ReadError::NotLeader { hint, .. } => (FailureReason::NotLeader, hint.as_ref()),
        ReadError::NotServing { .. } => (FailureReason::NotServing, None),
        ReadError::Transferring { .. } => (FailureReason::Transferring, None),
        ReadError::Unconfirmed { .. } | ReadError::Stopped { .. } => {
            (FailureReason::NotLeader, None)
        }
        ReadError::Faulted { .. } | ReadError::Query(QueryError::Failed(_)) => {
            (FailureReason::GroupFailed, None)
        }
        ReadError::Query(QueryError::TooMuch(_)) => (FailureReason::Overloaded, None),
        ReadError::Query(_) => (FailureReason::Invalid, None),
        // Busy, a slow machine, and what is added later: a read may always be asked again.
        _ => (FailureReason::Overloaded, None),
    };
    with_leader(failure(reason, error), hint, lookup)
}

fn with_leader(
    mut failure: Failure,
    hint: Option<&LeaderHint>,
    lookup: &dyn GroupLookup,
) -> Failure {
    if let Some(hint) = hint {
        failure.leader_node = hint.node.get();
        failure.leader_address = lookup.address(hint.node).unwrap_or_default();
    }
    failure
}
