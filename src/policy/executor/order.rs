//! An order to a host, and its outcome. Data only.

use std::fmt;

use serde::{Deserialize, Serialize};
use shardhost_groups::RejectReason;
use shardhost_storage::{GroupId, NodeId};

use crate::planner::{Tier, ids};

/// The term of the system group in which a planner leads. A later planner has a larger one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct PlannerTerm(u64);

impl PlannerTerm {
    /// The planner term of a term of the system group.
    #[must_use]
    pub const fn new(term: u64) -> Self {
        Self(term)
    }

    /// The term.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for PlannerTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one order among all that were ever given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ticket {
    pub planner_term: PlannerTerm,
    /// Counts the orders of the planner term from 1.
    pub number: u64,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.planner_term, self.number)
    }
}

/// One leadership that its leader's host is to hand over, at once or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub ticket: Ticket,
    #[serde(with = "ids::group")]
    pub group: GroupId,
    /// Who leads it, and gets the order.
    #[serde(with = "ids::node")]
    pub from: NodeId,
    #[serde(with = "ids::node")]
    pub to: NodeId,
    /// The life of the target that the plan was made for.
    pub to_incarnation: u64,
    /// The term in which `from` leads. In another term the order is void.
    pub term: u64,
    pub tier: Tier,
    /// Orders of one plan with the same number belong together: all or none.
    pub bundle: u32,
}

/// How an order ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveOutcome {
    /// The target is known to lead.
    Moved {
        /// How long the group took no writes, in milliseconds.
        stalled_ms: u64,
    },
    /// The leadership was not handed over.
    Failed { reason: RejectReason },
    /// No answer came. The leadership may have moved, or may still move.
    Unknown,
}

/// Whose fault an outcome is, as far as pace is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    /// No information about how busy or healthy any node is.
    Neutral,
    Bad(Blame),
}

/// Which end may be at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    Giver,
    Receiver,
    Both,
}

/// What an outcome with this reason means for the pace.
pub(super) const fn verdict(reason: RejectReason) -> Verdict {
    match reason {
        RejectReason::Silent | RejectReason::NotLive => Verdict::Bad(Blame::Receiver),
        RejectReason::Aborted => Verdict::Bad(Blame::Both),
        RejectReason::LeaderUnreachable | RejectReason::NoAnswer => Verdict::Bad(Blame::Giver),
        _ => Verdict::Neutral,
    }
}

/// Whether the same target gets a back-off. Where the order did not fit the present state the next
/// pass sees another snapshot, and an unreachable source means nothing for the target.
pub(super) const fn back_offs(reason: RejectReason) -> bool {
    !matches!(
        reason,
        RejectReason::StaleTerm
            | RejectReason::StalePlanner
            | RejectReason::NotLeader
            | RejectReason::AlreadyLeads
            | RejectReason::Stopped
            | RejectReason::Faulted
            | RejectReason::LeaderUnreachable
    )
}
