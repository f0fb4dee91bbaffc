//! Snapshots, copied from the store of one host to that of another on a separate thread.

use std::io::{self, Read};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{
    GroupId, LogPosition, NodeId, ReplicaId, SnapshotAnnouncement, SnapshotError,
};

use super::Wire;
use super::state::Attached;
use shardhost_groups::transport::ShipmentOutcome;

/// Bytes that are copied at once.
const CHUNK_BYTES: usize = 64 << 10;

/// A snapshot that a host wants to be sent.
pub(super) struct Shipment {
    pub(super) from: NodeId,
    pub(super) life: u64,
    pub(super) to: NodeId,
    pub(super) position: LogPosition,
    pub(super) message: GroupMessage,
}

impl Shipment {
    /// Reports to the sender that it did not arrive.
    pub(super) fn fail(&self, wire: &Wire) {
        self.tell(wire, ShipmentOutcome::Failed);
    }

    fn tell(&self, wire: &Wire, outcome: ShipmentOutcome) {
        let sender = wire.lock().host_in_life(self.from, self.life).cloned();
        if let (Some(sender), Some(replica)) = (sender, ReplicaId::new(self.message.to_replica)) {
            sender.inbound.snapshot_shipped(self.group(), replica, outcome);
        }
    }

    fn group(&self) -> GroupId {
        GroupId::new(self.message.group)
    }
}

/// Where shipments wait. There are never more than replicas that need one: Raft asks again for
/// one only when it heard of the last.
pub(super) struct ShipmentQueue(Sender<Option<Shipment>>);

/// Where they are taken out.
pub(super) type ShipmentOutlet = Receiver<Option<Shipment>>;

impl ShipmentQueue {
    pub(super) fn new() -> (Self, ShipmentOutlet) {
        let (sender, receiver) = unbounded();
        (Self(sender), receiver)
    }

    pub(super) fn put(&self, shipment: Shipment) {
        drop(self.0.send(Some(shipment)));
    }

    pub(super) fn stop(&self) {
        drop(self.0.send(None));
    }
}

pub(super) struct Shipments {
    pub(super) wire: Arc<Wire>,
}

impl Shipments {
    pub(super) fn run(&self, outlet: &ShipmentOutlet) {
        while let Ok(Some(shipment)) = outlet.recv() {
            let outcome = self.ship(&shipment).unwrap_or_else(|error| {
                tracing::debug!(to = %shipment.to, %error, "a snapshot was not shipped");
                ShipmentOutcome::Failed
            });
            shipment.tell(&self.wire, outcome);
        }
    }

    fn ship(&self, shipment: &Shipment) -> io::Result<ShipmentOutcome> {
        let Some((sender, receiver)) = self.ends(shipment) else {
            return Ok(ShipmentOutcome::Failed);
        };
        let (group, position) = (shipment.group(), shipment.position);
        let replica = ReplicaId::new(shipment.message.to_replica);
        let wants = |replica| receiver.inbound.wants_snapshot(group, replica, position);
        let Some(recipient) = replica.and_then(wants) else {
            return Ok(ShipmentOutcome::Failed);
        };
        let mut source = match sender.snapshots.open(group, position) {
            Ok(source) => source,
            Err(SnapshotError::Missing { .. } | SnapshotError::Corrupt { .. }) => {
                return Ok(ShipmentOutcome::Unusable);
            }
            Err(error) => return Err(error.into()),
        };
        let (from, size, crc) = (shipment.from, source.size(), source.crc());
        let announced = SnapshotAnnouncement { from, group, position, size, crc };
        let mut sink = receiver.snapshots.receive(announced)?;
        source.read_from(sink.received())?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = source.read(&mut chunk)?;
            if self.ends(shipment).is_none_or(|(_, now)| now.life != receiver.life) {
                return Ok(ShipmentOutcome::Failed);
            }
            if count == 0 {
                break;
            }
            sink.append(&chunk[..count])?;
        }
        match recipient.while_open(|| sink.finish()) {
            Some(finished) => finished?,
            None => return Ok(ShipmentOutcome::Failed),
        }
        receiver.inbound.snapshot_arrived(from, shipment.message.clone());
        Ok(ShipmentOutcome::Delivered)
    }

    /// Sender and receiver, while one reaches the other.
    fn ends(&self, shipment: &Shipment) -> Option<(Attached, Attached)> {
        let state = self.wire.lock();
        let sender = state.host_in_life(shipment.from, shipment.life)?;
        let receiver = state.host(shipment.to)?;
        let reaches = state.reaches(shipment.from, shipment.to);
        reaches.then(|| (sender.clone(), receiver.clone()))
    }
}
