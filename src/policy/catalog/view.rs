//! What the catalog holds, without the rules of how it changes.
//!
//! The system group's machine keeps one; hosts without a replica of it build their own from pages
//! and changes; the planner and `reconcile` read it. A clone shares the records.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use shardhost_storage::{GroupId, NodeId};

use super::record::{
    DrainIntent, EndedGroup, GroupRecord, NodeRecord, Record, RecordKey, RecordKind, Revision,
    Settings,
};

/// What the catalog holds as of one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    revision: Revision,
    settings: Arc<Settings>,
    nodes: BTreeMap<NodeId, Arc<NodeRecord>>,
    groups: BTreeMap<GroupId, Arc<GroupRecord>>,
    ended: BTreeMap<GroupId, EndedGroup>,
    drains: BTreeMap<NodeId, Arc<DrainIntent>>,
}

impl View {
    /// The revision of the last change that is in here.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }
    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
    /// The nodes, by id.
    #[must_use]
    pub const fn nodes(&self) -> &BTreeMap<NodeId, Arc<NodeRecord>> {
        &self.nodes
    }
    /// The groups, by id.
    #[must_use]
    pub const fn groups(&self) -> &BTreeMap<GroupId, Arc<GroupRecord>> {
        &self.groups
    }
    /// The groups that are gone, by id.
    #[must_use]
    pub const fn ended(&self) -> &BTreeMap<GroupId, EndedGroup> {
        &self.ended
    }
    /// The drains, by node.
    #[must_use]
    pub const fn drains(&self) -> &BTreeMap<NodeId, Arc<DrainIntent>> {
        &self.drains
    }

    /// A record; `None` when there is none. The settings are always there.
    #[must_use]
    pub fn record(&self, key: RecordKey) -> Option<Record> {
        match key {
            RecordKey::Settings => Some(Record::Settings(Arc::clone(&self.settings))),
            RecordKey::Node(node) => self.nodes.get(&node).cloned().map(Record::Node),
            RecordKey::Group(group) => self.groups.get(&group).cloned().map(Record::Group),
            RecordKey::Ended(group) => self.ended.get(&group).copied().map(Record::Ended),
            RecordKey::Drain(node) => self.drains.get(&node).cloned().map(Record::Drain),
        }
    }

    /// The revision of a record; 0 when there is none.
    #[must_use]
    pub fn revision_of(&self, key: RecordKey) -> Revision {
        self.record(key).map_or_else(Revision::default, |record| record.revision())
    }

    /// The records of a kind whose number is greater than `after`, in ascending order.
    #[must_use]
    pub fn records(
        &self,
        kind: RecordKind,
        after: Option<u64>,
    ) -> Box<dyn Iterator<Item = Record> + '_> {
        match kind {
            RecordKind::Settings => Box::new(
                after.is_none().then(|| Record::Settings(Arc::clone(&self.settings))).into_iter(),
            ),
            RecordKind::Node => Box::new(from_node(&self.nodes, after).cloned().map(Record::Node)),
            RecordKind::Group => {
                Box::new(from_group(&self.groups, after).cloned().map(Record::Group))
            }
            RecordKind::Ended => {
                Box::new(from_group(&self.ended, after).copied().map(Record::Ended))
            }
            RecordKind::Drain => {
                Box::new(from_node(&self.drains, after).cloned().map(Record::Drain))
            }
        }
    }

    /// All records, in the order of a snapshot.
    pub fn all(&self) -> impl Iterator<Item = Record> + '_ {
        RecordKind::ALL.into_iter().flat_map(|kind| self.records(kind, None))
    }

    /// Takes over a record that was read or changed, and its revision.
    pub fn put(&mut self, record: Record) {
        self.revision = self.revision.max(record.revision());
        match record {
            Record::Settings(settings) => self.settings = settings,
            Record::Node(node) => {
                self.nodes.insert(node.id, node);
            }
            Record::Group(group) => {
                self.groups.insert(group.id, group);
            }
            Record::Ended(ended) => {
                self.ended.insert(ended.id, ended);
            }
            Record::Drain(drain) => {
                self.drains.insert(drain.node, drain);
            }
        }
    }

    /// Takes over that a record is gone. The settings are never.
    pub fn remove(&mut self, key: RecordKey) {
        match key {
            RecordKey::Settings => {}
            RecordKey::Node(node) => {
                self.nodes.remove(&node);
            }
            RecordKey::Group(group) => {
                self.groups.remove(&group);
            }
            RecordKey::Ended(group) => {
                self.ended.remove(&group);
            }
            RecordKey::Drain(node) => {
                self.drains.remove(&node);
            }
        }
    }

    /// Takes over that everything up to a revision is in here.
    pub fn advance(&mut self, through: Revision) {
        self.revision = self.revision.max(through);
    }
}

fn from_node<V>(map: &BTreeMap<NodeId, V>, after: Option<u64>) -> impl Iterator<Item = &V> {
    let start = after.and_then(NodeId::new).map_or(Bound::Unbounded, Bound::Excluded);
    map.range((start, Bound::Unbounded)).map(|(_, value)| value)
}

fn from_group<V>(map: &BTreeMap<GroupId, V>, after: Option<u64>) -> impl Iterator<Item = &V> {
    let start = after.map(GroupId::new).map_or(Bound::Unbounded, Bound::Excluded);
    map.range((start, Bound::Unbounded)).map(|(_, value)| value)
}
