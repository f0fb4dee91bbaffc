//! What can be done to a node, and what nodes know of each other's life.

use super::*;

impl Cluster {
    /// The process dies. Of the writes that were not synced, `keep` survive.
    pub fn crash(&mut self, id: NodeId, keep: usize) {
        self.tell(|| format!("{id:?} crashes, keeping {keep} unsynced writes"));
        self.print(id.get());
        self.checks.forget_node(id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.crash(keep);
            node.stalled_until = 0;
            node.disk_delay = 4;
        }
    }

    /// With the next crash of the node, the batch that was durable last is lost, and every replica
    /// is in doubt.
    pub fn lose_tail_at_crash(&mut self, id: NodeId) {
        self.tell(|| format!("{id:?} is going to lose the end of its log"));
        self.nodes[&id].store.inject(StoreFault::LoseTail);
    }

    /// The process starts after so many milliseconds.
    pub fn restart_later(&mut self, node: NodeId, delay: u64) {
        self.after(delay, Event::Restart { node });
    }

    /// The process starts, unless it runs.
    ///
    /// # Errors
    /// Its disks hold what it cannot start from.
    pub fn restart(&mut self, id: NodeId) -> Result<(), String> {
        let config = self.shape.config.clone();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if node.process.is_some() {
            return Ok(());
        }
        node.start(&config)?;
        let life = node.life;
        self.tell(|| format!("{id:?} starts"));
        self.after(self.now % SLOT, Event::Slot { node: id, life });
        self.round(id)
    }

    /// Everybody reaches everybody again after so many milliseconds.
    pub fn heal_network_later(&mut self, delay: u64) {
        self.tell(|| "the network is cut".to_owned());
        self.after(delay, Event::HealNetwork);
    }

    /// The worker does nothing for so many milliseconds.
    pub fn stall(&mut self, id: NodeId, length: u64) {
        self.tell(|| format!("{id:?} stalls for {length} ms"));
        let until = self.now + length;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.stalled_until = until;
        }
    }

    /// A sync takes so many milliseconds from here on, at most.
    pub fn slow_disk(&mut self, id: NodeId, delay: u64) {
        self.tell(|| format!("{id:?} has a slow disk: up to {delay} ms"));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.disk_delay = delay;
        }
    }

    /// The state machines make durable what they hold.
    pub(in super::super) fn flush_machines(&mut self, id: NodeId) {
        self.nodes[&id].disks.values().for_each(|disk| disk.lock().unwrap().flush());
    }

    /// Somebody is asked to hand over something.
    pub(in super::super) fn transfer_something(&mut self, chance: &mut Chance) {
        let group = GroupId::new(chance.between(1, self.shape.groups));
        let from = self.node_to_ask(group);
        let to = match chance.below(4) {
            0 | 1 => TransferTarget::Node(self.pick_node(chance)),
            2 => TransferTarget::FirstFit { candidates: self.node_ids(), max_lag: chance.below(5) },
            _ => TransferTarget::Furthest,
        };
        self.tell(|| format!("{from:?} is asked to hand {group:?} to {to:?}"));
        self.begin(from);
        let (waiter, _forgotten) = oneshot::channel();
        let request = TransferRequest { to, waiter };
        if let Some(process) = self.nodes.get_mut(&from).and_then(|n| n.process.as_mut()) {
            process.core.handle(Input::Transfer { group, request });
        }
    }

    /// Asks a node to hand a group to another.
    pub fn transfer(&mut self, from: NodeId, group: GroupId, to: NodeId) {
        let (waiter, _forgotten) = oneshot::channel();
        let request = TransferRequest { to: TransferTarget::Node(to), waiter };
        self.begin(from);
        if let Some(process) = self.nodes.get_mut(&from).and_then(|n| n.process.as_mut()) {
            process.core.handle(Input::Transfer { group, request });
        }
    }

    /// What nodes know of each other's life.
    pub(super) fn heartbeats(&mut self) -> Result<(), String> {
        self.after(HEARTBEAT, Event::Heartbeats);
        let ids = self.node_ids();
        // A process that does not run hears nobody.
        let running = ids.iter().filter(|id| self.nodes[*id].process.is_some());
        for to in running.copied().collect::<Vec<_>>() {
            let mut changes = Vec::new();
            for &from in ids.iter().filter(|from| **from != to) {
                let sender = &self.nodes[&from];
                let heard = sender.process.is_some() && self.network.passes(from, to);
                let (now, life) = (self.now, sender.life);
                let advert = Arc::clone(&sender.advert);
                let Some(node) = self.nodes.get_mut(&to) else { continue };
                if heard {
                    node.heard.insert(from, (now, life));
                }
                let last = node.heard.get(&from).copied();
                let alive = last.filter(|(at, _)| now - at < LOST_AFTER).map(|(_, life)| life);
                match (alive, node.live.get(&from).copied()) {
                    (Some(life), known) if known != Some(life) => {
                        node.live.insert(from, life);
                        node.told.remove(&from);
                        changes.push(Input::NodeLive { node: from, incarnation: life });
                    }
                    (None, Some(_)) => {
                        node.live.remove(&from);
                        node.told.remove(&from);
                        changes.push(Input::NodeLost { node: from });
                    }
                    _ => {}
                }
                if heard && !self.hushed && node.told.get(&from) != Some(&advert) {
                    node.told.insert(from, Arc::clone(&advert));
                    changes.push(Input::NodeAdvert { node: from, incarnation: life, advert });
                }
            }
            for change in changes {
                self.input(to, change)?;
            }
        }
        Ok(())
    }
}
