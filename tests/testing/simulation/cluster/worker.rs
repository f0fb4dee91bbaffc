//! Inputs for a node's worker, and carrying out its rounds.

use shardhost_groups::policy::PolicyEvent;
use shardhost_proto::peer::MessageKind;

use super::*;

impl Cluster {
    pub(super) fn is_running(&self, node: NodeId, life: u64) -> bool {
        let node = &self.nodes[&node];
        node.life == life && node.process.is_some()
    }

    /// When the node's worker is stalled, the moment when it continues.
    pub(super) fn stalled(&self, node: NodeId) -> Option<u64> {
        let until = self.nodes[&node].stalled_until;
        (until > self.now).then(|| until - self.now)
    }

    pub(super) fn slot(&mut self, node: NodeId, life: u64) -> Result<(), String> {
        if !self.is_running(node, life) {
            return Ok(());
        }
        if let Some(wait) = self.stalled(node) {
            self.after(wait, Event::Slot { node, life });
            return Ok(());
        }
        let next = self.nodes.get_mut(&node).map_or(SLOT, |node| node.next_slot(SLOT));
        self.after(next, Event::Slot { node, life });
        self.begin(node);
        if let Some(process) = self.nodes.get_mut(&node).and_then(|n| n.process.as_mut()) {
            process.core.tick_slot();
        }
        self.step_once(node)
    }

    pub(super) fn arrive(
        &mut self,
        from: NodeId,
        to: NodeId,
        messages: Vec<GroupMessage>,
    ) -> Result<(), String> {
        if let Some(wait) = self.stalled(to) {
            self.after(wait, Event::Messages { from, to, messages });
            return Ok(());
        }
        self.input(to, Input::Peer { from, messages })
    }

    /// Gives an input to a node's worker, if the node runs, and carries out the step.
    pub(super) fn input(&mut self, node: NodeId, input: Input) -> Result<(), String> {
        self.begin(node);
        if let Some(process) = self.nodes.get_mut(&node).and_then(|n| n.process.as_mut()) {
            process.core.handle(input);
        }
        self.step_once(node)
    }

    /// Sets the clock of a node's worker.
    pub(super) fn begin(&mut self, id: NodeId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let clock = node.read_clock(now);
        if let Some(process) = node.process.as_mut() {
            process.core.begin(clock);
        }
    }

    pub(super) fn step_once(&mut self, id: NodeId) -> Result<(), String> {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let clock = node.read_clock(now);
        let Some(process) = node.process.as_mut() else { return Ok(()) };
        let effects = process.core.finish_step(clock);
        let counters = process.core.counters();
        if counters.failures > 0 {
            let faults =
                effects.statuses.iter().filter_map(|(group, _, status)| match &status.role {
                    shardhost_groups::Role::Failed(fault) => Some(format!("{group:?}: {fault}")),
                    _ => None,
                });
            let faults: Vec<String> = faults.collect();
            return Err(format!("a replica of {id:?} failed: {}", faults.join("; ")));
        }
        self.carry_out(id, effects)
    }

    pub(super) fn carry_out(&mut self, id: NodeId, effects: Effects) -> Result<(), String> {
        for (pending, error) in effects.failed {
            pending.resolve(Err(error));
        }
        for (completion, answer) in effects.read_replies {
            completion.send(answer);
        }
        for (_, _, status) in &effects.statuses {
            let live = &self.nodes[&id].live;
            self.checks.sleep(id, status, |node| live.contains_key(&node))?;
            self.serves_only_where_it_may(id, status)?;
        }
        if let Some(process) = self.nodes.get_mut(&id).and_then(|n| n.process.as_mut()) {
            process.leases.extend(effects.leases.into_iter().map(|(group, _, sign)| (group, sign)));
        }
        for edge in &effects.edges {
            self.tell(|| format!("{id:?} {edge:?}"));
            self.print(edge.term.get());
            self.checks.edge(id, edge)?;
        }
        let again = effects.counted.iter().filter(|event| **event == PolicyEvent::StoodAgain);
        self.checks.stood_again += again.count() as u64;
        for (completion, answer) in effects.transfer_replies {
            self.tell(|| format!("{id:?} transfer {answer:?}"));
            self.checks.transfers += u64::from(answer.is_ok());
            completion.send(answer);
        }
        for (completion, outcome) in effects.membership_replies {
            self.tell(|| format!("{id:?} membership {outcome:?}"));
            self.checks.membership_answer(&outcome);
            completion.send(outcome);
        }
        for (completion, outcome) in effects.barrier_replies {
            completion.send(outcome);
        }
        for (completion, outcome) in effects.drain_replies {
            completion.send(outcome);
        }
        for request in effects.admissions {
            self.ask_policies(id, request);
        }
        self.send(id, effects.messages)?;
        self.queue_log(id, effects.log);
        for (group, open_id, work) in effects.work {
            self.queue_work(id, group, open_id, work);
        }
        for shipment in effects.shipments {
            self.ship(id, shipment);
        }
        for (from, message) in effects.create_requests {
            self.requested(id, from, &message)?;
        }
        self.checks.take_outcomes()?;
        self.take_reads(id)
    }

    /// A replica ended; its machine's state goes.
    pub(super) fn retire(&mut self, id: NodeId, group: GroupId, open_id: u64) {
        self.tell(|| format!("{id:?} {group:?} retired"));
        self.checks.retired += 1;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(process) = node.process.as_mut() else { return };
        if process.machines.get(&group).is_some_and(|machine| machine.open_id == open_id) {
            process.machines.remove(&group);
            process.leases.remove(&group);
            node.disks.machines.remove(&group);
        }
    }

    /// A node should hold a replica: as a host does, it makes an empty one.
    fn requested(
        &mut self,
        id: NodeId,
        from: NodeId,
        message: &GroupMessage,
    ) -> Result<(), String> {
        let group = GroupId::new(message.group);
        let config = self.shape.config.clone();
        let wire = message.create_request.as_ref().and_then(|one| one.membership.as_ref());
        let membership = wire.and_then(|wire| membership_from_message(wire).ok());
        let Some(membership) = membership else { return Ok(()) };
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let stored = node.disks.store.load(group).map_err(|error| error.to_string())?;
        let named = membership.replica_on(id).map(|replica| replica.get());
        if stored.is_some() || named != Some(message.to_replica) {
            return Ok(());
        }
        if !node.create(group, &membership) {
            return Ok(());
        }
        node.open_replica(&config, group)?;
        self.tell(|| format!("{id:?} {group:?} asked by {from:?}"));
        self.step_once(id)
    }

    pub(super) fn send(&mut self, from: NodeId, messages: Vec<Outgoing>) -> Result<(), String> {
        for outgoing in messages {
            self.messages += 1;
            self.print(outgoing.message.index ^ (outgoing.message.kind as u64) << 32);
            let message = &outgoing.message;
            if message.kind() == MessageKind::ReadIndexResponse && !message.reject {
                self.is_served(from, GroupId::new(message.group), "the read of a follower")?;
            }
            if self.shape.check_messages {
                self.checks.message(&self.nodes[&from].disks.store, &outgoing)?;
            }
            if !self.network.passes(from, outgoing.to) {
                continue;
            }
            let mut chance = self.chance.clone();
            let order = outgoing.message.kind() == MessageKind::TimeoutNow;
            for delay in self.network.arrivals(self.weather, order, &mut chance) {
                let messages = vec![outgoing.message.clone()];
                let delay = delay + self.network.detour(from, outgoing.to);
                self.after(delay, Event::Messages { from, to: outgoing.to, messages });
            }
            self.chance = chance;
        }
        Ok(())
    }
}
