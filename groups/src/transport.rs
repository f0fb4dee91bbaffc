//! The seam between the groups and whatever carries messages between nodes.
//!
//! The groups hand out batches of [`Outgoing`] and take batches in through [`Inbound`]. They know
//! nodes by id only: addresses, connections and encryption are the transport's.

use std::fmt;
use std::sync::Arc;

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{GroupId, LogPosition, NodeId, ReplicaId};

use crate::lives::LifeLock;
use crate::nodes::Advertisement;

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Appends, their responses, and what goes with them.
    Bulk,
    /// Heartbeats, votes, TimeoutNow: small, and never behind appends.
    Urgent,
}

/// One message to a replica on another node.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// The node that holds the addressed replica.
    pub to: NodeId,
    pub lane: Lane,
    pub message: GroupMessage,
}

/// A snapshot to be carried to another node on a separate stream.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotShipment {
    /// The node that needs it.
    pub to: NodeId,
    /// Which snapshot of the snapshot store.
    pub position: LogPosition,
    /// The Raft message that goes with it, kind `SNAPSHOT`.
    pub message: GroupMessage,
}

/// Carries messages to other nodes. Implemented by the host.
///
/// No call blocks: what does not fit into a bounded lane is dropped, counted, and reported by
/// [`Inbound::unreachable`]. Messages of one lane to one node keep their order.
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Sends a batch. Messages to unknown nodes are dropped and counted.
    fn send(&self, messages: Vec<Outgoing>);

    /// Starts to ship a snapshot. The outcome is reported by [`Inbound::snapshot_shipped`], on
    /// every path. A shipment may take over from an earlier one to the same replica: then both
    /// are reported with the outcome of the later one.
    fn send_snapshot(&self, shipment: SnapshotShipment);

    /// From here on nothing is sent to peers, heartbeats included, or sent again. The groups send
    /// nothing meanwhile; a transport with heartbeats of its own must stop them, else groups that
    /// hibernate on other nodes rely on this one.
    fn set_silent(&self, silent: bool) {
        let _ = silent;
    }
}

/// Takes what arrives from other nodes. Implemented by the groups' runtime; no call blocks.
pub trait Inbound: fmt::Debug + Send + Sync + 'static {
    /// Messages from `from`, whose cluster, node and incarnation were checked. Returns how many
    /// were dropped because an inbox was full: the stream continues.
    fn deliver(&self, from: NodeId, messages: Vec<GroupMessage>) -> usize;

    /// A snapshot arrived complete and is in the snapshot store at the position that the message
    /// names.
    fn snapshot_arrived(&self, from: NodeId, message: GroupMessage);

    /// Whether a snapshot for this replica would be taken now, and if so, by which opening of it.
    /// Asked before its bytes are read.
    fn wants_snapshot(
        &self,
        group: GroupId,
        replica: ReplicaId,
        position: LogPosition,
    ) -> Option<Recipient>;

    fn snapshot_shipped(&self, group: GroupId, to: ReplicaId, outcome: ShipmentOutcome);

    /// The node answers heartbeats: it was not live before, or has another incarnation.
    fn peer_live(&self, node: NodeId, incarnation: u64);

    /// The advertisement of an incarnation of the node.
    fn peer_advertisement(&self, node: NodeId, incarnation: u64, advertisement: Advertisement) {
        let _ = (node, incarnation, advertisement);
    }

    /// The node stopped answering heartbeats.
    fn peer_lost(&self, node: NodeId);

    /// Messages for these replicas of `node` were dropped.
    fn unreachable(&self, node: NodeId, replicas: Vec<(GroupId, ReplicaId)>);
}

/// The opening of a replica that a snapshot is received for. The next opening, which may be of
/// another replica or of another group with the same number, must not find it.
#[derive(Clone, Debug, Default)]
pub struct Recipient {
    life: Option<Arc<LifeLock>>,
}

impl Recipient {
    /// An opening that never ends, where there are no replicas.
    #[must_use]
    pub fn endless() -> Self {
        Self::default()
    }

    pub(crate) const fn of(life: Arc<LifeLock>) -> Self {
        Self { life: Some(life) }
    }

    /// Does what puts the snapshot in its place, unless the replica was closed or destroyed; its
    /// end waits for that. Blocks.
    pub fn while_open<T>(&self, publish: impl FnOnce() -> T) -> Option<T> {
        match &self.life {
            Some(life) => life.while_alive(publish),
            None => Some(publish()),
        }
    }
}

/// How the shipment of a snapshot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShipmentOutcome {
    /// The receiver has all of it.
    Delivered,
    /// It has not; Raft tries again.
    Failed,
    /// It has not, because the snapshot is missing or damaged here: another one must be made.
    Unusable,
}
