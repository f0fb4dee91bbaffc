//! The state of all shards of a host, in a few RocksDBs without logs of their own.
//!
//! The Raft log is the log: the position a group has applied is written in the same batch as the
//! effects of its commands, and after a crash the group replays what lies behind the position it
//! finds. [`StateDb`] makes the state durable after so many bytes or so much time, and publishes
//! per group how far ([`durable_index`]): up to there the Raft log may be truncated.
//!
//! It knows keys and positions, but neither commands nor what the values mean.
//!
//! [`durable_index`]: shardhost_groups::machine::StateMachine::durable_index

mod cells;
mod descriptors;
mod error;
mod flusher;
mod group;
mod health;
mod keys;
mod options;
mod progress;
mod retries;
mod room;
mod salvage;
mod shared;
mod stream;
#[cfg(test)]
mod tests;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::bounded;
use shardhost_storage::{DatabaseStats, GroupId};
use tokio::sync::watch;
use tracing::error;

use self::cells::Cells;
pub(crate) use self::descriptors::are_free as files_are_free;
pub use self::error::StateDbError;
use self::flusher::{Flusher, SIGNALS};
pub(crate) use self::group::{GroupState, Scan};
pub use self::health::StateHealth;
pub(crate) use self::keys::Space;
pub use self::options::{Compression, StateDbOptions};
use self::room::Disk;
pub use self::salvage::Salvaged;
use self::shared::Common;
pub use self::views::MAX_OPEN_VIEWS;
use super::queue::QueueMachine;
use super::table::TableMachine;
use super::time::ShardTimes;

/// Replicas are compared by the bytes of their snapshots, which hold no position and nothing of one
/// host. Another number where a version writes other bytes of the same state.
pub(crate) const COMPARED_FORMAT: u32 = 1;

/// Which machine a group's state belongs to, as it stands on disk and in snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MachineKind {
    Table = 1,
    Queue = 2,
}

/// The state of all shards of one host.
///
/// Some threads belong to it, whatever the number of groups: one that flushes, and one per cell that
/// holds the views snapshots are written from. When the last machine and the last handle are dropped
/// the threads end and everything is flushed.
///
/// ```no_run
/// use shardhost_server::shards::{StateDb, StateDbOptions};
/// use shardhost_storage::GroupId;
///
/// let state = StateDb::open("/var/lib/shardhost/state", StateDbOptions::default())?;
/// let words = state.table(GroupId::new(1));
/// let jobs = state.queue(GroupId::new(2));
/// # Ok::<_, shardhost_server::shards::StateDbError>(())
/// ```
pub struct StateDb {
    cells: Arc<Cells>,
    times: Arc<ShardTimes>,
    path: PathBuf,
    flusher: Option<Flusher>,
}

impl StateDb {
    /// Opens or creates the state in `path`.
    ///
    /// # Errors
    /// [`StateDbError::Open`] when another process holds it or it cannot be read,
    /// [`StateDbError::Format`] when another version wrote it.
    pub fn open(
        path: impl AsRef<Path>,
        options: StateDbOptions,
    ) -> Result<Arc<Self>, StateDbError> {
        let path = path.as_ref().to_owned();
        let signals = bounded(SIGNALS);
        let disk = Disk::of(&path);
        let common = Arc::new(Common::new(options.flush_bytes, signals.0.clone(), disk));
        let cells = Arc::new(Cells::open(&path, &options, common)?);
        let flusher = Flusher::start(Arc::clone(&cells), signals, options.flush_interval)?;
        let times = Arc::default();
        Ok(Arc::new(Self { cells, times, path, flusher: Some(flusher) }))
    }

    /// The machine of a table shard. One at a time per group.
    #[must_use]
    pub fn table(self: &Arc<Self>, group: GroupId) -> TableMachine {
        TableMachine::new(GroupState::new(Arc::clone(self), group, MachineKind::Table))
    }

    /// The machine of a queue shard. One at a time per group.
    #[must_use]
    pub fn queue(self: &Arc<Self>, group: GroupId) -> QueueMachine {
        QueueMachine::new(GroupState::new(Arc::clone(self), group, MachineKind::Queue))
    }

    /// The databases of all cells together, at this moment.
    #[must_use]
    pub fn database(&self) -> DatabaseStats {
        self.cells.database()
    }

    /// Makes everything durable that was written before the call. Blocks for the disk.
    ///
    /// # Errors
    /// [`StateDbError::Io`]; nothing more is durable than before.
    pub fn flush_now(&self) -> Result<(), StateDbError> {
        self.cells.common().flush_begins();
        self.cells.all().iter().try_for_each(|cell| cell.shared.flush())
    }

    /// Removes the state of a group for good; its machine must be dropped before, and writes
    /// nothing any more. Durable on return: a group that is created later under the same id
    /// never meets what was here. Blocks for the disk.
    ///
    /// # Errors
    /// [`StateDbError::Io`]; the state may be there or not, destroy it again.
    pub fn destroy(&self, group: GroupId) -> Result<(), StateDbError> {
        let cell = self.cells.of(group)?;
        cell.shared.forget(group);
        cell.shared.remove(Space::new(group))?;
        cell.shared.flush()?;
        cell.shared.removal_is_durable(group);
        Ok(())
    }

