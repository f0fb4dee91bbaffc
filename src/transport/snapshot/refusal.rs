//! Why a snapshot is not taken, for the sender and the counters.

use std::time::Duration;

use shardhost_storage::{GroupId, LogPosition, NodeId, ReplicaId, SnapshotError};
use tonic::{Code, Status};

use crate::transport::handshake::Refusal;
use crate::transport::stats::SnapshotRefusal;

/// Why a snapshot is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("{0}")]
    Header(&'static str),
    #[error(transparent)]
    Greeting(#[from] Refusal),
    #[error("no snapshot of group {group} at {position} is wanted for replica {replica}")]
    Unwanted { group: GroupId, replica: ReplicaId, position: LogPosition },
    #[error("{0} snapshots, as many as allowed, are being received; try again")]
    Busy(usize),
    #[error("a snapshot of group {group} is already being received from node {from}")]
    Duplicate { group: GroupId, from: NodeId },
    #[error("a newer stream of the same sender took over")]
    Superseded,
    #[error("the header announces {announced} bytes, more came")]
    TooLong { announced: u64 },
    #[error("the header announces {announced} bytes, the stream ended after {received}")]
    TooShort { announced: u64, received: u64 },
    #[error("no bytes came for {0:?}")]
    Stalled(Duration),
    #[error(transparent)]
    Store(#[from] SnapshotError),
    #[error("the replica that the snapshot is for was closed or destroyed meanwhile")]
    Ended,
    #[error("the writing thread panicked")]
    Panicked,
    #[error("{}", .0.message())]
    NotServing(Status),
    #[error("{}", .0.message())]
    Stream(#[from] Status),
}

impl ReceiveError {
    /// How it is counted.
    pub fn refusal(&self) -> SnapshotRefusal {
        use SnapshotRefusal as R;
        match self {
            Self::Header(_) => R::Malformed,
            Self::Greeting(_) => R::Greeting,
            Self::Unwanted { .. } | Self::Ended => R::Unwanted,
            Self::Busy(_) => R::Busy,
            Self::Duplicate { .. } => R::Duplicate,
            Self::Superseded => R::Superseded,
            Self::TooLong { .. } | Self::TooShort { .. } => R::WrongSize,
            Self::Stalled(_) => R::Stalled,
            Self::Store(error) if error.is_lack_of_space() => R::NoSpace,
            Self::Store(SnapshotError::Corrupt { .. }) => R::WrongChecksum,
            Self::Store(_) => R::Disk,
            Self::Panicked => R::Panicked,
            Self::NotServing(_) => R::NotServing,
            // The codec's status for frames that it cannot read.
            Self::Stream(status) if status.code() == Code::InvalidArgument => R::Malformed,
            Self::Stream(_) => R::Broken,
        }
    }

    /// Whether what came may be good, so that it is worth keeping. A stream that ends early is one
    /// that its sender gave up.
    pub fn keeps_what_came(&self) -> bool {
        use SnapshotRefusal as R;
        let broken = matches!(self.refusal(), R::Superseded | R::Stalled | R::Broken);
        broken || matches!(self, Self::TooShort { .. })
    }
}

impl From<ReceiveError> for Status {
    fn from(error: ReceiveError) -> Self {
        use ReceiveError as E;
        let text = error.to_string();
        match error {
            E::Header(_) | E::TooLong { .. } | E::TooShort { .. } => Self::invalid_argument(text),
            E::Greeting(refusal) => refusal.into(),
            E::Unwanted { .. } | E::Ended => Self::failed_precondition(text),
            E::Busy(_) => Self::resource_exhausted(text),
            E::Duplicate { .. } => Self::already_exists(text),
            E::Superseded => Self::aborted(text),
            E::Stalled(_) => Self::deadline_exceeded(text),
            E::Store(ref cause) if cause.is_lack_of_space() => Self::resource_exhausted(text),
            E::Store(SnapshotError::Corrupt { .. }) => Self::data_loss(text),
            E::NotServing(status) | E::Stream(status) => status,
            E::Store(_) | E::Panicked => Self::internal(text),
        }
    }
}
