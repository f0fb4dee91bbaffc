//! A node's log writer: a write, then its sync, with time for a crash in between.

use super::*;

/// A sync that hangs is looked at again after this, in milliseconds: the disk may go on earlier.
const LOOK_AGAIN: u64 = 20;

impl Cluster {
    /// No sync of a node's log ends for so many milliseconds; 0: the disk does not hang.
    pub fn hang_log(&mut self, id: NodeId, length: u64) {
        self.tell(|| format!("{id:?} the disk of the log hangs for {length} ms"));
        let until = self.now + length;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.log_hangs_until = until;
        }
    }

    pub(super) fn queue_log(&mut self, id: NodeId, task: LogTask) {
        if task.is_empty() && task.prune.is_empty() {
            return;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let life = node.life;
        let Some(process) = node.process.as_mut() else { return };
        process.log_queue.push_back(task);
        if process.log_queue.len() == 1 && process.log_running.is_none() {
            self.after(0, Event::LogStart { node: id, life });
        }
    }

    /// The writer takes everything that waits.
    pub(super) fn log_start(&mut self, id: NodeId, life: u64) -> Result<(), String> {
        if !self.is_running(id, life) {
            return Ok(());
        }
        let slow = self.nodes[&id].disk_delay;
        let delay = self.chance.between(1, slow);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(process) = node.process.as_mut() else { return Ok(()) };
        if process.log_running.is_some() || process.log_queue.is_empty() {
            return Ok(());
        }
        let mut merged = LogTask::default();
        process.log_queue.drain(..).for_each(|task| merged.merge(task));
        node.disks.store.write_unsynced(&merged.batch).map_err(|error| error.to_string())?;
        process.log_running = Some(merged);
        self.after(delay, Event::LogDone { node: id, life });
        Ok(())
    }

    pub(super) fn log_done(&mut self, id: NodeId, life: u64) -> Result<(), String> {
        if !self.is_running(id, life) {
            return Ok(());
        }
        let hangs = self.nodes[&id].log_hangs_until.saturating_sub(self.now);
        if hangs > 0 {
            self.after(hangs.min(LOOK_AGAIN), Event::LogDone { node: id, life });
            return Ok(());
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        node.disks.store.sync().map_err(|error| error.to_string())?;
        let Some(process) = node.process.as_mut() else { return Ok(()) };
        let Some(task) = process.log_running.take() else { return Ok(()) };
        for prune in &task.prune {
            let running = process.machines.get(&prune.group).map(|machine| machine.open_id);
            node.disks.prune(prune, running).map_err(|error| error.to_string())?;
        }
        for (group, _) in &task.destroyed {
            let removed = node.disks.snapshots.remove_below(*group, None);
            removed.map_err(|error| error.to_string())?;
        }
        for (group, open_id) in &task.destroyed {
            self.retire(id, *group, *open_id);
        }
        self.after(0, Event::LogStart { node: id, life });
        self.send(id, task.releases)?;
        self.input(id, Input::Persisted(task.acks))
    }
}
