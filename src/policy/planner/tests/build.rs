//! Snapshots in few words.

use std::collections::BTreeSet;

use shardhost_storage::{GroupId, NodeId};

use super::super::{Group, Move, Node, Plan, Requirement, Snapshot, Voter, check, plan};

/// Late enough for everything that takes time to be over.
pub(super) const NOW: u64 = 10_000_000;

/// A node that takes leaders, in a separate zone.
pub(super) fn node(id: u64) -> Node {
    Node {
        id: NodeId::must(id),
        weight: 1,
        zone: format!("zone-{id}"),
        capabilities: Some(BTreeSet::new()),
        draining: false,
        fit: true,
        live: true,
        incarnation: 100 + id,
        live_since_ms: 0,
    }
}

pub(super) fn nodes(count: u64) -> Vec<Node> {
    (1..=count).map(node).collect()
}

/// A group with caught-up voters.
pub(super) fn group(id: u64, leader: u64, voters: &[u64]) -> Group {
    let voter = |node: &u64| Voter { node: NodeId::must(*node), lag: Some(0) };
    Group {
        id: GroupId::new(id),
        leader: Some(NodeId::must(leader)),
        last_leader: None,
        term: 7,
        voters: voters.iter().map(voter).collect(),
        requirement: Requirement::default(),
        preference: Vec::new(),
        pin: None,
        label: None,
        load: 0,
        moved_at_ms: None,
    }
}

pub(super) fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A snapshot whose budgets never matter.
pub(super) fn snapshot(nodes: Vec<Node>, groups: Vec<Group>) -> Snapshot {
    let mut snapshot = Snapshot { now_ms: NOW, nodes, groups, ..Snapshot::default() };
    snapshot.settings.moves_per_round = u32::MAX;
    snapshot.settings.out_per_node = u32::MAX;
    snapshot.settings.in_per_node = u32::MAX;
    snapshot.canonicalise().expect("a sound snapshot")
}

/// Plans, and has the plan checked.
pub(super) fn checked_plan(snapshot: &Snapshot) -> Plan {
    let plan = plan(snapshot).expect("a sound snapshot");
    if let Err(error) = check(snapshot, &plan) {
        let text = serde_json::to_string(snapshot).expect("a snapshot is JSON");
        panic!("{error}\nsnapshot: {text}\nplan: {plan:?}");
    }
    plan
}

/// Carries out moves at once.
pub(super) fn carry_out(snapshot: &mut Snapshot, moves: &[Move]) {
    for step in moves {
        let at = snapshot.groups.binary_search_by_key(&step.group, |group| group.id);
        let group = &mut snapshot.groups[at.expect("a known group")];
        group.leader = Some(step.to);
        group.term += 1;
        group.moved_at_ms = Some(snapshot.now_ms);
    }
}

/// Group and target of each move.
pub(super) fn targets(plan: &Plan) -> Vec<(u64, u64)> {
    plan.moves.iter().map(|step| (step.group.get(), step.to.get())).collect()
}

/// Leaders per node after the full plan.
pub(super) fn counts(plan: &Plan) -> Vec<u64> {
    plan.summary.nodes.iter().map(|node| node.after).collect()
}

/// Numbers from a seed, the same everywhere.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    /// `count` different numbers from 1 to `limit`, rising.
    pub(super) fn pick(&mut self, count: u64, limit: u64) -> Vec<u64> {
        let mut picked = BTreeSet::new();
        while (picked.len() as u64) < count.min(limit) {
            picked.insert(1 + self.below(limit));
        }
        picked.into_iter().collect()
    }
}
