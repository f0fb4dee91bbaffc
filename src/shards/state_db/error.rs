//! What can go wrong with the state of the shards.

use std::path::PathBuf;

use shardhost_groups::machine::{ApplyFault, QueryError};
use shardhost_storage::GroupId;

use crate::shards::codec::DecodeError;

/// The state of the shards could not be opened, read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateDbError {
    /// The directory cannot be opened: in use by another process, not writable, or damaged. The
    /// message says which.
    #[error("the state in {path} cannot be opened: {message}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What RocksDB says.
        message: String,
    },
    /// The directory was written by another version. Use that version, or an empty directory.
    #[error("the state in {path} has format {found}, this version reads {expected}")]
    Format {
        /// The directory.
        path: PathBuf,
        /// The format that stands there.
        found: u64,
        /// The format this version knows.
        expected: u64,
    },
    /// The disk failed. What is on disk is unchanged or whole; the host should stop.
    #[error("the state failed while {action}: {message}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What RocksDB says.
        message: String,
    },
    /// The group's state belongs to another kind of shard. Open it as that kind.
    #[error("the state of group {group} is of kind {found}, not {expected}")]
    WrongKind {
        /// The group.
        group: GroupId,
        /// The kind that stands there.
        found: u8,
        /// The kind it was opened as.
        expected: u8,
    },
    /// A record is not what was written. Destroy the replica and let it be restored from its
    /// peers.
    #[error("the state of group {group} is damaged at {at}: {cause}")]
    Corrupt {
        /// The group.
        group: GroupId,
        /// Which record.
        at: String,
        /// What is wrong with it.
        cause: DecodeError,
    },
    /// The state contradicts itself. Destroy the replica and let it be restored from its peers.
    #[error("the state of group {group} is inconsistent: {message}")]
    Inconsistent {
        /// The group.
        group: GroupId,
        /// The contradiction, with its numbers.
        message: String,
    },
    /// The bytes of a snapshot are not what this version and kind of shard writes. If the message
    /// says that nothing was changed, the state is as it was; else the restore must be repeated
    /// with a good snapshot.
    #[error("the snapshot for group {group} is refused: {message}")]
    BadSnapshot {
        /// The group.
        group: GroupId,
        /// What is wrong, and what became of the state.
        message: String,
    },
    /// The group was destroyed while its machine was still in use.
    #[error("the state of group {group} was destroyed")]
    Destroyed {
        /// The group.
        group: GroupId,
    },
    /// As many views for snapshots are open as there may be. Try again when one is written.
    #[error("{limit} snapshot views are open already")]
    TooManyViews {
        /// The limit.
        limit: usize,
    },
    /// A scan came upon more deleted keys than it may pass. They go when the database is compacted; try
    /// again later, or with a range that leaves them out.
    #[error(
        "more than {limit} deleted keys are in the way; try again later, or scan a range without them"
    )]
    TooManyDeleted {
        /// The limit.
        limit: u64,
    },
    /// The state is closed.
    #[error("the state is closed")]
    Closed,
}

impl StateDbError {
    pub(crate) fn io(action: &'static str) -> impl FnOnce(rocksdb::Error) -> Self {
        move |error| Self::Io { action, message: error.into_string() }
    }
}

impl From<StateDbError> for ApplyFault {
    fn from(error: StateDbError) -> Self {
        Self::new(error)
    }
}

impl From<StateDbError> for QueryError {
    fn from(error: StateDbError) -> Self {
        match error {
            StateDbError::TooManyDeleted { .. } => Self::TooMuch(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}
