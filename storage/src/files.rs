//! Snapshots as files in a directory, one file each.
//!
//! `<group>-<index>-<term>.snap` holds the bytes of the snapshot and a trailer with their number
//! and CRC-32. It is written under a temporary name and gets its own when it is whole and
//! synced, so that no crash leaves anything that looks like a snapshot. What a crash leaves of
//! unfinished ones is removed when the directory is opened. Nothing here knows what a snapshot
//! says.

mod reader;
mod trailer;
mod writer;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::ids::{GroupId, LogPosition};
use crate::snapshot::{SnapshotError, SnapshotRead, SnapshotStore, SnapshotWrite};

/// End of the name of a finished snapshot.
const FINISHED: &str = ".snap";
/// End of the name of an unfinished one.
const UNFINISHED: &str = ".snap.tmp";

/// A [`SnapshotStore`] in a directory. Clones are handles of the same store.
#[derive(Clone)]
pub struct SnapshotFiles {
    shared: Arc<Shared>,
}

struct Shared {
    directory: PathBuf,
    /// The finished snapshots, so that nobody has to list a directory of many groups.
    known: Mutex<BTreeSet<Name>>,
    /// Tells apart the writers of one snapshot.
    writers: AtomicU64,
}

/// What a snapshot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    group: GroupId,
    position: LogPosition,
}

impl SnapshotFiles {
    /// Opens the directory, which is created when it is missing. Leftovers of unfinished
    /// snapshots are removed; files of other names are left alone.
    ///
    /// # Errors
    /// Any of the file system. The error names the path.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let known = prepare(directory).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", directory.display()))
        })?;
        let shared = Shared {
            directory: directory.to_owned(),
            known: Mutex::new(known),
            writers: AtomicU64::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl SnapshotStore for SnapshotFiles {
    fn create(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotWrite>, SnapshotError> {
        let name = Name { group, position };
        Ok(Box::new(writer::Writer::create(Arc::clone(&self.shared), name)?))
    }

    fn open(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotRead>, SnapshotError> {
        let name = Name { group, position };
        Ok(Box::new(reader::Reader::open(&self.shared.path(name), name)?))
    }

    fn list(&self, group: GroupId) -> Result<Vec<LogPosition>, SnapshotError> {
        Ok(self.shared.positions(group))
    }

    fn remove_below(&self, group: GroupId, keep: Option<LogPosition>) -> Result<(), SnapshotError> {
        for position in self.shared.positions(group) {
            if keep.is_none_or(|keep| position < keep) {
                self.shared.remove(Name { group, position })?;
            }
        }
        Ok(())
    }
}

impl Shared {
    fn path(&self, name: Name) -> PathBuf {
        self.directory.join(format!("{name}{FINISHED}"))
    }

    fn temporary_path(&self, name: Name) -> PathBuf {
        let writer = self.writers.fetch_add(1, Ordering::Relaxed);
        self.directory.join(format!("{name}.{writer}{UNFINISHED}"))
    }

    fn positions(&self, group: GroupId) -> Vec<LogPosition> {
        let name = |position| Name { group, position };
        let all = name(LogPosition::default())..=name(LogPosition::new(u64::MAX, u64::MAX));
        self.known.lock().range(all).map(|name| name.position).collect()
    }

    /// Gives a finished file its name.
    fn publish(&self, temporary: &Path, name: Name) -> io::Result<()> {
        fs::rename(temporary, self.path(name))?;
        File::open(&self.directory)?.sync_all()?;
        self.known.lock().insert(name);
        Ok(())
    }

    fn remove(&self, name: Name) -> Result<(), SnapshotError> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(name.group, "removing it", &error));
            }
            _ => {}
        }
        self.known.lock().remove(&name);
        Ok(())
    }
}

impl Name {
    /// The name that a file name says.
    fn parse(file: &str) -> Option<Self> {
        let mut numbers = file.strip_suffix(FINISHED)?.split('-').map(str::parse::<u64>);
        let mut number = || numbers.next()?.ok();
        let (group, index, term) = (number()?, number()?, number()?);
        let name = Self { group: GroupId::new(group), position: LogPosition::new(term, index) };
        // Only names that this module gives: no signs, no leading zeros, nothing behind.
        (file == format!("{name}{FINISHED}")).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.group, self.position.index, self.position.term)
    }
}

impl fmt::Debug for SnapshotFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let directory = &self.shared.directory;
        f.debug_struct("SnapshotFiles").field("directory", directory).finish_non_exhaustive()
    }
}

fn prepare(directory: &Path) -> io::Result<BTreeSet<Name>> {
    fs::create_dir_all(directory)?;
    let mut known = BTreeSet::new();
    for file in fs::read_dir(directory)? {
        let file = file?;
        let name = file.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(UNFINISHED) {
            fs::remove_file(file.path())?;
        }
        known.extend(Name::parse(name));
    }
    Ok(known)
}

fn failed(group: GroupId, action: &'static str, error: &io::Error) -> SnapshotError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            SnapshotError::NoSpace { group }
        }
        _ => SnapshotError::Io { group, action, message: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_say_what_they_are_of() {
        for (group, term, index) in [(0, 0, 0), (255, 1, 256), (u64::MAX, u64::MAX, u64::MAX)] {
            let group = GroupId::new(group);
            let name = Name { group, position: LogPosition::new(term, index) };
            assert_eq!(Name::parse(&format!("{name}.snap")), Some(name));
        }
    }

    #[test]
    fn other_file_names_are_not_taken_for_snapshots() {
        let names = ["1-2-3", "1-2.snap", "1-2-3-4.snap", "01-2-3.snap", "+1-2-3.snap"];
        for name in names.into_iter().chain(["1-2-3.0.snap.tmp", "1-2-x.snap", ".snap", ""]) {
            assert_eq!(Name::parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let group = GroupId::new(1);
        let full = io::Error::from(rustix::io::Errno::NOSPC);
        let quota = io::Error::from(rustix::io::Errno::DQUOT);
        let broken = io::Error::from(rustix::io::Errno::IO);
        assert_eq!(failed(group, "writing", &full), SnapshotError::NoSpace { group });
        assert_eq!(failed(group, "writing", &quota), SnapshotError::NoSpace { group });
        assert!(matches!(failed(group, "writing", &broken), SnapshotError::Io { .. }));
    }
}
