//! Clients: they propose and read, mostly where a leader is.

use super::super::histories::{key_of, value_of};
use super::*;

impl Cluster {
    pub(super) fn any_group(&mut self) -> GroupId {
        GroupId::new(self.chance.between(1, self.shape.groups))
    }

    /// A node to ask: mostly one that believes to lead.
    pub(super) fn node_to_ask(&mut self, group: GroupId) -> NodeId {
        let mut chance = self.chance.clone();
        let any = self.pick_node(&mut chance);
        let guess = chance.per_mille(150);
        let leaders: Vec<NodeId> =
            self.nodes.values().filter(|node| node.serves(group)).map(|node| node.id).collect();
        let chosen = chance.pick(&leaders).filter(|_| !guess).unwrap_or(any);
        self.chance = chance;
        chosen
    }

    pub(super) fn load(&mut self) -> Result<(), String> {
        if self.faulty {
            let every = self.shape.load_every;
            let wait = self.chance.between(1, every * 2);
            self.after(wait, Event::Load);
        }
        let group = self.any_group();
        let node = self.node_to_ask(group);
        let count = self.chance.between(1, 8);
        self.propose(node, group, count).map(|_| ())
    }

    pub(super) fn propose(
        &mut self,
        node: NodeId,
        group: GroupId,
        count: u64,
    ) -> Result<Vec<u64>, String> {
        let mut ids = Vec::new();
        let mut proposals = Vec::new();
        for _ in 0..count {
            let id = self.next_command;
            self.next_command += 1;
            self.checks.propose(id, group);
            let padding = usize::try_from(self.chance.below(100)).unwrap_or(0);
            let mut command = id.to_be_bytes().to_vec();
            command.resize(8 + padding, 0);
            let sink: std::sync::Arc<dyn shardhost_groups::ProposalSink> =
                self.checks.outcomes.clone();
            let completion = Completion::Sink { sink, token: id };
            let now = std::time::Instant::now();
            let pending = Pending::new(group, completion, Charge::default(), now);
            proposals.push(Proposal {
                command: Bytes::from(command),
                in_term: None,
                through_barrier: false,
                pending,
            });
            ids.push(id);
        }
        let before = self.log_of_caretaker(node, group);
        // A proposal to a node that is down ends at once: dropping it notifies the proposer.
        self.input(node, Input::Propose { group, open_id: None, proposals })?;
        self.checks.take_outcomes()?;
        if before.is_some() && self.log_of_caretaker(node, group) > before {
            return Err(format!("{node:?} leads {group:?}, serves no users, and took a proposal"));
        }
        Ok(ids)
    }

    /// The term of a leader that serves no users, and the end of its log.
    fn log_of_caretaker(&self, node: NodeId, group: GroupId) -> Option<(u64, u64)> {
        let status = self.status(node, group)?;
        status.caretaker.as_ref().map(|_| (status.term.get(), status.last.get()))
    }

    pub(super) fn read(&mut self) -> Result<(), String> {
        if self.faulty {
            let wait = self.chance.between(1, self.shape.read_every);
            self.after(wait, Event::Read);
        }
        let group = self.any_group();
        let id = self.node_to_ask(group);
        let needed = self.checks.highest_acknowledged(group);
        let need = match self.chance.below(3) {
            0 => ReadNeed::FromLeader,
            1 => ReadNeed::Leadership,
            _ => ReadNeed::Applied,
        };
        let (completion, answer) = shardhost_groups::completion::answer();
        let Some(process) = self.nodes.get_mut(&id).and_then(|n| n.process.as_mut()) else {
            return Ok(());
        };
        let called = self.checks.histories.begin();
        process.reads.push(PendingRead { group, need, called, needed, answer });
        self.input(id, Input::Read { group, request: ReadRequest { need, completion } })
    }

    /// A key that was written lately.
    fn key_to_read(&self) -> u64 {
        key_of(self.next_command.saturating_sub(1 + self.now % 12))
    }

    /// A client reads under a lease, as a handle does: it looks at the published lease and the
    /// clock, and some time later at the state machine.
    pub(super) fn lease_read(&mut self) -> Result<(), String> {
        if self.faulty {
            let wait = self.chance.between(1, self.shape.lease_read_every);
            self.after(wait, Event::LeaseRead);
        }
        let group = self.any_group();
        let needed = self.checks.highest_acknowledged(group);
        let called = self.checks.histories.begin();
        for id in self.node_ids() {
            let node = &self.nodes[&id];
            let (clock, life) = (node.clock(self.now), node.life);
            let lease = node.process.as_ref().and_then(|process| process.leases.get(&group));
            let core = node.process.as_ref().and_then(|process| process.core.group(group));
            let committed = core.map_or(0, |core| core.status().committed.get());
            if lease.is_some_and(|lease| clock < lease.until) {
                self.is_served(id, group, "a read under a lease")?;
                let pause = if self.chance.per_mille(20) { 2_000 } else { 3 };
                let pause = self.chance.below(pause);
                let node = id;
                self.after(
                    pause,
                    Event::LeaseAnswer { node, life, group, needed, called, committed },
                );
            }
        }
        Ok(())
    }

    pub(super) fn lease_answer(
        &mut self,
        (id, life): (NodeId, u64),
        group: GroupId,
        needed: u64,
        (called, committed): (u64, u64),
    ) -> Result<(), String> {
        if !self.is_running(id, life) {
            return Ok(());
        }
        let process = self.nodes[&id].process.as_ref();
        let core = process.and_then(|process| process.core.group(group));
        // A question to a replica that was closed meanwhile gets that answer.
        let Some(core) = core else { return Ok(()) };
        if core.status().applied.get() < committed {
            let node = id;
            self.after(1, Event::LeaseAnswer { node, life, group, needed, called, committed });
            return Ok(());
        }
        let Some(disk) = self.nodes[&id].disks.machines.get(&group) else { return Ok(()) };
        let commands = &disk.lock().unwrap().live.commands;
        let seen = commands.last().map_or(0, |(at, _)| at.index.get());
        let key = self.key_to_read();
        self.checks.histories.read(group, key, called, value_of(commands, key));
        self.checks.lease_reads += 1;
        self.checks
            .read(group, seen, needed)
            .map_err(|text| format!("{text}, under a lease of {id:?}"))
    }

    pub(super) fn take_reads(&mut self, id: NodeId) -> Result<(), String> {
        let Some(process) = self.nodes.get_mut(&id).and_then(|n| n.process.as_mut()) else {
            return Ok(());
        };
        let mut answered = Vec::new();
        process.reads.retain_mut(|read| match read.answer.try_recv() {
            Ok(answer) => {
                answered.push((read.group, read.need, read.needed, read.called, answer));
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => false,
        });
        for (group, need, needed, called, answer) in answered {
            let Ok(barrier) = answer else { continue };
            if need != ReadNeed::Leadership {
                self.is_served(id, group, &format!("a read by {need:?}"))?;
            }
            let by = |text| format!("{text}, asked of {id:?} by {need:?}");
            self.checks.read(group, barrier.read_index.get(), needed).map_err(by)?;
            if need != ReadNeed::Leadership {
                self.checks.read(group, barrier.applied.get(), barrier.read_index.get())?;
                if let Some(disk) = self.nodes[&id].disks.machines.get(&group) {
                    let commands = &disk.lock().unwrap().live.commands;
                    let key = self.key_to_read();
                    let value = value_of(commands, key);
                    self.checks.histories.read(group, key, called, value);
                }
            }
        }
        Ok(())
    }
}
