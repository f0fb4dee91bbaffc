//! How long the allocator of replicas thinks, on one core.
//!
//! A figure is the time of one pass over the whole catalog: the median and the best of several runs, each
//! with a fresh allocator that has waited long enough to act. `cargo bench --bench allocator`; to see that
//! it runs: `cargo bench --bench allocator -- --test`.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::{Duration, Instant};

use shardhost_policy::allocator::{Allocator, Observation, Order};
use shardhost_policy::catalog::{
    Catalog, Command, Name, NewGroup, NewNode, Operation, PlannerMode, ReplicaSettings, Subject,
};
use shardhost_proto::version::ClusterVersion;
use shardhost_storage::{GroupId, NodeId};

const GROUPS: u64 = 10_000;
const NODES: u64 = 50;
const ZONES: u64 = 5;
const VOTERS: u64 = 3;
const RUNS: usize = 15;
const REPLACE_AFTER_MS: u64 = 10_000;

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

/// A catalog in which the groups are on random ones of the first nodes.
fn catalog(nodes: u64, zones: u64, holding: u64) -> Catalog {
    let (mut catalog, mut dice) = (Catalog::default(), Dice(0x5EED));
    let mut run = |operation| catalog.apply(&Command::new(1_000, operation)).expect("applies");
    for number in 1..=nodes {
        let zone = format!("zone-{}", number % zones.max(1));
        let zone = (zones > 0).then(|| Name::new(Subject::Zone, &zone).expect("a name"));
        let (id, address) = (NodeId::must(number), format!("n{number}:1"));
        run(Operation::PutNode(NewNode { id, address, zone, weight: 1, store: number }));
    }
    let prepared = (1..=nodes).map(|number| (NodeId::must(number), number)).collect();
    run(Operation::RaiseVersion { version: ClusterVersion::NEWEST, prepared });
    let replicas = ReplicaSettings { mode: PlannerMode::On, replace_after_ms: REPLACE_AFTER_MS };
    run(Operation::SetReplicas { replicas });
    let kind = Name::new(Subject::Kind, "table").expect("a name");
    for number in 1..=GROUPS {
        let mut founders = BTreeSet::new();
        while (founders.len() as u64) < VOTERS {
            founders.insert(NodeId::must(1 + dice.below(holding)));
        }
        run(Operation::CreateGroup(NewGroup::new(GroupId::new(number), kind.clone(), founders)));
    }
    catalog
}

/// What answers.
fn all_but(lost: Option<u64>) -> BTreeSet<NodeId> {
    (1..=NODES).filter(|node| Some(*node) != lost).map(NodeId::must).collect()
}

fn pass(
    allocator: &mut Allocator,
    catalog: &Catalog,
    live: &BTreeSet<NodeId>,
    now_ms: u64,
) -> Vec<Order> {
    let system = [1, 2, 3].map(NodeId::must).into();
    let (view, system, system_learners) = (catalog.view(), &system, &[][..]);
    let impaired = &BTreeSet::new();
    let seen = Observation { now_ms, view, live, impaired, system, system_learners };
    allocator.pass(black_box(&seen))
}

/// Times the pass in which it acts.
fn report(name: &str, catalog: &Catalog, lost: Option<u64>, runs: usize) {
    let (mut times, mut orders) = (Vec::new(), 0);
    for _ in 0..runs {
        let mut allocator = Allocator::default();
        let live = all_but(lost);
        pass(&mut allocator, catalog, &live, 0);
        let start = Instant::now();
        orders = pass(&mut allocator, catalog, &live, 2 * REPLACE_AFTER_MS).len();
        times.push(start.elapsed());
    }
    times.sort();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1_000.0;
    let (median, best) = (times[times.len() / 2], times[0]);
    println!(
        "{name:<58} median {:8.2} ms   best {:8.2} ms   {orders:4} orders",
        milliseconds(median),
        milliseconds(best),
    );
}

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--test");
    let runs = if smoke { 1 } else { RUNS };
    let shape = format!("{GROUPS} groups, {NODES} nodes");
    for (zones, named) in [(0, "without zones"), (ZONES, "5 zones")] {
        let whole = catalog(NODES, zones, NODES);
        report(&format!("{shape}, {named}, placed by chance"), &whole, None, runs);
        report(&format!("{shape}, {named}, one is gone"), &whole, Some(NODES), runs);
        let joined = catalog(NODES, zones, NODES - 1);
        report(&format!("{shape}, {named}, one has joined"), &joined, None, runs);
        let few = catalog(NODES, zones, VOTERS + 2);
        report(&format!("{shape}, {named}, all on five of them"), &few, None, runs);
    }
}
