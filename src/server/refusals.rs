//! How refusals travel: a status for programs that only look at the code, the words of the error,
//! and its reason in `google.rpc.ErrorInfo` with what it is about.

use std::collections::HashMap;

use shardhost_groups::error::TakeSnapshotError;
use shardhost_groups::{
    LeaderHint, MembershipError, OpenGroupError, ProposeError, RejectReason, TransferError,
};
use shardhost_storage::CapabilityError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

const DOMAIN: &str = "shardhost";

/// A refusal as it travels.
pub(super) fn refusal(
    code: Code,
    reason: &str,
    message: impl ToString,
    facts: impl IntoIterator<Item = (&'static str, String)>,
) -> Status {
    let facts: HashMap<String, String> =
        facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let details = ErrorDetails::with_error_info(reason, DOMAIN, facts);
    Status::with_error_details(code, message.to_string(), details)
}

fn leader(hint: Option<&LeaderHint>) -> Vec<(&'static str, String)> {
    let known = hint.map(|hint| {
        [("leader_node", hint.node.to_string()), ("leader_term", hint.term.to_string())]
    });
    known.into_iter().flatten().collect()
}

/// A change of membership that was refused, or whose outcome is unknown.
pub(super) fn of_membership(error: &MembershipError) -> Status {
    use MembershipError as E;
    let (code, reason, facts) = match error {
        E::NotLeader { hint, .. } => (Code::Unavailable, "NOT_LEADER", leader(hint.as_ref())),
        E::NotServing { .. } => (Code::Unavailable, "NOT_SERVING", vec![]),
        E::ConfigChangePending { index, .. } => {
            (Code::Aborted, "CONFIG_CHANGE_PENDING", vec![("index", index.to_string())])
        }
        E::TransferInProgress { to, .. } => {
            (Code::Aborted, "TRANSFER_IN_PROGRESS", vec![("to_node", to.to_string())])
        }
        E::WrongConfig { expected, actual, .. } => (
            Code::FailedPrecondition,
            "WRONG_CONFIG",
            vec![("expected", expected.to_string()), ("actual", actual.to_string())],
        ),
        E::LastVoter { .. } => (Code::FailedPrecondition, "LAST_VOTER", vec![]),
        E::IsLearner { node, .. } => named(Code::FailedPrecondition, "IS_LEARNER", node),
        E::IsVoter { node, .. } => named(Code::FailedPrecondition, "IS_VOTER", node),
        E::AlreadyMember { node, .. } => named(Code::AlreadyExists, "ALREADY_MEMBER", node),
        E::NotMember { node, .. } => named(Code::NotFound, "NOT_MEMBER", node),
        E::NotVoter { node, .. } => named(Code::FailedPrecondition, "NOT_VOTER", node),
        E::NotLearner { node, .. } => named(Code::FailedPrecondition, "NOT_LEARNER", node),
        E::Behind { needed, matched, .. } => (
            Code::FailedPrecondition,
            "BEHIND",
            vec![("needed", needed.to_string()), ("matched", matched.to_string())],
        ),
        E::LacksState { node, .. } => named(Code::FailedPrecondition, "LACKS_STATE", node),
        E::NoMinimum { .. } => (Code::InvalidArgument, "NO_MINIMUM", vec![]),
        E::NoQuorum { live, needed, .. } => (
            Code::FailedPrecondition,
            "NO_QUORUM",
            vec![("live", live.to_string()), ("needed", needed.to_string())],
        ),
        E::NoQuorumAfter { live, needed, .. } => (
            Code::FailedPrecondition,
            "NO_QUORUM_AFTER",
            vec![("live", live.to_string()), ("needed", needed.to_string())],
        ),
        E::NoStateAfter { .. } => (Code::FailedPrecondition, "NO_STATE_AFTER", vec![]),
        E::AdditionInProgress { node, .. } => named(Code::Aborted, "ADDITION_IN_PROGRESS", node),
        E::NothingToCancel { .. } => (Code::FailedPrecondition, "NOTHING_TO_CANCEL", vec![]),
        E::Cancelled { node, .. } => named(Code::Aborted, "CANCELLED", node),
        E::NobodyFit { .. } => (Code::FailedPrecondition, "NOBODY_FIT", vec![]),
        E::Refused { node, .. } => named(Code::PermissionDenied, "REFUSED_BY_HOOK", node),
        E::Impossible { .. } => (Code::InvalidArgument, "IMPOSSIBLE", vec![]),
        E::Replaced { .. } => (Code::Aborted, "REPLACED", vec![]),
        E::Superseded { .. } => (Code::Aborted, "SUPERSEDED", vec![]),
        E::Busy { .. } => (Code::ResourceExhausted, "OVERLOADED", vec![]),
        E::Stopped { .. } => (Code::Unavailable, "STOPPED", vec![]),
        E::Faulted { .. } => (Code::Internal, "GROUP_FAILED", vec![]),
        // Also whatever is added later: what is not known to be definite is not.
        _ => (Code::DeadlineExceeded, "OUTCOME_UNKNOWN", vec![]),
    };
    refusal(code, reason, explained(error), facts)
}

/// The error, and where it is shown which replicas take no part.
fn explained(error: &MembershipError) -> String {
    use MembershipError as E;
    match error {
        E::NoQuorum { group, .. } | E::NoQuorumAfter { group, .. } | E::Behind { group, .. } => {
            format!(
                "{error}; `shardhost group show {group}` shows the replicas, and `shardhost status` why one takes no \
                 part"
            )
        }
        _ => error.to_string(),
    }
}

type Refusal = (Code, &'static str, Vec<(&'static str, String)>);

