//! The database of a cell and the flush: what the threads of a [`super::StateDb`] share.
//!
//! **Why a crash leaves a prefix.** Nothing is written to a RocksDB log. A write batch goes whole
//! into one memtable; memtables are flushed and recorded in the manifest in the order they were
//! filled, and there is one column family, so one such order. Whatever instant the process ends
//! at, the disk therefore holds the effect of the first n batches and of no others, with the
//! applied position of each group as of its last batch among them: both are in the same batch.
//! (Unordered writes, which would break it, stay off.) The Raft log holds everything behind.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::{Sender, TrySendError};
use dashmap::DashMap;
use parking_lot::Mutex;
use rocksdb::{
    ColumnFamily, DB, DBPinnableSlice, DEFAULT_COLUMN_FAMILY_NAME, ErrorKind, ReadOptions,
    ReadTier, WriteBatch, WriteOptions,
};
use shardhost_storage::GroupId;
use tokio::sync::watch;

use super::cells::Pools;
use super::error::{LOOKING, StateDbError, is_damage};
use super::flusher::Signal;
use super::group;
use super::health::Health;
use super::keys::{FORMAT_KEY, Space};
use super::options::StateDbOptions;
use super::progress::Progress;
use super::retries::Retries;
use super::room::Disk;
use crate::shards::codec::Reader;

/// Version of the layout of keys and records.
const FORMAT: u8 = 1;

pub(crate) struct Shared {
    pub(crate) db: DB,
    cell: usize,
    common: Arc<Common>,
    write: WriteOptions,
    /// Of reads that the disk has no part in.
    in_memory: ReadOptions,
    groups: DashMap<GroupId, Arc<Progress>>,
    /// Groups written since the last flush, each once.
    queue: Mutex<Vec<Arc<Progress>>>,
    /// Groups whose state is removed, and on disk may not be: a crash would bring it back.
    removed: Mutex<BTreeSet<GroupId>>,
    /// One flush at a time; also held while a restore begins.
    flushing: Mutex<()>,
}

/// What all cells of a state share.
pub(crate) struct Common {
    unflushed_bytes: AtomicU64,
    flush_bytes: u64,
    flusher: Option<Sender<Signal>>,
    flushes: watch::Sender<u64>,
    pub(crate) health: Health,
    retries: Mutex<Retries>,
    /// Cells in which damage was found.
    damaged: watch::Sender<BTreeSet<usize>>,
    /// Cells that write nothing before they are opened anew.
    halted: watch::Sender<BTreeSet<usize>>,
    /// Of both, those that are not recovered, and why.
    unrecovered: Mutex<BTreeMap<usize, String>>,
    pub(crate) disk: Disk,
}

impl Common {
    pub(crate) fn new(flush_bytes: u64, flusher: Sender<Signal>, disk: Disk) -> Self {
        Self { flush_bytes, flusher: Some(flusher), disk, ..Self::alone() }
    }

    /// For a database that is not flushed automatically.
    pub(crate) fn alone() -> Self {
        Self {
            unflushed_bytes: AtomicU64::new(0),
            flush_bytes: u64::MAX,
            flusher: None,
            flushes: watch::Sender::new(0),
            health: Health::default(),
            retries: Mutex::default(),
            damaged: watch::Sender::new(BTreeSet::new()),
            halted: watch::Sender::new(BTreeSet::new()),
            unrecovered: Mutex::default(),
            disk: Disk::default(),
        }
    }

    pub(crate) fn flushes(&self) -> watch::Receiver<u64> {
        self.flushes.subscribe()
    }

    pub(crate) fn mark_damaged(&self, cell: usize) {
        self.damaged.send_if_modified(|damaged| damaged.insert(cell));
    }

    pub(crate) fn unmark_damaged(&self, cell: usize) {
        self.unrecovered.lock().remove(&cell);
        self.damaged.send_if_modified(|damaged| damaged.remove(&cell));
    }

    pub(crate) fn damaged(&self) -> watch::Receiver<BTreeSet<usize>> {
        self.damaged.subscribe()
    }

    fn mark_halted(&self, cell: usize) {
        self.halted.send_if_modified(|halted| halted.insert(cell));
    }

    /// The cell was opened anew.
    pub(crate) fn unmark_halted(&self, cell: usize) {
        self.unrecovered.lock().remove(&cell);
        self.halted.send_if_modified(|halted| halted.remove(&cell));
    }

    pub(crate) fn halted(&self) -> watch::Receiver<BTreeSet<usize>> {
        self.halted.subscribe()
    }

    /// Says why a damaged cell is not recovered; whether nothing was said of it before.
    pub(crate) fn note_unrecovered(&self, cell: usize, why: String) -> bool {
        self.unrecovered.lock().insert(cell, why).is_none()
    }

