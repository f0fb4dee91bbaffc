//! Room on the disk: reserved before it is taken, so that two receptions do not count on the same
//! bytes and some is left for the log, which is on the same disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::ids::GroupId;
use crate::snapshot::SnapshotError;

/// The disk of a directory.
pub(super) struct Space {
    directory: PathBuf,
    keep_free_bytes: u64,
    /// Promised and not written yet.
    reserved: Mutex<u64>,
    free: fn(&Path) -> io::Result<u64>,
}

/// Bytes that may be written. The rest is given back when it is dropped.
pub(super) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

impl Space {
    pub fn new(directory: &Path, keep_free_bytes: u64) -> Arc<Self> {
        let directory = directory.to_owned();
        Arc::new(Self { directory, keep_free_bytes, reserved: Mutex::default(), free: free_bytes })
    }

    /// Reserves so many bytes, or returns how many there are.
    pub fn reserve(
        self: &Arc<Self>,
        group: GroupId,
        needed: u64,
    ) -> Result<Reservation, SnapshotError> {
        let mut reserved = self.reserved.lock();
        let available = self
            .available(*reserved)
            .map_err(|error| SnapshotError::from_io(group, "asking for free space", &error))?;
        if needed > available {
            return Err(SnapshotError::NoSpace { group, needed, available });
        }
        *reserved += needed;
        Ok(Reservation { space: Arc::clone(self), bytes: needed })
    }

    /// Bytes that are neither used nor reserved.
    pub fn left(&self) -> io::Result<u64> {
        self.available(*self.reserved.lock())
    }

    fn available(&self, reserved: u64) -> io::Result<u64> {
        let free = (self.free)(&self.directory)?;
        Ok(free.saturating_sub(self.keep_free_bytes).saturating_sub(reserved))
    }
}

impl Reservation {
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many were written: the file system counts them.
    pub fn use_up(&mut self, bytes: u64) {
        let used = bytes.min(self.bytes);
        self.bytes -= used;
        *self.space.reserved.lock() -= used;
    }

    /// Asks for more.
    pub fn grow(&mut self, group: GroupId, bytes: u64) -> Result<(), SnapshotError> {
        let mut more = self.space.reserve(group, bytes)?;
        self.bytes += std::mem::take(&mut more.bytes);
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.use_up(self.bytes);
    }
}

/// What a process without privileges may still write.
fn free_bytes(directory: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(directory)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId::new(7);

    /// A disk with a hundred bytes free, of which ten are kept.
    fn space() -> Arc<Space> {
        let directory = PathBuf::from("/");
        let reserved = Mutex::default();
        Arc::new(Space { directory, keep_free_bytes: 10, reserved, free: |_| Ok(100) })
    }

    fn refused(space: &Arc<Space>, needed: u64) -> u64 {
        match space.reserve(GROUP, needed).map(|_| ()) {
            Err(SnapshotError::NoSpace { group: GROUP, needed: told, available }) => {
                assert_eq!(told, needed);
                available
            }
            other => panic!("{needed} bytes: {other:?}"),
        }
    }

    #[test]
    fn what_is_reserved_is_not_reserved_again() {
        let space = space();
        let first = space.reserve(GROUP, 60).unwrap();
        assert_eq!(refused(&space, 31), 30);
        let second = space.reserve(GROUP, 30).unwrap();
        assert_eq!(refused(&space, 1), 0);
        drop(first);
        assert_eq!(refused(&space, 61), 60);
        drop(second);
        assert_eq!(space.reserve(GROUP, 90).unwrap().bytes(), 90);
    }

    #[test]
    fn what_is_written_is_the_file_systems_to_count() {
        let space = space();
        let mut reservation = space.reserve(GROUP, 90).unwrap();
        reservation.use_up(50);
        assert_eq!((reservation.bytes(), refused(&space, 51)), (40, 50));
        reservation.use_up(1000);
        assert_eq!((reservation.bytes(), refused(&space, 91)), (0, 90));
    }

    #[test]
    fn a_reservation_grows_while_there_is_room() {
        let space = space();
        let mut reservation = space.reserve(GROUP, 40).unwrap();
        reservation.grow(GROUP, 50).unwrap();
        assert_eq!((reservation.bytes(), refused(&space, 1)), (90, 0));
        assert!(reservation.grow(GROUP, 1).is_err());
        assert_eq!(reservation.bytes(), 90);
        drop(reservation);
        assert_eq!(refused(&space, u64::MAX), 90);
    }
}
