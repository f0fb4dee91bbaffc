//! The planner's answers under the names that all components use: the prediction for a target
//! equals the answer of the leader's eligibility check when the move is tried.

use shardhost_groups::RejectReason;

use super::explain::{Outcome, Stay};
use super::plan::DeferReason;
use super::target::TargetVerdict;

impl TargetVerdict {
    /// The cause by name; `None`: nothing speaks against it.
    #[must_use]
    pub const fn reason(&self) -> Option<RejectReason> {
        Some(match self {
            Self::Eligible => return None,
            Self::Warming => RejectReason::Warming,
            Self::UnknownCapabilities => RejectReason::UnknownCapabilities,
            Self::NotLive => RejectReason::NotLive,
            Self::Incapable => RejectReason::Incapable,
            Self::Draining => RejectReason::Draining,
            Self::Unfit => RejectReason::Unfit,
            Self::NoWeight => RejectReason::NoWeight,
            Self::LagUnknown => RejectReason::LagUnknown,
            Self::Lags { .. } => RejectReason::NotCaughtUp,
            Self::BackedOff { .. } => RejectReason::BackedOff,
        })
    }
}

impl DeferReason {
    /// The cause by name.
    #[must_use]
    pub const fn reason(self) -> RejectReason {
        match self {
            Self::RoundBudget => RejectReason::RoundBudget,
            Self::OutBudget => RejectReason::OutBudget,
            Self::InBudget => RejectReason::InBudget,
            Self::WaitsForOthers => RejectReason::WaitsForOthers,
        }
    }
}

impl Stay {
    /// The cause by name.
    #[must_use]
    pub const fn reason(&self) -> RejectReason {
        match self {
            Self::Optimal => RejectReason::Optimal,
            Self::Pinned => RejectReason::Pinned,
            Self::UnknownLeader => RejectReason::UnknownLeader,
            Self::LeaderNotLive => RejectReason::LeaderNotLive,
            Self::InFlight { .. } => RejectReason::TransferInProgress,
            Self::CoolDowns { .. } => RejectReason::Dwell,
            Self::NoTarget => RejectReason::NoTarget,
            Self::AllBackedOff { .. } => RejectReason::BackedOff,
            Self::Deferred { reason, .. } => reason.reason(),
            Self::WouldWorsen { .. } => RejectReason::WouldWorsen,
        }
    }
}

impl Outcome {
    /// Why the group is not moved, by name; `None`: it is.
    #[must_use]
    pub const fn reason(&self) -> Option<RejectReason> {
        match self {
            Self::Moves { .. } => None,
            Self::Stays(stay) => Some(stay.reason()),
        }
    }
}