    pub(crate) fn unrecovered(&self) -> BTreeMap<usize, String> {
        self.unrecovered.lock().clone()
    }

    fn count_bytes(&self, bytes: u64) {
        let before = self.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
        let due = before < self.flush_bytes && before.saturating_add(bytes) >= self.flush_bytes;
        if due && let Some(flusher) = &self.flusher {
            match flusher.try_send(Signal::Flush) {
                // A full channel means a flush is about to start anyway; a closed one, that the
                // state is being closed, which flushes.
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
    }

    /// Everything that was written so far is about to be flushed.
    pub(crate) fn flush_begins(&self) {
        self.unflushed_bytes.store(0, Ordering::Relaxed);
    }
}

impl Shared {
    pub(crate) fn open(
        path: &Path,
        cell: usize,
        options: &StateDbOptions,
        pools: &Pools,
        common: &Arc<Common>,
    ) -> Result<Self, StateDbError> {
        check_whole(path)?;
        let db = open_db(path, options, pools).map_err(|error| match error.kind() {
            _ if is_damage(&error) => {
                StateDbError::Damaged { action: "opening", message: error.into_string() }
            }
            _ => StateDbError::Open { path: path.to_owned(), message: error.into_string() },
        })?;
        let mut write = WriteOptions::default();
        write.disable_wal(true);
        let mut in_memory = ReadOptions::default();
        in_memory.set_read_tier(ReadTier::BlockCache);
        let shared = Self {
            db,
            cell,
            common: Arc::clone(common),
            write,
            in_memory,
            groups: DashMap::new(),
            queue: Mutex::default(),
            removed: Mutex::default(),
            flushing: Mutex::default(),
        };
        shared.check_format(path)?;
        Ok(shared)
    }

    fn check_format(&self, path: &Path) -> Result<(), StateDbError> {
        let stored = self.db.get(FORMAT_KEY).map_err(StateDbError::io("reading its format"))?;
        let Some(stored) = stored else {
            return self.write_format();
        };
        match Reader::new(&stored).byte() {
            Ok(FORMAT) => Ok(()),
            other => Err(StateDbError::Format {
                path: path.to_owned(),
                found: other.map_or(0, u64::from),
                expected: u64::from(FORMAT),
            }),
        }
    }

    fn write_format(&self) -> Result<(), StateDbError> {
        let mut batch = WriteBatch::default();
        batch.put(FORMAT_KEY, [FORMAT]);
        self.write(batch)?;
        self.db.flush().map_err(StateDbError::io("flushing its format"))
    }

    /// What is known of a group in this process.
    pub(crate) fn progress(&self, group: GroupId) -> Arc<Progress> {
        Arc::clone(&self.groups.entry(group).or_default())
    }

    pub(crate) fn forget(&self, group: GroupId) {
        if let Some((_, progress)) = self.groups.remove(&group) {
            progress.retire();
        }
    }

    /// Removes everything of a group. A crash may bring it back until [`Self::removal_is_durable`].
    pub(crate) fn remove(&self, space: Space) -> Result<(), StateDbError> {
        self.removed.lock().insert(space.group());
        self.write(group::clearing(space))
    }

    /// To be called after a flush that began when everything of the group was removed.
    pub(crate) fn removal_is_durable(&self, group: GroupId) {
        self.removed.lock().remove(&group);
    }

    /// Whether nothing of a group is here, and a crash brings nothing back.
    pub(crate) fn is_durably_empty(&self, space: Space) -> Result<bool, StateDbError> {
        Ok(!self.removed.lock().contains(&space.group()) && !self.holds(space)?)
    }

    /// Whether anything of a group is here.
    pub(crate) fn holds(&self, space: Space) -> Result<bool, StateDbError> {
        let (first, end) = space.whole();
        let mut options = ReadOptions::default();
        options.set_iterate_range(first.to_vec()..end.to_vec());
        let mut records = self.db.raw_iterator_opt(options);
        records.seek_to_first();
        let status = records.status().map_err(StateDbError::io(LOOKING));
        self.note_failure(&status);
        status?;
        Ok(records.valid())
    }

    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), StateDbError> {
        let written = self.db.write_opt(batch, &self.write).map_err(StateDbError::io("writing"));
        // A write that succeeds does not show that what waits for space can be flushed.
        if written.is_err() {
            self.common.health.note(self.cell, &written);
            self.note_failure(&written);
        }
        written
    }

    /// Writes the batch that brings a group to `index`.
    pub(crate) fn commit(
        &self,
        progress: &Arc<Progress>,
        batch: WriteBatch,
        index: u64,
    ) -> Result<(), StateDbError> {
        progress.touch();
        let bytes = batch.size_in_bytes() as u64;
        self.write(batch)?;
        if progress.written(index) {
            self.queue.lock().push(Arc::clone(progress));
        }
        self.common.count_bytes(bytes);
        Ok(())
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>, StateDbError> {
        let found = self.db.get_pinned(key).map_err(StateDbError::io("reading"));
        self.note_failure(&found);
        found
    }

    /// What stands at a key, `None` if it takes a read of the disk.
    pub(crate) fn get_in_memory(
        &self,
        key: &[u8],
    ) -> Result<Option<Option<DBPinnableSlice<'_>>>, StateDbError> {
        let found = match self.db.get_pinned_opt(key, &self.in_memory) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(None),
            Err(error) => Err(StateDbError::io("reading")(error)),
        };
        self.note_failure(&found);
        found
    }

