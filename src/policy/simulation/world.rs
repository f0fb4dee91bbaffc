//! The whole cluster under one clock: the world of the groups, and above it the catalog, the hosts'
//! drivers, planners, and the messages between them.
//!
//! The catalog is one value here: an operator's change takes effect at once, if the system group
//! has a leader that serves, and each host that reaches it learns of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shardhost_groups::{GroupId, NodeId, Requirement};
use shardhost_testing::simulation::{Chance, Cluster};

use super::checks::Checks;
use super::faults::{Ambush, Fault};
use super::host::{Host, Version};
use super::planner_instance::{Answer, PlannerInstance};
use super::sabotage::Sabotage;
use super::shape::Shape;
use super::watch::Watch;
use crate::catalog::{
    Catalog, Command, Name, NewGroup, NewNode, Operation, PlannerMode, SYSTEM_GROUP, Subject, View,
};
use crate::executor::{MoveOutcome, Order, PlannerTerm};

/// Between two looks of hosts at themselves.
const LOOK_MS: u64 = 25;
/// Between two looks of a host at the catalog.
const FOLLOW_MS: u64 = 400;
/// Between two writes of clients to a group.
const WRITE_MS: u64 = 200;
/// What planners' clocks show at the beginning.
const BEGAN_MS: u64 = 1_000_000;

/// Where a planner sits: a node, as long as it leads the system group in one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Desk {
    pub(super) planner_term: PlannerTerm,
    pub(super) node: NodeId,
}

/// What happens at a time.
#[derive(Debug)]
pub(super) enum Event {
    Look,
    Follow,
    Writes,
    Round(Desk),
    Asked { by: Desk, host: NodeId, asked_ms: u64, known_digest: u64 },
    Reported { to: Desk, host: NodeId, asked_ms: u64, report: Answer },
    GatherEnds { desk: Desk, asked_ms: u64 },
    Ordered { by: Desk, order: Order },
    Admitted { by: Desk, order: Order, life: Option<u64> },
    Answered { to: Desk, order: Order, outcome: MoveOutcome },
    Heard { host: NodeId, life: Option<u64>, view: Arc<View> },
    Fault(Fault),
    NextFault,
}

pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) chance: Chance,
    pub(super) shape: Shape,
    pub(super) groups: Vec<GroupId>,
    pub(super) hosts: BTreeMap<NodeId, Host>,
    pub(super) seats: BTreeMap<NodeId, PlannerInstance>,
    pub(super) checks: Checks,
    pub(super) watch: Watch,
    pub(super) sabotage: Sabotage,
    pub(super) faulty: bool,
    /// Whether clients write, as the shape sets.
    pub(super) writing: bool,
    /// What befalls the next planner that sends orders, when they have just left.
    pub(super) ambush: Option<Ambush>,
    /// Which program a node starts next.
    pub(super) versions: BTreeMap<NodeId, Version>,
    catalog: Catalog,
    view: Arc<View>,
    base: Instant,
    /// How far the time of day is ahead of what it should be.
    pub(super) ahead_ms: u64,
    events: BTreeMap<(u64, u64), Event>,
    events_made: u64,
}

impl World {
    pub(super) fn new(seed: u64, mut shape: Shape, sabotage: Sabotage) -> Self {
        shape.settings = sabotage.settings(shape.settings);
        let cluster = Cluster::new(seed, &shape.cluster);
        let nodes = cluster.node_ids();
        let mut world = Self {
            chance: Chance::new(seed ^ 0x0dd5),
            groups: (1..=shape.cluster.groups).map(GroupId::new).collect(),
            hosts: nodes.iter().map(|node| (*node, Host::default())).collect(),
            seats: BTreeMap::new(),
            checks: Checks::default(),
            watch: Watch::default(),
            sabotage,
            faulty: false,
            writing: false,
            ambush: None,
            versions: BTreeMap::new(),
            catalog: Catalog::default(),
            view: Arc::default(),
            base: Instant::now(),
            ahead_ms: 0,
            events: BTreeMap::new(),
            events_made: 0,
            cluster,
            shape,
        };
        world.after(0, Event::Look);
        world.after(1, Event::Follow);
        world.after(1_000, Event::Writes);
        world
    }

