//! Capabilities, preferences and pins.

use super::super::super::{Finding, Group, Node, Place, Requirement, RequirementMode, Stay, Tier};
use super::super::build::{checked_plan, group, names, nodes, snapshot, targets};
use super::{id, stay, words};
use shardhost_storage::GroupId;

fn requiring(made: Group, mode: RequirementMode) -> Group {
    Group { requirement: Requirement { capabilities: names(&["fifo"]), mode }, ..made }
}

fn capable(mut nodes: Vec<Node>, which: &[u64]) -> Vec<Node> {
    for node in nodes.iter_mut().filter(|node| which.contains(&node.id.get())) {
        node.capabilities = Some(names(&["fifo"]));
    }
    nodes
}

#[test]
fn who_lacks_a_hard_requirement_gives_away_before_who_lacks_a_soft_one() {
    let groups = vec![
        requiring(group(1, 1, &[1, 2]), RequirementMode::Soft),
        requiring(group(2, 1, &[1, 2]), RequirementMode::Hard),
    ];
    let mut snapshot = snapshot(capable(nodes(2), &[2]), groups);
    snapshot.settings.moves_per_round = 1;
    let plan = checked_plan(&snapshot);
    assert_eq!(targets(&plan), [(2, 2)]);
    assert_eq!(plan.moves[0].tier, Tier::Capability);
    assert_eq!((plan.summary.after_round.hard, plan.summary.after_round.soft), (0, 1));
}

#[test]
fn capability_counts_more_than_balance_and_preference() {
    let mut groups: Vec<Group> =
        (1..=4).map(|id| requiring(group(id, 2, &[1, 2]), RequirementMode::Hard)).collect();
    groups[0].preference = vec![Place::Node(id(1))];
    let snapshot = snapshot(capable(nodes(2), &[2]), groups);
    let plan = checked_plan(&snapshot);
    assert_eq!(plan.moves, []);
    assert_eq!(stay(&snapshot, &plan, 1), Stay::NoTarget);
    assert_eq!(
        words(&snapshot, &plan, 1),
        "group 1 on node 2 stays: none of its other voters can take it [NO_TARGET]\n  node 1: lacks \
         what the group requires [INCAPABLE]"
    );
}

#[test]
fn an_unknown_advertisement_is_no_reason_to_leave() {
    let mut nodes = capable(nodes(2), &[2]);
    nodes[0].capabilities = None;
    let groups = vec![requiring(group(1, 1, &[1, 2]), RequirementMode::Hard)];
    assert_eq!(checked_plan(&snapshot(nodes, groups)).moves, []);
}

#[test]
fn an_unknown_advertisement_is_a_target_after_all_that_are_known_to_be_capable() {
    let mut nodes = capable(nodes(3), &[3]);
    nodes[1].capabilities = None;
    let leaving = requiring(group(1, 1, &[1, 2, 3]), RequirementMode::Hard);
    let only_unknown = requiring(group(2, 1, &[1, 2]), RequirementMode::Hard);
    let content = requiring(group(3, 3, &[2, 3]), RequirementMode::Hard);
    let fill = (4..=6).map(|id| group(id, 3, &[3]));
    let groups = [leaving, only_unknown, content].into_iter().chain(fill).collect();
    let plan = checked_plan(&snapshot(nodes, groups));
    assert_eq!(targets(&plan), [(2, 2), (1, 3)], "and group 3 does not go to the empty node 2");
}

#[test]
fn a_group_without_capable_voters_is_reported_and_left() {
    let groups = vec![requiring(group(1, 1, &[1, 2]), RequirementMode::Hard)];
    let plan = checked_plan(&snapshot(nodes(2), groups));
    assert_eq!(plan.moves, []);
    assert_eq!(plan.stuck[0].tier, Tier::Capability);
    assert_eq!(plan.summary.findings, [Finding::NoCapableVoter { group: GroupId::new(1) }]);
}

#[test]
fn a_group_goes_to_the_best_place_of_its_preference() {
    let mut made = group(1, 1, &[1, 2, 3]);
    made.preference = vec![Place::Zone("zone-3".to_owned()), Place::Node(id(2))];
    let mut snapshot = snapshot(nodes(3), vec![made]);
    assert_eq!(targets(&checked_plan(&snapshot)), [(1, 3)]);
    snapshot.nodes[2].live = false;
    assert_eq!(targets(&checked_plan(&snapshot)), [(1, 2)], "the second place is better than none");
}

#[test]
fn a_preference_counts_more_than_balance() {
    let mut groups: Vec<Group> = (1..=4).map(|id| group(id, 1, &[1, 2])).collect();
    for group in &mut groups {
        group.preference = vec![Place::Node(id(1))];
    }
    let snapshot = snapshot(nodes(2), groups);
    let plan = checked_plan(&snapshot);
    assert_eq!(plan.moves, []);
    assert_eq!(stay(&snapshot, &plan, 1), Stay::WouldWorsen { tier: Tier::Preference, to: id(2) });
}

#[test]
fn a_pin_counts_more_than_a_preference() {
    let mut made = group(1, 1, &[1, 2, 3]);
    made.preference = vec![Place::Node(id(3))];
    made.pin = Some(id(2));
    let mut snapshot = snapshot(nodes(3), vec![made]);
    assert_eq!(targets(&checked_plan(&snapshot)), [(1, 2)]);
    snapshot.groups[0].leader = Some(id(2));
    let plan = checked_plan(&snapshot);
    assert_eq!(stay(&snapshot, &plan, 1), Stay::Pinned);
}

#[test]
fn a_pin_to_a_node_that_is_no_voter_is_reported_and_ignored() {
    let mut made = group(1, 1, &[1, 2]);
    made.preference = vec![Place::Node(id(2))];
    made.pin = Some(id(3));
    let plan = checked_plan(&snapshot(nodes(3), vec![made]));
    assert_eq!(targets(&plan), [(1, 2)], "the preference still holds");
    let finding = Finding::PinToNonVoter { group: GroupId::new(1), node: id(3) };
    assert_eq!(plan.summary.findings, [finding]);
}

#[test]
fn a_preference_that_names_a_place_twice_is_reported_and_ignored() {
    let mut made = group(1, 1, &[1, 2]);
    made.preference = vec![Place::Node(id(2)), Place::Node(id(1)), Place::Node(id(2))];
    let plan = checked_plan(&snapshot(nodes(2), vec![made]));
    assert_eq!(plan.moves, []);
    let finding = Finding::PreferenceContradicts { group: GroupId::new(1) };
    assert_eq!(plan.summary.findings, [finding]);
}
