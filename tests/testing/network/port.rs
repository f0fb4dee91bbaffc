//! A host's place in the network.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use shardhost_storage::{NodeId, SnapshotStore};

use super::Wire;
use super::shipping::Shipment;
use super::state::Attached;
use super::tap::{Envelope, Held, Judged};
use shardhost_groups::transport::{Inbound, Outgoing, SnapshotShipment, Transport};

/// The transport of one host, for one life of it.
pub struct Port {
    wire: Arc<Wire>,
    node: NodeId,
    life: u64,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port of {:?}, life {}", self.node, self.life)
    }
}

impl Port {
    pub(super) const fn new(wire: Arc<Wire>, node: NodeId, life: u64) -> Self {
        Self { wire, node, life }
    }

    /// Lets the host take part: messages get in and out, and peers hear of it. `incarnation`
    /// must grow with every start of the node.
    pub fn attach(
        &self,
        inbound: Arc<dyn Inbound>,
        snapshots: Arc<dyn SnapshotStore>,
        incarnation: u64,
    ) {
        let host = Attached { life: self.life, incarnation, inbound, snapshots };
        self.wire.lock().attach(self.node, host);
        self.wire.wake.notify_all();
    }

    /// Ends this life of the node, as the death of a process does: nothing gets in or out any
    /// more, and peers notice after a while.
    pub fn detach(&self) {
        let host = self.wire.lock().detach(self.node, self.life);
        self.wire.wake.notify_all();
        drop(host);
    }

    fn inbound(&self) -> Option<Arc<dyn Inbound>> {
        let state = self.wire.lock();
        state.host_in_life(self.node, self.life).map(|host| Arc::clone(&host.inbound))
    }
}

impl Transport for Port {
    fn send(&self, messages: Vec<Outgoing>) {
        let mut state = self.wire.lock();
        if state.host_in_life(self.node, self.life).is_none() {
            return;
        }
        let unreachable = state.send(self.node, messages, Instant::now());
        drop(state);
        self.wire.wake.notify_all();
        self.wire.caught.notify_all();
        if !unreachable.is_empty()
            && let Some(inbound) = self.inbound()
        {
            for (node, replicas) in unreachable {
                inbound.unreachable(node, replicas);
            }
        }
    }

    fn send_snapshot(&self, shipment: SnapshotShipment) {
        let SnapshotShipment { to, position, message } = shipment;
        let (from, life) = (self.node, self.life);
        let shipment = Shipment { from, life, to, position, message };
        let mut state = self.wire.lock();
        let envelope = Envelope { from, to, lane: None, message: &shipment.message };
        let judged = state.taps.judge(&envelope);
        match judged {
            Judged::Hold(tap) => state.taps.hold(tap, Held::Shipment(shipment)),
            Judged::Deliver => self.wire.shipments.put(shipment),
            Judged::Lose => {
                drop(state);
                shipment.fail(&self.wire);
            }
        }
        self.wire.caught.notify_all();
    }
}
