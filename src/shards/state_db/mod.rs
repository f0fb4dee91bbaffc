//! The state of all shards of a host, in one RocksDB without a log of its own.
//!
//! The Raft log is the log: the position a group has applied is written in the same batch as the
//! effects of its commands, and after a crash the group replays what lies behind the position it
//! finds. [`StateDb`] makes the state durable after so many bytes or so much time, and publishes
//! per group how far ([`durable_index`]): up to there the Raft log may be truncated.
//!
//! It knows keys and positions, but neither commands nor what the values mean.
//!
//! [`durable_index`]: shardhost_groups::machine::StateMachine::durable_index

mod error;
mod flusher;
mod group;
mod keys;
mod options;
mod progress;
mod shared;
mod stream;
#[cfg(test)]
mod tests;
mod views;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::bounded;
use shardhost_storage::GroupId;
use tokio::sync::watch;
use tracing::error;

pub use self::error::StateDbError;
use self::flusher::{Flusher, SIGNALS};
pub(crate) use self::group::{GroupState, Scan};
pub(crate) use self::keys::Space;
pub use self::options::{Compression, StateDbOptions};
use self::shared::Shared;
use self::views::Keeper;
pub use self::views::MAX_OPEN_VIEWS;
use super::queue::QueueMachine;
use super::table::TableMachine;

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
/// Two threads belong to it, whatever the number of groups: one that flushes and one that holds
/// the views snapshots are written from. When the last machine and the last handle are dropped
/// the threads end and everything is flushed.
///
/// ```no_run
/// use shardhost::shards::{StateDb, StateDbOptions};
/// use shardhost_storage::GroupId;
///
/// let state = StateDb::open("/var/lib/shardhost/state", StateDbOptions::default())?;
/// let words = state.table(GroupId::new(1));
/// let jobs = state.queue(GroupId::new(2));
/// # Ok::<_, shardhost::shards::StateDbError>(())
/// ```
pub struct StateDb {
    shared: Arc<Shared>,
    path: PathBuf,
    /// `None` only while dropping.
    flusher: Option<Flusher>,
    views: Keeper,
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
        let shared = Arc::new(Shared::open(&path, &options, signals.0.clone())?);
        let flusher = Flusher::start(Arc::clone(&shared), signals, options.flush_interval)?;
        let views = Keeper::start(Arc::clone(&shared))?;
        Ok(Arc::new(Self { shared, path, flusher: Some(flusher), views }))
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

    /// Makes everything durable that was written before the call. Blocks for the disk.
    ///
    /// # Errors
    /// [`StateDbError::Io`]; nothing more is durable than before.
    pub fn flush_now(&self) -> Result<(), StateDbError> {
        self.shared.flush()
    }

    /// Removes the state of a group for good; its machine must be dropped before, and writes
    /// nothing any more. Durable on return: a group that is created later under the same id
    /// never meets what was here. Blocks for the disk.
    ///
    /// # Errors
    /// [`StateDbError::Io`]; the state may be there or not, destroy it again.
    pub fn destroy(&self, group: GroupId) -> Result<(), StateDbError> {
        self.shared.forget(group);
        self.shared.remove(Space::new(group))?;
        self.shared.flush()?;
        self.shared.removal_is_durable(group);
        Ok(())
    }

    /// Sees to it that nothing is here of a group that begins; what an earlier one left is removed
    /// as by [`StateDb::destroy`]. Costs a look, and no write, where nothing is left. Blocks for the
    /// disk.
    ///
    /// # Errors
    /// [`StateDbError::Io`]; something may be left, try again.
    pub fn make_empty(&self, group: GroupId) -> Result<(), StateDbError> {
        match self.shared.is_durably_empty(Space::new(group))? {
            true => self.shared.forget(group),
            false => self.destroy(group)?,
        }
        Ok(())
    }

    /// Counts finished flushes: when it moved, durable positions may have moved.
    #[must_use]
    pub fn flushes(&self) -> watch::Receiver<u64> {
        self.shared.flushes()
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
        if let Err(error) = self.shared.flush() {
            error!(%error, "the state of the shards could not be flushed on close");
        }
    }
}

impl fmt::Debug for StateDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateDb").field("path", &self.path).finish_non_exhaustive()
    }
}
