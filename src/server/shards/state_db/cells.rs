//! The state of a host is kept in several databases, the *cells*, so that what befalls one concerns few
//! groups: RocksDB stops a whole database when a flush or a compaction meets damage.
//!
//! A group is always in the same cell. How many there are stands in the directory from the beginning;
//! one that an earlier version wrote has a single cell, which is the directory itself. A cell is
//! opened with the state, or when its first group comes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rocksdb::{Cache, WriteBufferManager};
use rustix::fs::{FlockOperation, flock};
use shardhost_storage::rocks::database_stats;
use shardhost_storage::{DatabaseStats, GroupId, create_directory};

use super::error::StateDbError;
use super::options::StateDbOptions;
use super::shared::{Common, Shared};
use super::views::Keeper;

/// The file that says how many cells there are.
const COUNT: &str = "cells";
/// The file that every database of RocksDB has, here one of an earlier version.
const ROCKS_CURRENT: &str = "CURRENT";
/// More than are ever made: a larger number is damage.
const MAX_CELLS: usize = 256;

/// What cells share, so that their number does not multiply what they take of memory.
#[derive(Clone)]
pub(crate) struct Pools {
    pub(crate) cache: Cache,
    pub(crate) memtables: WriteBufferManager,
}

/// One database that is open, and the thread of its views.
pub(crate) struct OpenCell {
    pub(crate) shared: Arc<Shared>,
    pub(crate) views: Keeper,
}

enum Slot {
    /// Nothing of it exists yet.
    New,
    Open(Arc<OpenCell>),
    /// It cannot be opened, or is being recovered.
    Closed(StateDbError),
}

/// All cells of a state.
pub(crate) struct Cells {
    directory: PathBuf,
    options: StateDbOptions,
    pools: Pools,
    common: Arc<Common>,
    slots: Box<[RwLock<Slot>]>,
    /// An earlier version wrote it: the directory is the only cell.
    single: bool,
    /// Held as long as the state is open.
    _lock: Option<File>,
    /// One cell is recovered at a time.
    mending: Mutex<()>,
}

impl Cells {
    pub(crate) fn open(
        directory: &Path,
        options: &StateDbOptions,
        common: Arc<Common>,
    ) -> Result<Self, StateDbError> {
        let refused = |error: io::Error| StateDbError::Open {
            path: directory.to_owned(),
            message: error.to_string(),
        };
        // Of a single cell the directory itself is put aside.
        super::salvage::finish(directory).map_err(refused)?;
        let layout = Layout::of(directory, options.cells).map_err(refused)?;
        let lock = layout.lock(directory).map_err(refused)?;
        let cells = Self {
            directory: directory.to_owned(),
            options: options.clone(),
            pools: options.pools(),
            common,
            slots: (0..layout.count).map(|_| RwLock::new(Slot::New)).collect(),
            single: layout.single,
            _lock: lock,
            mending: Mutex::default(),
        };
        for index in 0..layout.count {
            super::salvage::finish(&cells.path(index))
                .map_err(|error| cells.open_error(index, error.to_string()))?;
            if cells.exists(index)? {
                cells.open_at_start(index)?;
            }
        }
        Ok(cells)
    }

