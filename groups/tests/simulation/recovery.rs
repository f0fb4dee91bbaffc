//! State machines that lose their state: a replica is given another one's, and nothing is applied
//! before.

use std::collections::BTreeSet;

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::{GroupId, NodeId};
use shardhost_testing::simulation::{Cluster, Shape};

use super::{all_seeds_hold, run};

const GROUP: GroupId = GroupId::new(1);

#[test]
fn clusters_keep_their_promises_while_states_are_lost() {
    all_seeds_hold(Shape::losing_state, |coverage, runs| {
        assert!(coverage.lost_states > runs, "{coverage:?}");
        assert!(coverage.acknowledged > runs * 50, "{coverage:?}");
    });
}

/// These nodes lose the state of a group whose log was truncated, one of them perhaps its leader.
fn comes_back(seed: u64, lost: &[u64]) -> Result<(), String> {
    let mut shape = Shape::calm();
    (shape.groups, shape.keeping, shape.config.seed) = (1, seed % 3, seed);
    shape.config.hibernate_after_ticks = if seed.is_multiple_of(2) { 0 } else { 10 };
    let mut cluster = Cluster::new(seed, &shape);
    cluster.pass(4_000)?;
    cluster.clients_work(true);
    let first = |cluster: &Cluster, node| {
        cluster.status(NodeId::must(node), GROUP).map_or(1, |status| status.first.get())
    };
    for _ in 0..60 {
        cluster.pass(1_000)?;
        (1..=3).for_each(|node| cluster.flush_machines(NodeId::must(node)));
        if (1..=3).all(|node| first(&cluster, node) > 1) {
            break;
        }
    }
    let lost: Vec<NodeId> = lost.iter().copied().map(NodeId::must).collect();
    let status = |cluster: &Cluster, node| {
        cluster.status(node, GROUP).cloned().ok_or_else(|| format!("{node:?} has no replica"))
    };
    if status(&cluster, lost[0])?.first.get() == 1 {
        return Err("the log was never truncated".to_owned());
    }
    for node in &lost {
        cluster.crash(*node, usize::MAX);
        cluster.lose_state(*node, GROUP);
        cluster.restart_later(*node, 300);
    }
    let mut said: BTreeSet<NodeId> = BTreeSet::new();
    for _ in 0..100 {
        cluster.pass(10)?;
        let stalled = |node: &&NodeId| {
            cluster.status(**node, GROUP).is_some_and(|status| status.stalled.is_some())
        };
        said.extend(lost.iter().filter(stalled));
    }
    if said.len() < lost.len() {
        return Err(format!("of {lost:?} only {said:?} say that their state is lost"));
    }
    cluster.pass(8_000)?;
    cluster.clients_work(false);
    cluster.pass(6_000)?;
    let leader = cluster.leader_of(GROUP).ok_or("nobody serves the group")?;
    let applied = status(&cluster, leader)?.applied;
    for node in &lost {
        let found = status(&cluster, *node)?;
        if found.stalled.is_some() || found.applied != applied {
            return Err(format!("{node:?} stands at {}, not at {applied}", found.applied));
        }
    }
    Ok(())
}

#[test]
fn a_lost_state_is_replaced_by_that_of_another_replica() {
    for seed in 0..40 {
        for lost in [&[1][..], &[2], &[3, 1], &[2, 3]] {
            comes_back(seed, lost)
                .unwrap_or_else(|violation| panic!("seed {seed}, {lost:?} lost: {violation}"));
        }
    }
}

#[test]
fn going_on_without_the_state_is_caught() {
    let found = (0..200).find_map(|seed| {
        let mut shape = Shape::losing_state(seed);
        shape.config.bugs = KnownBugs::from([KnownBug::ApplyWithoutState]);
        run(seed, &shape).0.err().map(|violation| (seed, violation))
    });
    let (seed, violation) = found.expect("no seed noticed the bug");
    run(seed, &Shape::losing_state(seed)).0.unwrap_or_else(|other| panic!("seed {seed}: {other}"));
    println!("seed {seed}: {violation}");
}

