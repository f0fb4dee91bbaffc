//! What a worker wants done after a round.

use std::sync::Arc;

use shardhost_storage::{GroupId, LogBatch, LogPosition};
use tokio::sync::oneshot;

use crate::apply::ApplyWork;
use crate::core::TransferOutcome;
use crate::core::{ReadWaiter, TransferWaiter};
use crate::error::{GroupFault, ProposeError, ReadError};
use crate::leadership::Edge;
use crate::status::GroupStatus;
use crate::transport::{Outgoing, SnapshotShipment};
use crate::waiter::Pending;

/// Everything that one round brought up.
///
/// Whoever carries it out does it in the order of the fields: those whose proposals failed learn
/// it before the loss of leadership is announced, and the status says what an edge says before
/// the edge is told. Only `log` may take long; nothing that it holds back leaves before its sync.
#[derive(Debug, Default)]
pub struct Round {
    /// Proposals that ended without being applied here.
    pub failed: Vec<(Pending, ProposeError)>,
    /// Reads that are answered.
    pub read_replies: Vec<(ReadWaiter, Result<crate::core::ReadBarrier, ReadError>)>,
    /// Statuses that changed: group, epoch, status.
    pub statuses: Vec<(GroupId, u64, Arc<GroupStatus>)>,
    /// Edges of leadership.
    pub edges: Vec<Edge>,
    /// Transfers that ended.
    pub transfer_replies: Vec<(TransferWaiter, TransferOutcome)>,
    /// Messages that may leave at once.
    pub messages: Vec<Outgoing>,
    /// What is to be written, and what waits for it.
    pub log: LogTask,
    /// Work for state machines, in order per group: group, epoch, work.
    pub work: Vec<(GroupId, u64, ApplyWork)>,
    /// Snapshots to ship.
    pub shipments: Vec<SnapshotShipment>,
    /// Groups whose life in this process ended, and who waits for it.
    pub closed: Vec<(GroupId, oneshot::Sender<()>)>,
    pub(super) faults: Vec<(GroupId, GroupFault)>,
}

/// What a round wants written as one durable step, and what waits for it.
#[derive(Debug, Default)]
pub struct LogTask {
    /// What is to be written.
    pub batch: LogBatch,
    /// Messages that promise that it is durable.
    pub releases: Vec<Outgoing>,
    /// Which readies are durable then.
    pub acks: Vec<PersistAck>,
    /// Snapshots below these positions are not needed any more then.
    pub prune: Vec<(GroupId, LogPosition)>,
}

/// Everything up to this ready of this replica is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PersistAck {
    /// The group.
    pub group: GroupId,
    /// Which opening of its replica.
    pub epoch: u64,
    /// Raft's number of the ready.
    pub number: u64,
    /// The replica's term when it was handed over.
    pub term: u64,
}

impl LogTask {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batch.writes.is_empty() && self.releases.is_empty() && self.acks.is_empty()
    }

    /// Adds another task behind this one.
    pub fn merge(&mut self, other: Self) {
        self.batch.writes.extend(other.batch.writes);
        self.releases.extend(other.releases);
        self.acks.extend(other.acks);
        self.prune.extend(other.prune);
    }
}

impl Round {
    /// A proposal ended without being applied here.
    pub(crate) fn fail(&mut self, pending: Pending, error: ProposeError) {
        self.failed.push((pending, error));
    }

    /// Work for a state machine.
    pub(crate) fn apply(&mut self, group: GroupId, epoch: u64, work: ApplyWork) {
        self.work.push((group, epoch, work));
    }

    /// A replica cannot go on.
    pub(crate) fn fault(&mut self, group: GroupId, fault: GroupFault) {
        self.faults.push((group, fault));
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.failed.is_empty()
            && self.read_replies.is_empty()
            && self.statuses.is_empty()
            && self.edges.is_empty()
            && self.transfer_replies.is_empty()
            && self.messages.is_empty()
            && self.log.is_empty()
            && self.work.is_empty()
            && self.shipments.is_empty()
            && self.closed.is_empty()
    }
}
