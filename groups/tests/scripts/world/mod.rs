//! The nodes, the network between them, and the trace of what they do.

pub mod answers;
pub mod network;
pub mod node;
mod parts;
mod text;
mod time;

use std::collections::BTreeMap;
use std::sync::Arc;

use shardhost_groups::completion::Reply;
use shardhost_groups::config::GroupsConfig;
use shardhost_groups::core::Effects;
use shardhost_groups::policy::PolicyEvent;
use shardhost_groups::storage::convert::membership_from_message;
use shardhost_groups::transport::Outgoing;
use shardhost_groups::worker::{Input, WorkerCore};
use shardhost_groups::{GroupId, Membership, NodeId};
use shardhost_proto::peer::{GroupMessage, MessageKind};

use crate::words;
use answers::Answers;
use network::{Fate, Network, Pattern, Shipping};
use node::{Node, Part, Process};

/// What a command does, or why the script is wrong.
pub type Done = Result<(), String>;

/// A cluster as a script sees it.
pub struct Cluster {
    config: GroupsConfig,
    pub nodes: BTreeMap<NodeId, Node>,
    pub network: Network,
    pub answers: Answers,
    trace: Vec<String>,
    /// Whether heartbeats are left out of the trace.
    pub hides_heartbeats: bool,
}

impl Cluster {
    /// Nodes that hold a replica of each of the groups, and spare ones that hold none.
    pub fn new(
        config: GroupsConfig,
        membership: &Membership,
        spare: &[NodeId],
        keeps: bool,
    ) -> Self {
        let members = membership.members.values().map(|member| member.node);
        let nodes = members.chain(spare.iter().copied());
        let nodes = nodes.map(|id| (id, Node::new(id, keeps))).collect();
        Self {
            config,
            nodes,
            network: Network::default(),
            answers: Answers::default(),
            trace: Vec::new(),
            hides_heartbeats: false,
        }
    }

    /// Lays the groups on the disks and starts every node.
    pub fn create(&mut self, groups: u64, membership: &Membership) -> Done {
        for node in self.nodes.values_mut() {
            for group in 1..=groups {
                node.create(GroupId::new(group), membership);
            }
        }
        self.node_ids().into_iter().try_for_each(|id| self.start(id))
    }

    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub fn say(&mut self, line: impl Into<String>) {
        self.trace.push(line.into());
    }

    /// What happened since the last call.
    pub fn take_trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    pub fn node(&mut self, id: NodeId) -> Result<&mut Node, String> {
        self.nodes.get_mut(&id).ok_or_else(|| format!("there is no node {id}"))
    }

    pub fn process(&mut self, id: NodeId) -> Result<&mut Process, String> {
        self.node(id)?.process.as_mut().ok_or_else(|| format!("node {id} is down"))
    }