/// One voter is gone, another one without its state, and the leader starts anew: the group needs
/// the log of the replica that waits for a snapshot.
fn goes_on_with_two(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut shape = Shape::calm();
    (shape.groups, shape.keeping, shape.config.seed) = (1, seed % 3, seed);
    (shape.config.hibernate_after_ticks, shape.config.bugs) = (0, bugs);
    let mut cluster = Cluster::new(seed, &shape);
    cluster.pass(4_000)?;
    cluster.clients_work(true);
    let nodes = [1, 2, 3].map(NodeId::must);
    let first = |cluster: &Cluster, node| {
        cluster.status(node, GROUP).map_or(1, |status| status.first.get())
    };
    for _ in 0..60 {
        cluster.pass(1_000)?;
        nodes.iter().for_each(|node| cluster.flush_machines(*node));
        if nodes.iter().all(|node| first(&cluster, *node) > 1) {
            break;
        }
    }
    let leader = cluster.leader_of(GROUP).ok_or("nobody serves the group")?;
    let mut others = nodes.iter().copied().filter(|node| *node != leader);
    let (Some(lost), Some(gone)) = (others.next(), others.next()) else {
        return Err("there are three".to_owned());
    };
    // It comes back at a time at which the first two have each other only.
    cluster.crash(lost, usize::MAX);
    cluster.lose_state(lost, GROUP);
    cluster.restart_later(lost, 50);
    cluster.pass(30 + seed % 40)?;
    cluster.crash(gone, usize::MAX);
    cluster.pass(seed % 60)?;
    cluster.crash(leader, usize::MAX);
    cluster.restart_later(leader, 20);
    cluster.pass(30_000)?;
    match cluster.leader_of(GROUP) {
        Some(_) => Ok(()),
        None => Err(format!("{leader:?} and {lost:?} serve nobody")),
    }
}

#[test]
fn a_replica_without_its_state_acknowledges_what_a_quorum_needs() {
    for seed in 0..100 {
        goes_on_with_two(seed, KnownBugs::default())
            .unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    }
}

/// Two voters, of which one lost its state, and no snapshot arrives: writes that are acknowledged
/// meanwhile, within ten seconds. Then one does.
fn writes_while_no_state_arrives(seed: u64, bugs: KnownBugs) -> Result<usize, String> {
    let mut shape = Shape::calm();
    (shape.nodes, shape.groups, shape.keeping) = (2, 1, seed % 3);
    (shape.config.seed, shape.config.bugs) = (seed, bugs);
    let mut cluster = Cluster::new(seed, &shape);
    cluster.pass(4_000)?;
    cluster.clients_work(true);
    let nodes = [1, 2].map(NodeId::must);
    for _ in 0..10 {
        cluster.pass(1_000)?;
        nodes.iter().for_each(|node| cluster.flush_machines(*node));
    }
    let leader = cluster.leader_of(GROUP).ok_or("nobody serves the group")?;
    let lost = nodes.into_iter().find(|node| *node != leader).ok_or("it is alone")?;
    cluster.ship_nothing(15_000);
    cluster.crash(lost, usize::MAX);
    cluster.lose_state(lost, GROUP);
    cluster.restart_later(lost, 50);
    cluster.pass(5_000)?;
    let stalled = |cluster: &Cluster| {
        cluster.status(lost, GROUP).is_some_and(|status| status.stalled.is_some())
    };
    if !stalled(&cluster) {
        return Err(format!("{lost:?} does not say that its state is lost"));
    }
    let before = cluster.checks().acknowledged();
    cluster.pass(10_000)?;
    let written = cluster.checks().acknowledged() - before;
    cluster.pass(8_000)?;
    if stalled(&cluster) {
        return Err(format!("{lost:?} has no state"));
    }
    Ok(written)
}

#[test]
fn writes_go_on_while_no_state_arrives() {
    for seed in 0..40 {
        let written = writes_while_no_state_arrives(seed, KnownBugs::default());
        let written = written.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        assert!(written > 100, "seed {seed}: {written} writes");
    }
}

#[test]
fn taking_no_entries_before_the_state_is_caught() {
    let bugs = KnownBugs::from([KnownBug::StopLogForState]);
    assert_eq!(writes_while_no_state_arrives(1, bugs), Ok(0));
}