fn named(code: Code, reason: &'static str, node: &shardhost_storage::NodeId) -> Refusal {
    (code, reason, vec![("node", node.to_string())])
}

/// A transfer that did not take place; its reason is one of those that every part names alike.
pub(super) fn of_transfer(error: &TransferError) -> Status {
    refusal(code_of(error.reason()), error.reason().name(), error, facts_of(error))
}

/// Unavailable: ask elsewhere; aborted: ask again; else something has to change first.
const fn code_of(reason: RejectReason) -> Code {
    use RejectReason as R;
    match reason {
        R::NotLeader | R::Stopped => Code::Unavailable,
        R::NoCandidates => Code::InvalidArgument,
        R::Faulted => Code::Internal,
        R::Silent | R::Aborted | R::NoAnswer | R::TransferInProgress | R::ConfigChangePending => {
            Code::Aborted
        }
        _ => Code::FailedPrecondition,
    }
}

/// What a transfer that did not take place is about.
fn facts_of(error: &TransferError) -> Vec<(&'static str, String)> {
    use TransferError as E;
    match error {
        E::NotLeader { hint, .. } => leader(hint.as_ref()),
        E::TargetNotCaughtUp { node, lag, max_lag, .. } => vec![
            ("node", node.to_string()),
            ("lag", lag.to_string()),
            ("max_lag", max_lag.to_string()),
        ],
        E::AlreadyLeads { node, .. }
        | E::NoVoter { node, .. }
        | E::TargetNotLive { node, .. }
        | E::TargetUnfit { node, .. }
        | E::TargetDraining { node, .. }
        | E::TargetSnapshotting { node, .. }
        | E::TargetRefused { node, .. }
        | E::TargetSilent { node, .. }
        | E::InProgress { to: node, .. }
        | E::Aborted { to: node, .. } => vec![("node", node.to_string())],
        _ => vec![],
    }
}

/// A command that did not take effect, or may have.
pub(super) fn of_proposal(error: &ProposeError) -> Status {
    let (code, reason, facts) = match error {
        ProposeError::NotLeader { hint, .. } => {
            (Code::Unavailable, "NOT_LEADER", leader(hint.as_ref()))
        }
        ProposeError::Faulted { .. } => (Code::Internal, "GROUP_FAILED", vec![]),
        definite if definite.is_definite() => (Code::Unavailable, "REFUSED", vec![]),
        _ => (Code::DeadlineExceeded, "OUTCOME_UNKNOWN", vec![]),
    };
    refusal(code, reason, error, facts)
}

/// Names of capabilities that are none, or too many of them.
pub(super) fn of_capabilities(error: &CapabilityError) -> Status {
    refusal(Code::InvalidArgument, "BAD_CAPABILITY", error, [])
}

/// A replica that could not be created or removed.
pub(super) fn of_opening(error: &OpenGroupError) -> Status {
    use OpenGroupError as E;
    let (code, reason) = match error {
        E::AlreadyOpen { .. } | E::Exists { .. } => (Code::AlreadyExists, "GROUP_EXISTS"),
        E::Unknown { .. } => (Code::NotFound, "GROUP_NOT_FOUND"),
        E::Invalid { .. } => (Code::InvalidArgument, "INVALID_GROUP"),
        E::Busy { .. } => (Code::Unavailable, "GROUP_BUSY"),
        E::OtherGeneration { .. } => (Code::FailedPrecondition, "OTHER_GENERATION"),
        E::OtherReplica { .. } => (Code::FailedPrecondition, "OTHER_REPLICA"),
        E::StateRemains { .. } => (Code::Unavailable, "STATE_REMAINS"),
        E::Stopping => (Code::Unavailable, "STOPPED"),
        _ => (Code::Internal, "GROUP_FAILED"),
    };
    refusal(code, reason, error, [])
}

