//! Counts, load and spread.

use super::super::super::{Group, Snapshot, Stay, Tier};
use super::super::build::{checked_plan, counts, group, node, nodes, snapshot, targets};
use super::{id, stay, words};

fn everywhere(count: u64, leader: u64, nodes: u64) -> Vec<Group> {
    let voters: Vec<u64> = (1..=nodes).collect();
    (1..=count).map(|id| group(id, leader, &voters)).collect()
}

#[test]
fn leaders_are_shared_in_proportion_to_weight() {
    let mut nodes = nodes(3);
    nodes[1].weight = 2;
    nodes[2].weight = 3;
    let plan = checked_plan(&snapshot(nodes, everywhere(12, 1, 3)));
    assert_eq!(counts(&plan), [2, 4, 6]);
    assert_eq!(plan.moves.len(), 10, "no more than the two nodes lack");
}

#[test]
fn a_balance_that_needs_a_way_over_a_third_node_is_found_in_one_bundle() {
    // Node 1 can give only to node 2, and node 2 only to node 3: neither move helps alone.
    let mut groups: Vec<Group> = (1..=3).map(|id| group(id, 1, &[1, 2])).collect();
    groups.extend((4..=5).map(|id| group(id, 2, &[2, 3])));
    groups.push(group(6, 3, &[3]));
    let plan = checked_plan(&snapshot(nodes(3), groups));
    assert_eq!(counts(&plan), [2, 2, 2]);
    assert_eq!(targets(&plan), [(4, 3), (1, 2)]);
    assert_eq!(plan.moves[0].bundle, plan.moves[1].bundle);
}

#[test]
fn a_difference_of_one_moves_nobody() {
    let plan = checked_plan(&snapshot(nodes(2), everywhere(1, 1, 2)));
    assert_eq!(plan.moves, []);
}

#[test]
fn groups_of_one_label_are_led_in_different_zones() {
    let mut groups = everywhere(3, 1, 3);
    groups.iter_mut().for_each(|group| group.label = Some("orders".to_owned()));
    let plan = checked_plan(&snapshot(nodes(3), groups));
    assert_eq!((plan.summary.before.pairs, plan.summary.after.pairs), (3, 0));
    assert_eq!(counts(&plan), [1, 1, 1]);
    assert!(plan.moves.iter().all(|step| step.tier == Tier::Spread));
}

#[test]
fn spread_is_not_given_up_for_counts() {
    // Nodes 1 and 2 are one zone, node 3 is another; the label's two leaders are in both. Node 2
    // is empty, but the leader of node 3 would join the other's zone there.
    let mut nodes = nodes(3);
    nodes[1].zone = nodes[0].zone.clone();
    let mut groups = vec![group(1, 1, &[1]), group(2, 3, &[2, 3])];
    groups.iter_mut().for_each(|group| group.label = Some("orders".to_owned()));
    groups.extend((3..=5).map(|id| group(id, 3, &[3])));
    let snapshot = snapshot(nodes, groups);
    let plan = checked_plan(&snapshot);
    assert_eq!(plan.moves, []);
    assert_eq!(stay(&snapshot, &plan, 2), Stay::WouldWorsen { tier: Tier::Spread, to: id(2) });
    assert_eq!(
        words(&snapshot, &plan, 2),
        "group 2 on node 3 stays: node 2 has fewer leaders, but spread over zones would get \
         worse [WOULD_WORSEN]\n  node 2: could take it"
    );
}

/// Two nodes; one has the given load more than the other, in many small groups.
fn lopsided(more: u32) -> Snapshot {
    let mut groups = everywhere(40, 1, 2);
    for (at, group) in groups.iter_mut().enumerate() {
        group.leader = Some(id(1 + at as u64 % 2));
        group.load = if at % 2 == 0 { 100 + more } else { 100 };
    }
    let mut snapshot = snapshot(nodes(2), groups);
    snapshot.settings.load_tier = true;
    snapshot.settings.load_tolerance_percent = 20;
    snapshot
}

#[test]
fn load_within_the_tolerance_moves_nobody() {
    // 140 to 100 is 17 % above the fair share of 120.
    assert_eq!(checked_plan(&lopsided(40)).moves, []);
}

#[test]
fn load_beyond_the_tolerance_is_brought_well_within_it_and_counts_stay_even() {
    // 200 to 100 is 33 % above the fair share of 150. A quarter of the tolerance is 5 %.
    let plan = checked_plan(&lopsided(100));
    assert!(plan.moves.iter().any(|step| step.tier == Tier::Load), "{:?}", plan.moves);
    assert_eq!(plan.summary.after.load, 0);
    let counts = counts(&plan);
    assert!(counts[0].abs_diff(counts[1]) <= 12, "{counts:?}");
}

#[test]
fn load_says_nothing_while_it_is_not_balanced() {
    let mut snapshot = lopsided(1_000);
    snapshot.settings.load_tier = false;
    assert_eq!(checked_plan(&snapshot).moves, []);
}

#[test]
fn a_node_that_comes_takes_its_part_and_nobody_else_moves() {
    let mut groups = Vec::new();
    for at in 1..=12 {
        groups.push(group(at, 1 + at % 3, &[1 + at % 3, 4]));
    }
    let mut fourth = node(4);
    fourth.zone = "zone-1".to_owned();
    let all = [nodes(3), vec![fourth]].concat();
    let plan = checked_plan(&snapshot(all, groups));
    assert_eq!(counts(&plan), [3, 3, 3, 3]);
    assert!(plan.moves.iter().all(|step| step.to == id(4)), "{:?}", plan.moves);
    assert_eq!(plan.moves.len(), 3);
}