    /// A damaged cell keeps no other from being opened.
    fn open_at_start(&self, index: usize) -> Result<(), StateDbError> {
        match self.open_cell(index) {
            Ok(cell) => *self.slots[index].write() = Slot::Open(Arc::new(cell)),
            Err(error @ StateDbError::Damaged { .. }) => {
                tracing::error!(cell = index, %error, "a part of the state cannot be opened");
                self.common.mark_damaged(index);
                *self.slots[index].write() = Slot::Closed(error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn open_cell(&self, index: usize) -> Result<OpenCell, StateDbError> {
        let path = self.path(index);
        // RocksDB makes its directory, too, and does not sync it into that of the cells.
        create_directory(&path).map_err(|error| self.open_error(index, error.to_string()))?;
        let shared = Shared::open(&path, index, &self.options, &self.pools, &self.common)?;
        let shared = Arc::new(shared);
        let views = Keeper::start(Arc::clone(&shared))?;
        Ok(OpenCell { shared, views })
    }

    fn open_error(&self, index: usize, message: String) -> StateDbError {
        StateDbError::Open { path: self.path(index), message }
    }

    /// The cell of a group.
    pub(crate) fn index_of(&self, group: GroupId) -> usize {
        let count = self.slots.len() as u64;
        usize::try_from(group.get() % count).unwrap_or(0)
    }

    pub(crate) fn path(&self, index: usize) -> PathBuf {
        match self.single {
            true => self.directory.clone(),
            false => self.directory.join(format!("cell-{index:02}")),
        }
    }

    fn exists(&self, index: usize) -> Result<bool, StateDbError> {
        let exists = self.path(index).try_exists();
        exists.map_err(|error| self.open_error(index, error.to_string()))
    }

    /// The database of a group, which is opened if it is not.
    pub(crate) fn of(&self, group: GroupId) -> Result<Arc<OpenCell>, StateDbError> {
        let index = self.index_of(group);
        match &*self.slots[index].read() {
            Slot::Open(cell) => return Ok(Arc::clone(cell)),
            Slot::Closed(error) => return Err(error.clone()),
            Slot::New => {}
        }
        let mut slot = self.slots[index].write();
        if matches!(*slot, Slot::New) {
            *slot = Slot::Open(Arc::new(self.open_cell(index)?));
        }
        match &*slot {
            Slot::Open(cell) => Ok(Arc::clone(cell)),
            Slot::Closed(error) => Err(error.clone()),
            Slot::New => Err(StateDbError::Closed),
        }
    }

    /// All that are open, together.
    pub(crate) fn database(&self) -> DatabaseStats {
        let mut all = DatabaseStats::default();
        for cell in self.all() {
            all += database_stats(&cell.shared.db, []);
        }
        // They have one.
        all.cache_bytes = self.pools.cache.get_usage() as u64;
        all
    }

    pub(crate) fn all(&self) -> Vec<Arc<OpenCell>> {
        let open = |slot: &RwLock<Slot>| match &*slot.read() {
            Slot::Open(cell) => Some(Arc::clone(cell)),
            Slot::New | Slot::Closed(_) => None,
        };
        self.slots.iter().filter_map(open).collect()
    }

    /// Closes a cell, has `mend` done with its directory, and opens it again.
    ///
    /// # Errors
    /// [`StateDbError::Busy`] while machines of its groups are open; else what `mend` or the opening
    /// says, and the cell stays closed.
    pub(crate) fn mend<T>(
        &self,
        index: usize,
        mend: impl FnOnce(&Path) -> Result<T, StateDbError>,
    ) -> Result<T, StateDbError> {
        let _one = self.mending.lock();
        self.close(index)?;
        // Nothing waits for it: a request meanwhile gets an error that it is closed.
        let path = self.path(index);
        let mended = mend(&path);
        // What could not be mended is as it was. One that is not there is not made anew: what is left
        // of it stands beside it.
        if !path.try_exists().unwrap_or(false) {
            return mended.and_then(|_| Err(self.open_error(index, "it is missing".to_owned())));
        }
        let cell = self.open_cell(index)?;
        *self.slots[index].write() = Slot::Open(Arc::new(cell));
        mended
    }

    fn close(&self, index: usize) -> Result<(), StateDbError> {
        let mut slot = self.slots[index].write();
        // A request meanwhile gets no error about damage: that may be elsewhere in the cell.
        let closed = StateDbError::Passing {
            action: "opening",
            message: format!("cell {index} is not recovered yet"),
        };
        let Slot::Open(cell) = std::mem::replace(&mut *slot, Slot::Closed(closed)) else {
            return Ok(());
        };
        match Arc::try_unwrap(cell) {
            Ok(cell) => drop(cell),
            Err(cell) => {
                *slot = Slot::Open(cell);
                return Err(StateDbError::Busy { cell: index });
            }
        }
        Ok(())
    }

    pub(crate) const fn common(&self) -> &Arc<Common> {
        &self.common
    }

    pub(crate) const fn options(&self) -> &StateDbOptions {
        &self.options
    }

    pub(crate) const fn pools(&self) -> &Pools {
        &self.pools
    }
}

/// How a directory is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    count: usize,
    single: bool,
}

impl Layout {
    /// Takes the directory for this process. Of a single cell RocksDB does it: the cell moves as a whole.
    fn lock(self, directory: &Path) -> io::Result<Option<File>> {
        if self.single {
            return Ok(None);
        }
        let lock = File::create(directory.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            io::Error::new(io::ErrorKind::AddrInUse, format!("in use by another process ({error})"))
        })?;
        Ok(Some(lock))
    }

    /// What stands in a directory; a new one is given so many cells.
    fn of(directory: &Path, wanted: usize) -> io::Result<Self> {
        if directory.join(ROCKS_CURRENT).try_exists()? {
            return Ok(Self { count: 1, single: true });
        }
        create_directory(directory)?;
        let file = directory.join(COUNT);
        match fs::read_to_string(&file) {
            Ok(text) => {
                let count =
                    text.trim().parse().ok().filter(|count| (1..=MAX_CELLS).contains(count));
                let count = count.ok_or_else(|| {
                    let said =
                        format!("{} says {text:?}, which is no number of cells", file.display());
                    io::Error::new(io::ErrorKind::InvalidData, said)
                })?;
                Ok(Self { count, single: false })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if directory.join("cell-00").try_exists()? {
                    let said = format!(
                        "{} is missing: write the number of cells into it that it was made with, 8 by \
                         default",
                        file.display()
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidData, said));
                }
                let count = wanted.clamp(1, MAX_CELLS);
                shardhost_storage::replace_file(&file, format!("{count}\n").as_bytes())?;
                Ok(Self { count, single: false })
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_cells_stays_what_it_was_at_first() {
        let directory = tempfile::tempdir().unwrap();
        let layout = |wanted| Layout::of(directory.path(), wanted);
        let eight = Layout { count: 8, single: false };
        assert_eq!([layout(8).unwrap(), layout(2).unwrap()], [eight, eight]);
        for damaged in ["", "0", "many", "1000"] {
            fs::write(directory.path().join(COUNT), damaged).unwrap();
            assert!(layout(8).unwrap_err().to_string().contains("no number of cells"));
        }
        fs::remove_file(directory.path().join(COUNT)).unwrap();
        fs::create_dir(directory.path().join("cell-00")).unwrap();
        assert!(layout(8).unwrap_err().to_string().contains("is missing"));
    }

    #[test]
    fn a_directory_of_an_earlier_version_is_one_cell() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(ROCKS_CURRENT), "MANIFEST-1\n").unwrap();
        let layout = Layout::of(directory.path(), 8).unwrap();
        assert_eq!(layout, Layout { count: 1, single: true });
    }
}
