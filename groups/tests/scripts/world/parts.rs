//! What stands around a worker: the log writer, the state machines, and the shipping of snapshots.

use shardhost_groups::apply::{ApplyReport, Summed};
use shardhost_groups::core::LogTask;
use shardhost_groups::storage::LogError;
use shardhost_groups::transport::{ShipmentOutcome, SnapshotShipment};
use shardhost_groups::worker::{GroupEvent, Input};
use shardhost_groups::{
    ApplyFault, GroupId, HostFault, LogPosition, NodeId, ReplicaId, SnapshotWriter,
};

use crate::words;
use crate::world::network::{Pattern, Shipping};
use crate::world::text::Text;
use crate::world::{Cluster, Done};

impl Cluster {
    /// The log writer writes what waits. A crash before the sync may lose it.
    pub fn write(&mut self, id: NodeId) -> Done {
        let node = self.node(id)?;
        let process = node.process.as_mut().ok_or_else(|| format!("node {id} is down"))?;
        let mut merged = LogTask::default();
        process.to_write.drain(..).for_each(|task| merged.merge(task));
        if merged.is_empty() && merged.prune.is_empty() {
            return Ok(());
        }
        let written = node.disks.store.write_unsynced(&merged.batch);
        process.written.push(merged);
        written.or_else(|error| self.log_failed(id, error))
    }

    /// What was written becomes durable; what waited for it leaves.
    pub fn sync(&mut self, id: NodeId) -> Done {
        let written = std::mem::take(&mut self.process(id)?.written);
        if written.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.node(id)?.disks.store.sync() {
            return self.log_failed(id, error);
        }
        written.into_iter().try_for_each(|task| self.finish_write(id, task))
    }

    fn finish_write(&mut self, id: NodeId, task: LogTask) -> Done {
        for prune in &task.prune {
            self.node(id)?.prune(prune);
        }
        for write in &task.batch.writes {
            let line = words::write(write);
            self.say(format!("n{id} g{} persist{line}", write.group));
        }
        for (group, open_id) in task.destroyed {
            self.node(id)?.bury(group, open_id);
        }
        self.send(id, task.releases);
        self.input(id, Input::Persisted(task.acks))
    }

    /// After a failed write nothing is assumed about the disk: the host stops.
    fn log_failed(&mut self, id: NodeId, error: LogError) -> Done {
        let process = self.process(id)?;
        process.written.clear();
        process.to_write.clear();
        self.say(format!("n{id} log failed: {error}"));
        self.input(id, Input::HostFailed(HostFault::Log(error)))
    }

    /// State machines of a node do one piece of work each, or that of one group.
    pub fn apply(&mut self, id: NodeId, only: Option<GroupId>) -> Done {
        let groups: Vec<GroupId> = self.process(id)?.machines.keys().copied().collect();
        for group in groups.into_iter().filter(|group| only.is_none_or(|only| only == *group)) {
            self.apply_one(id, group)?;
        }
        Ok(())
    }

    fn apply_one(&mut self, id: NodeId, group: GroupId) -> Done {
        let node = self.node(id)?;
        let Some(process) = node.process.as_mut() else { return Ok(()) };
        let Some(machine) = process.machines.get_mut(&group) else { return Ok(()) };
        let Some(work) = machine.work.pop_front() else { return Ok(()) };
        let open_id = machine.open_id;
        let report = machine.applier.run(work);
        let fresh = std::mem::take(&mut node.disks.machines[&group].lock().unwrap().fresh);
        if let Some((last, _)) = fresh.last() {
            machine.told = last.index;
        }
        for (at, Text(text)) in fresh {
            self.say(format!("n{id} g{group} applied {at} {text:?}"));
        }
        self.tell_answers();
        match self.event_of(id, group, report)? {
            Some(event) => self.input(id, Input::Group { group, open_id, event }),
            None => Ok(()),
        }
    }

    /// State machines that keep themselves write what they hold.
    pub fn flush(&mut self, id: NodeId) -> Done {
        let node = self.node(id)?;
        node.disks.flush();
        Ok(())
    }

    fn event_of(
        &mut self,
        id: NodeId,
        group: GroupId,
        report: ApplyReport,
    ) -> Result<Option<GroupEvent>, String> {
        if let ApplyReport::SnapshotTaken { position, view } = report {
            return self.keep_snapshot(id, group, position, view).map(Some);
        }
        let event = self.nodes[&id].disks.event_of(group, report)?;
        match &event {
            Some(GroupEvent::Restored { position, .. }) => {
                let machine = self.process(id)?.machines.get_mut(&group);
                machine.into_iter().for_each(|machine| machine.told = position.index);
                self.say(format!("n{id} g{group} restored from {position}"));
            }
            Some(GroupEvent::Summed { position, summed: Summed::Sum(sum) }) => {
                self.say(format!("n{id} g{group} checksum at {position}: {sum}"));
            }
            _ => {}
        }
        Ok(event)
    }

    fn keep_snapshot(
        &mut self,
        id: NodeId,
        group: GroupId,
        position: LogPosition,
        view: Result<Box<dyn SnapshotWriter>, ApplyFault>,
    ) -> Result<GroupEvent, String> {
        let view = view.map_err(|fault| fault.to_string())?;
        let written = self.nodes[&id].disks.keep_snapshot(group, position, view);
        self.say(match &written {
            Ok(()) => format!("n{id} g{group} made snapshot {position}"),
            Err(error) => format!("n{id} g{group} made no snapshot: {error}"),
        });
        Ok(GroupEvent::SnapshotMade(written.is_ok().then_some(position)))
    }

    /// A snapshot arrives whole, or does not; the sender learns which.
    pub fn ship(&mut self, shipping: Shipping, fails: bool) -> Done {
        let Shipping { from, life, shipment } = shipping;
        let SnapshotShipment { to, position, message } = shipment;
        let (group, replica) = (GroupId::new(message.group), ReplicaId::must(message.to_replica));
        let reaches = !fails && self.runs(to) && self.network.connects(from, to);
        let copied = reaches
            && self.nodes[&from].disks.copy_snapshot(&self.nodes[&to].disks, group, position)?;
        if copied {
            self.arrive(from, to, vec![message])?;
        } else {
            self.say(format!("{from}->{to} g{group} snapshot {position} does not arrive"));
        }
        if self.nodes[&from].life != life || !self.runs(from) {
            return Ok(());
        }
        let outcome = match copied {
            true => ShipmentOutcome::Delivered,
            false => ShipmentOutcome::Failed,
        };
        self.input(from, Input::Shipped { group, to: replica, outcome })
    }

    /// Takes the shipments under way that fit.
    pub fn shipments(&mut self, pattern: &Pattern) -> Vec<Shipping> {
        let fits =
            |one: &mut Shipping| pattern.fits(one.from, one.shipment.to, &one.shipment.message);
        self.network.shipments.extract_if(.., fits).collect()
    }
}
