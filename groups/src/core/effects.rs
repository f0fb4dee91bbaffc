//! What a worker wants done after a step.

use std::sync::Arc;

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{GroupId, LogBatch, LogIndex, LogPosition, NodeId};

use crate::apply::ApplyWork;
use crate::clock::Moment;
use crate::completion::Pending;
use crate::core::{
    BarrierCompletion, BarrierOutcome, DrainCompletion, EligibilityCompletion, EligibilityReport,
    MembershipCompletion, MembershipOutcome, ReadCompletion, SnapshotCompletion,
    TransferCompletion, TransferOutcome,
};
use crate::error::{BarrierError, GroupFault, ProposeError, ReadError, TakeSnapshotError};
use crate::leadership::Edge;
use crate::lives::Ending;
use crate::nodes::LiveNodes;
use crate::policy::{AdmissionRequest, PolicyEvent};
use crate::status::GroupStatus;
use crate::transport::{Outgoing, SnapshotShipment};

/// Everything that one step brought up.
///
/// They are executed in the order of the fields: callers whose proposals failed learn it before the
/// loss of leadership is published, and the status has the content of an edge before the edge is
/// published. Only `log` may take long; nothing that it holds back leaves before its sync.
#[derive(Debug, Default)]
pub struct Effects {
    /// When it began: what is sent in it was not sent before. `None`: the clock cannot be read.
    pub began: Option<Moment>,
    /// When its last input had been taken: vote locks that it extends count from then on.
    pub ended: Option<Moment>,
    /// What is known of nodes.
    pub nodes: Arc<LiveNodes>,
    /// Names what is known of nodes and policies together: grows when either changes.
    pub facts: u64,
    /// Proposals that ended without being applied here.
    pub failed: Vec<(Pending, ProposeError)>,
    pub read_replies: Vec<(ReadCompletion, Result<crate::core::ReadBarrier, ReadError>)>,
    /// Statuses that changed: group, open id, status.
    pub statuses: Vec<(GroupId, u64, Arc<GroupStatus>)>,
    /// Leases that changed: group, open id, lease. Those that end are revoked before anything else
    /// is published, those that begin are published after the statuses. None that is over is relied
    /// on when a message of this step leaves.
    pub leases: Vec<(GroupId, u64, LeaseSign)>,
    pub edges: Vec<Edge>,
    pub transfer_replies: Vec<(TransferCompletion, TransferOutcome)>,
    /// Changes of membership that ended.
    pub membership_replies: Vec<(MembershipCompletion, MembershipOutcome)>,
    /// Snapshots that were taken, or not.
    pub snapshot_replies: Vec<(SnapshotCompletion, Result<LogPosition, TakeSnapshotError>)>,
    /// Barriers that were opened or refused.
    pub barrier_replies: Vec<(BarrierCompletion, BarrierOutcome)>,
    /// Those who waited for everything before a barrier.
    pub drain_replies: Vec<(DrainCompletion, Result<LogIndex, BarrierError>)>,
    /// What replicas make of who could lead, for those who asked.
    pub eligibility_replies: Vec<(EligibilityCompletion, EligibilityReport)>,
    /// Policies to be asked about leaderships that were acquired.
    pub admissions: Vec<AdmissionRequest>,
    /// What is counted of those who lead, should lead, or do not.
    pub counted: Vec<PolicyEvent>,
    /// Messages that may leave at once.
    pub messages: Vec<Outgoing>,
    /// What is to be written, and what waits for it.
    pub log: LogTask,
    /// Work for state machines, in order per group: group, open id, work.
    pub work: Vec<(GroupId, u64, ApplyWork)>,
    pub shipments: Vec<SnapshotShipment>,
    /// Replicas that this node should hold and does not, and who says so.
    pub create_requests: Vec<(NodeId, GroupMessage)>,
    /// Notices that groups go on without replicas that do not run here, and who says so.
    pub notices: Vec<(NodeId, GroupMessage)>,
    /// Replicas that stopped: each ends when `log` and all that was handed out before is written.
    pub closed: Vec<Ending>,
    /// Bytes of the log that groups looked through ahead of their state machines.
    pub(crate) looked_ahead: u64,
    pub(crate) faults: Vec<(GroupId, GroupFault)>,
}

