//! Short words for what the tests write and read, and the stores they do it to.

use std::ops::RangeInclusive;

use bytes::Bytes;
use shardhost_storage::{
    Entry, EntryKind, GroupId, GroupMeta, GroupWrite, HardState, LogBatch, LogError, LogIndex,
    LogPosition, LogStore, Membership, MemoryStore, NodeId, PersistedGroup, ReplicaId, Term,
};

/// A store under test.
pub trait Subject {
    /// The store.
    fn store(&self) -> &dyn LogStore;
    /// The host dies and starts again; everything was synced.
    fn reopen(&mut self);
}

/// The store in memory.
#[derive(Default)]
pub struct InMemory(pub MemoryStore);

impl Subject for InMemory {
    fn store(&self) -> &dyn LogStore {
        &self.0
    }
    fn reopen(&mut self) {
        assert_eq!(self.0.crash(0), 0, "every write was synced");
    }
}

#[cfg(feature = "rocksdb")]
pub use on_disk::{OnDisk, identity, open, small};

#[cfg(feature = "rocksdb")]
mod on_disk {
    use std::path::Path;

    use shardhost_storage::{Identity, LogError, LogStore, NodeId, RocksOptions, RocksStore};
    use tempfile::TempDir;

    use super::Subject;

    /// The store on RocksDB, in a directory of its own.
    pub struct OnDisk {
        store: Option<RocksStore>,
        directory: TempDir,
    }

    impl Default for OnDisk {
        fn default() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let store = open(directory.path()).expect("a new store");
            Self { store: Some(store), directory }
        }
    }

    impl OnDisk {
        /// The directory of the store.
        pub fn path(&self) -> &Path {
            self.directory.path()
        }
        /// The store itself.
        pub fn rocks(&self) -> &RocksStore {
            self.store.as_ref().expect("an open store")
        }
        /// Closes the store.
        pub fn close(&mut self) {
            self.store = None;
        }
        /// Opens the closed store.
        pub fn open(&mut self) -> Result<(), LogError> {
            self.store = Some(open(self.path())?);
            Ok(())
        }
    }

    impl Subject for OnDisk {
        fn store(&self) -> &dyn LogStore {
            self.rocks()
        }
        fn reopen(&mut self) {
            self.close();
            self.open().expect("a store that was closed");
        }
    }

    /// Whose stores the tests open.
    pub fn identity() -> Identity {
        Identity { cluster: "test".to_owned(), node: NodeId::must(1) }
    }

    /// Buffers that are full after little was written, so that tests reach the files behind.
    pub fn small() -> RocksOptions {
        RocksOptions {
            write_buffer_bytes: 1024 * 1024,
            block_cache_bytes: 1024 * 1024,
            run_bytes: 4096,
            ..RocksOptions::default()
        }
    }

    /// Opens a store of ours.
    pub fn open(path: &Path) -> Result<RocksStore, LogError> {
        RocksStore::open(path, identity(), small())
    }
}

/// The group that most tests write to.
pub const GROUP: GroupId = GroupId::new(7);

/// Shorthand.
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
    }
}

/// An entry that says which one it is.
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

/// Writes each one as a batch of its own; all must succeed.
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
    pub persisted: Option<PersistedGroup>,
    pub tombstone: Option<ReplicaId>,
    pub entries: Vec<Entry>,
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

/// Makes each function a test of each store.
macro_rules! log_suite {
    ($($test:ident)*) => {
        mod memory {
            $(#[test]
            fn $test() {
                super::$test(&mut crate::fixtures::InMemory::default());
            })*
        }
        #[cfg(feature = "rocksdb")]
        mod rocks {
            $(#[test]
            fn $test() {
                super::$test(&mut crate::fixtures::OnDisk::default());
            })*
        }
    };
}
pub(crate) use log_suite;