    pub fn runs(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.process.is_some())
    }

    pub fn moves(&self, id: NodeId, part: Part) -> bool {
        self.runs(id) && !self.nodes[&id].stalled.contains(&part)
    }

    /// Gives inputs to a node's worker and carries out the step.
    pub fn input(&mut self, id: NodeId, input: Input) -> Done {
        self.begin(id)?.handle(input);
        self.step_once(id)
    }

    /// The worker of a node at the beginning of a step.
    pub fn begin(&mut self, id: NodeId) -> Result<&mut WorkerCore, String> {
        let now = self.node(id)?.now();
        let core = &mut self.process(id)?.core;
        core.begin(Some(now));
        Ok(core)
    }

    pub fn step_once(&mut self, id: NodeId) -> Done {
        let now = self.node(id)?.now();
        let effects = self.process(id)?.core.finish_step(Some(now));
        self.carry_out(id, effects)
    }

    /// Does what a step asks for, in the order of its fields.
    fn carry_out(&mut self, id: NodeId, effects: Effects) -> Done {
        effects.failed.into_iter().for_each(|(pending, error)| pending.resolve(Err(error)));
        answer(effects.read_replies);
        self.tell_answers();
        for (group, _, status) in effects.statuses {
            let before = self.process(id)?.told.insert(group, status.clone());
            for line in words::changes(before.as_deref(), &status) {
                self.say(format!("n{id} g{group} {line}"));
            }
            self.tell_applied(id, group, status.applied.get())?;
        }
        for (group, _, sign) in effects.leases {
            self.process(id)?.leases.insert(group, sign);
        }
        for edge in &effects.edges {
            self.say(format!("n{id} g{} {}", edge.group, words::edge(edge)));
        }
        answer(effects.transfer_replies);
        answer(effects.membership_replies);
        answer(effects.snapshot_replies);
        answer(effects.barrier_replies);
        answer(effects.drain_replies);
        self.tell_answers();
        self.send(id, effects.messages);
        let process = self.process(id)?;
        process.froze.extend(effects.counted.iter().filter_map(|event| match event {
            PolicyEvent::Froze(stood) => Some(*stood),
            _ => None,
        }));
        process.admissions.extend(effects.admissions);
        if !effects.log.is_empty() || !effects.log.prune.is_empty() {
            process.to_write.push_back(effects.log);
        }
        for (group, open_id, work) in effects.work {
            let machine = process.machines.get_mut(&group).filter(|one| one.open_id == open_id);
            if let Some(machine) = machine {
                machine.work.push_back(work);
            }
        }
        for shipment in effects.shipments {
            let line = words::message(id, shipment.to, &shipment.message);
            let life = self.nodes[&id].life;
            self.say(line);
            self.network.shipments.push(Shipping { from: id, life, shipment });
        }
        effects
            .create_requests
            .into_iter()
            .try_for_each(|(from, message)| self.requested(id, from, &message))
    }

    pub fn tell_answers(&mut self) {
        let lines = self.answers.take();
        self.trace.extend(lines);
    }

    /// Says what is applied unless the state machine's commands said it already.
    fn tell_applied(&mut self, id: NodeId, group: GroupId, applied: u64) -> Done {
        let Some(machine) = self.process(id)?.machines.get_mut(&group) else { return Ok(()) };
        if machine.told.get() < applied {
            machine.told = applied.into();
            self.say(format!("n{id} g{group} applied {applied}"));
        }
        Ok(())
    }

    /// Puts messages into the network.
    pub fn send(&mut self, from: NodeId, mut messages: Vec<Outgoing>) {
        messages.sort_by_key(|outgoing| (outgoing.to, outgoing.message.group));
        for Outgoing { to, message, .. } in messages {
            let hidden = self.hides_heartbeats && is_plain_heartbeat(&message);
            let (fate, note) = match self.network.fate(from, to, &message) {
                _ if !self.runs(to) => (Fate::Lost, " (lost)"),
                Fate::Lost => (Fate::Lost, " (lost)"),
                Fate::Held => (Fate::Held, " (held)"),
                Fate::Passes => (Fate::Passes, ""),
            };
            if !hidden {
                self.say(format!("{}{note}", words::message(from, to, &message)));
            }
            match fate {
                Fate::Passes => self.network.push((from, to), message),
                Fate::Held => self.network.hold((from, to), message),
                Fate::Lost => {}
            }
        }
    }

    /// Messages of one link arrive together, as one frame.
    pub fn arrive(&mut self, from: NodeId, to: NodeId, messages: Vec<GroupMessage>) -> Done {
        if !self.runs(to) {
            self.say(format!("lost: node {to} is down"));
            return Ok(());
        }
        self.begin(to)?;
        for message in messages {
            let line = words::message(from, to, &message);
            let core = &mut self.process(to)?.core;
            let before = core.counters().clone();
            core.handle(Input::Peer { from, messages: vec![message] });
            let after = core.counters().clone();
            if after.unknown_group > before.unknown_group {
                self.say(format!("n{to} drops {line}: no such group here"));
            }
            for (refusal, count) in after.refused {
                if before.refused.get(&refusal) != Some(&count) {
                    self.say(format!("n{to} refuses {line}: {refusal}"));
                }
            }
        }
        self.step_once(to)
    }

    /// The process of a node dies, with what was on its way to it.
    pub fn crash(&mut self, id: NodeId, keep: usize) -> Done {
        self.node(id)?.crash(keep);
        self.answers.forget(&format!("n{id} "));
        self.network.take(&Pattern { to: Some(id), ..Pattern::default() }, usize::MAX);
        Ok(())
    }

    /// Starts a node from what its disks hold, and lets it and its neighbours know each other.
    pub fn start(&mut self, id: NodeId) -> Done {
        if self.node(id)?.process.is_some() {
            return Err(format!("node {id} runs"));
        }
        let config = self.config_of(id);
        self.node(id)?.start(&config)?;
        self.begin(id)?;
        self.step_once(id)?;
        let mut others = self.node_ids();
        others.retain(|other| *other != id && self.runs(*other));
        for other in others {
            if self.network.connects(other, id) {
                self.node_live(id, other)?;
            }
            if self.network.connects(id, other) {
                self.node_live(other, id)?;
            }
        }
        Ok(())
    }

    /// The settings of this life of a node.
    fn config_of(&self, id: NodeId) -> Arc<GroupsConfig> {
        let mut config = self.config.clone();
        config.node = id;
        config.incarnation = self.nodes[&id].life + 1;
        Arc::new(config)
    }

    /// A node that should hold a replica and does not creates it, as a host with a factory does.
    fn requested(&mut self, id: NodeId, from: NodeId, message: &GroupMessage) -> Done {
        let group = GroupId::new(message.group);
        let wire = message.create_request.as_ref().and_then(|wire| wire.membership.as_ref());
        let membership = wire.and_then(|wire| membership_from_message(wire).ok());
        let membership = membership.ok_or("a create request that makes no sense")?;
        let config = self.config_of(id);
        if !self.node(id)?.create(group, &membership) {
            self.say(format!("n{id} g{group} declines the create_request"));
            return Ok(());
        }
        self.say(format!(
            "n{id} g{group} creates replica {}, asked by n{from}",
            message.to_replica
        ));
        self.begin(id)?;
        self.node(id)?.open(&config, group)?;
        self.step_once(id)
    }

    /// A node creates a group while it runs.
    pub fn create_on(&mut self, id: NodeId, group: GroupId, membership: &Membership) -> Done {
        let config = self.config_of(id);
        if !self.node(id)?.create(group, membership) {
            return Err(format!("n{id} holds g{group}, or is no member"));
        }
        self.begin(id)?;
        self.node(id)?.open(&config, group)?;
        self.step_once(id)
    }

    /// The disks of a node are well again.
    pub fn mend(&mut self, id: NodeId) -> Done {
        let node = self.node(id)?;
        node.disks.store.heal();
        node.disks.snapshots.heal();
        Ok(())
    }

    /// A node learns that another one answers.
    pub fn node_live(&mut self, id: NodeId, live: NodeId) -> Done {
        let incarnation = self.node(live)?.life + 1;
        let advertisement = Arc::new(self.node(live)?.advertisement.clone());
        self.input(id, Input::NodeLive { node: live, incarnation })?;
        self.input(id, Input::NodeAdvertisement { node: live, incarnation, advertisement })
    }
}

/// Answers the callers. One that went away is no error.
fn answer<T>(replies: Vec<(Reply<T>, T)>) {
    replies.into_iter().for_each(|(completion, answer)| completion.send(answer));
}

/// Heartbeats that carry no read, and their answers.
fn is_plain_heartbeat(message: &GroupMessage) -> bool {
    let beat = matches!(message.kind(), MessageKind::Heartbeat | MessageKind::HeartbeatResponse);
    beat && message.context.is_empty()
}
