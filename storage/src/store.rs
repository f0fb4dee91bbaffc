//! The seam between the Raft groups and whatever keeps their log.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::AddAssign;

use shardhost_proto::version::ClusterVersion;

use crate::ids::{GroupId, LogIndex, LogPosition, ReplicaId, Term};
use crate::types::{Entry, GroupMeta, LogBatch, PersistedGroup};

/// The log of every group of one host.
///
/// `write` is called by one thread at a time, the log writer; reads come from any thread at the
/// same time. A write becomes visible to reads no later than when `write` returns.
///
/// After `write` failed, the content of the disk is unknown: the store answers every later `write`
/// with [`LogError::Poisoned`], and the host stops.
pub trait LogStore: fmt::Debug + Send + Sync + 'static {
    /// All groups that have a replica here, ascending. Tombstones are not listed.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Corrupt`].
    fn groups(&self) -> Result<Vec<GroupId>, LogError>;

    /// The state of one replica; `None` when there never was one, or it was destroyed.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Corrupt`].
    fn load(&self, group: GroupId) -> Result<Option<PersistedGroup>, LogError>;

    /// What the replica knows of itself, also when its entries are damaged; `None` as for
    /// [`LogStore::load`].
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Corrupt`]: this, too, is damaged.
    fn meta(&self, group: GroupId) -> Result<Option<GroupMeta>, LogError> {
        Ok(self.load(group)?.map(|known| known.meta))
    }

    /// The largest replica id of `group` that was destroyed here.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Corrupt`].
    fn tombstone(&self, group: GroupId) -> Result<Option<ReplicaId>, LogError>;

    /// Appends to `out` the entries `from..to`, stopping before the one that would make more
    /// than `max_bytes` of payload, but never before the first.
    ///
    /// # Errors
    /// [`LogError::Compacted`] when `from` is not above the base, [`LogError::OutOfRange`] when
    /// `to` is beyond the last entry, [`LogError::Io`], [`LogError::Corrupt`].
    fn entries(
        &self,
        group: GroupId,
        from: LogIndex,
        to: LogIndex,
        max_bytes: u64,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogError>;

    /// Term of the entry at `index`, which lies between the base and the last entry, both
    /// included.
    ///
    /// # Errors
    /// As [`LogStore::entries`].
    fn term(&self, group: GroupId, index: LogIndex) -> Result<Term, LogError>;

    /// Writes the batch and returns when all of it is durable. All or nothing, also after a
    /// crash.
    ///
    /// # Errors
    /// [`LogError::Invalid`] when a write breaks the rules of [`crate::GroupWrite`] (nothing was
    /// written); [`LogError::Io`] and [`LogError::Poisoned`] are final.
    fn write(&self, batch: &LogBatch) -> Result<(), LogError>;

    /// The id of the replica that the store holds of a group, also where the rest of it is damaged;
    /// `None`: it holds none, or its id is damaged.
    ///
    /// # Errors
    /// [`LogError`] when the log cannot be read.
    fn replica(&self, group: GroupId) -> Result<Option<ReplicaId>, LogError> {
        Ok(self.load(group)?.map(|persisted| persisted.meta.replica))
    }

    /// The identity of this store: a number that it was given when it was created, that it keeps,
    /// and that no other has. So a node that lost its disk is distinguished from one that
    /// restarted.
    fn id(&self) -> u64;

    /// The version of a cluster that a program must know to open this store.
    fn version(&self) -> ClusterVersion;

    /// Lets no program open this store any more that does not know this version. Durable when this
    /// returns. An earlier one than the present changes nothing.
    ///
    /// # Errors
    /// [`LogError::Io`] when it cannot be written: then the store may ask for the earlier one or this one.
    fn raise_version(&self, version: ClusterVersion) -> Result<(), LogError>;

    /// Counters since the store was opened.
    fn stats(&self) -> StoreStats;

    /// The database under the store at this moment; `None`: there is none.
    fn database(&self) -> Option<DatabaseStats> {
        None
    }
}

/// A number for a store that is being created. The hasher of the standard library is seeded from a
/// source of randomness.
pub(crate) fn store_id() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

/// Counters of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Batches written, each with one sync.
    pub writes: u64,
    pub group_writes: u64,
    pub entries: u64,
    pub bytes: u64,
}

/// A database at one moment, or several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatabaseStats {
    /// Bytes of its table files that are in use.
    pub table_bytes: u64,
    /// Bytes of memory for what is not in table files yet,
    pub memtable_bytes: u64,
    /// and for blocks of table files that were read.
    pub cache_bytes: u64,
    /// Bytes that are to be rewritten before the table files are in order.
    pub pending_compaction_bytes: u64,
    pub running_compactions: u64,
    pub running_flushes: u64,
    /// Flushes and compactions that failed.
    pub background_errors: u64,
    /// How many of the databases take no writes until they have flushed or compacted.
    pub write_stops: u64,
}

impl AddAssign for DatabaseStats {
    fn add_assign(&mut self, other: Self) {
        self.table_bytes += other.table_bytes;
        self.memtable_bytes += other.memtable_bytes;
        self.cache_bytes += other.cache_bytes;
        self.pending_compaction_bytes += other.pending_compaction_bytes;
        self.running_compactions += other.running_compactions;
        self.running_flushes += other.running_flushes;
        self.background_errors += other.background_errors;
        self.write_stops += other.write_stops;
    }
}

/// Why the log cannot do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The disk or the library above it failed. Stop the host; after a restart the log shows its
    /// content.
    #[error("the Raft log failed while {action}: {message}")]
    Io {
        action: &'static str,
        /// The cause, in the words of the library.
        message: String,
    },
    /// An earlier write failed, and nothing is known about the disk since. Stop the host.
    #[error("the Raft log stopped after a failed write; restart the host")]
    Poisoned,
    /// What was read is not what was written. Restore this replica from its peers.
    #[error("the Raft log is damaged at {place}: {message}")]
    Corrupt { place: String, message: String },
    /// The log belongs to another node or cluster. Point the host at its data directory.
    #[error(
        "{path} holds {found}, this host is {expected}; give each node a data directory of its own"
    )]
    Foreign { path: String, found: String, expected: String },
    /// Part of the log that was once written is missing.
    #[error("the Raft log lost its past: {message}")]
    LostPast { message: String },
    /// The cluster of the log is at a version that this program does not know. Start a later program.
    #[error(
        "{path} is of a cluster at version {version}, this program knows versions {} to {}; start a later \
         program",
        ClusterVersion::FIRST,
        ClusterVersion::NEWEST
    )]
    NewerVersion { path: String, version: ClusterVersion },
    /// Another process has the log open.
    #[error("{path} is in use by another process")]
    Locked { path: String },
    /// There is no such replica.
    #[error("there is no replica of group {group} in the log")]
    UnknownGroup { group: GroupId },
    /// The entry was truncated away; a snapshot has it.
    #[error("index {index} of group {group} is compacted, the log starts after {base}")]
    Compacted {
        group: GroupId,
        /// The index that was asked for.
        index: LogIndex,
        base: LogPosition,
    },
    /// The entry was never written.
    #[error("index {index} of group {group} is beyond the last entry {last}")]
    OutOfRange {
        group: GroupId,
        /// The index that was asked for.
        index: LogIndex,
        last: LogPosition,
    },
    /// A batch that breaks the rules; nothing of it was written.
    #[error("a write of group {group} is refused: {message}")]
    Invalid { group: GroupId, message: String },
}
