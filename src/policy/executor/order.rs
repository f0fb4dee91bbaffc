//! What a host is told to do, and how that ended. Data only.

use std::fmt;

use serde::{Deserialize, Serialize};
use shardhost_storage::{GroupId, NodeId};

use crate::policy::planner::Tier;
use crate::policy::planner::ids;

/// The term of the system group in which a planner leads. A later planner has a larger one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch of a term of the system group.
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

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one order among all that were ever given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ticket {
    /// Whose order it is.
    pub epoch: Epoch,
    /// Counts the orders of the epoch from 1.
    pub number: u64,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.number)
    }
}

/// One leadership that its leader's host is to hand over, at once or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its name.
    pub ticket: Ticket,
    /// Which group.
    #[serde(with = "ids::group")]
    pub group: GroupId,
    /// Who leads it, and gets the order.
    #[serde(with = "ids::node")]
    pub from: NodeId,
    /// Who should lead it.
    #[serde(with = "ids::node")]
    pub to: NodeId,
    /// The life of the target that the plan was made for.
    pub to_incarnation: u64,
    /// The term in which `from` leads. In another term the order is void.
    pub term: u64,
    /// What it improves.
    pub tier: Tier,
    /// Orders of one plan with the same number stand and fall together.
    pub bundle: u32,
}

/// How an order ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The target is known to lead.
    Moved {
        /// How long the group took no writes, in milliseconds.
        stalled_ms: u64,
    },
    /// The leadership was not handed over.
    Failed {
        /// Why not.
        reason: FailReason,
    },
    /// No answer came. The leadership may have moved, or may still move.
    Unknown,
}

/// Why a leadership was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailReason {
    /// The order did not fit the host's present: another term, another leader, another life of
    /// the target, an older planner. Nobody's fault; the next round knows better.
    Void,
    /// The kill switch is set where the leader is.
    Stopped,
    /// The group changes its members, or another transfer of it is under way.
    Busy,
    /// The target, or a policy, refuses.
    Refused,
    /// The target lacks entries, or receives a snapshot.
    Behind,
    /// The target did not answer the question.
    TargetSilent,
    /// The transfer began, and was ended because the group stood still for too long.
    Aborted,
    /// The leader's host could not be reached, or knows no orders.
    Unreachable,
    /// No answer came in time.
    NoAnswer,
}

impl fmt::Display for FailReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Void => "the order did not fit the present any more",
            Self::Stopped => "planned moves are stopped on the leader's host",
            Self::Busy => "the group was busy with a change or another transfer",
            Self::Refused => "the target refused",
            Self::Behind => "the target was not caught up",
            Self::TargetSilent => "the target did not answer",
            Self::Aborted => "the transfer took too long and was ended",
            Self::Unreachable => "the leader's host could not be reached",
            Self::NoAnswer => "the leader's host did not answer in time",
        })
    }
}

/// Whose fault an ending is, as far as pace is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    /// Says nothing about how busy or how well anybody is.
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

impl FailReason {
    pub(super) const fn verdict(self) -> Verdict {
        match self {
            Self::Void | Self::Stopped | Self::Busy | Self::Refused | Self::Behind => {
                Verdict::Neutral
            }
            Self::TargetSilent => Verdict::Bad(Blame::Receiver),
            Self::Aborted => Verdict::Bad(Blame::Both),
            Self::Unreachable | Self::NoAnswer => Verdict::Bad(Blame::Giver),
        }
    }

    /// Whether the same target is left alone for a while. Where the order was void the next round
    /// sees another picture, and an unreachable giver says nothing about the target.
    pub(super) const fn mutes(self) -> bool {
        !matches!(self, Self::Void | Self::Unreachable)
    }
}
