//! Groups that hibernate: they cost nothing, and whatever ends their leader, they are led again.

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::{GroupId, MembershipChange, NodeId};
use shardhost_testing::simulation::{Chance, Cluster, Shape};

use crate::{all_seeds_hold, run};

#[test]
fn hibernating_clusters_keep_their_promises_while_nodes_and_replicas_come_and_go() {
    all_seeds_hold(Shape::hibernating, |coverage, runs| {
        assert!(coverage.hibernates > runs * 10 && coverage.leaders > runs * 3, "{coverage:?}");
        assert!(coverage.acknowledged > runs * 5 && coverage.definite > runs / 10, "{coverage:?}");
    });
}

/// A seed notices the bug, in these words.
fn a_seed_notices(bug: KnownBug, words: &str) {
    let found = (0..2_000).find_map(|seed| {
        let mut shape = Shape::hibernating(seed);
        shape.config.bugs = KnownBugs::from([bug]);
        let violation = run(seed, &shape).0.err()?;
        violation.contains(words).then(|| format!("seed {seed}: {violation}"))
    });
    println!("{}", found.expect("no seed noticed the bug"));
}

#[test]
fn hibernating_through_the_end_of_a_leader_is_caught() {
    a_seed_notices(KnownBug::HibernateThroughAnEnd, "is not led");
}

#[test]
fn hibernating_after_the_loss_of_a_leader_is_caught() {
    a_seed_notices(KnownBug::HibernateAfterTheLoss, "hibernates, and nobody wakes it");
}

#[test]
fn a_turn_after_all_turns_is_caught() {
    a_seed_notices(KnownBug::TurnsOfVotersOnly, "min_election_timeout");
}

