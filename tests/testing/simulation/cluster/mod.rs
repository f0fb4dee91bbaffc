//! The virtual world: a clock, a queue of what happens next, and the nodes that it happens to.

mod changes;
mod clients;
mod impairments;
mod log;
mod machines;
mod outside;
mod policies;
mod runs;
mod shape;
mod shipping;
mod trouble;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use shardhost_groups::apply::{ApplyReport, ApplyWork};
use shardhost_groups::completion::{Charge, Completion, Pending};
use shardhost_groups::core::{
    Effects, LogTask, MembershipOrder, MembershipRequest, Proposal, ReadNeed, ReadRequest,
    TransferRequest, TransferTarget,
};
use shardhost_groups::leadership::LossCause;
use shardhost_groups::policy::{AdmissionFault, AdmissionRequest, Decision};
use shardhost_groups::selector::GroupSelector;
use shardhost_groups::transport::{Outgoing, ShipmentOutcome, SnapshotShipment};
use shardhost_groups::worker::{GroupEvent, Input};
use shardhost_groups::{CaughtUp, GroupId, Membership, MembershipChange, NodeId, ReplicaId};
use shardhost_proto::peer::GroupMessage;
use shardhost_storage::convert::membership_from_message;
use shardhost_storage::{LogStore, SnapshotStore, StoreFault};
use tokio::sync::oneshot;

use super::chance::Chance;
use super::checks::Checks;
use super::network::{Network, Weather};
use super::node::{Node, PendingRead};
use super::serving::SwitchedPolicy;
pub use shape::Shape;

/// Milliseconds of one slot of a tick.
const SLOT: u64 = 12;
/// Milliseconds of silence after which a node counts as lost.
const LOST_AFTER: u64 = 1_000;
/// Milliseconds between two heartbeats of a pair of nodes.
const HEARTBEAT: u64 = 200;

/// Something that happens at a moment.
enum Event {
    Slot {
        node: NodeId,
        life: u64,
    },
    Messages {
        from: NodeId,
        to: NodeId,
        messages: Vec<GroupMessage>,
    },
    LogStart {
        node: NodeId,
        life: u64,
    },
    LogDone {
        node: NodeId,
        life: u64,
    },
    Apply {
        node: NodeId,
        life: u64,
        group: GroupId,
    },
    SnapshotArrives {
        from: NodeId,
        from_life: u64,
        shipment: Box<SnapshotShipment>,
    },
    Load,
    Read,
    LeaseRead,
    LeaseAnswer {
        node: NodeId,
        life: u64,
        group: GroupId,
        needed: u64,
        called: u64,
        committed: u64,
    },
    Change,
    Policy,
    Transfer,
    Fault,
    Admission {
        node: NodeId,
        life: u64,
        request: Box<AdmissionRequest>,
        answer: Result<Decision, AdmissionFault>,
    },
    LosePower {
        node: NodeId,
        down: u64,
    },
    Restart {
        node: NodeId,
    },
    Reopen {
        node: NodeId,
        group: GroupId,
    },
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
    /// All that is left to chance.
    pub chance: Chance,
    checks: Checks,
    next_command: u64,
    messages: u64,
    fingerprint: u64,
    story: bool,
    faulty: bool,
    /// Nodes hear nothing more of what others say of themselves.
    hushed: bool,
    /// No snapshot arrives before this moment.
    ships_nothing_until: u64,
    /// Replicas that lost their state, unless they have it again.
    without_state: BTreeSet<(NodeId, GroupId)>,
}

impl Cluster {
    /// A cluster at its beginning, all nodes running.
    ///
    /// # Panics
    /// A node does not start from an empty disk.
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
            hushed: false,
            ships_nothing_until: 0,
            without_state: BTreeSet::new(),
        };
        let ids: Vec<NodeId> = (1..=shape.nodes + shape.spares).map(NodeId::must).collect();
        for &id in &ids {
            let mut node = Node::new(id);
            node.keeping = shape.keeping;
            node.blind_windows = shape.blind_windows;
            node.pace = cluster.chance.between(1_000 - shape.drift, 1_000 + shape.drift);
            for group in u64::from(!shape.system_group)..=shape.groups {
                node.create(GroupId::new(group), &shape.founders(group));
            }
            if shape.asks_policies {
                let policy = Arc::new(SwitchedPolicy(Arc::clone(&node.refuses)));
                node.guard = Some(node.policies.register(GroupSelector::All, policy));
            }
            if shape.lying_disks {
                node.disks.store.inject(StoreFault::LyingSync);
            }
            cluster.nodes.insert(id, node);
        }
        ids.into_iter().for_each(|id| cluster.restart(id).unwrap());
        cluster.after(HEARTBEAT, Event::Heartbeats);
        cluster
    }

    /// All nodes, whether they run or not.
    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Any node.
    pub fn pick_node(&self, chance: &mut Chance) -> NodeId {
        chance.pick(&self.node_ids()).unwrap()
    }

    /// What stands for all that happened: two runs of a seed have the same.
    pub const fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// What the checkers saw.
    pub const fn checks(&self) -> &Checks {
        &self.checks
    }

    /// Messages that left a node so far.
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
            Event::LeaseRead => self.lease_read(),
            Event::LeaseAnswer { node, life, group, needed, called, committed } => {
                self.lease_answer((node, life), group, needed, (called, committed))
            }
            Event::Change => self.change_something(),
            Event::Policy => self.change_policies(),
            Event::Transfer => {
                if self.faulty {
                    let wait = self.chance.between(300, 2_500);
                    self.after(wait, Event::Transfer);
                }
                let mut chance = self.chance.clone();
                chance.draw();
                self.transfer_something(&mut chance);
                self.chance = chance;
                Ok(())
            }
            Event::Fault => {
                if self.faulty {
                    let next = self.next_fault()?;
                    self.after(next, Event::Fault);
                }
                Ok(())
            }
            Event::Admission { node, life, request, answer } => {
                self.admit(node, life, &request, answer)
            }
            Event::LosePower { node, down } => {
                self.crash(node, 0);
                self.restart_later(node, down);
                Ok(())
            }
            Event::Restart { node } => self.restart(node),
            Event::Reopen { node, group } if self.faulty => self.reopen(node, group),
            Event::Reopen { .. } => Ok(()),
            Event::HealNetwork => {
                self.network.heal();
                Ok(())
            }
            Event::Heartbeats => self.heartbeats(),
        }
    }
}
