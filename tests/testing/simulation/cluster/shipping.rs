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
        let copied = reached && self.copy_snapshot(from, to, group, position)?;
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

    pub(super) fn copy_snapshot(
        &self,
        from: NodeId,
        to: NodeId,
        group: GroupId,
        position: shardhost_groups::LogPosition,
    ) -> Result<bool, String> {
        // A snapshot that was replaced meanwhile cannot be sent.
        let Ok(mut source) = self.nodes[&from].snapshots.open(group, position) else {
            return Ok(false);
        };
        let snapshots = &self.nodes[&to].snapshots;
        let mut sink = snapshots.create(group, position).map_err(|error| error.to_string())?;
        std::io::copy(&mut source, &mut sink).map_err(|error| error.to_string())?;
        sink.finish().map_err(|error| error.to_string())?;
        Ok(true)
    }
}