    /// A failure for a reason that does not pass shows that the disk failed, or damaged this cell.
    pub(crate) fn note_failure<T>(&self, outcome: &Result<T, StateDbError>) {
        match outcome {
            Err(StateDbError::Io { .. }) => self.common.health.note(self.cell, outcome),
            Err(error @ StateDbError::Damaged { .. }) => {
                tracing::error!(cell = self.cell, %error, "a part of the state is damaged");
                self.common.mark_damaged(self.cell);
            }
            Err(StateDbError::Halted { .. }) => self.common.mark_halted(self.cell),
            _ => {}
        }
    }

    /// What stands at each of these keys, which must be sorted.
    pub(crate) fn get_sorted(
        &self,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<DBPinnableSlice<'_>>>, StateDbError> {
        let found = self.db.batched_multi_get_cf(self.family()?, keys.iter().copied(), true);
        let found =
            found.into_iter().map(|value| value.map_err(StateDbError::io("reading"))).collect();
        self.note_failure(&found);
        found
    }

    /// The one column family, which a look-up of many keys needs as an argument.
    fn family(&self) -> Result<&ColumnFamily, StateDbError> {
        self.db.cf_handle(DEFAULT_COLUMN_FAMILY_NAME).ok_or(StateDbError::Closed)
    }

    /// Whether a group was written since the last flush.
    pub(crate) fn has_unflushed(&self) -> bool {
        !self.queue.lock().is_empty()
    }

    /// Makes everything durable that was written before the call, and publishes it. Shortly after a
    /// failure nothing is tried, and the answer is the same again.
    pub(crate) fn flush(&self) -> Result<(), StateDbError> {
        let _one = self.flushing.lock();
        let resting = self.common.retries.lock().resting(self.cell, Instant::now());
        if let Some(error) = resting {
            return Err(error);
        }
        let waiting = mem::take(&mut *self.queue.lock());
        let marks: Vec<u64> = waiting.iter().map(|progress| progress.start_flush()).collect();
        let flushed = self.db.flush().map_err(StateDbError::io("flushing"));
        self.common.health.note(self.cell, &flushed);
        self.common.retries.lock().note(self.cell, &flushed, Instant::now());
        self.note_failure(&flushed);
        if let Err(error) = flushed {
            self.requeue(waiting);
            return Err(error);
        }
        for (progress, mark) in waiting.iter().zip(marks) {
            progress.flushed(mark);
        }
        self.common.flushes.send_modify(|count| *count += 1);
        Ok(())
    }

    fn requeue(&self, waiting: Vec<Arc<Progress>>) {
        let mut queue = self.queue.lock();
        queue.extend(waiting.into_iter().filter(|progress| progress.requeue()));
    }

    /// Begins a restore: nothing of the group is applied or durable from here on.
    pub(crate) fn start_restore(&self, progress: &Progress) {
        let _no_flush = self.flushing.lock();
        progress.start_restore();
    }
}

/// A database that lost the file that names its parts would be made anew, and the parts removed.
pub(super) fn check_whole(path: &Path) -> Result<(), StateDbError> {
    let unknown = |error: io::Error| StateDbError::Open {
        path: path.to_owned(),
        message: format!("its files cannot be listed: {error}"),
    };
    if path.join("CURRENT").try_exists().map_err(unknown)? {
        return Ok(());
    }
    let files = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files.map_err(unknown)?,
    };
    for file in files {
        let name = file.map_err(unknown)?.file_name();
        if Path::new(&name).extension().is_some_and(|extension| extension == "sst") {
            let message = format!("{} has tables and no CURRENT", path.display());
            return Err(StateDbError::Damaged { action: "opening", message });
        }
    }
    Ok(())
}

fn open_db(path: &Path, options: &StateDbOptions, pools: &Pools) -> Result<DB, rocksdb::Error> {
    let rocks = options.rocks(pools);
    let families = [(DEFAULT_COLUMN_FAMILY_NAME, rocks.clone())];
    DB::open_cf_with_opts(&rocks, path, families)
}