/// The leaders' replicas of all groups end while their nodes live.
#[test]
fn hibernating_groups_are_led_again_after_the_end_of_their_leaders_replicas() {
    for seed in 0..20 {
        let mut cluster = hibernating(seed, KnownBugs::default());
        for group in groups() {
            let leader = cluster.leader_of(group).expect("it hibernates under a leader");
            cluster.close(leader, group).unwrap();
        }
        cluster.pass(6_000).unwrap();
        cluster.every_group_with_a_quorum_is_led().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// A node restarts before it is missed, and the replicas that led there do not come back.
#[test]
fn hibernating_groups_are_led_again_after_a_restart_that_nobody_noticed() {
    for seed in 0..20 {
        let mut cluster = hibernating(seed, KnownBugs::default());
        let victim = cluster.pick_node(&mut Chance::new(seed));
        let led: Vec<GroupId> =
            groups().filter(|group| cluster.leader_of(*group) == Some(victim)).collect();
        cluster.crash(victim, 0);
        led.iter().for_each(|group| cluster.close(victim, *group).unwrap());
        cluster.restart(victim).unwrap();
        cluster.pass(6_000).unwrap();
        cluster.every_group_with_a_quorum_is_led().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

fn groups() -> impl Iterator<Item = GroupId> {
    (1..=30).map(GroupId::new)
}

fn hibernating(seed: u64, bugs: KnownBugs) -> Cluster {
    let mut shape = Shape::calm();
    shape.groups = 30;
    shape.config.bugs = bugs;
    let mut cluster = Cluster::new(seed, &shape);
    cluster.settle_until_hibernating().unwrap();
    cluster
}

/// No follower gets a notice of the end of the leaders' replicas. A write at a follower is refused,
/// and the group is led again.
#[test]
fn a_request_at_a_follower_wakes_a_group_whose_leader_is_gone() {
    for seed in 0..10 {
        let mut cluster = hibernating(seed, KnownBugs::from([KnownBug::HibernateThroughAnEnd]));
        let leaders =
            groups().map(|group| cluster.leader_of(group).expect("it hibernates under one"));
        let leaders: Vec<NodeId> = leaders.collect();
        for (group, leader) in groups().zip(&leaders) {
            cluster.close(*leader, group).unwrap();
        }
        cluster.pass(6_000).unwrap();
        cluster.every_group_with_a_quorum_is_led().expect_err("nobody wakes them");
        for (group, leader) in groups().zip(&leaders) {
            let other = cluster.node_ids().into_iter().find(|id| id != leader).unwrap();
            cluster.write(other, group, 1).unwrap();
        }
        cluster.pass(6_000).unwrap();
        cluster.every_group_with_a_quorum_is_led().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// Hibernating groups that lost the node of their leader, and the terms that they needed to be led
/// again.
fn elections_after_a_loss(bugs: KnownBugs) -> (u64, u64) {
    let (mut lost, mut terms) = (0, 0);
    for seed in 0..20 {
        let mut cluster = hibernating(seed, bugs);
        let victim = cluster.pick_node(&mut Chance::new(seed));
        let leaderless: Vec<(GroupId, u64)> = groups()
            .filter(|group| cluster.leader_of(*group) == Some(victim))
            .map(|group| (group, term_of(&cluster, group)))
            .collect();
        cluster.crash(victim, 0);
        cluster.pass(6_000).unwrap();
        for (group, before) in leaderless {
            assert!(cluster.leader_of(group).is_some(), "seed {seed}: {group:?}");
            lost += 1;
            terms += term_of(&cluster, group) - before;
        }
    }
    (lost, terms)
}

/// Voters that are left when a leader's node is lost campaign one after the other: one election is
/// enough.
#[test]
fn after_the_loss_of_a_leaders_node_its_hibernating_groups_hold_one_election_each() {
    let (lost, terms) = elections_after_a_loss(KnownBugs::default());
    let (lost_too, more) = elections_after_a_loss(KnownBugs::from([KnownBug::TurnOfOneTick]));
    println!("{terms} terms for {lost} groups; {more} for {lost_too} when turns are forgotten");
    assert_eq!(lost, terms);
    assert!(more > lost_too);
}

/// The node is lost that leads groups which hibernate with a learner each.
fn lose_a_leader_of_learners(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut shape = Shape::calm();
    (shape.groups, shape.spares, shape.config.bugs) = (30, 1, bugs);
    let mut cluster = Cluster::new(seed, &shape);
    cluster.pass(4_000)?;
    for group in groups() {
        let leader = cluster.leader_of(group).ok_or("it is not led")?;
        let learner = MembershipChange::new().add_learner(NodeId::must(4));
        cluster.change_members(leader, group, learner)?;
    }
    cluster.settle_until_hibernating()?;
    let victim = cluster.leader_of(GroupId::new(1 + seed % 30)).ok_or("it is not led")?;
    cluster.crash(victim, 0);
    cluster.pass(6_000)?;
    cluster.every_group_is_led_by_a_live_node()
}

#[test]
fn learners_of_hibernating_groups_survive_the_loss_of_their_leaders() {
    let bug = KnownBugs::from([KnownBug::TurnsOfVotersOnly]);
    let noticed = (0..5).filter_map(|seed| lose_a_leader_of_learners(seed, bug).err());
    let noticed: Vec<String> = noticed.collect();
    assert!(noticed.iter().any(|text| text.contains("min_election_timeout")), "{noticed:?}");
    for seed in 0..20 {
        let held = lose_a_leader_of_learners(seed, KnownBugs::default());
        held.unwrap_or_else(|text| panic!("seed {seed}: {text}"));
    }
}

fn term_of(cluster: &Cluster, group: GroupId) -> u64 {
    let statuses = cluster.node_ids().into_iter().filter_map(|node| cluster.status(node, group));
    statuses.map(|status| status.term.get()).max().unwrap_or(0)
}

#[test]
fn idle_groups_hibernate_and_cost_no_messages() {
    let mut shape = Shape::calm();
    shape.groups = 20;
    let mut cluster = Cluster::new(5, &shape);
    cluster.settle_until_hibernating().unwrap();
    let before = cluster.messages_sent();
    cluster.pass(60_000).unwrap();
    assert_eq!(cluster.messages_sent(), before, "hibernating groups sent messages");
    cluster.write_to_every_group().unwrap();
}

#[test]
fn hibernating_groups_are_led_again_after_the_loss_of_their_leaders() {
    for seed in 0..20 {
        let mut shape = Shape::calm();
        shape.groups = 30;
        let mut cluster = Cluster::new(seed, &shape);
        cluster.settle_until_hibernating().unwrap();
        let mut chance = Chance::new(seed);
        let victim = cluster.pick_node(&mut chance);
        cluster.crash(victim, 0);
        cluster.pass(6_000).unwrap();
        cluster.every_group_is_led_by_a_live_node().unwrap();
        cluster.restart(victim).unwrap();
        cluster.pass(4_000).unwrap();
        cluster.write_to_every_group().unwrap();
        cluster.settle_until_hibernating().unwrap();
    }
}
