//! Both seams in memory, with crashes and faults on command.
//!
//! For simulations that run from a seed: everything is ordered, nothing depends on time or
//! chance, and a fault happens exactly when it was asked for. A [`MemoryStore`] keeps what was
//! written apart from what was synced, so that a crash can lose the difference. It follows the
//! rules of a write to the letter and in order, which makes it the measure of other stores.

mod snapshots;
mod state;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use shardhost_proto::version::ClusterVersion;

use crate::draft::draft;
use crate::ids::{GroupId, LogIndex, ReplicaId, Term};
use crate::store::{LogError, LogStore, StoreStats, store_id};
use crate::types::{Doubt, Entry, LogBatch, PersistedGroup};
use state::State;

pub use snapshots::{MemorySnapshots, SnapshotFault};

/// Something that goes wrong with a [`MemoryStore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum StoreFault {
    /// The next write fails; nothing of it is kept.
    Write,
    /// The next sync fails; what waits for it stays unsynced, and a crash decides about it.
    Sync,
    /// Reads of this group fail until [`MemoryStore::heal`].
    Reads(GroupId),
    /// The entry of this group at this index is damaged until [`MemoryStore::heal`], or until a
    /// write replaces it: reads that reach it fail with [`LogError::Corrupt`].
    DamagedEntry(GroupId, LogIndex),
    /// Syncs say that they succeeded and do nothing, until [`MemoryStore::heal`]. No host can
    /// survive this: it shows that a test would notice a loss.
    LyingSync,
    /// The next crash takes the last durable batch with it, though its sync had succeeded, and
    /// leaves every replica in doubt: the end of the log was damaged while power was lost.
    LoseTail,
}

/// A [`LogStore`] in memory. Clones are handles of the same store.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    id: StoreNumber,
    /// `None`: as it was created, by this program.
    version: Option<ClusterVersion>,
    durable: State,
    /// What reads see: `durable` with `unsynced` on top.
    visible: State,
    unsynced: VecDeque<LogBatch>,
    /// What was durable before the last batch, while [`StoreFault::LoseTail`] is asked for.
    before_last: Option<State>,
    poisoned: bool,
    faults: BTreeSet<StoreFault>,
    stats: StoreStats,
}

/// Which store it is, from the beginning.
#[derive(Debug)]
struct StoreNumber(u64);

impl Default for StoreNumber {
    fn default() -> Self {
        Self(store_id())
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The first half of a write: the batch is visible to reads, and a crash loses it.
    ///
    /// # Errors
    /// As [`LogStore::write`].
    pub fn write_unsynced(&self, batch: &LogBatch) -> Result<(), LogError> {
        self.inner.lock().write(batch)
    }

    /// The second half of a write: everything visible becomes durable.
    ///
    /// # Errors
    /// As [`LogStore::write`].
    pub fn sync(&self) -> Result<(), LogError> {
        self.inner.lock().sync()
    }

    /// Another store with the durable content of this one: as if its directory had been copied.
    #[must_use]
    pub fn copy_of_durable(&self) -> Self {
        let inner = self.inner.lock();
        let (durable, visible) = (inner.durable.clone(), inner.durable.clone());
        let copy = Inner { durable, visible, ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(copy)) }
    }

    /// Batches that were written and not synced.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.inner.lock().unsynced.len()
    }

    /// The process dies and starts again. The `keep` oldest of the unsynced batches happen to
    /// survive, the others are lost; a batch that was torn is one of the lost. A store that was
    /// poisoned works again, faults that were asked for stay. Returns how many batches were lost.
    pub fn crash(&self, keep: usize) -> usize {
        self.inner.lock().crash(keep)
    }

    /// Asks for a fault.
    pub fn inject(&self, fault: StoreFault) {
        self.inner.lock().faults.insert(fault);
    }

    /// Whether a fault was asked for and has not happened.
    #[must_use]
    pub fn awaits(&self, fault: StoreFault) -> bool {
        self.inner.lock().faults.contains(&fault)
    }

    /// Takes back every fault that was asked for. A poisoned store stays so until it crashes.
    pub fn heal(&self) {
        self.inner.lock().faults.clear();
    }

    /// What [`LogStore::load`] would say after a crash that keeps nothing unsynced.
    #[must_use]
    pub fn load_durable(&self, group: GroupId) -> Option<PersistedGroup> {
        self.inner.lock().durable.load(group)
    }
}

