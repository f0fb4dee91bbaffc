//! The seam to whatever keeps snapshots: one stream of bytes per group and position.
//!
//! A snapshot comes into the store in one of two ways: this host's state machine writes it
//! ([`SnapshotStore::create`]), or another host sends it ([`SnapshotStore::receive`]). The second
//! announces its length and checksum, so room is reserved for it before a byte is taken, and a
//! reception that broke off can be continued.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::ids::{GroupId, LogPosition, NodeId};

/// Keeps snapshots of state machines. A snapshot exists from the moment its writer was finished:
/// then it is durable, complete and checksummed. Before that a crash leaves nothing that could be
/// taken for a snapshot.
pub trait SnapshotStore: fmt::Debug + Send + Sync + 'static {
    /// Starts to write the snapshot of `group` at `position`.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], [`SnapshotError::NoSpace`], [`SnapshotError::DiskFull`].
    fn create(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotWrite>, SnapshotError>;

    /// Starts to receive a snapshot from another host, or continues a paused reception of the
    /// very same. Reserves room for all of it. A paused reception of another snapshot of the
    /// group is forgotten.
    ///
    /// # Errors
    /// [`SnapshotError::NoSpace`] before anything is written; [`SnapshotError::Io`],
    /// [`SnapshotError::DiskFull`].
    fn receive(
        &self,
        announced: SnapshotAnnouncement,
    ) -> Result<Box<dyn SnapshotReceive>, SnapshotError>;

    /// Opens a snapshot after checking all of it against its checksum. For readers that act on its
    /// bytes: a state machine sees no byte of a damaged one.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`], [`SnapshotError::Corrupt`], [`SnapshotError::Io`].
    fn open(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotRead>, SnapshotError>;

    /// Opens a snapshot without reading it first. Its bytes are checked while they are read: when
    /// they are damaged, the read that should return the end fails. For sending, where the receiver
    /// checks all of it anyway.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`]; [`SnapshotError::Corrupt`] when its size or name is wrong;
    /// [`SnapshotError::Io`].
    fn open_unchecked(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotRead>, SnapshotError>;

    /// The groups that have snapshots, ascending.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    fn groups(&self) -> Result<Vec<GroupId>, SnapshotError>;

    /// The positions of the snapshots of `group`, ascending.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    fn list(&self, group: GroupId) -> Result<Vec<LogPosition>, SnapshotError>;

    /// Removes the snapshots of `group` below `keep`, or all with `None`; paused receptions too.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    fn remove_below(&self, group: GroupId, keep: Option<LogPosition>) -> Result<(), SnapshotError>;

    /// Removes the snapshots of `group` but the one at `keep`. For the start of a host, when what
    /// no log names can only be garbage; later it could be one that just arrived.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    fn remove_except(&self, group: GroupId, keep: Option<LogPosition>)
    -> Result<(), SnapshotError>;

    /// Drops the paused receptions that were not continued in time; returns when the next one is
    /// due, if any is left.
    fn forget_stale(&self) -> Option<Duration>;
}

/// A sender's announcement of a snapshot before its bytes. Two receptions are of the same snapshot
/// when all of it is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotAnnouncement {
    /// The host that sends it. State machines on two hosts may write one state in two ways.
    pub from: NodeId,
    pub group: GroupId,
    pub position: LogPosition,
    pub size: u64,
    pub crc: u32,
}

/// A snapshot being written. Dropping it unfinished removes what was written.
pub trait SnapshotWrite: io::Write + Send {
    /// Makes the snapshot durable and visible; returns its size in bytes and its CRC-32.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], [`SnapshotError::DiskFull`].
    fn finish(self: Box<Self>) -> Result<(u64, u32), SnapshotError>;
}

/// A snapshot being received. Dropping it removes what came.
pub trait SnapshotReceive: Send {
    /// How many bytes are there, counted from the first. Those behind them are wanted.
    fn received(&self) -> u64;

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`SnapshotError::Corrupt`] when more come than were announced; [`SnapshotError::Io`],
    /// [`SnapshotError::DiskFull`]. After an error nothing of the reception can be used.
    fn append(&mut self, bytes: &[u8]) -> Result<(), SnapshotError>;

    /// Keeps what came for the next reception of the same snapshot, within the store's bounds of
    /// number, bytes and time; the room for the rest is given back. Returns how many bytes are
    /// kept.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], [`SnapshotError::DiskFull`]; nothing is kept then.
    fn pause(self: Box<Self>) -> Result<u64, SnapshotError>;

    /// Makes the snapshot durable and visible, if it is what was announced.
    ///
    /// # Errors
    /// [`SnapshotError::Corrupt`] when size or checksum differ; [`SnapshotError::Io`],
    /// [`SnapshotError::DiskFull`].
    fn finish(self: Box<Self>) -> Result<(), SnapshotError>;
}

