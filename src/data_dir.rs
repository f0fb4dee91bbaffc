//! The data directory of a node: one process at a time, a number that grows with every start, and
//! which starts there were.
//!
//! The number alone would hide that a directory was put back from an older copy: it follows the
//! clock, so that it grows also when the file is lost. So the directory knows its earlier starts.
//! Peers remember the starts that they saw (`peers`), and one that the directory does not know
//! shows that it is an older copy.

pub mod addresses;
mod lines;
pub mod peers;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use shardhost_storage::{create_directory, replace_file};

use crate::wall_clock;

/// A locked data directory. The lock goes with the value, or with the process.
#[derive(Debug)]
pub struct DataDir {
    _lock: File,
    path: PathBuf,
    incarnation: u64,
    earlier_starts: Vec<u64>,
}

/// Starts that are remembered. Of earlier ones it is assumed that they belong to the directory, unless
/// [`BEGINNING`] ends the list.
const MOST_STARTS: usize = 1024;
/// The last of the starts, where the list is whole: no earlier one belongs to the directory. Lists of
/// earlier versions, and those that became too long, end without it.
pub(crate) const BEGINNING: u64 = 0;
/// Where nodes are reached that only the catalog names.
const CATALOG_NODES: &str = "catalog-nodes";
/// The starts of the node.
const STARTS: &str = "incarnation";
/// This file exists while a roll-back was noticed and not every replica knows of it.
const ROLLED_BACK: &str = "rolled-back";
/// This file exists once the directory turned out to be an older copy.
const WAS_ROLLED_BACK: &str = "was-rolled-back";
/// This file exists once peers turned out to know starts of the node that were on another disk.
const DISK_WAS_LOST: &str = "disk-was-lost";
/// The latest start that was lost and of which every replica knows.
const LOST_STARTS: &str = "lost-starts";

impl DataDir {
    /// Creates the directory if it is missing, locks it, and begins another incarnation.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be written.
    pub fn open(path: &Path) -> io::Result<Self> {
        let lock = Self::lock(path)?;
        let starts = path.join(STARTS);
        let earlier_starts = read_starts(&starts)?;
        let incarnation = next_incarnation(&earlier_starts);
        let before = if earlier_starts.is_empty() { &[BEGINNING][..] } else { &earlier_starts };
        write_starts(&starts, &[&[incarnation], before].concat())?;
        Ok(Self { _lock: lock, path: path.to_owned(), incarnation, earlier_starts })
    }

    /// Creates the directory if it is missing, and locks it as long as the file is open.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be created.
    pub fn lock(path: &Path) -> io::Result<File> {
        create_directory(path)?;
        let lock = File::create(path.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            let text = format!(
                "in use by another process ({error}); give each node a data directory of its own"
            );
            io::Error::new(io::ErrorKind::AddrInUse, text)
        })?;
        Ok(lock)
    }

    /// Whether a node was ever started with this directory.
    #[must_use]
    pub fn was_started(path: &Path) -> bool {
        stands(&path.join(STARTS))
    }

    /// Where the addresses of nodes are kept that only the catalog names.
    #[must_use]
    pub fn catalog_nodes_path(path: &Path) -> PathBuf {
        path.join(CATALOG_NODES)
    }

    /// Does something with a directory that no process has open; nothing where one has, or where it was
    /// never opened. For what must be done before anything can be written.
    pub fn while_free(path: &Path, run: impl FnOnce()) {
        let lock = File::options().write(true).open(path.join("lock"));
        let Ok(lock) = lock else { return };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            run();
        }
    }

    /// The starts that the directory knew before this one, the newest first; behind them 0 where those are
    /// all that it had.
    #[must_use]
    pub fn earlier_starts(&self) -> &[u64] {
        &self.earlier_starts
    }

    /// Where the starts of peers are remembered.
    #[must_use]
    pub fn peers_path(&self) -> PathBuf {
        self.path.join("peers")
    }

    /// Where peers were found that moved.
    #[must_use]
    pub fn addresses_path(&self) -> PathBuf {
        self.path.join("addresses")
    }

    /// The note that the directory is an older copy, and its replicas may not know it yet.
    #[must_use]
    pub fn rollback_note(&self) -> RollbackNote {
        RollbackNote {
            path: self.path.join(ROLLED_BACK),
            starts: self.path.join(STARTS),
            mark: self.path.join(WAS_ROLLED_BACK),
            disk_lost: self.path.join(DISK_WAS_LOST),
            lost: self.path.join(LOST_STARTS),
        }
    }

    /// Grows with every start of the node.
    #[must_use]
    pub const fn incarnation(&self) -> u64 {
        self.incarnation
    }
}

/// A file that exists from the moment at which a roll-back is noticed until every replica has a
/// durable note.
#[derive(Clone, Debug)]
pub struct RollbackNote {
    path: PathBuf,
    starts: PathBuf,
    mark: PathBuf,
    disk_lost: PathBuf,
    lost: PathBuf,
}

