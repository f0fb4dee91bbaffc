//! Known planner_inputs, moves in flight, targets under back-off.

use super::super::super::{BackOff, Finding, Group, LedgerMove, Snapshot, Stay, Tier};
use super::super::build::{NOW, checked_plan, counts, group, nodes, snapshot, targets};
use super::{id, stay};
use shardhost_storage::GroupId;

fn two_of_two_on_one() -> Snapshot {
    snapshot(nodes(2), (1..=2).map(|id| group(id, 1, &[1, 2])).collect())
}

fn flight(group: u64, from: u64, to: u64) -> LedgerMove {
    LedgerMove {
        group: GroupId::new(group),
        from: id(from),
        to: id(to),
        ticket: 77,
        since_ms: NOW - 100,
        completed_at_ms: None,
        from_reported_ms: Some(NOW),
        to_reported_ms: Some(NOW),
    }
}

#[test]
fn a_move_under_way_counts_as_done() {
    let mut snapshot = two_of_two_on_one();
    assert_eq!(targets(&checked_plan(&snapshot)), [(1, 2)]);
    snapshot.moves.push(flight(2, 1, 2));
    let plan = checked_plan(&snapshot);
    assert_eq!(plan.moves, []);
    assert_eq!(counts(&plan), [1, 1]);
    assert_eq!(stay(&snapshot, &plan, 2), Stay::InFlight { to: id(2), ticket: 77 });
}

#[test]
fn a_move_that_ended_counts_as_done_until_both_ends_said_something_newer() {
    let mut snapshot = two_of_two_on_one();
    snapshot.moves.push(flight(2, 1, 2));
    for (from, to, believed) in [(0, 0, false), (0, 1, false), (1, 0, false), (1, 1, true)] {
        let entry = &mut snapshot.moves[0];
        entry.completed_at_ms = Some(NOW - 50);
        entry.from_reported_ms = Some(NOW - 50 + from);
        entry.to_reported_ms = Some(NOW - 50 + to);
        let moves = checked_plan(&snapshot).moves;
        assert_eq!(moves.is_empty(), !believed, "reports {from} and {to} ms after the end");
    }
}

#[test]
fn a_muted_target_is_not_used_and_blocks_nothing_else() {
    let mut snapshot = two_of_two_on_one();
    let back_off = |until_ms| BackOff { group: GroupId::new(1), target: id(2), until_ms };
    snapshot.back_offs.push(back_off(NOW + 1));
    let plan = checked_plan(&snapshot);
    assert_eq!(targets(&plan), [(2, 2)]);
    assert_eq!(stay(&snapshot, &plan, 1), Stay::AllBackedOff { until_ms: NOW + 1 });
    snapshot.back_offs[0] = back_off(NOW);
    assert_eq!(targets(&checked_plan(&snapshot)), [(1, 2)], "the back_off is over");
}

#[test]
fn a_group_whose_leader_is_unknown_counts_where_it_was_and_stays() {
    let mut snapshot = two_of_two_on_one();
    snapshot.groups[0].last_leader = snapshot.groups[0].leader.take();
    let plan = checked_plan(&snapshot);
    assert_eq!(targets(&plan), [(2, 2)], "the other one moves");
    assert_eq!(counts(&plan), [1, 1]);
    assert_eq!(stay(&snapshot, &plan, 1), Stay::UnknownLeader);
}

#[test]
fn a_node_that_is_not_live_is_neither_source_nor_target() {
    let mut snapshot = snapshot(nodes(3), (1..=4).map(|id| group(id, 1, &[1, 2, 3])).collect());
    snapshot.groups[3].leader = Some(id(3));
    snapshot.nodes[2].live = false;
    let plan = checked_plan(&snapshot);
    assert_eq!(counts(&plan), [2, 1, 0]);
    assert_eq!(stay(&snapshot, &plan, 4), Stay::LeaderNotLive);
    let finding = Finding::LeaderNotLive { group: GroupId::new(4), node: id(3) };
    assert_eq!(plan.summary.findings, [finding]);
}

#[test]
fn a_group_that_moved_a_short_time_ago_moves_for_violations_only() {
    let mut snapshot = two_of_two_on_one();
    let moved_at = NOW - snapshot.settings.cool_down_ms + 1;
    snapshot.groups.iter_mut().for_each(|group| group.moved_at_ms = Some(moved_at));
    let plan = checked_plan(&snapshot);
    assert_eq!(plan.moves, []);
    assert_eq!(stay(&snapshot, &plan, 1), Stay::CoolDowns { until_ms: NOW + 1 });
    snapshot.nodes[0].draining = true;
    assert_eq!(targets(&checked_plan(&snapshot)), [(1, 2), (2, 2)]);
    snapshot.nodes[0].draining = false;
    snapshot.now_ms += 1;
    assert_eq!(targets(&checked_plan(&snapshot)), [(1, 2)], "its rest is over");
}

#[test]
fn unfit_draining_and_weightless_nodes_give_their_leaders_away() {
    type Spoil = fn(&mut Snapshot);
    let spoilers: [Spoil; 3] = [
        |snapshot| snapshot.nodes[0].fit = false,
        |snapshot| snapshot.nodes[0].draining = true,
        |snapshot| snapshot.nodes[0].weight = 0,
    ];
    for spoil in spoilers {
        let mut snapshot = two_of_two_on_one();
        spoil(&mut snapshot);
        let plan = checked_plan(&snapshot);
        assert_eq!(targets(&plan), [(1, 2), (2, 2)]);
        assert!(plan.moves.iter().all(|step| step.tier == Tier::Displaced));
        snapshot.nodes.swap(0, 1);
        (snapshot.nodes[0].id, snapshot.nodes[1].id) = (id(1), id(2));
        assert_eq!(checked_plan(&snapshot).moves, [], "and they get none");
    }
}

#[test]
fn a_node_that_just_came_up_takes_only_what_has_to_move() {
    let groups: Vec<Group> = (1..=2).map(|id| group(id, 1, &[1, 2])).collect();
    let mut snapshot = snapshot(nodes(2), groups);
    snapshot.nodes[1].live_since_ms = NOW - snapshot.settings.warm_up_ms + 1;
    assert_eq!(checked_plan(&snapshot).moves, []);
    snapshot.nodes[0].draining = true;
    assert_eq!(targets(&checked_plan(&snapshot)), [(1, 2), (2, 2)]);
}

#[test]
fn a_target_that_lags_or_may_lag_is_not_used() {
    for lag in [Some(4), None] {
        let mut snapshot = two_of_two_on_one();
        snapshot.settings.max_lag_entries = 3;
        snapshot.groups.iter_mut().for_each(|group| group.voters[1].lag = lag);
        let plan = checked_plan(&snapshot);
        assert_eq!(plan.moves, [], "lag {lag:?}");
        assert_eq!(stay(&snapshot, &plan, 1), Stay::NoTarget);
    }
    let mut snapshot = two_of_two_on_one();
    snapshot.settings.max_lag_entries = 3;
    snapshot.groups[0].voters[1].lag = Some(3);
    assert_eq!(targets(&checked_plan(&snapshot)).len(), 1);
}
