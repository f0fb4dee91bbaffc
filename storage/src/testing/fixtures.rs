//! Short words for what tests of a store write and read.

use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::{
    Entry, EntryKind, GroupId, GroupMeta, GroupWrite, HardState, LogBatch, LogError, LogIndex,
    LogPosition, LogStore, Membership, NodeId, PersistedGroup, ReplicaId, Term,
};

/// The group that most tests write to.
pub const GROUP: GroupId = GroupId::new(7);

/// A log index.
pub fn index(index: u64) -> LogIndex {
    LogIndex::new(index)
}

/// What a replica knows of itself.
pub fn meta(group: GroupId, replica: u64) -> GroupMeta {
    GroupMeta {
        group,
        replica: ReplicaId::must(replica),
        membership: Membership::initial([1, 2, 3].map(NodeId::must)),
        snapshot: None,
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        kind: "table".to_owned(),
        skipping: None,
    }
}

/// An entry with a recognizable content.
pub fn entry(term: u64, at: u64) -> Entry {
    Entry {
        term: Term::new(term),
        index: index(at),
        kind: if at.is_multiple_of(5) { EntryKind::Config } else { EntryKind::Command },
        data: Bytes::from(format!("{at}@{term}")),
        context: if at.is_multiple_of(3) { Bytes::from_static(b"context") } else { Bytes::new() },
    }
}

/// Entries of one term.
pub fn entries(term: u64, indexes: RangeInclusive<u64>) -> Vec<Entry> {
    indexes.map(|at| entry(term, at)).collect()
}

/// The first write of replica 1.
pub fn create(group: GroupId) -> GroupWrite {
    create_replica(group, 1)
}

/// The first write of a replica.
pub fn create_replica(group: GroupId, replica: u64) -> GroupWrite {
    GroupWrite { meta: Some(meta(group, replica)), ..GroupWrite::new(group) }
}

/// A write of entries.
pub fn append(group: GroupId, term: u64, indexes: RangeInclusive<u64>) -> GroupWrite {
    GroupWrite { entries: entries(term, indexes), ..GroupWrite::new(group) }
}

/// A write that truncates.
pub fn compact(group: GroupId, term: u64, at: u64) -> GroupWrite {
    GroupWrite { compact: Some(LogPosition::new(term, at)), ..GroupWrite::new(group) }
}

/// A write that starts the log anew.
pub fn reset(group: GroupId, term: u64, at: u64) -> GroupWrite {
    GroupWrite { reset: Some(LogPosition::new(term, at)), ..GroupWrite::new(group) }
}

/// A write that forgets the replica.
pub fn destroy(group: GroupId, replica: u64) -> GroupWrite {
    GroupWrite { destroy: Some(ReplicaId::must(replica)), ..GroupWrite::new(group) }
}

/// A hard state.
pub fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term: Term::new(term), vote: ReplicaId::new(vote), commit: index(commit) }
}

/// Writes one batch.
pub fn write(store: &dyn LogStore, writes: impl Into<Vec<GroupWrite>>) -> Result<(), LogError> {
    store.write(&LogBatch { writes: writes.into() })
}

/// Writes each one as a separate batch; all must succeed.
pub fn write_all(store: &dyn LogStore, writes: impl IntoIterator<Item = GroupWrite>) {
    for group_write in writes {
        write(store, [group_write.clone()])
            .unwrap_or_else(|error| panic!("{error}: {group_write:?}"));
    }
}

/// Reads without a limit in bytes.
pub fn read(
    store: &dyn LogStore,
    group: GroupId,
    from: u64,
    to: u64,
) -> Result<Vec<Entry>, LogError> {
    read_at_most(store, group, from, to, u64::MAX)
}

/// Reads with a limit in bytes.
pub fn read_at_most(
    store: &dyn LogStore,
    group: GroupId,
    from: u64,
    to: u64,
    max_bytes: u64,
) -> Result<Vec<Entry>, LogError> {
    let mut out = Vec::new();
    store.entries(group, index(from), index(to), max_bytes, &mut out)?;
    Ok(out)
}

/// The replica's record, which must exist.
pub fn load(store: &dyn LogStore, group: GroupId) -> PersistedGroup {
    store.load(group).expect("readable").expect("a replica")
}

/// Everything that can be read of one group.
#[derive(Debug, PartialEq, Eq)]
pub struct View {
    /// The state of the replica.
    pub persisted: Option<PersistedGroup>,
    /// The largest replica id that was destroyed.
    pub tombstone: Option<ReplicaId>,
    pub entries: Vec<Entry>,
    /// The terms of the base and of all entries.
    pub terms: Vec<Term>,
}

/// Reads everything of one group.
pub fn view(store: &dyn LogStore, group: GroupId) -> Result<View, LogError> {
    let tombstone = store.tombstone(group)?;
    let Some(persisted) = store.load(group)? else {
        return Ok(View { persisted: None, tombstone, entries: Vec::new(), terms: Vec::new() });
    };
    let (base, last) = (persisted.base.index.get(), persisted.last.index.get());
    let entries = read(store, group, base + 1, last + 1)?;
    let terms: Result<_, _> = (base..=last).map(|at| store.term(group, index(at))).collect();
    Ok(View { persisted: Some(persisted), tombstone, entries, terms: terms? })
}
