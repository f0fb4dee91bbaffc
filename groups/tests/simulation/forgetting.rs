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

/// Members change as well while voters are cut off that were just heard: that may take a quorum for a while, and
/// nothing that was acknowledged.
const EAGER: KnownBugs =
    KnownBugs::none().and(KnownBug::CountEarlierAnswers).and(KnownBug::CountVotersThatTakeNothing);

/// Runs seeds with a bug put back until a checker complains, and shows that it is the bug's fault.
fn complaint(bug: KnownBug) -> String {
    let run_with = |seed, bugs: KnownBugs| {
        let mut shape = Shape::forgetting(seed);
        shape.config.bugs = bugs;
        run(seed, &shape).0
    };
    let complaint = (0..2_000)
        .find_map(|seed| run_with(seed, EAGER.and(bug)).err().map(|violation| (seed, violation)));
    let (seed, violation) = complaint.expect("no seed noticed the bug");
    run_with(seed, EAGER).unwrap_or_else(|other| panic!("seed {seed}: {other}"));
    format!("seed {seed}: {violation}")
}

#[test]
fn forgetting_that_a_change_was_committed_is_caught() {
    println!("{}", complaint(KnownBug::ForgetCommit));
}
