//! What a replica must remember: that a change of its configuration was committed, and that its number
//! had a vote.

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_testing::simulation::Shape;

use super::{all_seeds_hold, run};

#[test]
fn clusters_keep_their_promises_while_machines_lag_and_disks_are_lost() {
    all_seeds_hold(Shape::forgetting, |coverage, runs| {
        assert!(coverage.changes > runs, "{coverage:?}");
        assert!(coverage.lost_disks > runs / 20, "{coverage:?}");
    });
}

/// Runs seeds with a bug put back until a checker complains, and shows that it is the bug's fault.
fn complaint(bug: KnownBug) -> String {
    let complaint = (0..2_000).find_map(|seed| {
        let mut shape = Shape::forgetting(seed);
        shape.config.bugs = KnownBugs::from([bug]);
        run(seed, &shape).0.err().map(|violation| (seed, violation))
    });
    let (seed, violation) = complaint.expect("no seed noticed the bug");
    run(seed, &Shape::forgetting(seed)).0.unwrap_or_else(|other| panic!("seed {seed}: {other}"));
    format!("seed {seed}: {violation}")
}

#[test]
fn forgetting_that_a_change_was_committed_is_caught() {
    println!("{}", complaint(KnownBug::ForgetCommit));
}
