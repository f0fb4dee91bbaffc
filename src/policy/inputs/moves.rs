//! How a planner's order is judged where it is executed, and what the executor makes of its
//! outcome.

use std::time::Duration;

use shardhost_groups::{GroupStatus, RejectReason};

use crate::executor::{MoveOutcome, OrderRefusal, Standing};

/// Entries that a target may lack when it is asked.
pub const MAX_LAG: u64 = 1_024;
/// A transfer that takes longer is left to itself: the planner learns from reports how it ended.
pub const LONGEST: Duration = Duration::from_secs(8);

/// The state of a group here, for the fence.
#[must_use]
pub fn standing_of(status: &GroupStatus, target_incarnation: Option<u64>) -> Standing {
    Standing { term: status.term.get(), leads: status.is_leader(), target_incarnation }
}

/// Why an order is not tried.
#[must_use]
pub const fn reason_of(refusal: &OrderRefusal) -> RejectReason {
    match refusal {
        OrderRefusal::StalePlannerTerm { .. } | OrderRefusal::ImpossiblePlannerTerm { .. } => {
            RejectReason::StalePlanner
        }
        OrderRefusal::Stopped { .. } => RejectReason::KillSwitch,
        OrderRefusal::NotLeader => RejectReason::NotLeader,
        _ => RejectReason::StaleTerm,
    }
}

/// An outcome, as the executor takes it.
#[must_use]
pub fn outcome_of(outcome: Result<Duration, (RejectReason, String)>) -> MoveOutcome {
    match outcome {
        Ok(stalled) => MoveOutcome::Moved {
            stalled_ms: u64::try_from(stalled.as_millis()).unwrap_or(u64::MAX),
        },
        Err((RejectReason::NoAnswer, _)) => MoveOutcome::Unknown,
        Err((reason, _)) => MoveOutcome::Failed { reason },
    }
}
