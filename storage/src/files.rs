//! Snapshots as files in a directory, one file each.
//!
//! `<group>-<index>-<term>.snap` holds the bytes of the snapshot and a trailer with their number
//! and CRC-32. It is written under a temporary name and renamed when it is complete and synced, so
//! that no crash leaves anything that looks like a snapshot. Unfinished files of a crash are
//! removed when the directory is opened. The content of a snapshot is opaque here.
//!
//! Snapshots share their disk with the log, and a host whose log cannot write ends. So they never
//! take the last of it, and a snapshot that is announced is refused before its first byte when it
//! would not fit.

#[cfg(feature = "testing")]
pub(crate) mod fuzz;
mod paused;
mod reader;
mod reception;
mod space;
mod trailer;
mod writer;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::directory::create_directory;
use crate::ids::{GroupId, LogPosition};
use crate::rate::ByteRate;
use crate::snapshot::{
    SnapshotAnnouncement, SnapshotError, SnapshotRead, SnapshotReceive, SnapshotStore,
    SnapshotWrite,
};
use paused::PausedReceptions;
use space::{Reservation, Space};

/// End of the name of a finished snapshot.
const FINISHED: &str = ".snap";
/// End of the name of an unfinished one.
const UNFINISHED: &str = ".snap.tmp";

/// Bounds of what snapshots take of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotFilesOptions {
    /// Bytes of the disk that snapshots leave free. Default 256 MiB.
    pub keep_free_bytes: u64,
    /// Bytes of a snapshot that are written before they are synced; a sync of much more would
    /// hold up the log. At least 1. Default 8 MiB.
    pub sync_bytes: u64,
    /// Bytes per second that are written, over all snapshots, own and received; 0: no bound. The
    /// log is on the same disk: the default of 64 MiB leaves writers most of it.
    pub bytes_per_second: u64,
    /// Broken receptions that are kept to be continued. Default 16.
    pub most_paused: usize,
    /// Bytes of all of them together. Default 8 GiB.
    pub most_paused_bytes: u64,
    /// How long each is kept. Default 10 minutes.
    pub keep_paused_for: Duration,
}

impl Default for SnapshotFilesOptions {
    fn default() -> Self {
        Self {
            keep_free_bytes: 256 << 20,
            sync_bytes: 8 << 20,
            bytes_per_second: 64 << 20,
            most_paused: 16,
            most_paused_bytes: 8 << 30,
            keep_paused_for: Duration::from_secs(600),
        }
    }
}

/// A [`SnapshotStore`] in a directory. Clones are handles of the same store.
#[derive(Clone)]
pub struct SnapshotFiles {
    shared: Arc<Shared>,
}

struct Shared {
    directory: PathBuf,
    options: SnapshotFilesOptions,
    space: Arc<Space>,
    rate: ByteRate,
    paused: PausedReceptions,
    /// The finished snapshots, so that a directory of many groups need not be listed.
    known: Mutex<BTreeSet<Name>>,
    /// Distinguishes the writers of one snapshot.
    writers: AtomicU64,
}

/// What a snapshot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    group: GroupId,
    position: LogPosition,
}

impl SnapshotFiles {
    /// Opens the directory with the default bounds; see [`SnapshotFiles::open_with`].
    ///
    /// # Errors
    /// Any of the file system. The error names the path.
    pub fn open(directory: &Path) -> io::Result<Self> {
        Self::open_with(directory, SnapshotFilesOptions::default())
    }

