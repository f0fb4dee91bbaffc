//! The data directory of a node: one process at a time, and a number that grows with every start.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};

/// A locked data directory. The lock goes with the value, or with the process.
#[derive(Debug)]
pub struct DataDir {
    _lock: File,
    incarnation: u64,
}

impl DataDir {
    /// Creates the directory if it is missing, locks it, and begins another incarnation.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be written.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let lock = File::create(path.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            let text = format!(
                "in use by another process ({error}); give each node a data directory of its own"
            );
            io::Error::new(io::ErrorKind::AddrInUse, text)
        })?;
        let incarnation = next_incarnation(&path.join("incarnation"))?;
        Ok(Self { _lock: lock, incarnation })
    }

    /// Grows with every start of the node.
    #[must_use]
    pub const fn incarnation(&self) -> u64 {
        self.incarnation
    }
}

/// Larger than any before, also when the file was lost or the clock went back: the clock and the
/// file would both have to fail.
fn next_incarnation(path: &Path) -> io::Result<u64> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let clock = u64::try_from(clock).unwrap_or(1);
    let last = match fs::read_to_string(path) {
        Ok(text) => text.trim().parse::<u64>().map_err(|error| {
            let text = format!("{} holds no number: {error}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let next = clock.max(last.saturating_add(1));
    replace(path, next.to_string().as_bytes())?;
    Ok(next)
}

/// Replaces a file so that after a crash either the old or the new content stands there.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let next: PathBuf = path.with_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
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
        assert!(DataDir::open(directory.path()).unwrap().incarnation() > before);
    }

    #[test]
    fn an_incarnation_file_without_a_number_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("incarnation"), "many").unwrap();
        let refused = DataDir::open(directory.path()).unwrap_err();
        assert!(refused.to_string().contains("incarnation"), "{refused}");
    }
}
