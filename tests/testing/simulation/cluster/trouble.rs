//! What can be done to a node, and what nodes know of each other's life.

use shardhost_storage::{GroupWrite, HardState, LogBatch};

use super::super::node::Process;
use super::*;
use shardhost_groups::{LogIndex, Term};

impl Cluster {
    /// From here on the clock of a node cannot be read.
    pub fn lose_clock(&mut self, id: NodeId) {
        self.tell(|| format!("the clock of {id:?} cannot be read"));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.blind = true;
        }
    }

    /// The process dies. Of the writes that were not synced, `keep` survive.
    pub fn crash(&mut self, id: NodeId, keep: usize) {
        self.tell(|| format!("{id:?} crashes, keeping {keep} unsynced writes"));
        self.print(id.get());
        self.checks.forget_node(id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.crash(keep);
            node.stalled_until = 0;
            node.machines_slow_until = 0;
            node.disk_delay = 4;
        }
    }

    /// The state machines take their time for so many milliseconds.
    pub fn slow_machines(&mut self, id: NodeId, length: u64) {
        self.tell(|| format!("{id:?} has slow state machines for {length} ms"));
        let until = self.now + length;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.machines_slow_until = until;
        }
    }

    /// A process dies and its disks are replaced by empty ones, if there is one with replicas on
    /// which no group counts: the node votes in none, as the leader of each knows, and no change is
    /// under way.
    pub fn lose_a_disk(&mut self, down: u64) {
        let groups: Vec<GroupId> = (1..=self.shape.groups).map(GroupId::new).collect();
        let spare = |id: &NodeId| {
            !self.nodes[id].disks.machines.is_empty()
                && groups.iter().all(|group| self.counts_without(*group, *id))
        };
        let Some(id) = self.node_ids().into_iter().find(spare) else { return };
        self.crash(id, 0);
        self.tell(|| format!("{id:?} has new disks"));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.wipe();
        }
        self.checks.lost_disks += 1;
        self.restart_later(id, down);
    }

    /// The process of the first node dies, and with it what its state machines keep. That the
    /// others keep theirs is what makes it good.
    pub fn lose_a_state(&mut self, down: u64) {
        let id = NodeId::must(1);
        self.crash(id, usize::MAX);
        for group in (1..=self.shape.groups).map(GroupId::new) {
            self.lose_state(id, group);
        }
        self.checks.lost_states += 1;
        self.restart_later(id, down);
    }

    /// What the state machine of a node that is down keeps, and its snapshots, are gone.
    pub fn lose_state(&mut self, id: NodeId, group: GroupId) {
        self.tell(|| format!("{id:?} loses the state of {group:?}"));
        self.checks.forget_node(id);
        if let Some(node) =
            self.nodes.get_mut(&id).filter(|node| node.disks.machines.contains_key(&group))
        {
            node.lose_state(group);
            self.without_state.insert((id, group));
        }
    }

    fn counts_without(&self, group: GroupId, id: NodeId) -> bool {
        let Some(leader) = self.leader_of(group) else { return false };
        let Some(status) = self.status(leader, group) else { return false };
        let mut members = status.membership.members.values();
        status.pending_change.is_none()
            && members.all(|member| member.node != id || !(member.voter || member.outgoing_voter))
    }

    /// Operators remove members whose disk was replaced and that no operator makes anew: their
    /// number may not be used again, or their leader takes them for slow.
    ///
    /// # Errors
    /// What a checker found.
    pub(super) fn remove_lost_members(&mut self) -> Result<(), String> {
        for group in (1..=self.shape.groups).map(GroupId::new) {
            let Some(leader) = self.leader_of(group) else { continue };
            let Some(status) = self.status(leader, group) else { continue };
            let members = status.membership.members.values();
            let lost: Vec<NodeId> = members
                .filter(|member| !self.nodes[&member.node].disks.machines.contains_key(&group))
                .map(|member| member.node)
                .collect();
            let incoming = status.membership.incoming.map(|incoming| incoming.replica);
            let incoming = incoming.and_then(|replica| status.membership.node_of(replica));
            if incoming.is_some_and(|node| lost.contains(&node)) {
                self.cancel_addition(leader, group)?;
                self.pass(2_000)?;
            }
            for node in lost {
                self.change_members(leader, group, MembershipChange::new().remove(node))?;
                self.pass(2_000)?;
            }
        }
        Ok(())
    }

    /// With the next crash of the node, the batch that was durable last is lost, and every replica
    /// is in doubt.
    pub fn lose_tail_at_crash(&mut self, id: NodeId) {
        self.tell(|| format!("{id:?} is going to lose the end of its log"));
        self.nodes[&id].disks.store.inject(StoreFault::LoseTail);
    }

    /// A node loses the end of its log with the power, unless the log of one is in question
    /// already.
    pub fn lose_a_tail(&mut self, id: NodeId, chance: &mut Chance) {
        let groups: Vec<GroupId> = (1..=self.shape.groups).map(GroupId::new).collect();
        let in_doubt = |node: &Node, group: &GroupId| {
            let known = node.disks.store.load_durable(*group);
            known.is_some_and(|known| known.certainty.is_in_doubt())
        };
        let in_question = self.nodes.values().any(|node| {
            node.disks.store.awaits(StoreFault::LoseTail)
                || groups.iter().any(|group| in_doubt(node, group))
        });
        if in_question || self.nodes[&id].process.is_none() {
            return;
        }
        self.lose_tail_at_crash(id);
        self.checks.lost_tails += 1;
        let down = chance.between(50, 3_000);
        self.after(chance.between(20, 400), Event::LosePower { node: id, down });
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
        self.step_once(id)
    }

    /// A node founds a group of its own under this id, whether another has one or not. It leads in
    /// terms that the other one does not come to: here, a group has one leader per term.
    ///
    /// # Errors
    /// It holds a replica already, or a checker found something.
    pub fn found_alone(&mut self, id: NodeId, group: GroupId) -> Result<(), String> {
        let config = self.shape.config.clone();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if !node.create(group, &Membership::initial([id])) {
            return Err(format!("{id:?} cannot found {group:?}"));
        }
        let mut write = GroupWrite::new(group);
        let (term, commit) = (Term::new(1_000), LogIndex::new(0));
        write.hard_state = Some(HardState { term, vote: None, commit });
        let written = node.disks.store.write(&LogBatch { writes: vec![write] });
        written.map_err(|error| error.to_string())?;
        node.open_replica(&config, group)?;
        self.step_once(id)
    }

    /// A replica ends while its node lives.
    ///
    /// # Errors
    /// What a checker found.
    pub fn close(&mut self, id: NodeId, group: GroupId) -> Result<(), String> {
        self.tell(|| format!("{id:?} closes {group:?}"));
        self.input(id, Input::Close { group, cause: LossCause::Stopped, ending: None })?;
        self.checks.replica_ended(id, group);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        node.closed.insert(group);
        if let Some(process) = node.process.as_mut() {
            process.machines.remove(&group);
            process.leases.remove(&group);
        }
        if let Some(disk) = node.disks.machines.get(&group) {
            disk.lock().unwrap().crash();
        }
        Ok(())
    }

    /// A closed replica is opened again, as soon as everything that it wrote is durable, or when
    /// its node starts.
    ///
    /// # Errors
    /// Its disks hold what it cannot be opened from.
    pub fn reopen(&mut self, id: NodeId, group: GroupId) -> Result<(), String> {
        let config = self.shape.config.clone();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if !node.closed.contains(&group) {
            return Ok(());
        }
        let writes =
            |process: &Process| process.log_running.is_some() || !process.log_queue.is_empty();
        if node.process.as_ref().is_some_and(writes) {
            self.after(5, Event::Reopen { node: id, group });
            return Ok(());
        }
        node.closed.remove(&group);
        let stored = node.disks.store.load(group).map_err(|error| error.to_string())?;
        if node.process.is_none() || stored.is_none() {
            return Ok(());
        }
        node.open_replica(&config, group)?;
        self.tell(|| format!("{id:?} opens {group:?}"));
        self.step_once(id)
    }

    /// A replica is closed, more often one that leads, and opened again some time later.
    pub(in super::super) fn close_something(&mut self, chance: &mut Chance) -> Result<(), String> {
        let group = GroupId::new(chance.between(1, self.shape.groups));
        let any = self.pick_node(chance);
        let id = self.leader_of(group).filter(|_| chance.per_mille(600)).unwrap_or(any);
        self.after(chance.between(1_000, 12_000), Event::Reopen { node: id, group });
        self.close(id, group)
    }

    /// All nodes reach each other again after so many milliseconds.
    pub fn heal_network_later(&mut self, delay: u64) {
        self.tell(|| "the network is cut".to_owned());
        self.after(delay, Event::HealNetwork);
    }

    /// A node reaches no other, and none reaches it.
    pub fn isolate(&mut self, id: NodeId) {
        self.tell(|| format!("{id:?} is cut off"));
        for other in self.node_ids() {
            self.network.block(id, other);
            self.network.block(other, id);
        }
    }

    /// Messages from one node to another take so many milliseconds longer.
    pub fn slow_link(&mut self, from: NodeId, to: NodeId, delay: u64) {
        self.tell(|| format!("messages from {from:?} to {to:?} take {delay} ms longer"));
        self.network.slow(from, to, delay);
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
    pub fn flush_machines(&mut self, id: NodeId) {
        self.nodes[&id].disks.flush();
    }

    /// A leader is asked to hand over a group.
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
        let (completion, _forgotten) = shardhost_groups::completion::answer();
        let request = TransferRequest { to, completion };
        if let Some(process) = self.nodes.get_mut(&from).and_then(|n| n.process.as_mut()) {
            process.core.handle(Input::Transfer { group, request });
        }
    }

    /// Asks a node to hand a group to another.
    pub fn transfer(&mut self, from: NodeId, group: GroupId, to: NodeId) {
        let (completion, _forgotten) = shardhost_groups::completion::answer();
        let request = TransferRequest { to: TransferTarget::Node(to), completion };
        self.begin(from);
        if let Some(process) = self.nodes.get_mut(&from).and_then(|n| n.process.as_mut()) {
            process.core.handle(Input::Transfer { group, request });
        }
    }

    /// What nodes know of each other's life.
    pub(super) fn heartbeats(&mut self) -> Result<(), String> {
        self.after(HEARTBEAT, Event::Heartbeats);
        let ids = self.node_ids();
        // A process that does not run receives nothing.
        let running = ids.iter().filter(|id| self.nodes[*id].process.is_some());
        for to in running.copied().collect::<Vec<_>>() {
            let mut changes = Vec::new();
            for &from in ids.iter().filter(|from| **from != to) {
                let sender = &self.nodes[&from];
                let heard = sender.process.is_some() && self.network.passes(from, to);
                let (now, life) = (self.now, sender.life);
                let advertisement = Arc::clone(&sender.advertisement);
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
                        changes.push(Input::NodeLive { node: from, incarnation: life + 1 });
                    }
                    (None, Some(_)) => {
                        node.live.remove(&from);
                        node.told.remove(&from);
                        changes.push(Input::NodeLost { node: from });
                    }
                    _ => {}
                }
                if heard && !self.hushed && node.told.get(&from) != Some(&advertisement) {
                    node.told.insert(from, Arc::clone(&advertisement));
                    let incarnation = life + 1;
                    changes.push(Input::NodeAdvertisement {
                        node: from,
                        incarnation,
                        advertisement,
                    });
                }
            }
            for change in changes {
                self.input(to, change)?;
            }
        }
        Ok(())
    }
}