    /// Registers nodes and groups, and switches the planner on.
    fn found(&mut self) -> Result<(), String> {
        let nodes = self.cluster.node_ids();
        for (node, store) in nodes.iter().zip(1..) {
            let zone = Name::new(Subject::Zone, "a").map_err(|refusal| refusal.to_string())?;
            let (id, address) = (*node, format!("node-{node}:1"));
            self.change(Operation::PutNode(NewNode {
                id,
                address,
                zone: Some(zone),
                weight: 1,
                store,
            }))?;
        }
        for group in self.groups.clone() {
            let kind = Name::new(Subject::Kind, "list").map_err(|refusal| refusal.to_string())?;
            let holders = nodes.iter().filter(|node| self.cluster.status(**node, group).is_some());
            let new = NewGroup::new(group, kind, holders.copied());
            self.change(Operation::CreateGroup(new))?;
        }
        self.change(Operation::SetPlannerMode { mode: PlannerMode::On })
    }

    /// Nodes advertise, groups elect their first leaders, and get their requirements.
    pub(super) fn begin(&mut self) -> Result<(), String> {
        self.found()?;
        for (node, advertisement) in self.shape.advertisements.clone() {
            self.watch.has(node, advertisement.clone());
            self.cluster.advertise(node, advertisement)?;
        }
        self.pass(4_000)?;
        for (group, requirement) in self.shape.requirements.clone() {
            self.require(group, requirement)?;
        }
        self.pass(500)
    }

    pub(super) fn change(&mut self, operation: Operation) -> Result<(), String> {
        let command = Command::new(self.clock(), operation);
        self.catalog.apply(&command).map_err(|refusal| refusal.to_string())?;
        self.view = Arc::new(self.catalog.view().clone());
        Ok(())
    }

    /// A group asks for something else, in its log and in the catalog.
    pub(super) fn require(
        &mut self,
        group: GroupId,
        requirement: Requirement,
    ) -> Result<(), String> {
        self.cluster.require(group, requirement.clone())?;
        self.change(Operation::SetRequirement { group, requirement })
    }

    /// The catalog as it is.
    pub(super) const fn view(&self) -> &Arc<View> {
        &self.view
    }

    pub(super) fn after(&mut self, delay_ms: u64, event: Event) {
        self.events_made += 1;
        self.events.insert((self.cluster.now() + delay_ms, self.events_made), event);
    }

    /// The time of day of all nodes, which a fault may set wrong.
    pub(super) const fn time_of_day(&self) -> u64 {
        self.clock() + self.ahead_ms
    }

    /// What the clocks of planners show.
    pub(super) const fn clock(&self) -> u64 {
        BEGAN_MS + self.cluster.now()
    }

    /// What the steady clocks of hosts show.
    pub(super) fn instant(&self) -> Instant {
        self.base + Duration::from_millis(self.cluster.now())
    }

    /// When a message between hosts arrives, if it does.
    pub(super) fn travel(&mut self, from: NodeId, to: NodeId) -> Option<u64> {
        if from == to {
            return Some(0);
        }
        if !self.cluster.network.passes(from, to) {
            return None;
        }
        let weather = self.cluster.weather;
        let arrivals = self.cluster.network.arrivals(weather, false, &mut self.chance);
        arrivals.first().map(|delay| delay + self.cluster.network.detour(from, to))
    }

