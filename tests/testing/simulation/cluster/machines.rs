//! A node's state machines, run some time after they were given work.

use super::*;

/// Milliseconds before work is tried again that could not be done.
const STALL_REST: u64 = 200;

impl Cluster {
    /// A state machine does nothing for so many milliseconds.
    pub fn hang_machine(&mut self, id: NodeId, group: GroupId, length: u64) {
        self.tell(|| format!("{id:?} the machine of {group:?} hangs for {length} ms"));
        let until = self.now + length;
        let process = self.nodes.get_mut(&id).and_then(|node| node.process.as_mut());
        if let Some(machine) = process.and_then(|process| process.machines.get_mut(&group)) {
            machine.hangs_until = until;
        }
    }

    /// A state machine refuses to apply anything for so many milliseconds, as on a full disk.
    pub fn stall_machine(&mut self, id: NodeId, group: GroupId, length: u64) {
        self.tell(|| format!("{id:?} the machine of {group:?} stands still for {length} ms"));
        let until = self.now + length;
        let process = self.nodes.get_mut(&id).and_then(|node| node.process.as_mut());
        if let Some(machine) = process.and_then(|process| process.machines.get_mut(&group)) {
            machine.stalls_until = until;
        }
    }

    /// What the apply pool does with work that cannot be done now: it stays where it is, the
    /// replica is notified, and it is tried again later.
    fn stands_still(&mut self, id: NodeId, life: u64, group: GroupId) -> Result<bool, String> {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(false) };
        let full = node.full_until > now;
        let machine = node.process.as_mut().and_then(|process| process.machines.get_mut(&group));
        let Some(machine) = machine else { return Ok(false) };
        let open_id = machine.open_id;
        let applies = matches!(
            machine.work.front(),
            Some(ApplyWork::Commands { .. } | ApplyWork::Restore { .. })
        );
        let stalls = applies && (full || machine.stalls_until > now);
        if stalls {
            self.after(STALL_REST, Event::Apply { node: id, life, group });
        }
        let process = self.nodes.get_mut(&id).and_then(|node| node.process.as_mut());
        let machine = process.and_then(|process| process.machines.get_mut(&group));
        let told = machine.is_none_or(|machine| {
            let stays = machine.stalled && !applies;
            std::mem::replace(&mut machine.stalled, stalls || stays)
        });
        if applies && told != stalls {
            let event = GroupEvent::Stalled(stalls.then(|| "the disk is full".into()));
            self.input(id, Input::Group { group, open_id, event })?;
        }
        Ok(stalls)
    }

    pub(super) fn queue_work(&mut self, id: NodeId, group: GroupId, open_id: u64, work: ApplyWork) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let life = node.life;
        let Some(process) = node.process.as_mut() else { return };
        let Some(machine) = process.machines.get_mut(&group) else { return };
        if machine.open_id != open_id {
            return;
        }
        machine.work.push_back(work);
        if !std::mem::replace(&mut machine.scheduled, true) {
            let delay = self.machine_delay(id);
            self.after(delay, Event::Apply { node: id, life, group });
        }
    }

    fn machine_delay(&mut self, id: NodeId) -> u64 {
        if self.nodes[&id].machines_slow_until > self.now {
            return self.chance.between(100, 4_000);
        }
        if self.chance.per_mille(20) { self.chance.between(50, 600) } else { 1 }
    }

    pub(super) fn apply(&mut self, id: NodeId, life: u64, group: GroupId) -> Result<(), String> {
        if !self.is_running(id, life) {
            return Ok(());
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(process) = node.process.as_mut() else { return Ok(()) };
        let Some(machine) = process.machines.get_mut(&group) else { return Ok(()) };
        let open_id = machine.open_id;
        if machine.hangs_until > self.now {
            let wait = machine.hangs_until - self.now;
            self.after(wait, Event::Apply { node: id, life, group });
            return Ok(());
        }
        if self.stands_still(id, life, group)? {
            return Ok(());
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(process) = node.process.as_mut() else { return Ok(()) };
        let Some(machine) = process.machines.get_mut(&group) else { return Ok(()) };
        let Some(work) = machine.work.pop_front() else {
            machine.scheduled = false;
            return Ok(());
        };
        let report = machine.applier.run(work);
        let fresh = std::mem::take(&mut node.disks.machines[&group].lock().unwrap().fresh);
        for (at, command) in fresh {
            self.checks.applied(group, at, command)?;
        }
        let slow = self.nodes[&id].machines_slow_until > self.now;
        let delay = if slow { self.machine_delay(id) } else { 0 };
        self.after(delay, Event::Apply { node: id, life, group });
        self.checks.take_outcomes()?;
        if let ApplyReport::Restored { position, .. } = &report {
            let position = *position;
            self.tell(|| format!("{id:?} {group:?} restored at {position}"));
            self.checks.restores += 1;
        }
        match self.nodes[&id].disks.event_of(group, report)? {
            Some(event) => self.input(id, Input::Group { group, open_id, event }),
            None => Ok(()),
        }
    }
}
