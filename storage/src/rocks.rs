//! The store for production: one RocksDB for the logs of all groups.
//!
//! | where | what |
//! |---|---|
//! | `opening` | directory, identity, torn tails and damage: whether to open at all |
//! | `identity`, `wal`, `boot` | the identity file; a look at RocksDB's log files from outside; whether power may have been lost |
//! | `recovery` | builds the index when a store is opened |
//! | `index` | the state of each group in memory |
//! | `writing`, `reading` | from drafts to a batch; entries while the writer continues |
//! | `descriptors` | waits until RocksDB can open the files that a write may need |
//! | `statistics` | what RocksDB says of itself |
//! | `keys`, `values`, `options` | the layout of keys and values, and the settings of RocksDB |
//!
//! What costs is the sync and the number of keys, not the bytes: a batch is one write with one
//! sync, and a run of entries of a group is one key. A group costs at most two keys a batch, its
//! run and its state.
//!
//! **Invariant:** a request looks nothing up by searching. Keys are known from the index, so
//! that neither deleted keys nor the number of groups slow anything down.

mod boot;
mod crc32c;
mod descriptors;
#[cfg(feature = "testing")]
pub(crate) mod fuzz;
mod identity;
mod index;
mod keys;
mod opening;
mod options;
mod reading;
mod recovery;
mod statistics;
mod values;
mod wal;
mod writing;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rocksdb::{DB, WriteBatch, WriteOptions};
use shardhost_proto::version::ClusterVersion;

use crate::convert::Malformed;
use crate::draft::{Draft, Holdings, Standing, draft};
use crate::ids::{GroupId, LogIndex, ReplicaId, Term};
use crate::store::{DatabaseStats, LogError, LogStore, StoreStats};
use crate::types::{Certainty, Doubt, Entry, GroupMeta, LogBatch, PersistedGroup};
use descriptors::Descriptors;
use index::{Index, Record};
use keys::Part;
use opening::Directory;
use reading::{Pass, Request};
use recovery::Damage;
use writing::{Staging, column_family};

pub use boot::BootId;
pub use identity::Identity;
pub use options::RocksOptions;
pub use statistics::database_stats;

/// A [`LogStore`] on RocksDB.
///
/// ```
/// # fn main() -> Result<(), shardhost_storage::LogError> {
/// # let directory = tempfile::tempdir().expect("a directory");
/// use shardhost_storage::rocks::{Identity, RocksOptions, RocksStore};
/// use shardhost_storage::{LogStore, NodeId};
///
/// let identity = Identity { cluster: "north".to_owned(), node: NodeId::must(1) };
/// let store = RocksStore::open(directory.path(), identity, RocksOptions::default())?;
/// assert!(store.groups()?.is_empty());
/// # Ok(())
/// # }
/// ```
pub struct RocksStore {
    directory: Directory,
    database: DB,
    index: Index,
    damage: RwLock<Damage>,
    descriptors: Descriptors,
    /// Held while a batch is written.
    writer: Mutex<Writer>,
    run_bytes: u64,
    high_water_bytes: u64,
    counters: Counters,
}

/// What only the writer needs.
#[derive(Debug, Default)]
struct Writer {
    poisoned: bool,
    /// Bytes written since the high-water mark was renewed.
    unmarked_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    writes: AtomicU64,
    group_writes: AtomicU64,
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl RocksStore {
    /// Opens the store in `directory`, which is created when it is missing or empty.
    ///
    /// # Errors
    /// [`LogError::Foreign`], [`LogError::LostPast`], [`LogError::Locked`],
    /// [`LogError::Corrupt`], [`LogError::Io`].
    pub fn open(
        directory: &Path,
        identity: Identity,
        options: RocksOptions,
    ) -> Result<Self, LogError> {
        let (directory, database, certainty) = Directory::open(directory, &identity, &options)?;
        let (index, damage) = recovery::recover(&database)?;
        if let Certainty::InDoubt(doubt) = certainty {
            raise_doubt(&database, &index, doubt)?;
        }
        directory.renew(&database)?;
        for (group, error) in &damage {
            tracing::error!(%group, %error, "a group's log is damaged");
        }
        Ok(Self {
            directory,
            database,
            index,
            damage: RwLock::new(damage),
            descriptors: Descriptors::default(),
            writer: Mutex::default(),
            run_bytes: options.run_bytes,
            high_water_bytes: options.high_water_bytes,
            counters: Counters::default(),
        })
    }

    /// Bytes of memory that the store keeps for its groups, beside RocksDB.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.index.memory_bytes()
    }