impl RollbackNote {
    /// Whether the file exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        stands(&self.path)
    }

    /// Puts it there, durably.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, text: &str) -> io::Result<()> {
        replace_file(&self.path, text.as_bytes())
    }

    /// The latest start that was lost and that every replica knows of; 0: none was. Replicas need
    /// no notice of those before it that the directory does not know: they know already what they
    /// may have lost with them. All starts since are later.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn told_through(&self) -> io::Result<u64> {
        match fs::exists(&self.lost)? {
            true => Ok(read_starts(&self.lost)?.into_iter().max().unwrap_or(0)),
            false => Ok(0),
        }
    }

    /// Every replica has its own note: the start that a peer saw counts as one of the directory's,
    /// so that the next one is later also when the clock went back.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn settle(&self, known: u64) -> io::Result<()> {
        write_starts(&self.lost, &[known.max(self.told_through()?)])?;
        let mut starts = read_starts(&self.starts)?;
        if !starts.contains(&known) {
            starts.push(known);
            starts.sort_unstable_by_key(|start| std::cmp::Reverse(*start));
            write_starts(&self.starts, &starts)?;
        }
        self.remove()
    }

    /// Whether replicas here were notified that the directory is an older copy, by any process
    /// since.
    #[must_use]
    pub fn was_rolled_back(&self) -> bool {
        stands(&self.mark)
    }

    /// Remembers that, durably and for ever: replicas that the copy never knew may have been here.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mark_rolled_back(&self, text: &str) -> io::Result<()> {
        replace_file(&self.mark, text.as_bytes())
    }

    /// Whether the node had another disk before, as peers reported to any process since.
    #[must_use]
    pub fn disk_was_lost(&self) -> bool {
        stands(&self.disk_lost)
    }

    /// Remembers that, durably and for ever: replicas may have existed that this directory does not
    /// know.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mark_disk_lost(&self, text: &str) -> io::Result<()> {
        replace_file(&self.disk_lost, text.as_bytes())
    }

    /// Removes it. When a crash brings it back, the replicas are notified once more.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whether a mark of a possible loss exists. One that cannot be examined may.
fn stands(mark: &Path) -> bool {
    mark.try_exists().unwrap_or(true)
}

/// The latest possible start, in the year 2255: a later number was never one.
pub const LATEST_START: u64 = 1 << 53;

/// The low bits of an incarnation, which are drawn.
const DRAWN: u64 = (1 << 16) - 1;

/// Larger than any before, also when the file was lost or the clock went back: the microseconds of the
/// clock, or the last number and more. The low bits are drawn: a start that a directory put back from
/// a copy does not know must not get the number of one that it forgot.
fn next_incarnation(earlier: &[u64]) -> u64 {
    let clock = wall_clock::since_1970().as_micros();
    let clock = u64::try_from(clock).unwrap_or(1);
    let last = earlier.iter().copied().filter(|start| *start <= LATEST_START).max().unwrap_or(0);
    let drawn = rand::random::<u64>() & DRAWN;
    (clock & !DRAWN | drawn).max(last.saturating_add(1).saturating_add(drawn))
}

/// One number in each line, the newest first.
fn read_starts(path: &Path) -> io::Result<Vec<u64>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let starts = text.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>();
    let starts = starts.ok().filter(|starts| !starts.is_empty());
    starts.ok_or_else(|| {
        let text = format!("{} holds something else than numbers", path.display());
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

fn write_starts(path: &Path, starts: &[u64]) -> io::Result<()> {
    let starts = starts.iter().take(MOST_STARTS);
    let text: String = starts.map(|start| format!("{start}\n")).collect();
    replace_file(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_opening_begins_a_later_incarnation_and_a_second_process_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let first = DataDir::open(directory.path()).unwrap();
        let refused = DataDir::open(directory.path()).unwrap_err();
        assert!(refused.to_string().contains("another process"), "{refused}");
        let before = first.incarnation();
        drop(first);
        let second = DataDir::open(directory.path()).unwrap();
        assert!(second.incarnation() > before);
        assert_eq!(second.earlier_starts(), [before, BEGINNING]);
    }

    #[test]
    fn a_directory_that_was_put_back_does_not_know_the_starts_since() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("incarnation");
        let first = DataDir::open(directory.path()).unwrap().incarnation();
        let copy = fs::read(&file).unwrap();
        let lost = DataDir::open(directory.path()).unwrap().incarnation();
        fs::write(&file, copy).unwrap();
        for _ in 0..3 {
            let later = DataDir::open(directory.path()).unwrap();
            assert!(later.incarnation() > first);
            assert!(!later.earlier_starts().contains(&lost));
            assert!(later.earlier_starts().ends_with(&[first, BEGINNING]));
        }
    }

    /// It may have had starts that it did not keep.
    #[test]
    fn the_list_of_an_earlier_version_gets_no_beginning() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("incarnation"), "7\n").unwrap();
        for _ in 0..2 {
            let later = DataDir::open(directory.path()).unwrap();
            assert_eq!(later.earlier_starts().last(), Some(&7));
        }
    }

    #[test]
    fn the_number_of_starts_that_are_remembered_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("incarnation");
        let many: Vec<u64> = (1..=2 * MOST_STARTS as u64).rev().collect();
        write_starts(&file, &many).unwrap();
        assert_eq!(read_starts(&file).unwrap(), many[..MOST_STARTS]);
    }

    #[test]
    fn a_note_of_a_roll_back_stays_until_it_is_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        let note = DataDir::open(directory.path()).unwrap().rollback_note();
        assert!(!note.exists());
        note.write("known by node 2").unwrap();
        assert!(DataDir::open(directory.path()).unwrap().rollback_note().exists());
        let known = LATEST_START - (1 << 20);
        note.settle(known).unwrap();
        note.remove().unwrap();
        assert!(!note.exists());
        let next = DataDir::open(directory.path()).unwrap();
        assert!(next.incarnation() > known, "{}", next.incarnation());
        assert_eq!(next.earlier_starts()[0], known);
        assert_eq!(next.rollback_note().told_through().unwrap(), known);
        next.rollback_note().settle(known - 1).unwrap();
        assert_eq!(next.rollback_note().told_through().unwrap(), known);
    }

    #[test]
    fn an_incarnation_file_without_a_number_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("incarnation"), "many").unwrap();
        let refused = DataDir::open(directory.path()).unwrap_err();
        assert!(refused.to_string().contains("incarnation"), "{refused}");
    }
}
