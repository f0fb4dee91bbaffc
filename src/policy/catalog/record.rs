//! What the catalog holds: settings, nodes, groups and drains, each with its revision.
//!
//! Plain data. Which changes are allowed is known in `state`, how it is written down in `convert`.

use std::fmt;
use std::sync::Arc;

use shardhost_groups::GroupSpec;
use shardhost_storage::{GroupId, LogIndex, NodeId, Requirement, RequirementMode};

use super::name::Name;

/// A number in the history of the catalog. Every change of a record takes the next one. Zero:
/// before the first; as an expectation, that there is no such record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

/// Names one drain of a node, for ever: the revision that began it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IntentId(Revision);

impl Revision {
    /// Wraps the number.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }
    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl IntentId {
    /// The drain that this revision began.
    #[must_use]
    pub const fn new(begun: Revision) -> Self {
        Self(begun)
    }
    /// The revision that began it.
    #[must_use]
    pub const fn begun(self) -> Revision {
        self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for IntentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One record of the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The settings; there is one record of them.
    Settings(Arc<Settings>),
    /// A node.
    Node(Arc<NodeRecord>),
    /// A group.
    Group(Arc<GroupRecord>),
    /// A group that is gone.
    Ended(EndedGroup),
    /// The drain of a node.
    Drain(Arc<DrainIntent>),
}

/// Which record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKey {
    /// The settings.
    Settings,
    /// A node.
    Node(NodeId),
    /// A group.
    Group(GroupId),
    /// A group that is gone.
    Ended(GroupId),
    /// The drain of a node.
    Drain(NodeId),
}

/// Kinds of record, in the order in which they are listed in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// The settings.
    Settings,
    /// Nodes, by id.
    Node,
    /// Groups, by id.
    Group,
    /// Groups that are gone, by id.
    Ended,
    /// Drains, by node.
    Drain,
}

impl RecordKind {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Settings, Self::Node, Self::Group, Self::Ended, Self::Drain];
}

impl RecordKey {
    /// The kind of the record.
    #[must_use]
    pub const fn kind(self) -> RecordKind {
        match self {
            Self::Settings => RecordKind::Settings,
            Self::Node(_) => RecordKind::Node,
            Self::Group(_) => RecordKind::Group,
            Self::Ended(_) => RecordKind::Ended,
            Self::Drain(_) => RecordKind::Drain,
        }
    }
    /// The number of the record among those of its kind; 0 for the settings.
    #[must_use]
    pub const fn id(self) -> u64 {
        match self {
            Self::Settings => 0,
            Self::Node(node) | Self::Drain(node) => node.get(),
            Self::Group(group) | Self::Ended(group) => group.get(),
        }
    }
    /// From kind and number; `None` when there can be no such record.
    #[must_use]
    pub fn new(kind: RecordKind, id: u64) -> Option<Self> {
        match kind {
            RecordKind::Settings => (id == 0).then_some(Self::Settings),
            RecordKind::Node => NodeId::new(id).map(Self::Node),
            RecordKind::Group => Some(Self::Group(GroupId::new(id))),
            RecordKind::Ended => Some(Self::Ended(GroupId::new(id))),
            RecordKind::Drain => NodeId::new(id).map(Self::Drain),
        }
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings => f.write_str("the record of settings"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Group(group) => write!(f, "group {group}"),
            Self::Ended(group) => write!(f, "the end of group {group}"),
            Self::Drain(node) => write!(f, "the drain of node {node}"),
        }
    }
}

impl Record {
    /// Which record it is.
    #[must_use]
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Settings(_) => RecordKey::Settings,
            Self::Node(node) => RecordKey::Node(node.id),
            Self::Group(group) => RecordKey::Group(group.id),
            Self::Ended(ended) => RecordKey::Ended(ended.id),
            Self::Drain(drain) => RecordKey::Drain(drain.node),
        }
    }

    /// The revision of its last change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Settings(settings) => settings.revision,
            Self::Node(node) => node.revision,
            Self::Group(group) => group.revision,
            Self::Ended(ended) => ended.revision,
            Self::Drain(drain) => drain.revision,
        }
    }

    pub(super) fn set_revision(&mut self, revision: Revision) {
        match self {
            Self::Settings(settings) => Arc::make_mut(settings).revision = revision,
            Self::Node(node) => Arc::make_mut(node).revision = revision,
            Self::Group(group) => Arc::make_mut(group).revision = revision,
            Self::Ended(ended) => ended.revision = revision,
            Self::Drain(drain) => Arc::make_mut(drain).revision = revision,
        }
    }
}

/// Whether a group is meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// It is.
    Active,
    /// Hosts destroy their replicas.
    Destroying,
}

/// A word on a group, for selectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// What it is about.
    pub key: Name,
    /// At most [`super::MAX_LABEL_BYTES`].
    pub value: Box<str>,
}

/// Where a leader is wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// On this node.
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
    /// The first is the best; what is not named comes after all of them.
    pub preference: Box<[Place]>,
    /// The node that is to lead.
    pub pin: Option<NodeId>,
    /// Leaders of groups with the same word are spread over zones.
    pub spread: Option<Name>,
}

