//! The virtual world: a clock, a queue of what happens next, and the nodes that it happens to.

use std::collections::BTreeMap;

use bytes::Bytes;
use shardhost_groups::apply::{ApplyReport, ApplyWork};
use shardhost_groups::config::GroupsConfig;
use shardhost_groups::core::{Proposal, TransferRequest};
use shardhost_groups::storage::{LogStore, SnapshotStore, StoreFault};
use shardhost_groups::transport::{Outgoing, ShipmentOutcome, SnapshotShipment};
use shardhost_groups::waiter::{Charge, Pending, Waiter};
use shardhost_groups::worker::{GroupEvent, Input, LogTask, Round};
use shardhost_groups::{GroupId, Membership, NodeId, ReplicaId};
use shardhost_proto::peer::GroupMessage;
use tokio::sync::oneshot;

use crate::chance::Chance;
use crate::checks::Checks;
use crate::network::{Network, Weather};
use crate::node::{Node, PendingRead};

/// Milliseconds of one slot of a tick.
const SLOT: u64 = 12;
/// Milliseconds of silence after which a node counts as lost.
const LOST_AFTER: u64 = 1_000;
/// Milliseconds between two heartbeats of a pair of nodes.
const HEARTBEAT: u64 = 200;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    pub nodes: u64,
    pub groups: u64,
    pub duration: u64,
    pub config: GroupsConfig,
    pub weather: Weather,
    /// Whether state machines keep themselves on disk: in none, in every second group, or in all.
    pub keeping: u64,
    pub lying_disks: bool,
    pub check_messages: bool,
    pub load_every: u64,
}

impl Shape {
    /// Nothing goes wrong by itself.
    pub fn calm() -> Self {
        let mut config = GroupsConfig::new(NodeId::must(1));
        config.sleep_after_ticks = 10;
        config.snapshot_entries = 30;
        config.log_trail_entries = 8;
        config.log_keep_entries = 40;
        config.max_cached_bytes_per_group = 4_096;
        Self {
            nodes: 3,
            groups: 3,
            duration: 20_000,
            config,
            weather: Weather::CALM,
            keeping: 1,
            lying_disks: false,
            check_messages: true,
            load_every: 60,
        }
    }

    /// A shape that a seed draws.
    pub fn from_seed(seed: u64) -> Self {
        let mut chance = Chance::new(seed ^ 0xc0ffee);
        let mut shape = Self::calm();
        shape.nodes = [3, 3, 3, 5, 1, 2, 4][usize::try_from(chance.below(7)).unwrap_or(0)];
        shape.groups = chance.between(1, 4);
        shape.duration = chance.between(8_000, 25_000);
        shape.keeping = chance.below(3);
        shape.load_every = chance.between(15, 120);
        shape.config.seed = seed;
        shape.config.max_append_bytes = chance.between(1, 2_000);
        shape.config.max_inflight_appends = usize::try_from(chance.between(1, 16)).unwrap_or(1);
        shape.config.max_apply_bytes_per_group = usize::try_from(chance.between(1, 4_000)).unwrap();
        shape.weather = Weather {
            loss: chance.below(60),
            duplication: chance.below(60),
            delay: chance.between(1, 30),
            late: chance.below(10),
        };
        shape
    }
}

/// Something that happens at a moment.
enum Event {
    Slot { node: NodeId, life: u64 },
    Messages { from: NodeId, to: NodeId, messages: Vec<GroupMessage> },
    LogStart { node: NodeId, life: u64 },
    LogDone { node: NodeId, life: u64 },
    Apply { node: NodeId, life: u64, group: GroupId },
    SnapshotArrives { from: NodeId, from_life: u64, shipment: Box<SnapshotShipment> },
    Load,
    Read,
    Fault,
    Restart { node: NodeId },
    HealNetwork,
    Heartbeats,
}

/// A cluster, its world, and its checkers.
pub struct Cluster {
    shape: Shape,
    now: u64,
    sequence: u64,
    events: BTreeMap<(u64, u64), Event>,
    nodes: BTreeMap<NodeId, Node>,
    pub network: Network,
    pub weather: Weather,
    pub chance: Chance,
    checks: Checks,
    next_command: u64,
    messages: u64,
    fingerprint: u64,
    story: bool,
    faulty: bool,
}

