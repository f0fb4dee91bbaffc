//! Single passes, and what is remembered between them: a cluster of a catalog, and the allocator that looks at it.

mod gone;
mod late;
mod orders;
mod rules;
mod spread;

use super::orders::*;
use super::*;
use crate::catalog::DrainFallback;
use crate::catalog::{
    Catalog, Command, Name, NewDrain, NewGroup, NewNode, Operation, Selection, Stranding, Subject,
};
use shardhost_proto::version::ClusterVersion;

const REPLACE_AFTER: u64 = 10_000;

fn node(number: u64) -> NodeId {
    NodeId::must(number)
}

fn group(number: u64) -> GroupId {
    GroupId::new(number)
}

fn name(text: &str) -> Name {
    Name::new(Subject::Zone, text).unwrap()
}

/// A cluster, and the allocator that looks at it.
struct World {
    catalog: Catalog,
    live: BTreeSet<NodeId>,
    system: BTreeSet<NodeId>,
    impaired: BTreeSet<NodeId>,
    allocator: Allocator,
    now_ms: u64,
    /// The newest order of each group.
    orders: BTreeMap<GroupId, Order>,
}

impl World {
    /// Nodes with these zones, numbered from 1, all of which answer.
    fn new(zones: &[&str]) -> Self {
        let mut world = Self {
            catalog: Catalog::default(),
            live: BTreeSet::new(),
            system: [1, 2, 3].map(node).into(),
            impaired: BTreeSet::new(),
            allocator: Allocator::default(),
            now_ms: 0,
            orders: BTreeMap::new(),
        };
        for (number, zone) in (1..).zip(zones) {
            world.add(number, zone);
        }
        let prepared = world.live.iter().map(|node| (*node, node.get())).collect();
        world.run(Operation::RaiseVersion { version: ClusterVersion::NEWEST, prepared });
        world.set(PlannerMode::On);
        world
    }

    fn run(&mut self, operation: Operation) {
        self.catalog.apply(&Command::new(1_000, operation)).unwrap();
    }

    fn set(&mut self, mode: PlannerMode) {
        let replicas = ReplicaSettings { mode, replace_after_ms: REPLACE_AFTER };
        self.run(Operation::SetReplicas { replicas });
    }

    fn add(&mut self, number: u64, zone: &str) {
        let zone = (!zone.is_empty()).then(|| name(zone));
        let (id, address) = (node(number), format!("n{number}:1"));
        self.run(Operation::PutNode(NewNode { id, address, zone, weight: 1, store: number }));
        self.live.insert(id);
    }

    fn has(&mut self, number: u64, list: &[&str]) {
        let capabilities = list.iter().map(|text| name(text)).collect();
        self.run(Operation::Advertise { node: node(number), incarnation: 1, capabilities });
    }

    fn create(&mut self, number: u64, founders: &[u64], requires: &[&str]) {
        let kind = Name::new(Subject::Kind, "table").unwrap();
        let mut new = NewGroup::new(group(number), kind, founders.iter().map(|id| node(*id)));
        new.requirement = shardhost_storage::Requirement::hard(requires.iter().copied()).unwrap();
        self.run(Operation::CreateGroup(new));
    }

    fn drain(&mut self, number: u64) {
        self.run(Operation::BeginDrain(NewDrain {
            node: node(number),
            owner: "anna".to_owned(),
            deadline_ms: 2_000,
            expires_ms: 3_000,
            fallback: DrainFallback::Proceed,
            stranding: Stranding::Accept,
        }));
    }

    /// A group's change ended.
    fn swapped(&mut self, change: &Change) {
        let (old, new) = (change.step.old(), change.step.new_node());
        if change.group == SYSTEM_GROUP {
            self.system.retain(|node| Some(*node) != old);
            self.system.extend(new);
            return;
        }
        let record = &self.catalog.view().groups()[&change.group];
        let config = record.reported.as_ref().map_or(1, |members| members.config_index.get() + 1);
        let nodes = record.members().iter().copied().filter(|node| Some(*node) != old);
        let nodes: BTreeSet<NodeId> = nodes.chain(new).collect();
        let adds_learner = matches!(change.step, Step::Add { learner: true, .. });
        let learners = record.learners().unwrap_or_default().iter().copied();
        let learners = learners.chain(new.filter(|_| adds_learner));
        let learners = learners.filter(|node| nodes.contains(node)).collect();
        self.run(Operation::RecordMembers {
            group: change.group,
            config_index: shardhost_storage::LogIndex::new(config),
            nodes,
            founding: None,
            learners: Some(learners),
            generation: None,
        });
    }

    fn pass_at(&mut self, now_ms: u64) -> Vec<Change> {
        self.now_ms = now_ms;
        let (view, live, system) = (self.catalog.view(), &self.live, &self.system);
        let impaired = &self.impaired;
        let system_learners = &[];
        let seen = Observation { now_ms, view, live, impaired, system, system_learners };
        let orders = self.allocator.pass(&seen);
        self.orders.extend(orders.iter().map(|order| (order.change.group, *order)));
        orders.into_iter().map(|order| order.change).collect()
    }

    /// The newest order of a group ended.
    fn ended(&mut self, group: GroupId, now_ms: u64, outcome: Outcome) {
        self.allocator.ended(self.orders[&group], now_ms, outcome);
    }

    /// The members of a group are these from here on.
    fn report(&mut self, number: u64, members: &[u64]) {
        self.report_with(number, members, &[]);
    }

    /// The same, and which of them have no vote.
    fn report_with(&mut self, number: u64, members: &[u64], learners: &[u64]) {
        let record = &self.catalog.view().groups()[&group(number)];
        let config = record.reported.as_ref().map_or(1, |members| members.config_index.get() + 1);
        let nodes = |list: &[u64]| list.iter().map(|number| node(*number)).collect();
        self.run(Operation::RecordMembers {
            group: group(number),
            config_index: shardhost_storage::LogIndex::new(config),
            nodes: nodes(members),
            founding: None,
            learners: Some(nodes(learners)),
            generation: None,
        });
    }

    fn why(&self, number: u64) -> String {
        self.allocator.why(self.catalog.view(), group(number))
    }

    fn lose(&mut self, number: u64) {
        self.live.remove(&node(number));
    }
}

/// The nodes that groups lose and get replicas on; 0: none.
fn moves(changes: &[Change]) -> Vec<(u64, u64, u64)> {
    let number = |node: Option<NodeId>| node.map_or(0, NodeId::get);
    let nodes = |step: Step| (number(step.old()), number(step.new_node()));
    let each = changes.iter().map(|one| (one.group.get(), nodes(one.step)));
    each.map(|(group, (old, new))| (group, old, new)).collect()
}

fn set_rule(world: &mut World, groups: Selection, rule: impl FnOnce(&mut ReplicaRule)) {
    let mut new = ReplicaRule {
        name: name("rule"),
        groups,
        voters: None,
        learners: None,
        zones: Box::default(),
        capabilities: Box::default(),
    };
    rule(&mut new);
    world.run(Operation::PutRule(new));
}

/// What a pass orders, carried out until it orders nothing more.
fn settled(world: &mut World) -> Vec<(u64, u64, u64)> {
    let mut all = Vec::new();
    for _ in 0..50 {
        let changes = world.pass_at(world.now_ms + 1_000);
        all.extend(moves(&changes));
        for change in &changes {
            world.ended(change.group, world.now_ms, Outcome::Begun);
            world.swapped(change);
        }
    }
    assert_eq!(world.pass_at(world.now_ms + 1_000), []);
    all
}
