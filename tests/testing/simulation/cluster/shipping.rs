//! Snapshots on their way between nodes.

use super::*;

impl Cluster {
    pub(super) fn ship(&mut self, from: NodeId, shipment: SnapshotShipment) {
        let from_life = self.nodes[&from].life;
        let delay = self.chance.between(5, 300);
        self.tell(|| format!("{from:?} ships {} to {:?}", shipment.position, shipment.to));
        let shipment = Box::new(shipment);
        self.after(delay, Event::SnapshotArrives { from, from_life, shipment });
    }

    pub(super) fn snapshot_arrives(
        &mut self,
        from: NodeId,
        from_life: u64,
        shipment: SnapshotShipment,
    ) -> Result<(), String> {
        let SnapshotShipment { to, position, message } = shipment;
        let group = GroupId::new(message.group);
        let replica = ReplicaId::must(message.to_replica);
        let reached = self.network.passes(from, to)
            && self.nodes[&to].process.is_some()
            && self.nodes[&from].life == from_life
            && self.now >= self.ships_nothing_until
            && !self.chance.per_mille(200);
        let copied = reached
            && self.nodes[&from].disks.copy_snapshot(&self.nodes[&to].disks, group, position)?;
        if copied {
            self.input(to, Input::Peer { from, messages: vec![message] })?;
        }
        if self.nodes[&from].life != from_life {
            return Ok(());
        }
        let outcome = match copied {
            true => ShipmentOutcome::Delivered,
            false => ShipmentOutcome::Failed,
        };
        self.input(from, Input::Shipped { group, to: replica, outcome })
    }
}
