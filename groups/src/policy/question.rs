//! What a policy is asked, and what it may say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use shardhost_storage::{GroupId, NodeId, Requirement, RequirementMode, Term};

use super::{CapabilityPolicy, HealthPolicy, RejectReason};
use crate::nodes::Impairment;

/// Decides who may lead.
///
/// Registered for one group, for those with a label, or for all: see
/// [`crate::Groups::register_policy`]. Of several policies the strictest answer counts. A policy
/// must answer alike as long as its input is the same: when its answer changes for another reason,
/// call [`crate::Group::reevaluate`].
pub trait LeadershipPolicy: fmt::Debug + Send + Sync + 'static {
    /// One word for people: statuses, errors and counters show it.
    fn name(&self) -> &'static str;

    /// Whether the node may lead the group, as far as this host knows.
    ///
    /// Asked before this node campaigns or accepts a transfer, and about this node and others
    /// whenever a leader evaluates its successors, a voter evaluates whether an election could be
    /// won, or the knowledge of nodes changed. Called on Raft threads: must not block. One that
    /// panics counts as unknown.
    fn may_lead(&self, candidate: &Candidate<'_>) -> Opinion;

    /// Whether [`LeadershipPolicy::on_acquired`] is to be asked. Asking costs a change of threads
    /// before a group is served.
    fn asks_on_acquisition(&self) -> bool {
        false
    }

    /// This node was elected to lead the group. Nothing is served before the answer, or before
    /// the deadline ([`crate::GroupsConfig::admission_ticks`]): then the leader is a caretaker
    /// until the answer comes. Called on a thread that may block. One that panics is no answer.
    fn on_acquired(&self, acquired: &Acquisition) -> Decision {
        let _ = acquired;
        Decision::Serve
    }
}

/// A node that is to lead a group, perhaps.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Candidate<'a> {
    pub group: GroupId,
    pub node: NodeId,
    /// It is the node that the policy runs on.
    pub is_here: bool,
    /// What the group asks of its leader.
    pub requirement: &'a Requirement,
    pub labels: &'a BTreeMap<String, String>,
    /// Name of the kind of its state machine.
    pub kind: &'a str,
    /// The advertised capabilities of the node; `None`: not known.
    pub capabilities: Option<&'a BTreeSet<String>>,
    /// Why the node should lead nothing for now, if it advertised so; for the node that the policy
    /// runs on also why its replica should not.
    pub impaired: Option<&'a Impairment>,
}

/// What a policy makes of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opinion {
    Fit,
    /// Not enough is known: not chosen before those that are known to be fit, and no reason to
    /// leave.
    Unknown,
    Unfit(Unfit),
}

/// What one policy makes of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicyOpinion {
    pub policy: &'static str,
    pub opinion: Opinion,
}

/// Why a node should not lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// The policy that refuses.
    pub policy: &'static str,
    /// Hard: if it leads all the same, it serves no users. Soft: it serves until another takes
    /// over.
    pub mode: RequirementMode,
    pub reason: Arc<str>,
}

impl Unfit {
    /// The cause by name: what the group requires, the health of the node, or a policy of users.
    #[must_use]
    pub fn reject_reason(&self) -> RejectReason {
        if self.policy == CapabilityPolicy::NAME {
            RejectReason::Incapable
        } else if self.policy == HealthPolicy::NAME {
            RejectReason::Unfit
        } else {
            RejectReason::PolicyDeclined
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.reason, self.policy)
    }
}

impl Opinion {
    /// The stricter of two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if other.severity() > self.severity() { other } else { self }
    }

    const fn severity(&self) -> u8 {
        match self {
            Self::Fit => 0,
            Self::Unknown => 1,
            Self::Unfit(Unfit { mode: RequirementMode::Soft, .. }) => 2,
            Self::Unfit(Unfit { mode: RequirementMode::Hard, .. }) => 3,
        }
    }

    /// Whether the node should not lead.
    #[must_use]
    pub const fn is_unfit(&self) -> bool {
        matches!(self, Self::Unfit(_))
    }
}

/// A leadership that this node acquired.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Acquisition {
    pub group: GroupId,
    /// The term that was won.
    pub term: Term,
    /// What the group asks of its leader.
    pub requirement: Requirement,
    pub labels: BTreeMap<String, String>,
    /// Name of the kind of its state machine.
    pub kind: String,
    /// The nodes with a vote.
    pub voters: Vec<NodeId>,
}

/// The decision about an acquired leadership.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    Serve,
    /// Lead, but serve no users, for this reason. Members can be changed and leadership moved.
    Caretaker(String),
    /// Transfer it to the first of these nodes that is eligible, or to any eligible one when none
    /// is named. Until then serve no users.
    Decline {
        reason: String,
        /// The targets, in order.
        targets: Vec<NodeId>,
    },
}
