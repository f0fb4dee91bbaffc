//! A host that leads the system group, or believes so: an executor, the newest report of each host,
//! and the hosts that it can reach.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, NodeId};

use super::super::super::{
    Bounds, Executor, ExecutorSettings, Mode, Observation, PlannerTerm, Round, Stop,
};
use crate::planner::{Group, Node, Snapshot};

/// The report of a host at one time.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) at_ms: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) groups: Vec<Group>,
}

#[derive(Clone, Debug)]
pub(super) struct PlannerInstance {
    pub(super) planner_term: PlannerTerm,
    pub(super) executor: Executor,
    pub(super) began_ms: u64,
    /// What it may keep at most.
    pub(super) bounds: Bounds,
    /// Hosts that it cannot reach.
    pub(super) cut: BTreeSet<NodeId>,
    reports: BTreeMap<NodeId, Report>,
    /// The last report.
    pub(super) mode: Mode,
    pub(super) stopped: Option<Stop>,
}

impl PlannerInstance {
    pub(super) fn new(planner_term: PlannerTerm, now: u64, settings: &ExecutorSettings) -> Self {
        Self {
            planner_term,
            began_ms: now,
            bounds: settings.bounds,
            executor: Executor::new(planner_term, now, settings.clone()),
            cut: BTreeSet::new(),
            reports: BTreeMap::new(),
            mode: Mode::Off,
            stopped: None,
        }
    }

    /// Reports may come late, and out of order.
    pub(super) fn take(&mut self, from: NodeId, report: Report) {
        let newest = self.reports.get(&from).map_or(0, |known| known.at_ms);
        if report.at_ms >= newest {
            self.reports.insert(from, report);
        }
    }

    pub(super) fn control(&mut self, mode: Mode, stopped: Option<Stop>) {
        (self.mode, self.stopped) = (mode, stopped.clone());
        self.executor.control(mode, stopped);
    }

    pub(super) fn round(&mut self, mode: Mode, stopped: Option<Stop>, now: u64) -> Round {
        (self.mode, self.stopped) = (mode, stopped.clone());
        let snapshot = self.merged();
        let reported_ms = self.reports.iter().map(|(id, report)| (*id, report.at_ms)).collect();
        self.executor.round(Observation { now_ms: now, mode, stopped, snapshot, reported_ms })
    }

    /// The last report of a node, and of a group the report of its newest leader.
    fn merged(&self) -> Snapshot {
        let mut nodes: BTreeMap<NodeId, (u64, &Node)> = BTreeMap::new();
        let mut groups: BTreeMap<GroupId, (u64, bool, &Group)> = BTreeMap::new();
        for (from, report) in &self.reports {
            for node in &report.nodes {
                let known = nodes.entry(node.id).or_insert((report.at_ms, node));
                if known.0 < report.at_ms {
                    *known = (report.at_ms, node);
                }
            }
            for group in &report.groups {
                let rank = (group.term, group.leader == Some(*from), group);
                let known = groups.entry(group.id).or_insert(rank);
                if (known.0, known.1) < (rank.0, rank.1) {
                    *known = rank;
                }
            }
        }
        Snapshot {
            nodes: nodes.into_values().map(|(_, node)| node.clone()).collect(),
            groups: groups.into_values().map(|(_, _, group)| group.clone()).collect(),
            ..Snapshot::default()
        }
    }
}