    pub(super) fn pass(&mut self, length_ms: u64) -> Result<(), String> {
        let end = self.cluster.now() + length_ms;
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= end) {
            let at = entry.key().0;
            let event = entry.remove();
            self.cluster.pass(at - self.cluster.now())?;
            self.happen(event).map_err(|violation| format!("at {at} ms: {violation}"))?;
        }
        self.cluster.pass(end - self.cluster.now())
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Look => self.look(),
            Event::Follow => {
                self.follow();
                self.keep_requirements()
            }
            Event::Writes => self.write(),
            Event::Round(desk) => self.begin_round(desk),
            Event::Asked { by, host, asked_ms, known_digest } => {
                self.asked(by, host, asked_ms, known_digest);
                Ok(())
            }
            Event::Reported { to, host, asked_ms, report } => {
                self.reported(to, host, asked_ms, report)
            }
            Event::GatherEnds { desk, asked_ms } => self.gather_ends(desk, asked_ms),
            Event::Ordered { by, order } => self.ordered(by, order),
            Event::Admitted { by, order, life } => self.admitted(by, order, life),
            Event::Answered { to, order, outcome } => self.answered(to, order, outcome),
            Event::Heard { host, life, view } => {
                if let Some(host) = self.hosts.get_mut(&host).filter(|host| host.life == life) {
                    host.view = Some(view);
                }
                Ok(())
            }
            Event::Fault(fault) => self.strike(fault),
            Event::NextFault => self.next_fault(),
        }
    }

    /// Hosts notice that they started, that they lead the system group or do so no more, and how
    /// their transfers end.
    fn look(&mut self) -> Result<(), String> {
        for node in self.cluster.node_ids() {
            self.look_at_process(node);
            self.look_at_seat(node);
            self.look_at_transfers(node)?;
        }
        self.watch.look(&self.cluster, &self.groups)?;
        self.after(LOOK_MS, Event::Look);
        Ok(())
    }

    fn look_at_process(&mut self, node: NodeId) {
        let life = self.cluster.life(node);
        if self.hosts[&node].life != life {
            let version = self.versions.get(&node).copied().unwrap_or_default();
            self.hosts.insert(node, Host::started(life, version));
            self.seats.remove(&node);
        }
    }

    fn look_at_seat(&mut self, node: NodeId) {
        let status = self.cluster.status(node, SYSTEM_GROUP);
        let leads = status.filter(|status| status.is_leader() && status.serving);
        let planner_term = leads.map(|status| PlannerTerm::new(status.term.get()));
        let seated =
            self.seats.get(&node).map(|planner_instance| planner_instance.executor.planner_term());
        let serves = self.hosts[&node].serves();
        let Some(planner_term) = planner_term.filter(|_| serves) else {
            self.seats.remove(&node);
            return;
        };
        if seated != Some(planner_term) {
            let desk = Desk { planner_term, node };
            let planner_instance = PlannerInstance::new(
                desk,
                (self.instant(), self.time_of_day()),
                self.shape.settings.clone(),
            );
            self.seats.insert(node, planner_instance);
            self.checks.coverage.planners += 1;
            let first = self.chance.between(1, 1_000);
            self.after(first, Event::Round(desk));
        }
    }

    /// Who serves the system group, in the latest term.
    pub(super) fn catalog_leader(&self) -> Option<NodeId> {
        let serves = |node: &NodeId| {
            let status = self.cluster.status(*node, SYSTEM_GROUP).filter(|status| status.serving);
            status.map(|status| (status.term, *node))
        };
        self.cluster.node_ids().iter().filter_map(serves).max().map(|(_, node)| node)
    }

    /// Hosts that reach the leader of the system group receive the catalog.
    fn follow(&mut self) {
        if let Some(leader) = self.catalog_leader() {
            for host in self.cluster.node_ids() {
                let knows = self.hosts[&host].view.as_ref();
                if knows.is_some_and(|known| Arc::ptr_eq(known, &self.view)) {
                    continue;
                }
                if let Some(delay) = self.travel(leader, host) {
                    let (life, view) = (self.hosts[&host].life, Arc::clone(&self.view));
                    self.after(delay, Event::Heard { host, life, view });
                }
            }
        }
        self.after(FOLLOW_MS, Event::Follow);
    }

    /// Where a group's requirement differs from the catalog's, it is proposed again: it may have
    /// had no leader, or a busy one.
    fn keep_requirements(&mut self) -> Result<(), String> {
        for group in self.groups.clone() {
            let Some(record) = self.view.groups().get(&group) else { continue };
            let requirement = record.requirement();
            let differs = |node: &NodeId| {
                let status = self.cluster.status(*node, group);
                status
                    .is_some_and(|one| one.is_leader() && one.membership.requirement != requirement)
            };
            if self.cluster.node_ids().iter().any(differs) {
                self.cluster.require(group, requirement)?;
            }
        }
        Ok(())
    }

    pub(super) fn server_of(&self, group: GroupId) -> Option<NodeId> {
        let serves =
            |node: &NodeId| self.cluster.status(*node, group).is_some_and(|status| status.serving);
        self.cluster.node_ids().into_iter().find(serves)
    }

    /// Clients write to groups, a fifth more or less than they do on average.
    fn write(&mut self) -> Result<(), String> {
        self.after(WRITE_MS, Event::Writes);
        if !self.writing {
            return Ok(());
        }
        for (group, rate) in self.shape.rates.clone() {
            let mean = rate * WRITE_MS;
            let commands = self.chance.between(mean * 8 / 10, mean * 12 / 10) / 1_000;
            if let Some(leader) = self.server_of(group).filter(|_| commands > 0) {
                self.cluster.write(leader, group, commands)?;
            }
        }
        Ok(())
    }
}
