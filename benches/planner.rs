//! How long the leadership planner thinks, on one core.
//!
//! A figure is the time from a snapshot to its plan: the median and the best of several runs.
//! `cargo bench --bench planner`; to see that it runs: `cargo bench --bench planner -- --test`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use shardhost_policy::planner::{Group, Node, Plan, Requirement, Snapshot, Voter, plan};
use shardhost_storage::{GroupId, NodeId};

const SHAPES: [(u64, u64); 3] = [(10_000, 50), (10_000, 10), (100_000, 100)];
const RUNS: usize = 15;
const VOTERS: u64 = 3;

/// Special properties of the groups of a figure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// All groups carry load, and load is balanced.
    Loaded,
    /// Five groups each share a label; there are five zones.
    Labeled,
    /// All require a capability that all nodes have.
    Requiring,
}

/// Numbers from a seed, the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

fn node(id: u64) -> Node {
    Node {
        id: NodeId::must(id),
        weight: 1,
        zone: format!("zone-{}", id % 5),
        capabilities: Some(["fifo".to_owned()].into()),
        draining: false,
        fit: true,
        live: true,
        incarnation: 1,
        live_since_ms: 0,
    }
}

/// A group that node 1 leads; its other voters are random.
fn group(id: u64, nodes: u64, kind: Kind, dice: &mut Dice) -> Group {
    let mut voters = vec![1];
    while (voters.len() as u64) < VOTERS {
        let node = 1 + dice.below(nodes);
        if !voters.contains(&node) {
            voters.push(node);
        }
    }
    voters.sort_unstable();
    let voter = |node: u64| Voter { node: NodeId::must(node), lag: Some(0) };
    let requires = (kind == Kind::Requiring).then(|| "fifo".to_owned());
    Group {
        id: GroupId::new(id),
        leader: Some(NodeId::must(1)),
        last_leader: None,
        term: 5,
        voters: voters.into_iter().map(voter).collect(),
        requirement: Requirement {
            capabilities: requires.into_iter().collect(),
            ..Requirement::default()
        },
        preference: Vec::new(),
        pin: None,
        label: (kind == Kind::Labeled).then(|| format!("topic-{}", id / 5)),
        load: if kind == Kind::Loaded { 1 + dice.below(100) as u32 } else { 0 },
        moved_at_ms: None,
    }
}

fn all_on_one(groups: u64, nodes: u64, kind: Kind) -> Snapshot {
    let mut dice = Dice(0x5EED);
    let mut snapshot = Snapshot {
        now_ms: 1_000_000_000,
        nodes: (1..=nodes).map(node).collect(),
        groups: (1..=groups).map(|id| group(id, nodes, kind, &mut dice)).collect(),
        ..Snapshot::default()
    };
    snapshot.settings.moves_per_round = u32::MAX;
    snapshot.settings.out_per_node = u32::MAX;
    snapshot.settings.in_per_node = u32::MAX;
    snapshot.settings.load_tier = kind == Kind::Loaded;
    snapshot
}

fn carry_out(snapshot: &mut Snapshot, plan: &Plan) {
    for step in &plan.moves {
        let at = snapshot.groups.binary_search_by_key(&step.group, |group| group.id);
        snapshot.groups[at.expect("a known group")].leader = Some(step.to);
    }
}

/// Median and best of the runs, and the plan.
fn time(snapshot: &Snapshot, runs: usize) -> (Duration, Duration, Plan) {
    let mut times = Vec::new();
    let mut last = Plan::default();
    for _ in 0..runs {
        let start = Instant::now();
        last = plan(black_box(snapshot)).expect("a sound snapshot");
        times.push(start.elapsed());
    }
    times.sort();
    (times[times.len() / 2], times[0], last)
}

fn report(name: &str, snapshot: &Snapshot, runs: usize) -> Plan {
    let (median, best, plan) = time(snapshot, runs);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1_000.0;
    println!(
        "{name:<44} median {:8.2} ms   best {:8.2} ms   {:6} moves, {} deferred",
        milliseconds(median),
        milliseconds(best),
        plan.moves.len(),
        plan.deferred.len(),
    );
    plan
}

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--test");
    let (shapes, runs) = if smoke { (&SHAPES[..1], 1) } else { (&SHAPES[..], RUNS) };
    let kinds = [
        ("plain", Kind::Plain),
        ("requiring", Kind::Requiring),
        ("labeled", Kind::Labeled),
        ("loaded", Kind::Loaded),
    ];
    for (groups, nodes) in shapes {
        for (name, kind) in kinds {
            let mut snapshot = all_on_one(*groups, *nodes, kind);
            let shape = format!("{groups} groups, {nodes} nodes, {name}");
            let plan = report(&format!("{shape}, all on one"), &snapshot, runs);
            carry_out(&mut snapshot, &plan);
            report(&format!("{shape}, balanced"), &snapshot, runs);
            snapshot.nodes[0].draining = true;
            report(&format!("{shape}, one drains"), &snapshot, runs);
        }
    }
}
