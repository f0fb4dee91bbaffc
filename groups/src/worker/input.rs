//! What a worker is told.

use std::sync::Arc;

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{Doubt, GroupId, LogIndex, LogPosition, NodeId, ReplicaId, Term};

use super::{Advert, Impairment, PersistAck};
use crate::apply::Summed;
use crate::core::{
    BarrierOrder, GroupCore, MembershipRequest, OutlookWaiter, Proposal, ReadRequest,
    SnapshotWaiter, TransferRequest,
};
use crate::error::{GroupFault, HostFault};
use crate::leadership::LossCause;
use crate::policy::{AdmissionFault, Decision};
use crate::runtime::Ending;
use crate::transport::ShipmentOutcome;

/// One thing that a worker is told. Kept small: channels hold blocks of them.
#[derive(Debug)]
pub enum Input {
    /// Messages from replicas on another node.
    Peer {
        /// The node.
        from: NodeId,
        /// The messages.
        messages: Vec<GroupMessage>,
    },
    /// An order for one opening of a replica. It is dropped when another one runs: a handle of a
    /// replica that was closed or destroyed orders nothing from the next.
    Order {
        /// The group.
        group: GroupId,
        /// Which opening.
        epoch: u64,
        /// What.
        order: Box<Self>,
    },
    /// Commands for one group.
    Propose {
        /// The group.
        group: GroupId,
        /// Which opening of its replica is meant; `None`: whichever runs.
        epoch: Option<u64>,
        /// The commands.
        proposals: Vec<Proposal>,
    },
    /// A read.
    Read {
        /// The group.
        group: GroupId,
        /// What it needs, and who waits.
        request: ReadRequest,
    },
    /// The membership is to be changed.
    ChangeMembership {
        /// The group.
        group: GroupId,
        /// How, and who waits.
        request: Box<MembershipRequest>,
    },
    /// Something about a barrier.
    Barrier {
        /// The group.
        group: GroupId,
        /// What.
        order: BarrierOrder,
    },
    /// A snapshot is to be taken.
    TakeSnapshot {
        /// The group.
        group: GroupId,
        /// Who waits.
        waiter: SnapshotWaiter,
    },
    /// Leadership is to be handed over.
    Transfer {
        /// The group.
        group: GroupId,
        /// Where to, and who waits.
        request: TransferRequest,
    },
    /// The log writer made these durable.
    Persisted(Vec<PersistAck>),
    /// Something about one opening of a group's replica.
    Group {
        /// The group.
        group: GroupId,
        /// Which opening; another one's events are dropped.
        epoch: u64,
        /// What happened.
        event: GroupEvent,
    },
    /// A shipment of a snapshot ended.
    Shipped {
        /// The group.
        group: GroupId,
        /// To whom.
        to: ReplicaId,
        /// How.
        outcome: ShipmentOutcome,
    },
    /// Messages to these replicas were dropped.
    Unreachable {
        /// The replicas.
        replicas: Vec<(GroupId, ReplicaId)>,
    },
    /// A node answers, or answers as another process.
    NodeLive {
        /// The node.
        node: NodeId,
        /// Its incarnation.
        incarnation: u64,
    },
    /// A node stopped answering.
    NodeLost {
        /// The node.
        node: NodeId,
    },
    /// A node said something of itself.
    NodeAdvert {
        /// The node.
        node: NodeId,
        /// Its incarnation.
        incarnation: u64,
        /// What it said.
        advert: Arc<Advert>,
    },
    /// The log may have lost something that these replicas acknowledged.
    RaiseDoubt {
        /// Which; `None`: all of the worker.
        group: Option<GroupId>,
        /// Why.
        doubt: Doubt,
    },
    /// This node says this of itself from here on.
    OwnAdvert(Arc<Advert>),
    /// Somebody asks what the replica makes of who could lead.
    Outlook {
        /// The group.
        group: GroupId,
        /// Who waits; dropped when the group does not run here.
        waiter: OutlookWaiter,
    },
    /// Policies may answer otherwise for this group.
    Reevaluate {
        /// The group.
        group: GroupId,
    },
    /// Of the groups that are led here and sleep, this part of so many is compared.
    CheckSleeping {
        /// Which part, from 0.
        part: u64,
        /// How many there are, at least 1.
        of: u64,
    },
    /// No replica of this host can go on.
    HostFailed(HostFault),
    /// The worker ends.
    Stop,
    /// A replica comes to life.
    Open(Box<GroupCore>),
    /// A replica's life in this process ends.
    Close {
        /// The group.
        group: GroupId,
        /// Why.
        cause: LossCause,
        /// What is handed on when the replica stopped.
        ending: Option<Ending>,
    },
}

/// What happened to one replica outside its worker.
#[derive(Debug)]
pub enum GroupEvent {
    /// The state machine applied everything up to here.
    Applied {
        /// The last entry.
        last: LogPosition,
        /// What would survive a crash.
        durable: Option<LogIndex>,
    },
    /// The state machine was replaced by a snapshot.
    Restored {
        /// The snapshot.
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
        /// What they said; the name of the one that gave no answer.
        answer: Result<Decision, AdmissionFault>,
    },
    /// A snapshot stands in the snapshot store; `None`: it could not be made.
    SnapshotMade(Option<LogPosition>),
    /// What the state machine holds at a check entry.
    Summed {
        /// The entry.
        position: LogPosition,
        /// What it holds.
        summed: Summed,
    },
    /// The state machine cannot go on for now, for this reason; `None`: it goes on again.
    Stalled(Option<Arc<str>>),
    /// A call into the state machine does not return; `None`: calls end in time again.
    Hung(Option<Impairment>),
    /// The replica cannot go on.
    Failed(GroupFault),
}