impl Inner {
    fn write(&mut self, batch: &LogBatch) -> Result<(), LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned);
        }
        draft(batch, &self.visible)?;
        if self.faults.remove(&StoreFault::Write) {
            self.poisoned = true;
            return Err(injected("writing"));
        }
        self.visible.apply(batch);
        self.mend_replaced(batch);
        self.count(batch);
        self.unsynced.push_back(batch.clone());
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned);
        }
        if self.faults.remove(&StoreFault::Sync) {
            self.poisoned = true;
            return Err(injected("syncing"));
        }
        if !self.faults.contains(&StoreFault::LyingSync) {
            self.settle(usize::MAX);
        }
        Ok(())
    }

    /// Makes the oldest unsynced batches durable.
    fn settle(&mut self, at_most: usize) {
        let count = at_most.min(self.unsynced.len());
        for batch in self.unsynced.drain(..count) {
            if self.faults.contains(&StoreFault::LoseTail) {
                self.before_last = Some(self.durable.clone());
            }
            self.durable.apply(&batch);
        }
    }

    /// Goes back to what was durable before the last batch, in doubt.
    fn lose_tail(&mut self) {
        if self.faults.remove(&StoreFault::LoseTail) {
            self.durable = self.before_last.take().unwrap_or_else(|| self.durable.clone());
            self.durable.raise_doubt(Doubt::TornTail);
        }
    }

    fn crash(&mut self, keep: usize) -> usize {
        self.settle(keep);
        let lost = self.unsynced.len();
        self.unsynced.clear();
        self.lose_tail();
        self.visible = self.durable.clone();
        self.poisoned = false;
        lost
    }

    /// An entry that was written again, or dropped, is not damaged any more.
    fn mend_replaced(&mut self, batch: &LogBatch) {
        for write in &batch.writes {
            let from = write.entries.first().map(|entry| entry.index);
            let all = write.destroy.is_some() || write.reset.is_some();
            self.faults.retain(|fault| match fault {
                StoreFault::DamagedEntry(group, index) if *group == write.group => {
                    !all && from.is_none_or(|from| *index < from)
                }
                _ => true,
            });
        }
    }

    fn count(&mut self, batch: &LogBatch) {
        let entries = || batch.writes.iter().flat_map(|write| &write.entries);
        self.stats.writes += 1;
        self.stats.group_writes += batch.writes.len() as u64;
        self.stats.entries += entries().count() as u64;
        self.stats.bytes += entries().map(Entry::payload_bytes).sum::<u64>();
    }

    fn check_readable(&self, group: GroupId) -> Result<(), LogError> {
        if self.faults.contains(&StoreFault::Reads(group)) {
            return Err(injected("reading"));
        }
        Ok(())
    }

    fn check_undamaged(
        &self,
        group: GroupId,
        from: LogIndex,
        to: LogIndex,
    ) -> Result<(), LogError> {
        let damaged = |fault: &StoreFault| match fault {
            StoreFault::DamagedEntry(of, index) => *of == group && (from..to).contains(index),
            _ => false,
        };
        if self.faults.iter().any(damaged) {
            let place = format!("the entries {from} to {to} of group {group}");
            return Err(LogError::Corrupt { place, message: "a fault on command".to_owned() });
        }
        Ok(())
    }
}

fn injected(action: &'static str) -> LogError {
    LogError::Io { action, message: "a fault on command".to_owned() }
}

impl LogStore for MemoryStore {
    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        Ok(self.inner.lock().visible.groups())
    }

    fn load(&self, group: GroupId) -> Result<Option<PersistedGroup>, LogError> {
        let inner = self.inner.lock();
        inner.check_readable(group)?;
        Ok(inner.visible.load(group))
    }

    fn tombstone(&self, group: GroupId) -> Result<Option<ReplicaId>, LogError> {
        let inner = self.inner.lock();
        inner.check_readable(group)?;
        Ok(inner.visible.tombstone(group))
    }

    fn entries(
        &self,
        group: GroupId,
        from: LogIndex,
        to: LogIndex,
        max_bytes: u64,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogError> {
        let inner = self.inner.lock();
        inner.check_readable(group)?;
        let start = out.len();
        inner.visible.entries(group, from, to, max_bytes, out)?;
        let end = out.last().map_or(from, |entry| entry.index.next());
        let checked = inner.check_undamaged(group, from, end);
        if checked.is_err() {
            out.truncate(start);
        }
        checked
    }

    fn term(&self, group: GroupId, index: LogIndex) -> Result<Term, LogError> {
        let inner = self.inner.lock();
        inner.check_readable(group)?;
        inner.visible.term(group, index)
    }

    fn write(&self, batch: &LogBatch) -> Result<(), LogError> {
        let mut inner = self.inner.lock();
        inner.write(batch)?;
        inner.sync()
    }

    fn id(&self) -> u64 {
        self.inner.lock().id.0
    }

    fn version(&self) -> ClusterVersion {
        self.inner.lock().version.unwrap_or(ClusterVersion::NEWEST)
    }

    fn raise_version(&self, version: ClusterVersion) -> Result<(), LogError> {
        let version = version.max(self.version());
        self.inner.lock().version = Some(version);
        Ok(())
    }

    fn stats(&self) -> StoreStats {
        self.inner.lock().stats
    }
}

/// The groups of a store and the stored state of each.
type Groups<T> = BTreeMap<GroupId, T>;
