//! What the catalog holds: settings, nodes, groups, drains and tokens, each with its revision.
//!
//! Plain data. Which changes are allowed is known in `state`, how it is written down in `convert`.

mod drain;
mod group;
mod node;
mod rule;
mod settings;
mod token;

use std::fmt;
use std::sync::Arc;

use shardhost_proto::version::ClusterVersion;
use shardhost_storage::{GroupId, NodeId};

use super::TOKENS_KNOWN;

pub use self::drain::{DrainFallback, DrainIntent, DrainState};
pub use self::group::{EndedGroup, GroupRecord, GroupState, Label, Members, Place, Placement};
pub use self::node::{Advertisement, NodeRecord};
pub use self::rule::{ReplicaRule, Selection, rule_of, rule_of_catalog};
pub use self::settings::{PlannedMoves, PlannerMode, ReplicaSettings, Settings};
pub use self::token::{Token, TokenDigest};

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
    Node(Arc<NodeRecord>),
    Group(Arc<GroupRecord>),
    /// A group that is gone.
    Ended(EndedGroup),
    /// The drain of a node.
    Drain(Arc<DrainIntent>),
    Token(Arc<Token>),
}

/// Which record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKey {
    Settings,
    Node(NodeId),
    Group(GroupId),
    /// A group that is gone.
    Ended(GroupId),
    /// The drain of a node.
    Drain(NodeId),
    /// The token of this id.
    Token(u64),
}

/// Kinds of record, in the order in which they are listed in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    Settings,
    Node,
    Group,
    /// Groups that are gone, by id.
    Ended,
    Drain,
    /// Tokens, by id. From [`TOKENS_KNOWN`] on.
    Token,
}

impl RecordKind {
    /// All of them, in order.
    pub const ALL: [Self; 6] =
        [Self::Settings, Self::Node, Self::Group, Self::Ended, Self::Drain, Self::Token];

    /// The version of the cluster from which on there are records of this kind. At an earlier one a node may run
    /// a program that refuses to list them.
    #[must_use]
    pub const fn since(self) -> ClusterVersion {
        match self {
            Self::Settings | Self::Node | Self::Group | Self::Ended | Self::Drain => {
                ClusterVersion::FIRST
            }
            Self::Token => TOKENS_KNOWN,
        }
    }
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
            Self::Token(_) => RecordKind::Token,
        }
    }
    /// The number of the record among those of its kind; 0 for the settings.
    #[must_use]
    pub const fn id(self) -> u64 {
        match self {
            Self::Settings => 0,
            Self::Node(node) | Self::Drain(node) => node.get(),
            Self::Group(group) | Self::Ended(group) => group.get(),
            Self::Token(token) => token,
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
            RecordKind::Token => Some(Self::Token(id)),
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
            Self::Token(token) => write!(f, "token {token:016x}"),
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
            Self::Token(token) => RecordKey::Token(token.id),
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
            Self::Token(token) => token.revision,
        }
    }

    pub(super) fn set_revision(&mut self, revision: Revision) {
        match self {
            Self::Settings(settings) => Arc::make_mut(settings).revision = revision,
            Self::Node(node) => Arc::make_mut(node).revision = revision,
            Self::Group(group) => Arc::make_mut(group).revision = revision,
            Self::Ended(ended) => ended.revision = revision,
            Self::Drain(drain) => Arc::make_mut(drain).revision = revision,
            Self::Token(token) => Arc::make_mut(token).revision = revision,
        }
    }
}
