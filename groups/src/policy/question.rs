//! What a policy is asked, and what it may say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use shardhost_storage::{GroupId, NodeId, Requirement, RequirementMode, Term};

use super::{CapabilityPolicy, HealthPolicy, RejectReason};
use crate::worker::Impairment;

/// Says who may lead.
///
/// Registered for one group, for those with a label, or for all: see
/// [`crate::Groups::register_policy`]. Of several policies the strictest answer counts. A policy
/// must answer alike as long as it is not told of something else: after a change of heart, ask for
/// [`crate::Group::reevaluate`].
pub trait LeadershipPolicy: fmt::Debug + Send + Sync + 'static {
    /// One word for people: statuses, errors and counters show it.
    fn name(&self) -> &'static str;

    /// Whether the node may lead the group, as far as can be told here.
    ///
    /// Asked before this node stands for election or takes a leadership over, and of this node
    /// and others whenever a leader looks at who could follow it, a voter is asked whether an
    /// election could be won, or what is known of nodes changed. Called on Raft threads: must not
    /// block. One that panics is taken to know nothing.
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
    /// The group.
    pub group: GroupId,
    /// The node.
    pub node: NodeId,
    /// It is the node that the policy runs on.
    pub is_here: bool,
    /// What the group asks of its leader.
    pub requirement: &'a Requirement,
    /// Words about the group.
    pub labels: &'a BTreeMap<String, String>,
    /// Name of the kind of its state machine.
    pub kind: &'a str,
    /// What the node said it has; `None`: it did not say.
    pub capabilities: Option<&'a BTreeSet<String>>,
    /// Why the node should lead nothing for now, if it said so; of the node that the policy runs on
    /// also why its replica should not.
    pub impaired: Option<&'a Impairment>,
}

/// What a policy makes of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// It may lead.
    Fit,
    /// Not enough is known: not chosen before those that are known to be fit, and no reason to
    /// leave.
    Unknown,
    /// It should not lead.
    Unfit(Unfit),
}

/// What one policy makes of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicyOpinion {
    /// The policy.
    pub policy: &'static str,
    /// What it says.
    pub opinion: Opinion,
}

/// Why a node should not lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// The policy that says so.
    pub policy: &'static str,
    /// Hard: if it leads all the same, it serves nobody. Soft: it serves until another takes over.
    pub mode: RequirementMode,
    /// For people.
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

    /// Whether it says that the node should not lead.
    #[must_use]
    pub const fn is_unfit(&self) -> bool {
        matches!(self, Self::Unfit(_))
    }
}

/// A leadership that this node acquired.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Acquisition {
    /// The group.
    pub group: GroupId,
    /// The term that was won.
    pub term: Term,
    /// What the group asks of its leader.
    pub requirement: Requirement,
    /// Words about the group.
    pub labels: BTreeMap<String, String>,
    /// Name of the kind of its state machine.
    pub kind: String,
    /// The nodes with a vote.
    pub voters: Vec<NodeId>,
}

/// What is to become of a leadership that was acquired.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// Serve.
    Serve,
    /// Lead, but serve nobody, for this reason. Members can be changed and leadership moved.
    Caretaker(String),
    /// Hand it to the first of these nodes that is fit, or to any that is when none is named.
    /// Until then serve nobody.
    Decline {
        /// Why, for people.
        reason: String,
        /// Whom to try, in order.
        targets: Vec<NodeId>,
    },
}