    /// Sees to it that nothing is here of a group that begins; what an earlier one left is removed
    /// as by [`StateDb::destroy`]. Costs a look, and no write, where nothing is left. Blocks for the
    /// disk.
    ///
    /// # Errors
    /// [`StateDbError::Io`]; something may be left, try again.
    pub fn make_empty(&self, group: GroupId) -> Result<(), StateDbError> {
        let cell = self.cells.of(group)?;
        match cell.shared.is_durably_empty(Space::new(group))? {
            true => cell.shared.forget(group),
            false => self.destroy(group)?,
        }
        Ok(())
    }

    /// The health of the state. The host stops when it failed.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<StateHealth> {
        self.cells.common().health.watch()
    }

    /// Free bytes of the disk with which it surely continues after there was no space.
    #[must_use]
    pub fn resumes_with(&self) -> u64 {
        self.cells.options().resumes_with()
    }

    /// The cells in which damage was found since the start: [`StateDb::recover`] one.
    #[must_use]
    pub fn damaged_cells(&self) -> watch::Receiver<BTreeSet<usize>> {
        self.cells.common().damaged()
    }

    /// The cells that write nothing before they are opened anew: [`StateDb::reopen`] one.
    #[must_use]
    pub fn halted_cells(&self) -> watch::Receiver<BTreeSet<usize>> {
        self.cells.common().halted()
    }

    /// The cell that holds the state of a group.
    #[must_use]
    pub fn cell_of(&self, group: GroupId) -> usize {
        self.cells.index_of(group)
    }

    /// Whether a cell may be recovered: not when three damaged ones were put aside.
    #[must_use]
    pub fn may_recover(&self, cell: usize) -> bool {
        salvage::has_place(&self.cells.path(cell))
    }

    /// Whether there is room for a damaged cell to be written anew. To be asked before its replicas are
    /// closed. Blocks for the disk.
    ///
    /// # Errors
    /// [`StateDbError::NoRoom`], or [`StateDbError::Passing`] when that cannot be found out.
    pub fn has_room_to_recover(&self, cell: usize) -> Result<(), StateDbError> {
        salvage::has_room(&self.cells.path(cell), &self.cells.common().disk)
    }

    /// Remembers why a damaged cell is not recovered, until it is; whether nothing was known before.
    pub fn note_unrecovered(&self, cell: usize, why: impl Into<String>) -> bool {
        self.cells.common().note_unrecovered(cell, why.into())
    }

    /// The damaged cells that are not recovered, and why.
    #[must_use]
    pub fn unrecovered(&self) -> BTreeMap<usize, String> {
        self.cells.common().unrecovered()
    }

    /// Removes what a crash left of recoveries that were not finished, in the state in `path`, which
    /// no process has open. It holds room that the log may need to be opened.
    ///
    /// # Errors
    /// Any of the file system.
    pub fn remove_unfinished(path: impl AsRef<Path>) -> io::Result<()> {
        salvage::remove_unfinished(path.as_ref())
    }

    /// Writes a damaged cell anew, with those of its groups that can be read; the others are at no
    /// position afterwards, and what was there is put aside. `groups` are all that belong to the
    /// cell, and their machines must be dropped. Blocks for the disk.
    ///
    /// # Errors
    /// [`StateDbError::Busy`] when a machine is open, [`StateDbError::Damaged`] when three damaged
    /// ones were put aside before. [`StateDbError::NoRoom`], [`StateDbError::Passing`], and any other:
    /// try again. Nothing changed then, and nothing of the new one is left.
    pub fn recover(&self, cell: usize, groups: &[GroupId]) -> Result<Salvaged, StateDbError> {
        self.has_room_to_recover(cell)?;
        let (options, pools) = (self.cells.options(), self.cells.pools());
        let disk = &self.cells.common().disk;
        let salvage = |path: &Path| salvage::salvage(path, groups, options, pools, disk);
        let salvaged = self.cells.mend(cell, salvage)?;
        self.cells.common().unmark_damaged(cell);
        self.cells.common().unmark_halted(cell);
        Ok(salvaged)
    }

    /// Whether there are the descriptors to open a cell anew. To be asked before its replicas are
    /// closed. Blocks for the disk.
    ///
    /// # Errors
    /// [`StateDbError::Passing`].
    pub fn has_descriptors(&self) -> Result<(), StateDbError> {
        descriptors::are_free(&self.path)
    }

    /// Opens a cell anew. The machines of its groups must be dropped; they stand afterwards where
    /// they were durable. Blocks for the disk.
    ///
    /// # Errors
    /// [`StateDbError::Busy`] when a machine is open; [`StateDbError::Passing`] and any other: try
    /// again.
    pub fn reopen(&self, cell: usize) -> Result<(), StateDbError> {
        self.has_descriptors()?;
        self.cells.mend(cell, |_| Ok(()))?;
        // One that was damaged, too, was not opened.
        self.cells.common().unmark_halted(cell);
        Ok(())
    }

    /// Counts finished flushes: when it moved, durable positions may have moved.
    #[must_use]
    pub fn flushes(&self) -> watch::Receiver<u64> {
        self.cells.common().flushes()
    }

    /// What time it is for the shards whose machines are open.
    #[must_use]
    pub const fn times(&self) -> &Arc<ShardTimes> {
        &self.times
    }

    /// Where the state is kept.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StateDb {
    fn drop(&mut self) {
        drop(self.flusher.take());
        if let Err(error) = self.flush_now() {
            error!(%error, "the state of the shards could not be flushed on close");
        }
    }
}

impl fmt::Debug for StateDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateDb").field("path", &self.path).finish_non_exhaustive()
    }
}
