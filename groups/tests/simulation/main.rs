//! Whole clusters in one thread, from a seed.
//!
//! The world is `shardhost_testing::simulation`; here are the runs through it. A failing
//! seed prints the command that replays it, and replays exactly.
//!
//! `SIMULATION_SEEDS=2000` runs more seeds, `SIMULATION_SEED=17` runs one and prints its story.

mod consistency;
mod doubt;
mod forgetting;
mod hibernation;
mod impairments;
mod leases;
mod policies;
mod recovery;
mod standstill;

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::{GroupId, MembershipChange, NodeId};
use shardhost_testing::simulation::{Cluster, Coverage, Shape, seeds};

/// Seeds of an ordinary run of the test suite.
const SEEDS: u64 = 200;

/// Runs one seed and gives what the checkers found, and a fingerprint of all that happened.
fn run(seed: u64, shape: &Shape) -> (Result<(), String>, u64) {
    let (outcome, cluster) = run_cluster(seed, shape);
    (outcome, cluster.fingerprint())
}

fn run_cluster(seed: u64, shape: &Shape) -> (Result<(), String>, Cluster) {
    let mut cluster = Cluster::new(seed, shape);
    let outcome = cluster.run_with_faults().and_then(|()| cluster.heal_and_settle());
    (outcome, cluster)
}

fn all_seeds_hold(shape: impl Fn(u64) -> Shape, demand: fn(&Coverage, u64)) {
    let (mut coverage, mut runs) = (Coverage::default(), 0);
    for seed in seeds(SEEDS) {
        let (outcome, cluster) = run_cluster(seed, &shape(seed));
        coverage.add(cluster.checks());
        runs += 1;
        if let Err(violation) = outcome {
            panic!(
                "seed {seed}: {violation}\nreplay: SIMULATION_SEED={seed} cargo test -p \
                 shardhost-groups --test simulation -- --nocapture"
            );
        }
    }
    if runs >= SEEDS {
        println!("{runs} runs: {coverage:?}");
        demand(&coverage, runs);
    }
}

#[test]
fn clusters_keep_their_promises_under_faults() {
    all_seeds_hold(Shape::from_seed, Coverage::demand);
}

#[test]
fn clusters_that_never_hibernate_keep_their_promises_under_faults() {
    all_seeds_hold(
        |seed| {
            let mut shape = Shape::from_seed(seed ^ 0x5eed);
            shape.config.hibernate_after_ticks = 0;
            shape
        },
        Coverage::demand,
    );
}

#[test]
fn clusters_keep_their_promises_while_their_members_change() {
    all_seeds_hold(Shape::changing, Coverage::demand);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [1, 7, 23] {
        let shape = Shape::from_seed(seed);
        let (first, first_print) = run(seed, &shape);
        let (second, second_print) = run(seed, &shape);
        assert_eq!(first, second, "seed {seed}");
        assert_eq!(first_print, second_print, "seed {seed} went another way");
    }
}

#[test]
fn different_seeds_go_different_ways() {
    let prints: std::collections::BTreeSet<u64> =
        (0..8).map(|seed| run(seed, &Shape::from_seed(seed)).1).collect();
    assert_eq!(prints.len(), 8);
}

/// In this run raft merged entries into an empty append of another index, which is why it is not
/// allowed to merge: on the wire, where only the first index stands, they moved to another place.
#[test]
fn entries_that_raft_merged_into_an_append_of_another_index_do_not_move() {
    let (outcome, _) = run(1988, &Shape::from_seed(1988));
    outcome.unwrap();
}

/// Runs seeds with a bug put back until a checker complains.
fn first_complaint(bugs: KnownBugs) -> Option<(u64, String)> {
    (0..2_000).find_map(|seed| {
        let mut shape = Shape::from_seed(seed);
        shape.config.bugs = bugs;
        // What leaves a node is checked message by message elsewhere; here the damage itself
        // must show.
        shape.check_messages = false;
        shape.fault_every = 300;
        run(seed, &shape).0.err().map(|violation| (seed, violation))
    })
}