    /// Opens the directory, which is created when it is missing. Leftovers of unfinished
    /// snapshots are removed; files of other names are left alone.
    ///
    /// # Errors
    /// Any of the file system. The error names the path.
    pub fn open_with(directory: &Path, options: SnapshotFilesOptions) -> io::Result<Self> {
        let known = prepare(directory).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", directory.display()))
        })?;
        let shared = Shared {
            directory: directory.to_owned(),
            options,
            space: Space::new(directory, options.keep_free_bytes),
            rate: ByteRate::new(options.bytes_per_second),
            paused: PausedReceptions::new(&options),
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
        let room = self.shared.room_for(group, writer::ROOM_STEP_BYTES)?;
        let writer = writer::Writer::create(&self.shared, Name { group, position })?;
        Ok(Box::new(writer.growing(room)))
    }

    fn receive(
        &self,
        announced: SnapshotAnnouncement,
    ) -> Result<Box<dyn SnapshotReceive>, SnapshotError> {
        if self.shared.has(&announced) {
            return Ok(Box::new(reception::Present { announced }));
        }
        Ok(Box::new(reception::Reception::begin(&self.shared, announced)?))
    }

    fn open(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotRead>, SnapshotError> {
        let name = Name { group, position };
        Ok(Box::new(reader::Reader::open(&self.shared.path(name), name)?))
    }

    fn open_unchecked(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotRead>, SnapshotError> {
        let name = Name { group, position };
        Ok(Box::new(reader::Reader::open_unchecked(&self.shared.path(name), name)?))
    }

    fn groups(&self) -> Result<Vec<GroupId>, SnapshotError> {
        let mut groups: Vec<_> = self.shared.known.lock().iter().map(|name| name.group).collect();
        groups.dedup();
        Ok(groups)
    }

    fn list(&self, group: GroupId) -> Result<Vec<LogPosition>, SnapshotError> {
        Ok(self.shared.positions(group))
    }

    fn remove_below(&self, group: GroupId, keep: Option<LogPosition>) -> Result<(), SnapshotError> {
        self.shared.paused.drop_below(group, keep);
        self.shared.remove_where(group, |position| keep.is_none_or(|keep| position < keep))
    }

    fn remove_except(
        &self,
        group: GroupId,
        keep: Option<LogPosition>,
    ) -> Result<(), SnapshotError> {
        self.shared.remove_where(group, |position| keep != Some(position))
    }

    fn forget_stale(&self) -> Option<Duration> {
        self.shared.paused.drop_stale(Instant::now())
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

    /// Reserves room; paused receptions give way.
    fn room_for(&self, group: GroupId, bytes: u64) -> Result<Reservation, SnapshotError> {
        loop {
            match self.space.reserve(group, bytes) {
                Err(SnapshotError::NoSpace { .. }) if self.paused.drop_oldest() => {}
                other => return other,
            }
        }
    }

    /// Whether the very snapshot is here, undamaged.
    fn has(&self, announced: &SnapshotAnnouncement) -> bool {
        let name = Name::of(announced);
        if !self.known.lock().contains(&name) {
            return false;
        }
        let same = |file: &reader::Reader| {
            (file.size(), file.crc()) == (announced.size, announced.crc) && file.check().is_ok()
        };
        reader::Reader::open_unchecked(&self.path(name), name).is_ok_and(|file| same(&file))
    }

    /// Gives a finished file its name.
    fn publish(&self, temporary: &Path, name: Name) -> io::Result<()> {
        fs::rename(temporary, self.path(name))?;
        File::open(&self.directory)?.sync_all()?;
        self.known.lock().insert(name);
        self.paused.drop_up_to(name.group, name.position);
        Ok(())
    }

    fn remove_where(
        &self,
        group: GroupId,
        goes: impl Fn(LogPosition) -> bool,
    ) -> Result<(), SnapshotError> {
        for position in self.positions(group).into_iter().filter(|position| goes(*position)) {
            self.remove(Name { group, position })?;
        }
        Ok(())
    }

    fn remove(&self, name: Name) -> Result<(), SnapshotError> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SnapshotError::from_io(name.group, "removing it", &error));
            }
            _ => {}
        }
        self.known.lock().remove(&name);
        Ok(())
    }
}

impl Name {
    const fn of(announced: &SnapshotAnnouncement) -> Self {
        Self { group: announced.group, position: announced.position }
    }

    /// The snapshot that a file name stands for.
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
    create_directory(directory)?;
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
}
