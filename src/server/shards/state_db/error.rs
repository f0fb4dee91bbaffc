//! What can go wrong with the state of the shards.

use std::path::PathBuf;

use rocksdb::ErrorKind;
use shardhost_groups::error::QueryError;
use shardhost_groups::machine::ApplyFault;
use shardhost_storage::GroupId;

use crate::shards::codec::DecodeError;

/// The state of the shards could not be opened, read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateDbError {
    /// The directory cannot be opened: in use by another process, not writable, or damaged. The
    /// message says which.
    #[error("the state in {path} cannot be opened: {message}")]
    Open { path: PathBuf, message: String },
    /// The directory was written by another version. Use that version, or an empty directory.
    #[error("the state in {path} has format {found}, this version reads {expected}")]
    Format {
        path: PathBuf,
        /// The format that stands there.
        found: u64,
        /// The format this version knows.
        expected: u64,
    },
    /// The disk is full, or the process has as many files open as it may. Nothing was changed; the
    /// same works when that is over.
    #[error("the state waits while {action}: {message}")]
    Passing { action: &'static str, message: String },
    /// A flush or a compaction found no file descriptor, which RocksDB keeps: it writes nothing more
    /// before the cell is opened anew. Nothing was changed; the same works then.
    #[error("the state waits while {action}, until a part of it is opened anew: {message}")]
    Halted { action: &'static str, message: String },
    /// A copy of state would take room that the log needs. Nothing was changed, or what a restore cleared
    /// waits for it; the same works when there is room.
    #[error(
        "{action} needs {needed} bytes of the disk, and {available} may be taken: the rest must stay free"
    )]
    NoRoom {
        action: &'static str,
        needed: u64,
        /// Bytes that may be taken.
        available: u64,
    },
    /// A part of the state cannot be read: its checksum is wrong, or the disk does not give it.
    #[error("the state is damaged, found while {action}: {message}")]
    Damaged {
        action: &'static str,
        /// What RocksDB says, with the file.
        message: String,
    },
    /// The disk failed. What is on disk is unchanged or whole; the host should stop.
    #[error("the state failed while {action}: {message}")]
    Io { action: &'static str, message: String },
    /// The group's state belongs to another kind of shard. Open it as that kind.
    #[error("the state of group {group} is of kind {found}, not {expected}")]
    WrongKind {
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
        group: GroupId,
        at: String,
        /// What is wrong with it.
        cause: DecodeError,
    },
    /// The state contradicts itself. Destroy the replica and let it be restored from its peers.
    #[error("the state of group {group} is inconsistent: {message}")]
    Inconsistent {
        group: GroupId,
        /// The contradiction, with its numbers.
        message: String,
    },
    /// The bytes of a snapshot are not what this version and kind of shard writes. If the message
    /// says that nothing was changed, the state is as it was; else the restore must be repeated
    /// with a good snapshot.
    #[error("the snapshot for group {group} is refused: {message}")]
    BadSnapshot {
        group: GroupId,
        /// What is wrong, and what became of the state.
        message: String,
    },
    /// The group was destroyed while its machine was still in use.
    #[error("the state of group {group} was destroyed")]
    Destroyed { group: GroupId },
    /// Machines of a cell's groups are open, so it cannot be recovered now. Close their replicas.
    #[error("cell {cell} of the state is in use")]
    Busy { cell: usize },
    /// As many views for snapshots are open as there may be. Try again when one is written.
    #[error("{limit} snapshot views are open already")]
    TooManyViews { limit: usize },
    /// A scan came upon more deleted keys than it may pass. They go when the database is compacted; try
    /// again later, or with a range that leaves them out.
    #[error(
        "more than {limit} deleted keys are in the way; try again later, or scan a range without them"
    )]
    TooManyDeleted { limit: u64 },
    /// The state is closed.
    #[error("the state is closed")]
    Closed,
}

impl StateDbError {
    /// The meaning of a failure of RocksDB. It keeps a failed flush or compaction, and refuses
    /// every write with its text until that is over; after a full disk it notices that itself.
    pub(crate) fn io(action: &'static str) -> impl FnOnce(rocksdb::Error) -> Self {
        move |error| {
            let damaged = error.kind() == ErrorKind::Corruption;
            let message = error.into_string();
            if damaged || is_unreadable(&message) {
                Self::Damaged { action, message }
            } else if message.contains(NO_SPACE) || (is_read(action) && message.contains(NO_FILE)) {
                Self::Passing { action, message }
            } else if message.contains(NO_FILE) {
                Self::Halted { action, message }
            } else {
                Self::Io { action, message }
            }
        }
    }
}

/// What it means that a database, or something in it, cannot be opened or read where damage is
/// expected: only what the disk does not give is lost, whatever else may be tried again.
pub(crate) fn damage_or_passing(
    action: &'static str,
) -> impl FnOnce(rocksdb::Error) -> StateDbError {
    move |error| {
        let (damaged, kind) = (is_damage(&error), error.kind());
        let message = error.into_string();
        match kind {
            _ if damaged => StateDbError::Damaged { action, message },
            ErrorKind::IOError => StateDbError::Passing { action, message },
            _ => StateDbError::Io { action, message },
        }
    }
}

/// Whether a database that cannot be opened or read is damaged, rather than in use, of another version,
/// or on a disk that is full or not ours.
pub(crate) fn is_damage(error: &rocksdb::Error) -> bool {
    const PASSING: [&str; 8] = [
        "/LOCK",
        "lock hold",
        "Permission denied",
        "Read-only file system",
        NO_SPACE,
        "Disk quota exceeded",
        // Also of the whole system.
        NO_FILE,
        "Cannot allocate memory",
    ];
    match error.kind() {
        ErrorKind::Corruption => true,
        ErrorKind::IOError => {
            let text = error.to_string();
            !PASSING.iter().any(|words| text.contains(words))
        }
        _ => false,
    }
}

/// ENOSPC, as the system says it.
const NO_SPACE: &str = "No space left on device";
/// EMFILE. A look-up passes; a flush that met it is kept by RocksDB for good.
const NO_FILE: &str = "Too many open files";
/// What is done when nothing is to be written.
const READS: [&str; 4] = ["reading", "scanning", "reading a snapshot view", LOOKING];
/// A look for the rest of a group.
pub(crate) const LOOKING: &str = "looking for what is left of a group";

fn is_read(action: &str) -> bool {
    READS.contains(&action)
}

/// The disk does not give what it has: no other block is concerned.
fn is_unreadable(message: &str) -> bool {
    let reads = message.contains("While pread") || message.contains("While read");
    reads && message.contains("Input/output error")
}

impl From<StateDbError> for ApplyFault {
    fn from(error: StateDbError) -> Self {
        match error {
            // After a failure of the disk the host stops, and does not park every group first.
            StateDbError::Passing { .. }
            | StateDbError::Halted { .. }
            | StateDbError::NoRoom { .. }
            | StateDbError::Io { .. } => Self::passing(error),
            // Nothing of it shows that the disk did it: where a program is wrong, its peers are, too.
            StateDbError::Damaged { .. } => Self::damaged(error),
            _ => Self::new(error),
        }
    }
}

impl From<StateDbError> for QueryError {
    fn from(error: StateDbError) -> Self {
        match error {
            StateDbError::Damaged { .. }
            | StateDbError::Corrupt { .. }
            | StateDbError::Inconsistent { .. } => Self::Damaged(error.to_string()),
            StateDbError::TooManyDeleted { .. } => Self::TooMuch(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}
