//! State machines that stand still and states that are lost, at any time and on any node: the group is served
//! by whoever can, and a state comes back whatever else is missing.

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_testing::simulation::Shape;

use super::{all_seeds_hold, run};

#[test]
fn clusters_keep_their_promises_while_machines_stand_still_and_states_are_lost() {
    all_seeds_hold(Shape::impairing, |coverage, runs| {
        assert!(coverage.lost_states > runs, "{coverage:?}");
        assert!(coverage.acknowledged > runs * 50 && coverage.changes > runs / 2, "{coverage:?}");
    });
}

/// A seed notices the bug, and holds without it.
fn a_seed_notices(bug: KnownBug) {
    let found = (0..2_000).find_map(|seed| {
        let mut shape = Shape::impairing(seed);
        shape.config.bugs = KnownBugs::from([bug]);
        run(seed, &shape).0.err().map(|violation| (seed, violation))
    });
    let (seed, violation) = found.expect("no seed noticed the bug");
    run(seed, &Shape::impairing(seed)).0.unwrap_or_else(|other| panic!("seed {seed}: {other}"));
    println!("seed {seed}: {violation}");
}

#[test]
fn a_stalled_leader_that_waits_to_be_ready_is_caught() {
    a_seed_notices(KnownBug::StalledLeaderWaits);
}

#[test]
fn changes_of_members_that_wait_for_a_machine_are_caught() {
    a_seed_notices(KnownBug::MembershipWaitsForMachine);
}

#[test]
fn a_replica_that_takes_no_entries_before_it_has_a_state_is_caught() {
    a_seed_notices(KnownBug::StopLogForState);
}

#[test]
fn a_state_that_passes_changes_of_members_by_is_caught() {
    a_seed_notices(KnownBug::StateBeforeMembership);
}
