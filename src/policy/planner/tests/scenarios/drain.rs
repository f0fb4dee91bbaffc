//! The one assignment for a drain.

use super::super::super::{
    BackOff, Requirement, RequirementMode, Snapshot, Stay, Tier, assign_drain,
};
use super::super::build::{checked_plan, group, names, nodes, snapshot};
use super::id;
use shardhost_storage::GroupId;

fn draining_first(mut snapshot: Snapshot) -> Snapshot {
    snapshot.nodes[0].draining = true;
    snapshot
}

#[test]
fn all_leaders_go_at_once_to_where_they_are_fewest() {
    // Node 2 has six leaders, node 3 none. The nine of node 1 even that out without touching the
    // six.
    let mut groups: Vec<_> = (1..=9).map(|id| group(id, 1, &[1, 2, 3])).collect();
    groups.extend((10..=15).map(|id| group(id, 2, &[1, 2, 3])));
    let snapshot = draining_first(snapshot(nodes(3), groups));
    let drain = assign_drain(&snapshot).expect("a sound snapshot");
    assert_eq!(drain.moves.len(), 9);
    let after: Vec<u64> = drain.nodes.iter().map(|node| node.after).collect();
    let (fewer, more) = (after[1].min(after[2]), after[1].max(after[2]));
    assert_eq!((after[0], fewer, more), (0, 7, 8));
    assert!(drain.moves.iter().all(|step| step.from == id(1)));
}

#[test]
fn weights_are_respected_and_other_leaders_stand_still() {
    let mut nodes = nodes(3);
    nodes[2].weight = 2;
    let groups = (1..=9).map(|id| group(id, 1, &[1, 2, 3])).collect();
    let drain = assign_drain(&draining_first(snapshot(nodes, groups))).expect("a sound snapshot");
    let after: Vec<u64> = drain.nodes.iter().map(|node| node.after).collect();
    assert_eq!(after, [0, 3, 6]);
}

#[test]
fn budgets_do_not_bind_an_assignment() {
    let groups = (1..=9).map(|id| group(id, 1, &[1, 2])).collect();
    let mut snapshot = draining_first(snapshot(nodes(2), groups));
    snapshot.settings.moves_per_round = 1;
    assert_eq!(checked_plan(&snapshot).moves.len(), 1);
    assert_eq!(assign_drain(&snapshot).expect("a sound snapshot").moves.len(), 9);
}

#[test]
fn who_cannot_leave_is_named_with_the_reason() {
    let mut groups: Vec<_> = (1..=5).map(|id| group(id, 1, &[1, 2])).collect();
    groups[0].voters.truncate(1);
    groups[1].requirement =
        Requirement { capabilities: names(&["fifo"]), mode: RequirementMode::Hard };
    groups[3].last_leader = groups[3].leader.take();
    let mut snapshot = draining_first(snapshot(nodes(2), groups));
    snapshot.nodes[0].capabilities = Some(names(&["fifo"]));
    let until_ms = snapshot.now_ms + 9;
    snapshot.back_offs.push(BackOff { group: GroupId::new(3), target: id(2), until_ms });
    let drain = assign_drain(&snapshot).expect("a sound snapshot");
    let reasons: Vec<_> = drain
        .undrainable
        .iter()
        .map(|stuck| (stuck.group.get(), stuck.tier, stuck.reason))
        .collect();
    assert_eq!(
        reasons,
        [
            (1, Tier::Displaced, Stay::NoTarget),
            (2, Tier::Displaced, Stay::NoTarget),
            (3, Tier::Displaced, Stay::AllBackedOff { until_ms }),
            (4, Tier::Displaced, Stay::UnknownLeader),
        ]
    );
    assert_eq!(drain.moves.len(), 1, "the fifth leaves");
}

#[test]
fn groups_of_one_label_are_spread_while_they_leave() {
    let mut groups: Vec<_> = (1..=2).map(|id| group(id, 1, &[1, 2, 3])).collect();
    groups.iter_mut().for_each(|group| group.label = Some("orders".to_owned()));
    let drain =
        assign_drain(&draining_first(snapshot(nodes(3), groups))).expect("a sound snapshot");
    let to: Vec<u64> = drain.moves.iter().map(|step| step.to.get()).collect();
    assert!(to == [2, 3] || to == [3, 2], "{to:?}");
}
