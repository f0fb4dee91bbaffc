//! One change of the members of a group, why it is made, and why one cannot be made.

use std::fmt;

use shardhost_storage::{GroupId, NodeId};

/// What becomes of the members of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A member on `new` takes the place of the one on `old`, with a vote if that one has one.
    Replace { old: NodeId, new: NodeId },
    /// The same for a learner of a group that has so many: the one on `old` goes when the other one holds what it
    /// held.
    ReplaceLearner { old: NodeId, new: NodeId, has: u32 },
    /// A member more, of a group that is to have so many of its kind.
    Add { new: NodeId, learner: bool, wanted: u32 },
    /// A member fewer, of a group that is to have so many of its kind.
    Remove { old: NodeId, learner: bool, wanted: u32 },
}

impl Step {
    /// The node whose replica goes.
    #[must_use]
    pub const fn old(self) -> Option<NodeId> {
        match self {
            Self::Replace { old, .. }
            | Self::ReplaceLearner { old, .. }
            | Self::Remove { old, .. } => Some(old),
            Self::Add { .. } => None,
        }
    }
    /// The node that gets a replica.
    #[must_use]
    pub const fn new_node(self) -> Option<NodeId> {
        match self {
            Self::Replace { new, .. }
            | Self::ReplaceLearner { new, .. }
            | Self::Add { new, .. } => Some(new),
            Self::Remove { .. } => None,
        }
    }
}

/// Why a replica moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its node is gone.
    Gone,
    /// Its group has fewer replicas than its rule asks for.
    Missing,
    /// Its group has more replicas than its rule asks for.
    Excess,
    /// The rule of its group does not allow its node.
    Rule,
    /// Its group has another member in the same zone.
    Zone,
    /// Its node holds more replicas than others.
    Count,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "its node is gone",
            Self::Missing => "the group has fewer replicas than its rule asks for",
            Self::Excess => "the group has more replicas than its rule asks for",
            Self::Rule => "the rule of the group does not allow its node",
            Self::Zone => "its zone has another replica of the group",
            Self::Count => "its node holds more replicas than others",
        })
    }
}

/// Why a replica that is needed elsewhere has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Every other node that answers holds a replica of the group.
    NoOtherNode,
    /// Those that hold none are being drained, or are impaired.
    Closed,
    /// Those that hold none are not allowed by the rule of the group, or its leader could not be there.
    Ruled,
    /// Changes to those that hold none did not end, or were given up.
    Avoided,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoOtherNode => "every other node that answers holds a replica of it; add a node",
            Self::Closed => {
                "the other nodes are drained, or impaired (`shardhost status` says why); end a drain, mend what impairs \
                 them, or add a node"
            }
            Self::Ruled => {
                "its rule allows no other node that has what its leader needs; change the rule (`shardhost replicas \
                 rule list`), or add a node"
            }
            Self::Avoided => {
                "changes to the other nodes did not end or were given up; they are tried again within an hour"
            }
        })
    }
}

/// A change of the members of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub group: GroupId,
    pub step: Step,
    pub reason: Reason,
    /// The group outlives no further loss: it does not wait for the turns of those that move between nodes that
    /// run.
    pub urgent: bool,
    /// A node whose replica was begun and did not come: that addition is given up.
    pub instead_of: Option<NodeId>,
}

/// A change that is to be made, and what its outcome is booked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// No other order of the same allocator has it.
    pub ticket: u64,
    pub change: Change,
}
