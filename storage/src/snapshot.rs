//! The seam to whatever keeps snapshots: one stream of bytes per group and position.

use std::fmt;
use std::io;

use crate::ids::{GroupId, LogPosition};

/// Keeps snapshots of state machines. A snapshot exists from the moment its writer was finished:
/// then it is durable, whole and checksummed. Before that a crash leaves nothing that anybody
/// would take for a snapshot.
pub trait SnapshotStore: fmt::Debug + Send + Sync + 'static {
    /// Starts to write the snapshot of `group` at `position`.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], [`SnapshotError::NoSpace`].
    fn create(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotWrite>, SnapshotError>;

    /// Opens a snapshot after checking all of it against its checksum.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`], [`SnapshotError::Corrupt`], [`SnapshotError::Io`].
    fn open(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotRead>, SnapshotError>;

    /// The positions of the snapshots of `group`, ascending.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    fn list(&self, group: GroupId) -> Result<Vec<LogPosition>, SnapshotError>;

    /// Removes the snapshots of `group` below `keep`, or all with `None`.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    fn remove_below(&self, group: GroupId, keep: Option<LogPosition>) -> Result<(), SnapshotError>;
}

/// A snapshot being written. Dropping it unfinished removes what was written.
pub trait SnapshotWrite: io::Write + Send {
    /// Makes the snapshot durable and visible; returns its size in bytes and its CRC-32.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], [`SnapshotError::NoSpace`].
    fn finish(self: Box<Self>) -> Result<(u64, u32), SnapshotError>;
}

/// A checked snapshot being read.
pub trait SnapshotRead: io::Read + Send {
    /// Bytes of the snapshot.
    fn size(&self) -> u64;
    /// CRC-32 of its bytes.
    fn crc(&self) -> u32;
}

/// Why a snapshot cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// There is no snapshot at that position.
    #[error("group {group} has no snapshot at {position}")]
    Missing {
        /// The group.
        group: GroupId,
        /// The position asked for.
        position: LogPosition,
    },
    /// The bytes are not what was written; nothing was handed out.
    #[error("the snapshot of group {group} at {position} is damaged: {message}")]
    Corrupt {
        /// The group.
        group: GroupId,
        /// The position.
        position: LogPosition,
        /// What is wrong.
        message: String,
    },
    /// The disk is full. Free space; it is tried again.
    #[error("no space left for a snapshot of group {group}")]
    NoSpace {
        /// The group.
        group: GroupId,
    },
    /// The disk failed.
    #[error("a snapshot of group {group} failed while {action}: {message}")]
    Io {
        /// The group.
        group: GroupId,
        /// What was being done.
        action: &'static str,
        /// The cause.
        message: String,
    },
}
