//! What a round leaves for the next.

use super::super::super::{DeferReason, LedgerMove, Snapshot, Stay, Tier};
use super::super::build::{NOW, checked_plan, group, nodes, snapshot, targets};
use super::{id, stay};
use shardhost_storage::GroupId;

fn nine_on_one() -> Snapshot {
    snapshot(nodes(3), (1..=9).map(|id| group(id, 1, &[1, 2, 3])).collect())
}

fn reasons(snapshot: &Snapshot) -> (usize, Vec<DeferReason>) {
    let plan = checked_plan(snapshot);
    (plan.moves.len(), plan.deferred.iter().map(|step| step.reason).collect())
}

#[test]
fn what_exceeds_a_budget_is_deferred_and_says_so() {
    let mut snapshot = nine_on_one();
    assert_eq!(reasons(&snapshot), (6, vec![]));
    snapshot.settings.in_per_node = 2;
    assert_eq!(reasons(&snapshot), (4, vec![DeferReason::InBudget; 2]));
    snapshot.settings.out_per_node = 3;
    assert_eq!(reasons(&snapshot).0, 3);
    snapshot.settings.moves_per_round = 1;
    assert_eq!(reasons(&snapshot), (1, vec![DeferReason::RoundBudget; 5]));
}

#[test]
fn the_first_moves_fill_all_nodes_evenly() {
    let mut snapshot = nine_on_one();
    snapshot.settings.moves_per_round = 4;
    let to: Vec<u64> = targets(&checked_plan(&snapshot)).iter().map(|step| step.1).collect();
    assert_eq!(to.iter().filter(|node| **node == 2).count(), 2, "{to:?}");
}

#[test]
fn a_deferred_group_says_where_it_waits_to_go() {
    let mut snapshot = nine_on_one();
    snapshot.settings.moves_per_round = 0;
    let plan = checked_plan(&snapshot);
    let first = plan.deferred[0];
    let (to, tier, reason) = (first.to, Tier::Count, DeferReason::RoundBudget);
    let expected = Stay::Deferred { to, tier, reason };
    assert_eq!(stay(&snapshot, &plan, first.group.get()), expected);
}

#[test]
fn moves_under_way_are_taken_off_the_budgets() {
    let mut snapshot = nine_on_one();
    snapshot.settings.moves_per_round = 3;
    let (from, to) = (id(1), id(2));
    snapshot.moves = [8, 9]
        .map(|group| LedgerMove {
            group: GroupId::new(group),
            from,
            to,
            ticket: group,
            since_ms: NOW,
            completed_at_ms: None,
            from_reported_ms: None,
            to_reported_ms: None,
        })
        .into();
    assert_eq!(reasons(&snapshot), (1, vec![DeferReason::RoundBudget; 3]));
}

#[test]
fn violations_come_before_balance() {
    // Node 3 drains; node 1 has too many. With one move a round the drain comes first.
    let mut snapshot = nine_on_one();
    snapshot.groups[8].leader = Some(id(3));
    snapshot.nodes[2].draining = true;
    snapshot.settings.moves_per_round = 1;
    assert_eq!(targets(&checked_plan(&snapshot)), [(9, 2)]);
}

#[test]
fn a_bundle_that_exceeds_the_budget_waits_as_a_whole() {
    // Only both moves together help, and the round has room for one.
    let mut groups: Vec<_> = (1..=3).map(|id| group(id, 1, &[1, 2])).collect();
    groups.extend((4..=5).map(|id| group(id, 2, &[2, 3])));
    groups.push(group(6, 3, &[3]));
    let mut snapshot = snapshot(nodes(3), groups);
    snapshot.settings.moves_per_round = 1;
    assert_eq!(reasons(&snapshot), (0, vec![DeferReason::RoundBudget; 2]));
}