#[test]
fn acknowledging_before_the_sync_is_caught() {
    let bugs = KnownBugs::from([KnownBug::AcknowledgeBeforeSync]);
    let (seed, violation) = first_complaint(bugs).expect("no seed noticed the bug");
    println!("seed {seed}: {violation}");
}

#[test]
fn acknowledging_before_the_sync_is_seen_in_the_very_message() {
    let mut shape = Shape::from_seed(1);
    shape.config.bugs = KnownBugs::from([KnownBug::AcknowledgeBeforeSync]);
    let violation = run(1, &shape).0.expect_err("the message was not noticed");
    assert!(violation.contains("before it was durable"), "{violation}");
}

#[test]
fn relying_on_a_prepared_vote_before_it_is_durable_is_caught() {
    let complaint = (0..200).find_map(|seed| {
        let mut shape = Shape::leasing(seed);
        shape.config.bugs = KnownBugs::from([KnownBug::TrustUnwrittenVote]);
        run(seed, &shape).0.err().map(|violation| (seed, violation))
    });
    let (seed, violation) = complaint.expect("no seed noticed the bug");
    assert!(violation.contains("before it was durable"), "{violation}");
    println!("seed {seed}: {violation}");
}

#[test]
fn forgetting_the_vote_is_caught() {
    // A voter that keeps its promises over a restart seldom comes to vote twice in a term.
    let bugs = KnownBugs::from([KnownBug::ForgetVote, KnownBug::ForgetVoteLock]);
    let (seed, violation) = first_complaint(bugs).expect("no seed noticed the bug");
    println!("seed {seed}: {violation}");
}

#[test]
fn resolving_a_completion_by_its_index_alone_is_caught() {
    let bugs = KnownBugs::from([KnownBug::CompletionByIndex]);
    let (seed, violation) = first_complaint(bugs).expect("no seed noticed the bug");
    println!("seed {seed}: {violation}");
}

/// A calm cluster of one group, and who leads it.
fn one_led_group(seed: u64, bugs: KnownBugs) -> Result<(Cluster, NodeId), String> {
    let mut shape = Shape::calm();
    shape.groups = 1;
    shape.config.bugs = bugs;
    let mut cluster = Cluster::new(seed, &shape);
    cluster.pass(4_000)?;
    let leader = cluster.leader_of(GroupId::new(1)).ok_or("no leader")?;
    Ok((cluster, leader))
}

/// A leader whose state machine hangs before it has applied what it inherited: proposals there
/// meanwhile, and how many of them have no answer when all callers should have given up.
fn unanswered_by_a_leader_that_is_not_ready(seed: u64, bugs: KnownBugs) -> Result<usize, String> {
    let group = GroupId::new(1);
    let (mut cluster, leader) = one_led_group(seed, bugs)?;
    let next = cluster.node_ids().into_iter().find(|id| *id != leader).ok_or("it is alone")?;
    cluster.hang_machine(next, group, 60_000);
    cluster.write(leader, group, 3)?;
    cluster.pass(1_000)?;
    cluster.transfer(leader, group, next);
    cluster.pass(1_000)?;
    cluster.write(next, group, 5)?;
    cluster.pass(20_000)?;
    Ok(cluster.checks().unanswered())
}

#[test]
fn what_a_leader_holds_too_long_is_given_up() {
    for seed in 0..20 {
        let held = unanswered_by_a_leader_that_is_not_ready(seed, KnownBugs::default());
        assert_eq!(held, Ok(0), "seed {seed}");
        let bug = KnownBugs::from([KnownBug::HoldForEver]);
        assert_eq!(unanswered_by_a_leader_that_is_not_ready(seed, bug), Ok(5), "seed {seed}");
    }
}

/// A leader's state machine hangs: how many of the writes that it took have no answer when all
/// callers should have given up.
fn unanswered_by_a_machine_that_hangs(seed: u64, bugs: KnownBugs) -> Result<usize, String> {
    let group = GroupId::new(1);
    let (mut cluster, leader) = one_led_group(seed, bugs)?;
    cluster.hang_machine(leader, group, 60_000);
    cluster.write(leader, group, 5)?;
    cluster.pass(20_000)?;
    Ok(cluster.checks().unanswered())
}

