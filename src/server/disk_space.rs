//! How much room a disk has, and how much of it is little: the log stands on the same disk as the state
//! and the snapshots, and a host whose log cannot be written ends.

use std::io;
use std::path::Path;

/// Little space on a large disk, and of a small one its so-and-so-manieth part.
const LOW_BYTES: u64 = 1 << 30;
const LOW_PART: u64 = 20;

/// Free and all bytes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskSpace {
    pub(crate) free: u64,
    pub(crate) all: u64,
}

impl DiskSpace {
    /// Of the file system that a directory is in.
    pub(crate) fn of(directory: &Path) -> io::Result<Self> {
        let found = rustix::fs::statvfs(directory)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Self { free: bytes(found.f_bavail), all: bytes(found.f_blocks) })
    }

    /// What is little on this disk: below it a host hands its leaderships on.
    pub(crate) const fn low(self) -> u64 {
        let part = self.all / LOW_PART;
        if part < LOW_BYTES { part } else { LOW_BYTES }
    }

    /// What may be taken before there is little.
    pub(crate) const fn spare(self) -> u64 {
        self.free.saturating_sub(self.low())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_large_disk_keeps_a_gibibyte_and_a_small_one_a_twentieth() {
        assert_eq!(DiskSpace { free: 0, all: 4 << 40 }.low(), 1 << 30);
        let small = DiskSpace { free: 50 * MIB, all: 200 * MIB };
        assert_eq!((small.low(), small.spare()), (10 * MIB, 40 * MIB));
        assert_eq!(DiskSpace { free: 5 * MIB, ..small }.spare(), 0);
    }

    #[test]
    fn the_space_of_a_directory_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let space = DiskSpace::of(directory.path()).unwrap();
        assert!(space.all > 0 && space.free <= space.all, "{space:?}");
        assert!(DiskSpace::of(&directory.path().join("missing")).is_err());
    }
}