/// A snapshot being read. A read that finds other bytes than were written fails at the end with
/// [`io::ErrorKind::InvalidData`].
pub trait SnapshotRead: io::Read + Send {
    fn size(&self) -> u64;
    /// CRC-32 of its bytes.
    fn crc(&self) -> u32;
    /// Reads on from `offset`, counted from the first byte. From the start all bytes are
    /// compared with the checksum; from anywhere else nothing is.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] beyond the end, or any of the file.
    fn read_from(&mut self, offset: u64) -> io::Result<()>;
}

/// Why a snapshot cannot be written, received or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// There is no snapshot at that position.
    #[error("group {group} has no snapshot at {position}")]
    Missing { group: GroupId, position: LogPosition },
    /// The bytes are not what was written or announced; nothing was handed out.
    #[error("the snapshot of group {group} at {position} is damaged: {message}")]
    Corrupt { group: GroupId, position: LogPosition, message: String },
    /// It would not fit; nothing was written. Free space; it is tried again.
    #[error(
        "a snapshot of group {group} needs {needed} bytes, {available} are available to snapshots"
    )]
    NoSpace {
        group: GroupId,
        needed: u64,
        /// Bytes that may be taken: the free ones, without those kept free for the log and those
        /// reserved for others.
        available: u64,
    },
    /// The disk became full while it was written. Free space; it is tried again.
    #[error("the disk became full while a snapshot of group {group} was written")]
    DiskFull { group: GroupId },
    /// The process, or the system, has no file or no memory left for it. It is tried again.
    #[error("a snapshot of group {group} waits while {action}: {message}")]
    Scarce { group: GroupId, action: &'static str, message: String },
    /// The disk failed.
    #[error("a snapshot of group {group} failed while {action}: {message}")]
    Io { group: GroupId, action: &'static str, message: String },
}

impl SnapshotError {
    /// What an error of reading or writing a snapshot means: the store's own error if it is one.
    #[must_use]
    pub fn from_io(group: GroupId, action: &'static str, error: &io::Error) -> Self {
        let own = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>());
        match (own, error.kind()) {
            (Some(own), _) => own.clone(),
            (None, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                Self::DiskFull { group }
            }
            (None, _) if is_scarce(error) => {
                Self::Scarce { group, action, message: error.to_string() }
            }
            (None, _) => Self::Io { group, action, message: error.to_string() },
        }
    }

    /// Whether the cause is lack of space: it passes when space is freed.
    #[must_use]
    pub const fn is_lack_of_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::DiskFull { .. })
    }

    /// Whether the same may work later: the cause is not the snapshot.
    #[must_use]
    pub const fn passes(&self) -> bool {
        self.is_lack_of_space() || matches!(self, Self::Scarce { .. })
    }
}

/// Whether the process or the system has no more files or memory.
fn is_scarce(error: &io::Error) -> bool {
    const FILES: [rustix::io::Errno; 2] = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
    let code = error.raw_os_error();
    error.kind() == io::ErrorKind::OutOfMemory
        || FILES.iter().any(|files| code == Some(files.raw_os_error()))
}

impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> Self {
        let kind = match error {
            SnapshotError::Missing { .. } => io::ErrorKind::NotFound,
            SnapshotError::Corrupt { .. } => io::ErrorKind::InvalidData,
            SnapshotError::NoSpace { .. } | SnapshotError::DiskFull { .. } => {
                io::ErrorKind::StorageFull
            }
            SnapshotError::Scarce { .. } | SnapshotError::Io { .. } => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId::new(1);

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
            let full = SnapshotError::from_io(GROUP, "writing", &errno.into());
            assert_eq!(full, SnapshotError::DiskFull { group: GROUP });
            assert!(full.is_lack_of_space());
        }
        let broken = SnapshotError::from_io(GROUP, "writing", &rustix::io::Errno::IO.into());
        assert!(matches!(broken, SnapshotError::Io { .. }) && !broken.passes());
    }

    #[test]
    fn too_many_files_say_nothing_of_a_snapshot() {
        for errno in [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE, rustix::io::Errno::NOMEM]
        {
            let scarce = SnapshotError::from_io(GROUP, "opening", &errno.into());
            assert!(matches!(scarce, SnapshotError::Scarce { .. }) && scarce.passes(), "{scarce}");
            assert!(!scarce.is_lack_of_space());
        }
    }

    #[test]
    fn an_error_of_the_store_survives_being_an_error_of_a_writer() {
        let error = SnapshotError::NoSpace { group: GROUP, needed: 10, available: 3 };
        let told = SnapshotError::from_io(GROUP, "writing", &error.clone().into());
        assert_eq!(told, error);
    }
}