#[test]
fn what_a_machine_holds_too_long_is_given_up() {
    for seed in 0..20 {
        let held = unanswered_by_a_machine_that_hangs(seed, KnownBugs::default());
        assert_eq!(held, Ok(0), "seed {seed}");
        let bug = KnownBugs::from([KnownBug::AwaitHungMachines]);
        assert_eq!(unanswered_by_a_machine_that_hangs(seed, bug), Ok(5), "seed {seed}");
    }
}

/// Who founds another group of the same id.
const FOUNDER: NodeId = NodeId::must(4);
const VICTIM: NodeId = NodeId::must(3);

/// A node founds another group under the id of one, and its members come and go until a node is
/// asked that holds a replica of the first one.
fn asked_by_another_group(bugs: KnownBugs) -> Result<Cluster, String> {
    let (group, victim, founder) = (GroupId::new(1), VICTIM, FOUNDER);
    let mut shape = Shape::calm();
    (shape.groups, shape.spares, shape.config.bugs) = (1, 3, bugs);
    let mut cluster = Cluster::new(1, &shape);
    cluster.pass(4_000)?;
    cluster.found_alone(founder, group)?;
    cluster.pass(4_000)?;
    let learner = |node: u64| MembershipChange::new().add_learner(NodeId::must(node));
    let changes = [
        learner(5),
        learner(6),
        MembershipChange::new().remove(NodeId::must(6)),
        learner(victim.get()),
    ];
    for change in changes {
        cluster.change_members(founder, group, change)?;
        cluster.pass(3_000)?;
    }
    let asks = cluster.status(founder, group).map(|status| status.membership.replica_on(victim));
    assert!(asks.flatten().is_some(), "the other group does not ask the node");
    Ok(cluster)
}

/// Whether the replica of the first group is still there afterwards.
fn survives_the_create_request_of_another_group(bugs: KnownBugs) -> Result<bool, String> {
    let (group, cluster) = (GroupId::new(1), asked_by_another_group(bugs)?);
    let first = cluster.status(NodeId::must(1), group).map(|status| status.membership.genesis);
    let still = cluster.status(VICTIM, group).map(|status| status.membership.genesis);
    Ok(still == first)
}

/// Who says that there are two groups of the same id.
fn who_says_that_there_are_two(bugs: KnownBugs) -> Result<[Option<NodeId>; 2], String> {
    let (group, cluster) = (GroupId::new(1), asked_by_another_group(bugs)?);
    let says = |node| cluster.status(node, group).and_then(|status| status.conflicting);
    Ok([says(VICTIM), says(FOUNDER)])
}

#[test]
fn two_groups_of_one_id_both_say_so() {
    let both = [Some(FOUNDER), Some(VICTIM)];
    assert_eq!(who_says_that_there_are_two(KnownBugs::default()), Ok(both));
    let bug = KnownBugs::from([KnownBug::OneGroupIsTold]);
    assert_eq!(who_says_that_there_are_two(bug), Ok([Some(FOUNDER), None]));
}

#[test]
fn an_create_request_of_another_group_ends_no_replica() {
    let bug = KnownBugs::from([KnownBug::CreateRequestOfAnotherGroup]);
    assert_eq!(survives_the_create_request_of_another_group(KnownBugs::default()), Ok(true));
    assert_eq!(survives_the_create_request_of_another_group(bug), Ok(false));
}

/// The checkers notice a loss when disks lie: without this, their silence would prove nothing.
#[test]
fn disks_that_lie_about_syncs_are_caught() {
    let complaint = (0..200).find_map(|seed| {
        let mut shape = Shape::from_seed(seed);
        shape.lying_disks = true;
        run(seed, &shape).0.err()
    });
    println!("{}", complaint.expect("no seed noticed the lost writes"));
}