impl Cluster {
    pub fn new(seed: u64, shape: &Shape) -> Self {
        let mut cluster = Self {
            shape: shape.clone(),
            now: 0,
            sequence: 0,
            events: BTreeMap::new(),
            nodes: BTreeMap::new(),
            network: Network::default(),
            weather: shape.weather,
            chance: Chance::new(seed),
            checks: Checks::default(),
            next_command: 1,
            messages: 0,
            fingerprint: 0,
            story: std::env::var("SIMULATION_SEED").is_ok(),
            faulty: false,
        };
        let ids: Vec<NodeId> = (1..=shape.nodes).map(NodeId::must).collect();
        let membership = Membership::initial(ids.iter().copied());
        for &id in &ids {
            let mut node = Node::new(id);
            for group in 1..=shape.groups {
                let keeps = shape.keeping + group % 2 >= 2;
                node.create(GroupId::new(group), &membership, keeps);
            }
            if shape.lying_disks {
                node.store.inject(StoreFault::LyingSync);
            }
            cluster.nodes.insert(id, node);
        }
        ids.into_iter().for_each(|id| cluster.restart(id).unwrap());
        cluster.after(HEARTBEAT, Event::Heartbeats);
        cluster
    }

    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub fn pick_node(&self, chance: &mut Chance) -> NodeId {
        chance.pick(&self.node_ids()).unwrap()
    }

    pub const fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub const fn checks(&self) -> &Checks {
        &self.checks
    }

