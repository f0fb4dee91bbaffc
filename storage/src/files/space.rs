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
    promised: Mutex<u64>,
    free: fn(&Path) -> io::Result<u64>,
}

/// Bytes that may be written. The rest is given back when it is dropped.
pub(super) struct Promise {
    space: Arc<Space>,
    bytes: u64,
}

impl Space {
    pub fn new(directory: &Path, keep_free_bytes: u64) -> Arc<Self> {
        let directory = directory.to_owned();
        Arc::new(Self { directory, keep_free_bytes, promised: Mutex::default(), free: free_bytes })
    }

    /// Reserves so many bytes, or returns how many there are.
    pub fn promise(
        self: &Arc<Self>,
        group: GroupId,
        needed: u64,
    ) -> Result<Promise, SnapshotError> {
        let mut promised = self.promised.lock();
        let available = self
            .available(*promised)
            .map_err(|error| SnapshotError::from_io(group, "asking for free space", &error))?;
        if needed > available {
            return Err(SnapshotError::NoSpace { group, needed, available });
        }
        *promised += needed;
        Ok(Promise { space: Arc::clone(self), bytes: needed })
    }

    /// Bytes that are neither used nor reserved.
    pub fn left(&self) -> io::Result<u64> {
        self.available(*self.promised.lock())
    }

    fn available(&self, promised: u64) -> io::Result<u64> {
        let free = (self.free)(&self.directory)?;
        Ok(free.saturating_sub(self.keep_free_bytes).saturating_sub(promised))
    }
}

impl Promise {
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many were written: the file system counts them.
    pub fn redeem(&mut self, bytes: u64) {
        let redeemed = bytes.min(self.bytes);
        self.bytes -= redeemed;
        *self.space.promised.lock() -= redeemed;
    }

    /// Asks for more.
    pub fn grow(&mut self, group: GroupId, bytes: u64) -> Result<(), SnapshotError> {
        let mut more = self.space.promise(group, bytes)?;
        self.bytes += std::mem::take(&mut more.bytes);
        Ok(())
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.redeem(self.bytes);
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
        let promised = Mutex::default();
        Arc::new(Space { directory, keep_free_bytes: 10, promised, free: |_| Ok(100) })
    }

    fn refused(space: &Arc<Space>, needed: u64) -> u64 {
        match space.promise(GROUP, needed).map(|_| ()) {
            Err(SnapshotError::NoSpace { group: GROUP, needed: told, available }) => {
                assert_eq!(told, needed);
                available
            }
            other => panic!("{needed} bytes: {other:?}"),
        }
    }

    #[test]
    fn what_is_promised_is_not_promised_again() {
        let space = space();
        let first = space.promise(GROUP, 60).unwrap();
        assert_eq!(refused(&space, 31), 30);
        let second = space.promise(GROUP, 30).unwrap();
        assert_eq!(refused(&space, 1), 0);
        drop(first);
        assert_eq!(refused(&space, 61), 60);
        drop(second);
        assert_eq!(space.promise(GROUP, 90).unwrap().bytes(), 90);
    }

    #[test]
    fn what_is_written_is_the_file_systems_to_count() {
        let space = space();
        let mut promise = space.promise(GROUP, 90).unwrap();
        promise.redeem(50);
        assert_eq!((promise.bytes(), refused(&space, 51)), (40, 50));
        promise.redeem(1000);
        assert_eq!((promise.bytes(), refused(&space, 91)), (0, 90));
    }

    #[test]
    fn a_promise_grows_while_there_is_room() {
        let space = space();
        let mut promise = space.promise(GROUP, 40).unwrap();
        promise.grow(GROUP, 50).unwrap();
        assert_eq!((promise.bytes(), refused(&space, 1)), (90, 0));
        assert!(promise.grow(GROUP, 1).is_err());
        assert_eq!(promise.bytes(), 90);
        drop(promise);
        assert_eq!(refused(&space, u64::MAX), 90);
    }
}