/// A snapshot that was not taken.
pub(super) fn of_snapshot(error: &TakeSnapshotError) -> Status {
    use TakeSnapshotError as E;
    let (code, reason) = match error {
        E::Busy { .. } => (Code::ResourceExhausted, "OVERLOADED"),
        E::Stopped { .. } => (Code::Unavailable, "STOPPED"),
        _ => (Code::Internal, "SNAPSHOT_FAILED"),
    };
    refusal(code, reason, error, [])
}

#[cfg(test)]
mod tests {
    use shardhost_groups::{GroupId, LogIndex};

    use super::*;

    #[test]
    fn a_failed_expectation_names_both_sides_in_words_and_for_programs() {
        let (group, expected, actual) = (GroupId::new(7), LogIndex::new(4), LogIndex::new(9));
        let status = of_membership(&MembershipError::WrongConfig { group, expected, actual });
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains('4') && status.message().contains('9'));
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(info.reason, "WRONG_CONFIG");
        assert_eq!((&*info.metadata["expected"], &*info.metadata["actual"]), ("4", "9"));
    }

    #[test]
    fn a_change_that_lacks_replicas_says_where_they_are_shown() {
        let (group, node) = (GroupId::new(7), shardhost_storage::NodeId::must(2));
        let (needed, matched) = (LogIndex::new(4), LogIndex::default());
        for error in [
            MembershipError::NoQuorum { group, live: 1, needed: 2 },
            MembershipError::NoQuorumAfter { group, live: 1, needed: 2 },
            MembershipError::Behind { group, node, needed, matched },
        ] {
            let message = of_membership(&error).message().to_owned();
            for words in ["although", "may", "group show 7", "shardhost status"] {
                assert!(message.contains(words), "{words}: {message}");
            }
        }
    }

    fn reason_of(status: &Status) -> String {
        status.get_error_details().error_info().unwrap().reason.clone()
    }

    #[test]
    fn a_transfer_that_did_not_take_place_travels_with_its_name_words_and_node() {
        let (group, node) = (GroupId::new(7), shardhost_storage::NodeId::must(2));
        let after = std::time::Duration::from_secs(1);
        let (reason, words) = (RejectReason::PolicyDeclined, "node 2 has no GPU".to_owned());
        let refusals = [
            (TransferError::TargetRefused { group, node, reason, words }, "POLICY_DECLINED"),
            (TransferError::TargetDraining { group, node }, "DRAINING"),
            (TransferError::TargetSnapshotting { group, node }, "SNAPSHOTTING"),
            (TransferError::TargetSilent { group, node, after }, "SILENT"),
            (TransferError::TargetNotLive { group, node }, "NOT_LIVE"),
            (TransferError::NoVoter { group, node }, "NOT_VOTER"),
        ];
        for (error, name) in &refusals {
            let status = of_transfer(error);
            assert_eq!((status.message(), &*reason_of(&status)), (&*error.to_string(), *name));
            assert_eq!(status.get_error_details().error_info().unwrap().metadata["node"], "2");
        }
    }

    #[test]
    fn only_what_may_go_well_without_a_change_is_called_aborted() {
        for reason in RejectReason::ALL {
            let again = code_of(*reason) == Code::Aborted;
            assert!(!again || reason.passes_by_itself(), "{}", reason.name());
        }
    }

    #[test]
    fn a_requirement_that_nobody_meets_is_a_precondition_that_failed() {
        let group = GroupId::new(7);
        let lacking = "node 1 lacks fifo".to_owned();
        let status = of_membership(&MembershipError::NobodyFit { group, reason: lacking });
        assert_eq!(
            (status.code(), reason_of(&status)),
            (Code::FailedPrecondition, "NOBODY_FIT".into())
        );
        assert!(status.message().contains("node 1 lacks fifo"));
    }

    #[test]
    fn what_may_still_take_effect_is_not_called_refused() {
        let (group, cause) = (GroupId::new(7), shardhost_groups::UnknownCause::Timeout);
        let status = of_membership(&MembershipError::Unknown { group, cause });
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let reason = status.get_error_details().error_info().unwrap().reason.clone();
        assert_eq!(reason, "OUTCOME_UNKNOWN");
    }
}
