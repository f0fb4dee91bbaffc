//! Inputs for a node's worker, and carrying out its rounds.

use super::*;

impl Cluster {
    pub(super) fn is_running(&self, node: NodeId, life: u64) -> bool {
        let node = &self.nodes[&node];
        node.life == life && node.process.is_some()
    }

    /// When the node's worker is stalled, the moment when it goes on.
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
        self.after(SLOT, Event::Slot { node, life });
        if let Some(process) = self.nodes.get_mut(&node).and_then(|n| n.process.as_mut()) {
            process.core.tick_slot();
        }
        self.round(node)
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

    /// Gives an input to a node's worker, if the node runs, and carries out the round.
    pub(super) fn input(&mut self, node: NodeId, input: Input) -> Result<(), String> {
        let Some(process) = self.nodes.get_mut(&node).and_then(|n| n.process.as_mut()) else {
            return Ok(());
        };
        process.core.handle(input);
        self.round(node)
    }

    pub(super) fn round(&mut self, id: NodeId) -> Result<(), String> {
        let Some(process) = self.nodes.get_mut(&id).and_then(|n| n.process.as_mut()) else {
            return Ok(());
        };
        let round = process.core.finish_round();
        let counters = process.core.counters();
        if counters.failures > 0 {
            return Err(format!("a replica of {id:?} failed"));
        }
        self.carry_out(id, round)
    }

    pub(super) fn carry_out(&mut self, id: NodeId, round: Round) -> Result<(), String> {
        for (pending, error) in round.failed {
            pending.resolve(Err(error));
        }
        for (waiter, answer) in round.read_replies {
            drop(waiter.send(answer));
        }
        for (_, _, status) in &round.statuses {
            self.checks.sleeps += u64::from(status.asleep);
        }
        for edge in &round.edges {
            self.tell(|| format!("{id:?} {edge:?}"));
            self.print(edge.term.get());
            self.checks.edge(id, edge)?;
        }
        for (waiter, answer) in round.transfer_replies {
            self.tell(|| format!("{id:?} transfer {answer:?}"));
            self.checks.transfers += u64::from(answer.is_ok());
            drop(waiter.send(answer));
        }
        self.send(id, round.messages)?;
        self.queue_log(id, round.log);
        for (group, epoch, work) in round.work {
            self.queue_work(id, group, epoch, work);
        }
        for shipment in round.shipments {
            self.ship(id, shipment);
        }
        self.checks.take_outcomes()?;
        self.take_reads(id)
    }

    pub(super) fn send(&mut self, from: NodeId, messages: Vec<Outgoing>) -> Result<(), String> {
        for outgoing in messages {
            self.messages += 1;
            self.print(outgoing.message.index ^ (outgoing.message.kind as u64) << 32);
            if self.shape.check_messages {
                self.checks.message(&self.nodes[&from].store, &outgoing)?;
            }
            if !self.network.passes(from, outgoing.to) {
                continue;
            }
            let mut chance = self.chance.clone();
            for delay in self.network.arrivals(self.weather, &mut chance) {
                let messages = vec![outgoing.message.clone()];
                self.after(delay, Event::Messages { from, to: outgoing.to, messages });
            }
            self.chance = chance;
        }
        Ok(())
    }
}
