//! Room for copies of state, beside the log on the same disk.
//!
//! The state that commands add is bounded by what the log took. A copy is not: of a damaged cell,
//! or of a snapshot that becomes the state. So a copy asks for room first, and again while it is
//! written, so that the log keeps what it needs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::StateDbError;
use crate::disk_space::DiskSpace;

/// The disk that a state is on.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    directory: PathBuf,
    #[cfg(test)]
    pub(crate) pretended: parking_lot::Mutex<Option<DiskSpace>>,
}

impl Disk {
    pub(crate) fn of(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            #[cfg(test)]
            pretended: parking_lot::Mutex::default(),
        }
    }

    fn space(&self) -> io::Result<DiskSpace> {
        #[cfg(test)]
        if let Some(pretended) = *self.pretended.lock() {
            return Ok(pretended);
        }
        DiskSpace::of(&self.directory)
    }

    /// Whether so many bytes may be written of a cell that is written anew: there is more than little
    /// space afterwards.
    pub(crate) fn has_room_for_cell(&self, needed: u64) -> Result<(), StateDbError> {
        let action = "writing a damaged cell anew";
        let space = self.space().map_err(|error| unknown(action, &error))?;
        enough(action, needed, space.spare())
    }

    /// The same for a snapshot that becomes the state of a group. It may take half of a little: the
    /// replica serves no users without it.
    pub(crate) fn has_room_for_restore(&self, needed: u64) -> Result<(), StateDbError> {
        let action = "restoring a snapshot";
        let space = self.space().map_err(|error| unknown(action, &error))?;
        enough(action, needed, space.free.saturating_sub(space.low() / 2))
    }
}

fn enough(action: &'static str, needed: u64, available: u64) -> Result<(), StateDbError> {
    match needed <= available {
        true => Ok(()),
        false => Err(StateDbError::NoRoom { action, needed, available }),
    }
}

fn unknown(action: &'static str, error: &io::Error) -> StateDbError {
    StateDbError::Passing { action, message: format!("its free space cannot be read: {error}") }
}

/// Bytes of the files of a database. What goes away meanwhile counts for nothing.
pub(crate) fn bytes_of(database: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for file in fs::read_dir(database)? {
        match file?.metadata() {
            Ok(found) if found.is_file() => bytes += found.len(),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_restore_may_take_more_than_a_cell_and_neither_takes_the_last() {
        let disk = Disk::of(Path::new("/"));
        // Little is 10 MiB.
        let pretend = |free: u64| *disk.pretended.lock() = Some(DiskSpace { free, all: 200 * MIB });
        pretend(30 * MIB);
        assert_eq!(disk.has_room_for_cell(20 * MIB), Ok(()));
        let refused = disk.has_room_for_cell(20 * MIB + 1).unwrap_err();
        assert!(
            matches!(refused, StateDbError::NoRoom { available: 0x140_0000, .. }),
            "{refused:?}"
        );
        assert_eq!(disk.has_room_for_restore(25 * MIB), Ok(()));
        assert!(disk.has_room_for_restore(25 * MIB + 1).is_err());
        pretend(4 * MIB);
        assert!(disk.has_room_for_cell(1).is_err() && disk.has_room_for_restore(1).is_err());
    }
}
