//! State machines that stall and states that are lost, at any time and on any node: the group is
//! served by an eligible replica, and a state comes back whatever else is missing.

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::{GroupId, MembershipChange, NodeId};
use shardhost_testing::simulation::{Cluster, Shape};

use super::{all_seeds_hold, run};

const GROUP: GroupId = GroupId::new(1);

#[test]
fn clusters_keep_their_promises_while_machines_stand_still_and_states_are_lost() {
    all_seeds_hold(Shape::impairing, |coverage, runs| {
        assert!(coverage.lost_states > runs / 2, "{coverage:?}");
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

/// A replica loses its state and misses many changes of members, which it takes one after the
/// other, each when the one before is durable: whether it knows them all at the end.
fn follows_changes_over_a_lost_state(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut shape = Shape::calm();
    (shape.groups, shape.spares, shape.keeping) = (1, 1, 2);
    (shape.config.seed, shape.config.bugs) = (seed, bugs);
    let mut cluster = Cluster::new(seed, &shape);
    cluster.pass(4_000)?;
    cluster.clients_work(true);
    for _ in 0..10 {
        cluster.pass(1_000)?;
        cluster.node_ids().into_iter().for_each(|node| cluster.flush_machines(node));
    }
    let leader = cluster.leader_of(GROUP).ok_or("nobody serves the group")?;
    let members = [1, 2, 3].map(NodeId::must);
    let lost = members.into_iter().find(|node| *node != leader).ok_or("it is alone")?;
    cluster.crash(lost, usize::MAX);
    cluster.lose_state(lost, GROUP);
    let guest = NodeId::must(4);
    cluster.clients_work(false);
    for _ in 0..20 {
        let change = match cluster.status(leader, GROUP) {
            Some(status) if status.membership.replica_on(guest).is_some() => {
                MembershipChange::new().remove(guest)
            }
            _ => MembershipChange::new().add_learner(guest),
        };
        cluster.change_members(leader, GROUP, change)?;
        cluster.pass(100)?;
    }
    cluster.restart(lost)?;
    cluster.pass(12_000)?;
    let known = |node| {
        let status =
            cluster.status(node, GROUP).ok_or_else(|| format!("{node:?} has no replica"))?;
        match &status.stalled {
            Some(why) => Err(format!("{node:?}: {why}")),
            None => Ok(status.membership.config_index),
        }
    };
    let (ours, theirs) = (known(lost)?, known(leader)?);
    match ours == theirs {
        true => Ok(()),
        false => Err(format!("{lost:?} knows the members as of {ours}, {leader:?} as of {theirs}")),
    }
}

#[test]
fn a_replica_without_its_state_follows_changes_of_members() {
    for seed in 0..40 {
        follows_changes_over_a_lost_state(seed, KnownBugs::default())
            .unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    }
}

#[test]
fn a_state_that_passes_changes_of_members_by_is_caught() {
    let bugs = || KnownBugs::from([KnownBug::StateBeforeMembership]);
    let found = (0..40).find_map(|seed| follows_changes_over_a_lost_state(seed, bugs()).err());
    let found = found.expect("no seed noticed the bug");
    assert!(found.contains("knows the members as of"), "{found}");
}
