//! Groups as they are meant to be, and the ends of those that are gone.

use std::fmt;

use shardhost_groups::GroupSpec;
use shardhost_storage::{GroupId, LogIndex, NodeId, Requirement, RequirementMode};

use super::super::name::Name;
use super::Revision;

/// Whether a group is meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    Active,
    Destroying,
}

/// A word on a group, for selectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub key: Name,
    /// At most [`MAX_LABEL_BYTES`](super::super::MAX_LABEL_BYTES).
    pub value: Box<str>,
}

/// Where a leader is wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Node(NodeId),
    /// On any node of this zone.
    Zone(Name),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Zone(zone) => write!(f, "zone {zone}"),
        }
    }
}

/// Where the leader of a group is wanted. The default is: anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The first is the best; places that are not listed come after all of them.
    pub preference: Box<[Place]>,
    /// The node that is to lead.
    pub pin: Option<NodeId>,
    /// Leaders of groups with the same word are spread over zones.
    pub spread: Option<Name>,
}

/// The members of a group, as its leader last reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The configuration's index in the group's log. Larger is later.
    pub config_index: LogIndex,
    pub nodes: Box<[NodeId]>,
    /// Those of them whose member is the one that the group was created with, in ascending order;
    /// `None`: not reported.
    pub founding: Option<Box<[NodeId]>>,
    /// Those of them that have no vote, in ascending order; `None`: not reported. From version 3 of the
    /// cluster on.
    pub learners: Option<Box<[NodeId]>>,
}

impl Members {
    /// Whether this may follow `last`: it is later, equal, or adds to the same configuration what
    /// `last` lacks.
    #[must_use]
    pub fn supersedes(&self, last: &Self) -> bool {
        let more = self.config_index == last.config_index
            && self.nodes == last.nodes
            && (last.founding.is_none() || last.learners.is_none() && self.learners.is_some());
        self == last || more || self.config_index > last.config_index
    }
}

/// A group as it is meant to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    pub id: GroupId,
    pub revision: Revision,
    /// The revision that created this life.
    pub founded: Revision,
    /// How many lives it had before.
    pub incarnation: u32,
    /// Its lives from this one up to `incarnation`, exclusive, ended by order of the catalog.
    pub ended_from: u32,
    /// Whether it is meant to be.
    pub state: GroupState,
    /// The kind of its state machine.
    pub kind: Name,
    /// The nodes that create it, in ascending order. Who belongs to it later, the group itself
    /// decides.
    pub founders: Box<[NodeId]>,
    /// Given when it is created, and the same on every replica: they never change.
    pub labels: Box<[Label]>,
    /// What it asks of its leader, in ascending order. See [`GroupRecord::requirement`].
    pub capabilities: Box<[Name]>,
    pub mode: RequirementMode,
    /// Where its leader is wanted; `None`: anywhere.
    pub placement: Option<Box<Placement>>,
    /// `None`: the initial members, as far as reported.
    pub reported: Option<Box<Members>>,
}

impl GroupRecord {
    /// What it asks of its leader.
    #[must_use]
    pub fn requirement(&self) -> Requirement {
        let capabilities = self.capabilities.iter().map(|name| name.as_str().to_owned()).collect();
        Requirement { capabilities, mode: self.mode }
    }

    /// The members, as far as reported, in ascending order.
    #[must_use]
    pub fn members(&self) -> &[NodeId] {
        self.reported.as_ref().map_or(&self.founders, |members| &members.nodes)
    }

    /// Whether a node is a member, as far as reported.
    #[must_use]
    pub fn has_member(&self, node: NodeId) -> bool {
        self.members().binary_search(&node).is_ok()
    }

    /// The members that the group was created with, as far as reported, in ascending order; `None`:
    /// the members changed, and it was not reported which.
    #[must_use]
    pub fn founding_members(&self) -> Option<&[NodeId]> {
        match &self.reported {
            None => Some(&self.founders),
            Some(members) => members.founding.as_deref(),
        }
    }

    /// The members without a vote, as far as reported, in ascending order; `None`: the members changed, and
    /// it was not reported which of them have one.
    #[must_use]
    pub fn learners(&self) -> Option<&[NodeId]> {
        match &self.reported {
            None => Some(&[]),
            Some(members) => members.learners.as_deref(),
        }
    }

    /// The record from which initial members create it. It includes the first requirement; the
    /// leader updates members that came late.
    #[must_use]
    pub fn spec(&self) -> GroupSpec {
        let mut spec = GroupSpec::new(self.id, self.founders.iter().copied())
            .incarnation(self.incarnation)
            .kind(self.kind.as_str());
        spec.membership.requirement = self.requirement();
        self.labels.iter().fold(spec, |spec, label| spec.label(label.key.as_str(), &*label.value))
    }
}

/// A destroyed group. Kept so that its next generation gets a new number, and so that a host that
/// was away learns what to destroy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedGroup {
    pub id: GroupId,
    pub revision: Revision,
    /// Its lives from this one up to `next`, exclusive, ended by order of the catalog.
    pub first: u32,
    /// The number of its next life.
    pub next: u32,
}
