//! A small cluster that executes each order, and an executor beside it.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_groups::RejectReason;
use shardhost_storage::{GroupId, NodeId};

use super::super::{
    Executor, ExecutorSettings, Mode, MoveOutcome, Observation, Order, PlannerTerm, Round, Stop,
    StopScope,
};
use crate::planner::{Group, Node, Plan, Requirement, Snapshot, Voter};

/// When a desk begins: late enough for every node to be up for long.
pub(super) const START: u64 = 10_000_000;

pub(super) fn id(node: u64) -> NodeId {
    NodeId::must(node)
}

pub(super) fn gid(group: u64) -> GroupId {
    GroupId::new(group)
}

/// A node that takes leaders.
pub(super) fn node(number: u64) -> Node {
    Node {
        id: id(number),
        weight: 1,
        zone: String::new(),
        capabilities: Some(BTreeSet::new()),
        draining: false,
        fit: true,
        live: true,
        incarnation: 100 + number,
        live_since_ms: 0,
    }
}

/// A group with caught-up voters.
pub(super) fn group(number: u64, leader: u64, voters: &[u64]) -> Group {
    Group {
        id: gid(number),
        leader: Some(id(leader)),
        last_leader: None,
        term: 7,
        voters: voters.iter().map(|node| Voter { node: id(*node), lag: Some(0) }).collect(),
        requirement: Requirement::default(),
        preference: Vec::new(),
        pin: None,
        label: None,
        load: 0,
        moved_at_ms: None,
    }
}

pub(super) fn stop() -> Option<Stop> {
    Some(Stop { scope: StopScope::Cluster, reason: "maintenance".to_owned() })
}

/// An executor, the truth about a cluster, and a clock.
pub(super) struct Desk {
    pub(super) executor: Executor,
    pub(super) truth: Snapshot,
    pub(super) now: u64,
    pub(super) mode: Mode,
    pub(super) stopped: Option<Stop>,
    /// Nodes that report no more, with the time of their last report.
    pub(super) silent: BTreeMap<NodeId, u64>,
}

impl Desk {
    /// A desk whose warm_up is over. Rounds see everything as it is.
    pub(super) fn new(nodes: u64, groups: Vec<Group>) -> Self {
        Self::with(nodes, groups, ExecutorSettings { warm_up_ms: 0, ..ExecutorSettings::default() })
    }

    pub(super) fn with(nodes: u64, groups: Vec<Group>, settings: ExecutorSettings) -> Self {
        let nodes = (1..=nodes).map(node).collect();
        let truth = Snapshot { nodes, groups, ..Snapshot::default() };
        Self {
            executor: Executor::new(PlannerTerm::new(3), START, settings),
            truth: truth.canonicalise().expect("a sound snapshot"),
            now: START,
            mode: Mode::On,
            stopped: None,
            silent: BTreeMap::new(),
        }
    }

    /// Lets time pass, and plans.
    pub(super) fn round_after(&mut self, passed_ms: u64) -> Round {
        self.now += passed_ms;
        let reported = |node: &Node| (node.id, *self.silent.get(&node.id).unwrap_or(&self.now));
        let seen = Observation {
            now_ms: self.now,
            mode: self.mode,
            stopped: self.stopped.clone(),
            snapshot: self.truth.clone(),
            reported_ms: self.truth.nodes.iter().map(reported).collect(),
        };
        self.executor.round(seen)
    }

    pub(super) fn plan(&mut self) -> Plan {
        self.round_after(1_000).made.expect("a plan").plan.clone()
    }

    pub(super) fn orders(&mut self) -> Vec<Order> {
        self.executor.next_orders(self.now)
    }

    pub(super) fn group(&mut self, number: u64) -> &mut Group {
        let at = self.truth.groups.binary_search_by_key(&gid(number), |group| group.id);
        &mut self.truth.groups[at.expect("a known group")]
    }

    pub(super) fn node(&mut self, number: u64) -> &mut Node {
        let at = self.truth.nodes.binary_search_by_key(&id(number), |node| node.id);
        &mut self.truth.nodes[at.expect("a known node")]
    }

    /// The host executes the order.
    pub(super) fn obey(&mut self, order: &Order) {
        let now = self.now;
        let group = self.group(order.group.get());
        group.leader = Some(order.to);
        group.term += 1;
        group.moved_at_ms = Some(now);
        self.executor.ended(order.ticket, now, MoveOutcome::Moved { stalled_ms: 3 });
    }

    pub(super) fn fail(&mut self, order: &Order, reason: RejectReason) {
        self.executor.ended(order.ticket, self.now, MoveOutcome::Failed { reason });
    }

    /// Carries everything out that starts at this time.
    pub(super) fn obey_all(&mut self) -> usize {
        let mut count = 0;
        loop {
            let orders = self.orders();
            if orders.is_empty() {
                return count;
            }
            count += orders.len();
            orders.iter().for_each(|order| self.obey(order));
        }
    }

    pub(super) fn counts(&self) -> Vec<usize> {
        let led = |node: &Node| {
            self.truth.groups.iter().filter(|group| group.leader == Some(node.id)).count()
        };
        self.truth.nodes.iter().map(led).collect()
    }
}

/// Groups with the same voters, all led by node 1.
pub(super) fn all_on_one(count: u64, voters: &[u64]) -> Vec<Group> {
    (1..=count).map(|number| group(number, 1, voters)).collect()
}