/// What a step wants written as one durable step, and what waits for it.
#[derive(Debug, Default)]
pub struct LogTask {
    /// What is to be written.
    pub batch: LogBatch,
    /// Messages that promise that it is durable.
    pub releases: Vec<Outgoing>,
    /// Which readies are durable then.
    pub acks: Vec<PersistAck>,
    /// Snapshots below these positions are not needed any more then.
    pub prune: Vec<Prune>,
    /// Replicas that ended because their group continues without them: group, open id. When the
    /// batch is durable, which destroys them in the log, their state and snapshots may go as well.
    pub destroyed: Vec<(GroupId, u64)>,
}

/// Snapshots of a replica that are not needed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prune {
    pub group: GroupId,
    /// Which opening of its replica. Ordered by another one, it is dropped.
    pub open_id: u64,
    pub keep: LogPosition,
}

/// The public part of a replica's lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseSign {
    /// Reads need no quorum before this moment; zero: there is no lease.
    pub until: Moment,
    /// When the heartbeats were sent that a quorum answered last; zero: none.
    pub acknowledged: Moment,
    /// When the leader was heard last, about; zero: never, or this replica leads.
    pub contact: Moment,
}

impl LeaseSign {
    /// Whether it gives a lease, be it one that ran out.
    #[must_use]
    pub fn is_lease(&self) -> bool {
        self.until > Moment::ZERO
    }
}

/// Everything up to this ready of this replica is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PersistAck {
    pub group: GroupId,
    /// Which opening of its replica.
    pub open_id: u64,
    /// Raft's number of the ready.
    pub number: u64,
    /// The replica's term when it was handed over.
    pub term: u64,
    /// So many changes of what the replica knows of itself are durable.
    pub meta: u64,
    /// So many votes that were prepared are durable.
    pub prepared: u64,
}

impl LogTask {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batch.writes.is_empty()
            && self.releases.is_empty()
            && self.acks.is_empty()
            && self.destroyed.is_empty()
    }

    /// Adds another task behind this one.
    pub fn merge(&mut self, other: Self) {
        self.batch.writes.extend(other.batch.writes);
        self.releases.extend(other.releases);
        self.acks.extend(other.acks);
        self.prune.extend(other.prune);
        self.destroyed.extend(other.destroyed);
    }
}

impl Effects {
    /// A proposal ended without being applied here.
    pub(crate) fn fail(&mut self, pending: Pending, error: ProposeError) {
        self.failed.push((pending, error));
    }

    /// Those who waited for everything before a barrier get this.
    pub(super) fn drained(
        &mut self,
        completions: Vec<DrainCompletion>,
        outcome: &Result<LogIndex, BarrierError>,
    ) {
        self.drain_replies
            .extend(completions.into_iter().map(|completion| (completion, outcome.clone())));
    }

    pub(crate) fn count(&mut self, event: PolicyEvent) {
        self.counted.push(event);
    }

    /// Work for a state machine.
    pub(crate) fn apply(&mut self, group: GroupId, open_id: u64, work: ApplyWork) {
        self.work.push((group, open_id, work));
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
            && self.leases.is_empty()
            && self.membership_replies.is_empty()
            && self.snapshot_replies.is_empty()
            && self.barrier_replies.is_empty()
            && self.drain_replies.is_empty()
            && self.create_requests.is_empty()
            && self.notices.is_empty()
            && self.edges.is_empty()
            && self.admissions.is_empty()
            && self.eligibility_replies.is_empty()
            && self.counted.is_empty()
            && self.transfer_replies.is_empty()
            && self.messages.is_empty()
            && self.log.is_empty()
            && self.work.is_empty()
            && self.shipments.is_empty()
            && self.closed.is_empty()
    }
}
