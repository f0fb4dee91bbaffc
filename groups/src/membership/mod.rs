//! Changing the members of a group: which changes can be requested, whether they are possible, and
//! their encoding in the log. Pure; the leader proposes what is planned here.
//!
//! A change of one voter takes effect at once. A change of several goes through a joint
//! configuration, which needs a majority of the old and of the new voters (dissertation, section
//! 4.3); any leader leaves it.

mod entry;
mod error;
mod plan;

use shardhost_storage::{LogIndex, NodeId};

pub use error::MembershipError;

pub(crate) use entry::{ConfigEntry, decode_requirement, encode_requirement};
pub(crate) use plan::{Progress, check_expected, plan, plan_addition, voters_after};

/// Steps of one change at most.
pub const MAX_STEPS: usize = 32;

/// A change of a group's membership: one or more steps that take effect together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a change does nothing until it is given to `Group::change_membership`"]
pub struct MembershipChange {
    pub(crate) steps: Vec<Step>,
    pub(crate) expecting: Option<LogIndex>,
}

/// One step of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    AddVoter(NodeId),
    AddLearner(NodeId),
    Promote(NodeId, CaughtUp),
    Demote(NodeId),
    Remove(NodeId),
}

/// How much of the log a learner must have before it gets a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaughtUp {
    /// At most so many entries behind the leader's last.
    MaxLag(u64),
    /// At least everything up to this index, which is not 0.
    AtLeast(LogIndex),
    /// Requires only that the replica exists. A voter without the log counts for the quorum and
    /// cannot help to reach it: the group may have no quorum until it has caught up. One that lost its
    /// state, and not its log, helps to reach it, and cannot serve.
    Unchecked,
}

impl MembershipChange {
    /// A change without a step yet.
    pub const fn new() -> Self {
        Self { steps: Vec::new(), expecting: None }
    }
    /// Adds a voter on a node that holds no replica of the group: a learner first, that gets its
    /// vote when it has caught up, so that it never counts for a quorum that it cannot help to
    /// reach. Must be the only step of its change.
    pub fn add_voter(self, node: NodeId) -> Self {
        self.step(Step::AddVoter(node))
    }
    /// Adds a learner on a node that holds no replica of the group: it gets the log and has no
    /// vote.
    pub fn add_learner(self, node: NodeId) -> Self {
        self.step(Step::AddLearner(node))
    }
    /// Gives a learner a vote.
    pub fn promote(self, node: NodeId, when: CaughtUp) -> Self {
        self.step(Step::Promote(node, when))
    }
    /// Takes a voter's vote; it continues as a learner.
    pub fn demote(self, node: NodeId) -> Self {
        self.step(Step::Demote(node))
    }
    /// Removes the replica on a node. Its data goes when it learns of it.
    pub fn remove(self, node: NodeId) -> Self {
        self.step(Step::Remove(node))
    }
    /// Refuses the change unless the configuration is still the one of this index.
    pub const fn expecting(mut self, config_index: LogIndex) -> Self {
        self.expecting = Some(config_index);
        self
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// The nodes that this change adds to the group.
    pub fn added_nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.steps.iter().filter_map(|step| match step {
            Step::AddVoter(node) | Step::AddLearner(node) => Some(*node),
            _ => None,
        })
    }
}