    fn write_drafts(&self, writer: &mut Writer, drafts: &[Draft<'_>]) -> Result<(), LogError> {
        let mut staging = Staging::new(&self.database, &self.index, self.run_bytes)?;
        let new_runs: Vec<_> = drafts.iter().map(|draft| staging.add(draft)).collect();
        let batch = staging.finish();
        if batch.is_empty() {
            // An empty batch in the log files means that a torn tail was dropped.
            return Ok(());
        }
        writer.unmarked_bytes += batch.size_in_bytes() as u64;
        for draft in drafts {
            self.index.announce(draft);
        }
        let written = self.database.write_opt(batch, &synced());
        written.map_err(|error| database_error("writing", &error))?;
        for (draft, new_runs) in drafts.iter().zip(&new_runs) {
            self.index.settle(draft, new_runs);
        }
        self.forget_cured(drafts);
        Ok(())
    }

    fn forget_cured(&self, drafts: &[Draft<'_>]) {
        if !self.damage.read().is_empty() {
            let mut damage = self.damage.write();
            for draft in drafts {
                damage.remove(&draft.group);
            }
        }
    }

    fn renew_high_water(&self, writer: &mut Writer) -> Result<(), LogError> {
        if writer.unmarked_bytes >= self.high_water_bytes {
            self.directory.renew(&self.database)?;
            writer.unmarked_bytes = 0;
        }
        Ok(())
    }

    fn check_undamaged(&self, group: GroupId) -> Result<(), LogError> {
        self.damage.read().get(&group).map_or(Ok(()), |error| Err(error.clone()))
    }

    fn replica_value(&self, group: GroupId, part: Part) -> Result<Option<Vec<u8>>, LogError> {
        let replicas = column_family(&self.database, keys::REPLICAS)?;
        let value = self.database.get_cf(replicas, keys::replica(group, part));
        value.map_err(|error| database_error("reading a replica", &error))
    }
}

impl LogStore for RocksStore {
    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        Ok(self.index.groups())
    }

    fn load(&self, group: GroupId) -> Result<Option<PersistedGroup>, LogError> {
        self.check_undamaged(group)?;
        let known = |record: &Record| (record.standing(), record.last_position());
        let Ok((standing, last)) = self.index.look(group, known) else { return Ok(None) };
        let Standing { hard_state, base, certainty, .. } = standing;
        // A replica that is being destroyed may be gone from one place already.
        let Some(meta) = self.meta(group)? else { return Ok(None) };
        Ok(Some(PersistedGroup { meta, hard_state, base, last, certainty }))
    }

    fn meta(&self, group: GroupId) -> Result<Option<GroupMeta>, LogError> {
        let value = self.replica_value(group, Part::Meta)?;
        let read = |value| values::read_meta(group, value);
        value.map(read).transpose().map_err(|error| corrupt(group, &error))
    }

    fn replica(&self, group: GroupId) -> Result<Option<ReplicaId>, LogError> {
        Ok(self.index.look(group, |record| record.replica).ok().flatten())
    }

    fn tombstone(&self, group: GroupId) -> Result<Option<ReplicaId>, LogError> {
        let value = self.replica_value(group, Part::Tombstone)?;
        let read = |value| values::read_tombstone(group, value);
        value.map(read).transpose().map_err(|error| corrupt(group, &error))
    }

    fn entries(
        &self,
        group: GroupId,
        from: LogIndex,
        to: LogIndex,
        max_bytes: u64,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogError> {
        self.check_undamaged(group)?;
        let request = Request { group, from, to, max_bytes };
        let log = column_family(&self.database, keys::LOG)?;
        let mut pass = || reading::pass(&self.database, log, &self.index, &request, out);
        if pass()? == Pass::Done {
            return Ok(());
        }
        let _writer = self.writer.lock();
        match pass()? {
            Pass::Done => Ok(()),
            Pass::Disturbed => Err(LogError::Poisoned),
        }
    }

    fn term(&self, group: GroupId, index: LogIndex) -> Result<Term, LogError> {
        self.check_undamaged(group)?;
        let term = |record: &Record| {
            let (base, last) = (record.base, record.last_position());
            if index < base.index {
                return Err(LogError::Compacted { group, index, base });
            }
            record.term(index).ok_or(LogError::OutOfRange { group, index, last })
        };
        self.index.look(group, term)?
    }

    fn write(&self, batch: &LogBatch) -> Result<(), LogError> {
        self.descriptors.wait_for_some(self.directory.path());
        let mut writer = self.writer.lock();
        if writer.poisoned {
            return Err(LogError::Poisoned);
        }
        let drafts = draft(batch, self)?;
        let written = self
            .write_drafts(&mut writer, &drafts)
            .and_then(|()| self.renew_high_water(&mut writer));
        writer.poisoned = written.is_err();
        self.counters.count(batch);
        written
    }

    fn id(&self) -> u64 {
        self.directory.store_id()
    }

    fn version(&self) -> ClusterVersion {
        self.directory.version()
    }

    fn raise_version(&self, version: ClusterVersion) -> Result<(), LogError> {
        let writer = self.writer.lock();
        // Nothing is known about the disk any more.
        if writer.poisoned {
            Err(LogError::Poisoned)
        } else {
            self.directory.raise_version(version, &self.database)
        }
    }

    fn stats(&self) -> StoreStats {
        self.counters.stats()
    }

    fn database(&self) -> Option<DatabaseStats> {
        let named = [keys::REPLICAS, keys::LOG];
        let families = named.iter().filter_map(|name| self.database.cf_handle(name));
        Some(database_stats(&self.database, families))
    }
}

impl Holdings for RocksStore {
    fn standing(&self, group: GroupId) -> Result<Standing, LogError> {
        let damage = self.damage.read().get(&group).cloned();
        let standing = self.index.look(group, Record::standing).unwrap_or_default();
        // A held replica is above its tombstone; only a new one has to be compared with it.
        let tombstone = match standing.replica {
            Some(_) if damage.is_none() => None,
            _ => self.tombstone(group)?,
        };
        Ok(Standing { tombstone, damage, ..standing })
    }

    fn term_at(&self, group: GroupId, index: LogIndex) -> Option<Term> {
        self.index.look(group, |record| record.term(index)).ok()?
    }
}

impl Counters {
    fn count(&self, batch: &LogBatch) {
        let entries = || batch.writes.iter().flat_map(|write| &write.entries);
        let add = |counter: &AtomicU64, count| counter.fetch_add(count, Ordering::Relaxed);
        add(&self.writes, 1);
        add(&self.group_writes, batch.writes.len() as u64);
        add(&self.entries, entries().count() as u64);
        add(&self.bytes, entries().map(Entry::payload_bytes).sum());
    }

    fn stats(&self) -> StoreStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreStats {
            writes: read(&self.writes),
            group_writes: read(&self.group_writes),
            entries: read(&self.entries),
            bytes: read(&self.bytes),
        }
    }
}

impl Drop for RocksStore {
    fn drop(&mut self) {
        if self.writer.get_mut().poisoned {
            return;
        }
        if let Err(error) = self.directory.renew(&self.database) {
            tracing::error!(%error, "the high-water mark was not renewed at close");
        }
    }
}

impl fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksStore").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Notes beside every replica that its log may have lost something.
fn raise_doubt(database: &DB, index: &Index, doubt: Doubt) -> Result<(), LogError> {
    let replicas = column_family(database, keys::REPLICAS)?;
    let (mut batch, mut value) = (WriteBatch::default(), Vec::new());
    let sure = |group| index.look(group, |record| record.certainty == Certainty::Sure);
    for group in index.groups() {
        if sure(group)? {
            values::doubt(group, values::cause_of(doubt), &mut value);
            batch.put_cf(replicas, keys::replica(group, Part::Doubt), &value);
            index.raise_doubt(group, doubt);
        }
    }
    if batch.is_empty() {
        return Ok(());
    }
    let written = database.write_opt(batch, &synced());
    written.map_err(|error| database_error("noting what may be missing", &error))
}

/// Every write is synced before it counts.
fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

fn corrupt(group: GroupId, error: &Malformed) -> LogError {
    LogError::Corrupt { place: format!("the replica of group {group}"), message: error.to_string() }
}

/// An error of RocksDB while the store is open.
fn database_error(action: &'static str, error: &rocksdb::Error) -> LogError {
    let message = error.to_string();
    match error.kind() {
        rocksdb::ErrorKind::Corruption => LogError::Corrupt { place: action.to_owned(), message },
        _ => LogError::Io { action, message },
    }
}
