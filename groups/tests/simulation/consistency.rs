//! Replicas are compared while everything else goes wrong: no alarm is false, and a machine that
//! does not do what the others do is found.

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::{GroupId, NodeId};
use shardhost_testing::simulation::{Cluster, Shape, seeds};

/// Ticks between two checks: many within a run.
const EVERY: u32 = 40;

fn compared(seed: u64) -> Shape {
    let mut shape = Shape::from_seed(seed);
    shape.config.consistency_ticks = EVERY;
    shape
}

/// Replicas that were found equal, and alarms; a replica that stops is noticed by the checkers.
fn findings(cluster: &Cluster, shape: &Shape) -> (u64, Vec<String>) {
    let (mut equal, mut differ) = (0, Vec::new());
    for node in (1..=shape.nodes).map(NodeId::must) {
        for group in (1..=shape.groups).map(GroupId::new) {
            let Some(status) = cluster.status(node, group) else { continue };
            equal += u64::from(status.checked.is_some());
            differ.extend(status.differs.map(|index| format!("{node:?} {group:?}: {index}")));
        }
    }
    (equal, differ)
}

#[test]
fn nothing_is_found_where_machines_do_the_same_under_faults() {
    let mut equal = 0;
    for seed in seeds(100) {
        let shape = compared(seed ^ 0xc0de);
        let mut cluster = Cluster::new(seed, &shape);
        let outcome = cluster.run_with_faults().and_then(|()| cluster.heal_and_settle());
        outcome.unwrap_or_else(|violation| panic!("SIMULATION_SEED={seed}: {violation}"));
        let (found, differ) = findings(&cluster, &shape);
        assert!(differ.is_empty(), "SIMULATION_SEED={seed}: {differ:?}");
        equal += found;
    }
    assert!(equal > 100, "only {equal} replicas were compared");
}

/// What a checker says of a quiet cluster whose clients write; a replica that stops is a finding.
fn complaint(seed: u64, bugs: KnownBugs) -> Option<String> {
    let mut shape = compared(seed);
    (shape.nodes, shape.groups, shape.config.bugs) = (3, 1, bugs);
    let mut cluster = Cluster::new(seed, &shape);
    let outcome = cluster.pass(3_000).and_then(|()| {
        cluster.clients_work(true);
        cluster.pass(20_000)
    });
    outcome.err()
}

#[test]
fn a_replica_that_skips_commands_is_found() {
    for seed in 0..10 {
        let bugs = KnownBugs::from([KnownBug::SkipCommands]);
        let found = complaint(seed, bugs).unwrap_or_else(|| panic!("seed {seed}"));
        assert!(found.contains("differs from that of a majority"), "seed {seed}: {found}");
        assert_eq!(complaint(seed, KnownBugs::none()), None, "seed {seed}");
    }
}
