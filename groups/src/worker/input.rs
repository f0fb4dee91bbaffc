//! The inputs of a worker.

use std::sync::Arc;

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{Doubt, GroupId, LogIndex, LogPosition, NodeId, ReplicaId, Term};

use crate::apply::Summed;
use crate::core::{
    BarrierOrder, EligibilityCompletion, GroupCore, MembershipRequest, PersistAck, Proposal,
    ReadRequest, SnapshotCompletion, TransferRequest,
};
use crate::error::{GroupFault, HostFault};
use crate::leadership::LossCause;
use crate::lives::Ending;
use crate::nodes::{Advertisement, Impairment};
use crate::policy::{AdmissionFault, Decision};
use crate::transport::ShipmentOutcome;

/// One input of a worker. Kept small: channels hold blocks of them.
#[derive(Debug)]
pub enum Input {
    /// Messages from replicas on another node.
    Peer {
        from: NodeId,
        messages: Vec<GroupMessage>,
    },
    /// An order for one opening of a replica. It is dropped when another one runs: a handle of a
    /// replica that was closed or destroyed orders nothing from the next.
    Order {
        group: GroupId,
        open_id: u64,
        order: Box<Self>,
    },
    Propose {
        group: GroupId,
        /// Which opening of its replica is meant; `None`: whichever runs.
        open_id: Option<u64>,
        proposals: Vec<Proposal>,
    },
    Read {
        group: GroupId,
        /// What it needs, and who waits.
        request: ReadRequest,
    },
    /// The membership is to be changed.
    ChangeMembership {
        group: GroupId,
        request: Box<MembershipRequest>,
    },
    Barrier {
        group: GroupId,
        order: BarrierOrder,
    },
    /// A snapshot is to be taken.
    TakeSnapshot {
        group: GroupId,
        completion: SnapshotCompletion,
    },
    /// Leadership is to be handed over.
    Transfer {
        group: GroupId,
        /// Where to, and who waits.
        request: TransferRequest,
    },
    /// The log writer made these durable.
    Persisted(Vec<PersistAck>),
    /// Something about one opening of a group's replica.
    Group {
        group: GroupId,
        /// Which opening; another one's events are dropped.
        open_id: u64,
        event: GroupEvent,
    },
    /// A shipment of a snapshot ended.
    Shipped {
        group: GroupId,
        to: ReplicaId,
        outcome: ShipmentOutcome,
    },
    /// Messages to these replicas were dropped.
    Unreachable {
        replicas: Vec<(GroupId, ReplicaId)>,
    },
    /// A node answers, or answers as another process.
    NodeLive {
        node: NodeId,
        incarnation: u64,
    },
    NodeLost {
        node: NodeId,
    },
    /// The advertisement of a node.
    NodeAdvertisement {
        node: NodeId,
        incarnation: u64,
        advertisement: Arc<Advertisement>,
    },
    /// The log may have lost something that these replicas acknowledged.
    RaiseDoubt {
        /// Which; `None`: all of the worker.
        group: Option<GroupId>,
        doubt: Doubt,
    },
    /// The new advertisement of this node.
    OwnAdvertisement(Arc<Advertisement>),
    /// Calls hold every thread that runs state machines for half as long as they may, or do not any
    /// more.
    Busy(bool),
    /// A request for the replica's evaluation of who could lead.
    EligibilityReport {
        group: GroupId,
        /// Who waits; dropped when the group does not run here.
        completion: EligibilityCompletion,
    },
    /// Policies may answer otherwise for this group.
    Reevaluate {
        group: GroupId,
    },
    /// Of the groups that are led here and hibernate, this part of so many is compared.
    CheckHibernating {
        part: u64,
        /// How many there are, at least 1.
        of: u64,
    },
    /// No replica of this host can continue.
    HostFailed(HostFault),
    Stop,
    /// A replica comes to life.
    Open(Box<GroupCore>),
    /// A replica's life in this process ends.
    Close {
        group: GroupId,
        cause: LossCause,
        /// The part that is passed on when the replica stopped.
        ending: Option<Ending>,
    },
}

/// What happened to one replica outside its worker.
#[derive(Debug)]
pub enum GroupEvent {
    /// The state machine applied everything up to here.
    Applied {
        last: LogPosition,
        /// What would survive a crash.
        durable: Option<LogIndex>,
    },
    /// The state machine was replaced by a snapshot.
    Restored {
        position: LogPosition,
        /// What would survive a crash.
        durable: Option<LogIndex>,
    },
    /// What would survive a crash.
    Durable(Option<LogIndex>),
    /// The policies that are asked about an acquired leadership have answered.
    Admission {
        /// The term that was asked about.
        term: Term,
        /// Which question about it they answer.
        question: u64,
        /// Their answers; the name of the one that gave none.
        answer: Result<Decision, AdmissionFault>,
    },
    /// A snapshot is in the snapshot store; `None`: it could not be made.
    SnapshotMade(Option<LogPosition>),
    /// What the state machine holds at a check entry.
    Summed { position: LogPosition, summed: Summed },
    /// The state machine stalls, for this reason; `None`: it works again.
    Stalled(Option<Arc<str>>),
    /// A call into the state machine does not return; `None`: calls end in time again.
    Hung(Option<Impairment>),
    /// A call into the state machine takes half as long as it may, or it ended.
    Busy(bool),
    /// The replica cannot continue.
    Failed(GroupFault),
}
