//! The disk of one life of a host: log and snapshots behind a gate. While the gate is closed
//! nothing is written, so the directory stands as the death of the process would leave it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use shardhost::storage::{
    GroupId, LogBatch, LogError, LogPosition, LogStore, RocksStore, SnapshotAnnouncement,
    SnapshotError, SnapshotFiles, SnapshotRead, SnapshotReceive, SnapshotStore, SnapshotWrite,
};

/// Whether anything is written, and what goes wrong.
#[derive(Clone, Default)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    closed: RwLock<bool>,
    log_fails: AtomicBool,
    full: AtomicBool,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl Gate {
    /// Waits for what is being written and lets nothing more be written.
    pub fn close(&self) {
        *self.shared.closed.write() = true;
    }
    /// Lets the next write of the log fail.
    pub fn fail_log(&self) {
        self.shared.log_fails.store(true, Ordering::SeqCst);
    }
    /// Whether there is room for snapshots.
    pub fn set_full(&self, full: bool) {
        self.shared.full.store(full, Ordering::SeqCst);
    }

    fn check_room(&self, group: GroupId) -> Result<(), SnapshotError> {
        if self.shared.full.load(Ordering::SeqCst) || *self.shared.closed.read() {
            return Err(SnapshotError::DiskFull { group });
        }
        Ok(())
    }
}

/// RocksDB's log behind a gate.
#[derive(Debug)]
pub struct GatedLog {
    pub log: RocksStore,
    pub gate: Gate,
}

impl shardhost_storage::LogLayer for GatedLog {
    fn below(&self) -> &dyn LogStore {
        &self.log
    }
    fn write(&self, batch: &LogBatch) -> Result<(), LogError> {
        let closed = self.gate.shared.closed.read();
        if *closed {
            return Err(LogError::Poisoned);
        }
        if self.gate.shared.log_fails.swap(false, Ordering::SeqCst) {
            let message = "a fault on command".to_owned();
            return Err(LogError::Io { action: "writing", message });
        }
        self.log.write(batch)
    }
}

/// Snapshot files behind a gate.
#[derive(Debug)]
pub struct GatedSnapshots {
    pub files: SnapshotFiles,
    pub gate: Gate,
}

impl SnapshotStore for GatedSnapshots {
    fn create(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotWrite>, SnapshotError> {
        self.gate.check_room(group)?;
        self.files.create(group, position)
    }
    fn receive(
        &self,
        announced: SnapshotAnnouncement,
    ) -> Result<Box<dyn SnapshotReceive>, SnapshotError> {
        self.gate.check_room(announced.group)?;
        self.files.receive(announced)
    }
    fn open(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotRead>, SnapshotError> {
        self.files.open(group, position)
    }
    fn open_unchecked(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotRead>, SnapshotError> {
        self.files.open_unchecked(group, position)
    }
    fn groups(&self) -> Result<Vec<GroupId>, SnapshotError> {
        self.files.groups()
    }
    fn list(&self, group: GroupId) -> Result<Vec<LogPosition>, SnapshotError> {
        self.files.list(group)
    }
    fn remove_below(&self, group: GroupId, keep: Option<LogPosition>) -> Result<(), SnapshotError> {
        self.files.remove_below(group, keep)
    }
    fn remove_except(
        &self,
        group: GroupId,
        keep: Option<LogPosition>,
    ) -> Result<(), SnapshotError> {
        self.files.remove_except(group, keep)
    }
    fn forget_stale(&self) -> Option<Duration> {
        self.files.forget_stale()
    }
}

/// Flips a bit of the file of a snapshot; `false`: there is none.
pub fn damage_snapshot(directory: &Path, group: GroupId, at: LogPosition) -> bool {
    let name = format!("{group}-{}-{}.snap", at.index, at.term);
    let path = directory.join("snapshots").join(name);
    let Ok(mut bytes) = fs::read(&path) else { return false };
    let Some(first) = bytes.first_mut() else { return false };
    *first ^= 1;
    fs::write(&path, bytes).is_ok()
}

/// Copies the directory of a host that cannot write any more. Files that come and go meanwhile
/// make no image, so that it is made again.
pub fn image(from: &Path, to: &Path) {
    for _ in 0..1_000 {
        if to.exists() {
            fs::remove_dir_all(to).expect("removed");
        }
        if copy(from, to).is_ok() && names(from).ok() == names(to).ok() {
            return;
        }
    }
    panic!("the files of {} never rest", from.display());
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        let target = to.join(file.file_name());
        if file.path().is_dir() {
            copy(&file.path(), &target)?;
        } else {
            fs::copy(file.path(), target)?;
        }
    }
    Ok(())
}

fn names(directory: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        if path.is_dir() {
            found.extend(names(&path)?.into_iter().map(|below| name.join(below)));
        }
        found.insert(name);
    }
    Ok(found)
}
