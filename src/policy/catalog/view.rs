//! What the catalog holds, without the rules of how it changes.
//!
//! The system group's machine keeps one; hosts without a replica of it build one from pages and
//! changes; the planner and `reconcile` read it. A clone shares the records, and large parts until
//! one of the two changes them.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use shardhost_storage::{GroupId, NodeId};

use super::record::{
    DrainIntent, EndedGroup, GroupRecord, NodeRecord, Record, RecordKey, RecordKind, Revision,
    Settings, Token,
};

/// What the catalog holds as of one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    revision: Revision,
    settings: Arc<Settings>,
    nodes: BTreeMap<NodeId, Arc<NodeRecord>>,
    groups: Arc<BTreeMap<GroupId, Arc<GroupRecord>>>,
    ended: Arc<BTreeMap<GroupId, EndedGroup>>,
    drains: BTreeMap<NodeId, Arc<DrainIntent>>,
    tokens: Arc<BTreeMap<u64, Arc<Token>>>,
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
    pub fn groups(&self) -> &BTreeMap<GroupId, Arc<GroupRecord>> {
        &self.groups
    }
    /// The groups that are gone, by id.
    #[must_use]
    pub fn ended(&self) -> &BTreeMap<GroupId, EndedGroup> {
        &self.ended
    }
    /// The drains, by node.
    #[must_use]
    pub const fn drains(&self) -> &BTreeMap<NodeId, Arc<DrainIntent>> {
        &self.drains
    }
    /// The tokens, by id; expired ones, too.
    #[must_use]
    pub fn tokens(&self) -> &BTreeMap<u64, Arc<Token>> {
        &self.tokens
    }
    /// The token of this id, expired or not.
    #[must_use]
    pub fn token(&self, id: u64) -> Option<&Token> {
        self.tokens.get(&id).map(AsRef::as_ref)
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
            RecordKey::Token(token) => self.tokens.get(&token).cloned().map(Record::Token),
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
            RecordKind::Token => {
                let start = after.map_or(Bound::Unbounded, Bound::Excluded);
                let tokens = self.tokens.range((start, Bound::Unbounded));
                Box::new(tokens.map(|(_, token)| Record::Token(Arc::clone(token))))
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
                Arc::make_mut(&mut self.groups).insert(group.id, group);
            }
            Record::Ended(ended) => {
                Arc::make_mut(&mut self.ended).insert(ended.id, ended);
            }
            Record::Drain(drain) => {
                self.drains.insert(drain.node, drain);
            }
            Record::Token(token) => {
                Arc::make_mut(&mut self.tokens).insert(token.id, token);
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
                Arc::make_mut(&mut self.groups).remove(&group);
            }
            RecordKey::Ended(group) => {
                Arc::make_mut(&mut self.ended).remove(&group);
            }
            RecordKey::Drain(node) => {
                self.drains.remove(&node);
            }
            RecordKey::Token(token) => {
                Arc::make_mut(&mut self.tokens).remove(&token);
            }
        }
    }

    /// Takes over that everything up to a revision is in here.
    pub fn advance(&mut self, through: Revision) {
        self.revision = self.revision.max(through);
    }

    /// The groups of which this view holds something else than an earlier one. Those that were read
    /// anew count as different, whatever they are.
    #[must_use]
    pub fn groups_unlike(&self, earlier: &Self) -> BTreeSet<GroupId> {
        let mut unlike = BTreeSet::new();
        if !Arc::ptr_eq(&self.groups, &earlier.groups) {
            differences(&self.groups, &earlier.groups, Arc::ptr_eq, &mut unlike);
        }
        if !Arc::ptr_eq(&self.ended, &earlier.ended) {
            differences(&self.ended, &earlier.ended, PartialEq::eq, &mut unlike);
        }
        unlike
    }
}

/// Adds the keys under which two maps hold different values, or only one of them a value.
fn differences<V>(
    one: &BTreeMap<GroupId, V>,
    other: &BTreeMap<GroupId, V>,
    same: impl Fn(&V, &V) -> bool,
    found: &mut BTreeSet<GroupId>,
) {
    let (mut left, mut right) = (one.iter().peekable(), other.iter().peekable());
    while let (Some((a, one)), Some((b, other))) = (left.peek(), right.peek()) {
        match a.cmp(b) {
            Ordering::Equal => {
                if !same(one, other) {
                    found.insert(**a);
                }
                left.next();
                right.next();
            }
            Ordering::Less => found.extend(left.next().map(|(key, _)| *key)),
            Ordering::Greater => found.extend(right.next().map(|(key, _)| *key)),
        }
    }
    found.extend(left.chain(right).map(|(key, _)| *key));
}

fn from_node<V>(map: &BTreeMap<NodeId, V>, after: Option<u64>) -> impl Iterator<Item = &V> {
    let start = after.and_then(NodeId::new).map_or(Bound::Unbounded, Bound::Excluded);
    map.range((start, Bound::Unbounded)).map(|(_, value)| value)
}

fn from_group<V>(map: &BTreeMap<GroupId, V>, after: Option<u64>) -> impl Iterator<Item = &V> {
    let start = after.map(GroupId::new).map_or(Bound::Unbounded, Bound::Excluded);
    map.range((start, Bound::Unbounded)).map(|(_, value)| value)
}