    pub const fn messages_sent(&self) -> u64 {
        self.messages
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + delay, self.sequence), event);
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.story {
            println!("{:>7} ms  {}", self.now, what());
        }
    }

    fn print(&mut self, mark: u64) {
        let mixed = self.fingerprint.rotate_left(7) ^ mark ^ self.now;
        self.fingerprint = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// Lets so many milliseconds pass.
    pub fn pass(&mut self, duration: u64) -> Result<(), String> {
        let end = self.now + duration;
        while let Some((&(at, sequence), _)) = self.events.first_key_value() {
            if at > end {
                break;
            }
            let Some(event) = self.events.remove(&(at, sequence)) else { break };
            self.now = at;
            self.happen(event).map_err(|violation| format!("at {at} ms: {violation}"))?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Slot { node, life } => self.slot(node, life),
            Event::Messages { from, to, messages } => self.arrive(from, to, messages),
            Event::LogStart { node, life } => self.log_start(node, life),
            Event::LogDone { node, life } => self.log_done(node, life),
            Event::Apply { node, life, group } => self.apply(node, life, group),
            Event::SnapshotArrives { from, from_life, shipment } => {
                self.snapshot_arrives(from, from_life, *shipment)
            }
            Event::Load => self.load(),
            Event::Read => self.read(),
            Event::Fault => {
                if self.faulty {
                    let next = self.next_fault()?;
                    self.after(next, Event::Fault);
                }
                Ok(())
            }
            Event::Restart { node } => self.restart(node),
            Event::HealNetwork => {
                self.network.heal();
                Ok(())
            }
            Event::Heartbeats => self.heartbeats(),
        }
    }

    // ---- a node's worker ---------------------------------------------------------------------

    fn is_running(&self, node: NodeId, life: u64) -> bool {
        let node = &self.nodes[&node];
        node.life == life && node.process.is_some()
    }

    /// When the node's worker is stalled, the moment when it goes on.
    fn stalled(&self, node: NodeId) -> Option<u64> {
        let until = self.nodes[&node].stalled_until;
        (until > self.now).then(|| until - self.now)
    }

    fn slot(&mut self, node: NodeId, life: u64) -> Result<(), String> {
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

    fn arrive(
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
    fn input(&mut self, node: NodeId, input: Input) -> Result<(), String> {
        let Some(process) = self.nodes.get_mut(&node).and_then(|n| n.process.as_mut()) else {
            return Ok(());
        };
        process.core.handle(input);
        self.round(node)
    }

    fn round(&mut self, id: NodeId) -> Result<(), String> {
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

    fn carry_out(&mut self, id: NodeId, round: Round) -> Result<(), String> {
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

    fn send(&mut self, from: NodeId, messages: Vec<Outgoing>) -> Result<(), String> {
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

    // ---- a node's log writer -----------------------------------------------------------------

    fn queue_log(&mut self, id: NodeId, task: LogTask) {
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
    fn log_start(&mut self, id: NodeId, life: u64) -> Result<(), String> {
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
        node.store.write_unsynced(&merged.batch).map_err(|error| error.to_string())?;
        process.log_running = Some(merged);
        self.after(delay, Event::LogDone { node: id, life });
        Ok(())
    }

    fn log_done(&mut self, id: NodeId, life: u64) -> Result<(), String> {
        if !self.is_running(id, life) {
            return Ok(());
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        node.store.sync().map_err(|error| error.to_string())?;
        let Some(process) = node.process.as_mut() else { return Ok(()) };
        let Some(task) = process.log_running.take() else { return Ok(()) };
        for (group, keep) in &task.prune {
            let removed = node.snapshots.remove_below(*group, Some(*keep));
            removed.map_err(|error| error.to_string())?;
        }
        self.after(0, Event::LogStart { node: id, life });
        self.send(id, task.releases)?;
        self.input(id, Input::Persisted(task.acks))
    }

    // ---- a node's state machines -------------------------------------------------------------

    fn queue_work(&mut self, id: NodeId, group: GroupId, epoch: u64, work: ApplyWork) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let life = node.life;
        let Some(process) = node.process.as_mut() else { return };
        let Some(machine) = process.machines.get_mut(&group) else { return };
        if machine.epoch != epoch {
            return;
        }
        machine.work.push_back(work);
        if !std::mem::replace(&mut machine.scheduled, true) {
            let delay = if self.chance.per_mille(20) { self.chance.between(50, 600) } else { 1 };
            self.after(delay, Event::Apply { node: id, life, group });
        }
    }

    fn apply(&mut self, id: NodeId, life: u64, group: GroupId) -> Result<(), String> {
        if !self.is_running(id, life) {
            return Ok(());
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(process) = node.process.as_mut() else { return Ok(()) };
        let Some(machine) = process.machines.get_mut(&group) else { return Ok(()) };
        let epoch = machine.epoch;
        let Some(work) = machine.work.pop_front() else {
            machine.scheduled = false;
            return Ok(());
        };
        let report = machine.applier.run(work);
        let fresh = std::mem::take(&mut node.disks[&group].lock().unwrap().fresh);
        for (at, command) in fresh {
            self.checks.applied(group, at, command)?;
        }
        self.after(0, Event::Apply { node: id, life, group });
        self.checks.take_outcomes()?;
        let event = match report {
            ApplyReport::Applied { last, durable } => GroupEvent::Applied { last, durable },
            ApplyReport::Restored { position, durable } => {
                self.tell(|| format!("{id:?} {group:?} restored at {position}"));
                self.checks.restores += 1;
                GroupEvent::Restored { position, durable }
            }
            ApplyReport::Durable(durable) => GroupEvent::Durable(durable),
            ApplyReport::Failed(fault) => GroupEvent::Failed(fault),
            ApplyReport::SnapshotTaken { position, view } => {
                let snapshots = &self.nodes[&id].snapshots;
                let mut sink = snapshots.create(group, position).map_err(|e| e.to_string())?;
                let view = view.map_err(|fault| fault.to_string())?;
                view.write_to(&mut sink).map_err(|error| error.to_string())?;
                sink.finish().map_err(|error| error.to_string())?;
                GroupEvent::SnapshotMade(Some(position))
            }
            ApplyReport::Nothing => return Ok(()),
        };
        self.input(id, Input::Group { group, epoch, event })
    }

    // ---- snapshots on their way --------------------------------------------------------------

    fn ship(&mut self, from: NodeId, shipment: SnapshotShipment) {
        let from_life = self.nodes[&from].life;
        let delay = self.chance.between(5, 300);
        self.tell(|| format!("{from:?} ships {} to {:?}", shipment.position, shipment.to));
        let shipment = Box::new(shipment);
        self.after(delay, Event::SnapshotArrives { from, from_life, shipment });
    }

    fn snapshot_arrives(
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

    fn copy_snapshot(
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

    // ---- clients -----------------------------------------------------------------------------

    fn any_group(&mut self) -> GroupId {
        GroupId::new(self.chance.between(1, self.shape.groups))
    }

    /// A node to ask: mostly one that believes to lead.
    fn node_to_ask(&mut self, group: GroupId) -> NodeId {
        let mut chance = self.chance.clone();
        let any = self.pick_node(&mut chance);
        let guess = chance.per_mille(150);
        let leaders: Vec<NodeId> =
            self.nodes.values().filter(|node| node.serves(group)).map(|node| node.id).collect();
        let chosen = chance.pick(&leaders).filter(|_| !guess).unwrap_or(any);
        self.chance = chance;
        chosen
    }

    fn load(&mut self) -> Result<(), String> {
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

    fn propose(&mut self, node: NodeId, group: GroupId, count: u64) -> Result<Vec<u64>, String> {
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
            let waiter = Waiter::Sink { sink, token: id };
            let now = std::time::Instant::now();
            let pending = Pending::new(group, waiter, Charge::default(), now);
            proposals.push(Proposal { command: Bytes::from(command), in_term: None, pending });
            ids.push(id);
        }
        // A proposal to a node that is down ends at once: dropping it tells the proposer.
        self.input(node, Input::Propose { group, proposals })?;
        self.checks.take_outcomes()?;
        Ok(ids)
    }

    fn read(&mut self) -> Result<(), String> {
        if self.faulty {
            let wait = self.chance.between(10, 200);
            self.after(wait, Event::Read);
        }
        let group = self.any_group();
        let id = self.node_to_ask(group);
        let needed = self.checks.highest_acknowledged(group);
        let (waiter, answer) = oneshot::channel();
        let Some(process) = self.nodes.get_mut(&id).and_then(|n| n.process.as_mut()) else {
            return Ok(());
        };
        process.reads.push(PendingRead { group, needed, answer });
        self.input(id, Input::Read { group, waiter })
    }

    fn take_reads(&mut self, id: NodeId) -> Result<(), String> {
        let Some(process) = self.nodes.get_mut(&id).and_then(|n| n.process.as_mut()) else {
            return Ok(());
        };
        let mut answered = Vec::new();
        process.reads.retain_mut(|read| match read.answer.try_recv() {
            Ok(answer) => {
                answered.push((read.group, read.needed, answer));
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => false,
        });
        for (group, needed, answer) in answered {
            let Ok(barrier) = answer else { continue };
            self.checks.read(group, barrier.read_index.get(), needed)?;
            self.checks.read(group, barrier.applied.get(), barrier.read_index.get())?;
        }
        Ok(())
    }

    // ---- faults ------------------------------------------------------------------------------

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

    pub fn restart_later(&mut self, node: NodeId, delay: u64) {
        self.after(delay, Event::Restart { node });
    }

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

    pub fn heal_network_later(&mut self, delay: u64) {
        self.tell(|| "the network is cut".to_owned());
        self.after(delay, Event::HealNetwork);
    }

    pub fn stall(&mut self, id: NodeId, length: u64) {
        self.tell(|| format!("{id:?} stalls for {length} ms"));
        let until = self.now + length;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.stalled_until = until;
        }
    }

    pub fn slow_disk(&mut self, id: NodeId, delay: u64) {
        self.tell(|| format!("{id:?} has a slow disk: up to {delay} ms"));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.disk_delay = delay;
        }
    }

    pub fn flush_machines(&mut self, id: NodeId) {
        self.nodes[&id].disks.values().for_each(|disk| disk.lock().unwrap().flush());
    }

    pub fn transfer_something(&mut self, chance: &mut Chance) {
        let group = GroupId::new(chance.between(1, self.shape.groups));
        let from = self.node_to_ask(group);
        let to = if chance.per_mille(500) { Some(self.pick_node(chance)) } else { None };
        self.tell(|| format!("{from:?} is asked to hand {group:?} to {to:?}"));
        let (waiter, _forgotten) = oneshot::channel();
        let request = TransferRequest { to, waiter };
        if let Some(process) = self.nodes.get_mut(&from).and_then(|n| n.process.as_mut()) {
            process.transfers += 1;
            process.core.handle(Input::Transfer { group, request });
        }
    }

    /// What nodes know of each other's life.
    fn heartbeats(&mut self) -> Result<(), String> {
        self.after(HEARTBEAT, Event::Heartbeats);
        let ids = self.node_ids();
        for &to in &ids {
            let mut changes = Vec::new();
            for &from in ids.iter().filter(|from| **from != to) {
                let sender = &self.nodes[&from];
                let heard = sender.process.is_some() && self.network.passes(from, to);
                let (now, life) = (self.now, sender.life);
                let Some(node) = self.nodes.get_mut(&to) else { continue };
                if heard {
                    node.heard.insert(from, (now, life));
                }
                let last = node.heard.get(&from).copied();
                let alive = last.filter(|(at, _)| now - at < LOST_AFTER).map(|(_, life)| life);
                match (alive, node.live.get(&from).copied()) {
                    (Some(life), known) if known != Some(life) => {
                        node.live.insert(from, life);
                        changes.push(Input::NodeLive { node: from, incarnation: life });
                    }
                    (None, Some(_)) => {
                        node.live.remove(&from);
                        changes.push(Input::NodeLost { node: from });
                    }
                    _ => {}
                }
            }
            for change in changes {
                self.input(to, change)?;
            }
        }
        Ok(())
    }

    // ---- runs --------------------------------------------------------------------------------

    pub fn run_with_faults(&mut self) -> Result<(), String> {
        self.faulty = true;
        self.after(300, Event::Load);
        self.after(500, Event::Read);
        self.after(2_000, Event::Fault);
        self.pass(self.shape.duration)?;
        self.faulty = false;
        Ok(())
    }

    /// Ends all faults; then everything must be well again by itself, within a bound.
    pub fn heal_and_settle(&mut self) -> Result<(), String> {
        self.network.heal();
        self.weather = Weather::CALM;
        for id in self.node_ids() {
            self.restart(id)?;
            if let Some(node) = self.nodes.get_mut(&id) {
                node.stalled_until = 0;
                node.disk_delay = 4;
            }
        }
        self.pass(15_000)?;
        self.write_to_every_group()?;
        self.pass(8_000)?;
        self.every_replica_holds_the_same()
    }

    pub fn every_group_is_led_by_a_live_node(&self) -> Result<(), String> {
        for group in (1..=self.shape.groups).map(GroupId::new) {
            if !self.nodes.values().any(|node| node.serves(group)) {
                return Err(format!("{group:?} is not led: {}", self.describe(group)));
            }
        }
        Ok(())
    }

    pub fn write_to_every_group(&mut self) -> Result<(), String> {
        self.every_group_is_led_by_a_live_node()?;
        let before = self.checks.acknowledged();
        for group in (1..=self.shape.groups).map(GroupId::new) {
            let leader = self.nodes.values().find(|node| node.serves(group)).map(|node| node.id);
            if let Some(leader) = leader {
                self.propose(leader, group, 1)?;
            }
        }
        self.pass(2_000)?;
        let written = (self.checks.acknowledged() - before) as u64;
        if written == self.shape.groups {
            return Ok(());
        }
        Err(format!("only {written} of {} groups take writes", self.shape.groups))
    }

    fn every_replica_holds_the_same(&self) -> Result<(), String> {
        for group in (1..=self.shape.groups).map(GroupId::new) {
            let mut first = None;
            for node in self.nodes.values() {
                let contents = node.disks[&group].lock().unwrap().live.clone();
                self.checks.settled(group, &contents.commands)?;
                match &first {
                    None => first = Some(contents.commands),
                    Some(first) if *first == contents.commands => {}
                    Some(_) => {
                        return Err(format!("replicas differ: {}", self.describe(group)));
                    }
                }
            }
        }
        Ok(())
    }

    pub fn settle_until_asleep(&mut self) -> Result<(), String> {
        for _ in 0..40 {
            self.pass(500)?;
            let asleep = self.nodes.values().filter_map(|node| node.process.as_ref()).all(|p| {
                let (groups, awake) = p.core.population();
                groups > 0 && awake == 0
            });
            if asleep {
                return Ok(());
            }
        }
        Err(format!("groups stay awake: {}", self.describe(GroupId::new(1))))
    }

    fn describe(&self, group: GroupId) -> String {
        let mut text = String::new();
        for node in self.nodes.values() {
            let status = node.process.as_ref().and_then(|p| p.core.group(group)).map(|core| {
                let s = core.status();
                let stored = node.store.load(group).ok().flatten().map(|p| (p.base, p.last));
                format!(
                    "{} term {} leader {:?} serving {} log {}..{} committed {} applied {} asleep \
                     {} peers {:?} stored {stored:?}",
                    s.role.name(),
                    s.term,
                    s.leader,
                    s.serving,
                    s.first,
                    s.last,
                    s.committed,
                    s.applied,
                    s.asleep,
                    s.peers
                )
            });
            text.push_str(&format!("\n  {:?}: {status:?}", node.id));
        }
        text
    }
}