/// Who belongs to a group, as its leader last told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The configuration's index in the group's log. Larger is later.
    pub config_index: LogIndex,
    /// In ascending order.
    pub nodes: Box<[NodeId]>,
}

/// A group as it is meant to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    /// The group.
    pub id: GroupId,
    /// Of its last change.
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
    /// How strictly.
    pub mode: RequirementMode,
    /// Where its leader is wanted; `None`: anywhere.
    pub placement: Option<Box<Placement>>,
    /// `None`: the founders, as far as was told.
    pub reported: Option<Box<Members>>,
}

impl GroupRecord {
    /// What it asks of its leader.
    #[must_use]
    pub fn requirement(&self) -> Requirement {
        let capabilities = self.capabilities.iter().map(|name| name.as_str().to_owned()).collect();
        Requirement { capabilities, mode: self.mode }
    }

    /// Who belongs to it, as far as was told, in ascending order.
    #[must_use]
    pub fn members(&self) -> &[NodeId] {
        self.reported.as_ref().map_or(&self.founders, |members| &members.nodes)
    }

    /// Whether a node belongs to it, as far as was told.
    #[must_use]
    pub fn has_member(&self, node: NodeId) -> bool {
        self.members().binary_search(&node).is_ok()
    }

    /// What its founders create it from. What it asks of its leader is not part of that: it is
    /// proposed to the group once it is led.
    #[must_use]
    pub fn spec(&self) -> GroupSpec {
        let spec = GroupSpec::new(self.id, self.founders.iter().copied())
            .incarnation(self.incarnation)
            .kind(self.kind.as_str());
        self.labels.iter().fold(spec, |spec, label| spec.label(label.key.as_str(), &*label.value))
    }
}

/// A group that is gone. Kept so that its next life gets a number of its own, and so that a host
/// that was away learns what to destroy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedGroup {
    /// The group.
    pub id: GroupId,
    /// When it was gone.
    pub revision: Revision,
    /// Its lives from this one up to `next`, exclusive, ended by order of the catalog.
    pub first: u32,
    /// The number of its next life.
    pub next: u32,
}

/// What a node said it can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    /// Of the node's process; larger is later.
    pub incarnation: u64,
    /// In ascending order.
    pub capabilities: Box<[Name]>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// The node.
    pub id: NodeId,
    /// Of its last change.
    pub revision: Revision,
    /// Where it is reached. No two nodes have the same one.
    pub address: Box<str>,
    /// What fails together with it; `None`: nothing is known.
    pub zone: Option<Name>,
    /// How many leaders it takes, compared with others; 0: none.
    pub weight: u32,
    /// Which disk it has: the identity of its store, which another disk does not have.
    pub store: u64,
    /// The revision since when. Groups that were founded before may have had a replica on a disk
    /// that is lost, and are not created on this one.
    pub store_since: Revision,
    /// What it said that it can do; `None`: not known.
    pub advert: Option<Advert>,
}

/// Whether leadership is moved for balance and preference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlannerMode {
    /// Nothing is planned.
    #[default]
    Off,
    /// Plans are made and shown; nothing moves.
    Shadow,
    /// Plans are carried out.
    On,
}

/// The kill switch. It stops planned moves, not refusals and not drains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlannedMoves {
    /// As the planner's mode says.
    #[default]
    Allowed,
    /// None, whatever the mode.
    Stopped,
}

/// What holds for the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Of the last change; 0: never changed.
    pub revision: Revision,
    /// The planner's mode.
    pub mode: PlannerMode,
    /// The kill switch.
    pub moves: PlannedMoves,
    /// Why the kill switch was set, and by whom; at most [`super::MAX_TEXT_BYTES`].
    pub reason: Box<str>,
    /// When the kill switch was set, in milliseconds since 1970; 0: never.
    pub since_ms: u64,
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainState {
    /// Leaders are being moved away.
    Draining,
    /// None are left, and none come.
    Drained,
    /// The deadline passed with [`DrainFallback::Proceed`]: it counts as drained.
    Partial,
    /// The deadline passed with [`DrainFallback::GiveUp`]: the node takes leaders again.
    GivenUp,
}

/// What happens when the deadline of a drain passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainFallback {
    /// The node takes leaders again.
    GiveUp,
    /// The node stays without those that it has handed over; the rest are elected elsewhere when
    /// it stops.
    Proceed,
}

/// A node is to lead nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainIntent {
    /// The node.
    pub node: NodeId,
    /// Of its last change.
    pub revision: Revision,
    /// Names this drain. Whoever changes it says it, so that nobody ends the drain of another.
    pub id: IntentId,
    /// Who asked for it, 1 to [`super::MAX_TEXT_BYTES`] bytes.
    pub owner: Box<str>,
    /// How far it is.
    pub state: DrainState,
    /// What happens at the deadline.
    pub fallback: DrainFallback,
    /// When it was asked for, in milliseconds since 1970.
    pub begun_ms: u64,
    /// Until when it is to be done.
    pub deadline_ms: u64,
    /// When it ends by itself, done or not: its owner may be gone.
    pub expires_ms: u64,
}

impl DrainIntent {
    /// Whether the node is to lead nothing.
    #[must_use]
    pub fn keeps_leaders_away(&self) -> bool {
        self.state != DrainState::GivenUp
    }
}
