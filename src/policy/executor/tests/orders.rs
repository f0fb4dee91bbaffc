//! Which orders start, in which order, and what is remembered of them.

use super::super::{ExecutorSettings, MoveOutcome, PlannerTerm, Ticket};
use super::build::{Desk, all_on_one, gid, group, id};
use shardhost_groups::RejectReason;

/// Only two moves together lower the score: node 3 may lead what node 1 has too much of only by way
/// of node 2.
fn chain() -> Desk {
    let mut groups: Vec<_> = (1..=3).map(|number| group(number, 1, &[1, 2])).collect();
    groups.extend((4..=5).map(|number| group(number, 2, &[2, 3])));
    groups.push(group(6, 3, &[3]));
    Desk::new(3, groups)
}

#[test]
fn an_order_carries_the_fence_of_its_plan() {
    let mut desk = Desk::new(2, all_on_one(2, &[1, 2]));
    desk.plan();
    let order = desk.orders()[0];
    assert_eq!((order.from, order.to, order.term, order.to_incarnation), (id(1), id(2), 7, 102));
    assert_eq!(order.ticket, Ticket { planner_term: PlannerTerm::new(3), number: 1 });
}

#[test]
fn steps_of_a_bundle_start_one_after_the_other() {
    let mut desk = chain();
    let plan = desk.plan();
    assert_eq!(plan.moves.len(), 2);
    assert!(plan.moves.iter().all(|step| step.bundle == 0));
    let first = desk.orders();
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].group, plan.moves[0].group);
    assert_eq!(desk.orders(), []);
    desk.obey(&first[0]);
    let second = desk.orders();
    assert_eq!(second.iter().map(|order| order.group).collect::<Vec<_>>(), [plan.moves[1].group]);
}

#[test]
fn the_rest_of_a_bundle_does_not_follow_a_step_that_failed() {
    for outcome in [MoveOutcome::Failed { reason: RejectReason::Refused }, MoveOutcome::Unknown] {
        let mut desk = chain();
        desk.plan();
        let first = desk.orders()[0];
        desk.executor.ended(first.ticket, desk.now, outcome);
        assert_eq!(desk.orders(), [], "{outcome:?}");
    }
}

#[test]
fn the_rest_of_a_bundle_does_not_follow_into_a_later_plan() {
    let mut desk = chain();
    desk.plan();
    let first = desk.orders()[0];
    desk.stopped = super::build::stop();
    desk.plan();
    desk.obey(&first);
    assert_eq!(desk.orders(), []);
}

#[test]
fn the_rest_of_a_bundle_does_not_follow_when_a_later_plan_leaves_it_out() {
    let mut desk = chain();
    let plan = desk.plan();
    let first = desk.orders()[0];
    let rest = plan.moves[1];
    desk.group(rest.group.get()).pin = Some(rest.from);
    desk.plan();
    desk.obey(&first);
    assert!(desk.orders().iter().all(|order| order.group != rest.group));
}

#[test]
fn the_rest_of_a_bundle_does_not_follow_when_the_kill_switch_was_set_and_released() {
    let mut desk = chain();
    desk.plan();
    let first = desk.orders()[0];
    desk.executor.control(desk.mode, super::build::stop());
    desk.obey(&first);
    desk.executor.control(desk.mode, None);
    assert_eq!(desk.orders(), [], "the next round plans anew");
}

#[test]
fn a_move_counts_as_done_until_both_ends_reported_after_its_end() {
    let mut desk = Desk::new(2, all_on_one(2, &[1, 2]));
    desk.plan();
    let order = desk.orders()[0];
    // Reports of the past are seen in the next rounds: the leader that was is the leader still.
    desk.executor.ended(order.ticket, desk.now, MoveOutcome::Moved { stalled_ms: 1 });
    desk.silent.insert(id(2), desk.now);
    for _ in 0..5 {
        let plan = desk.plan();
        assert_eq!((plan.moves.len(), plan.summary.nodes[0].before), (0, 1));
        assert_eq!(desk.executor.status(desk.now).unconfirmed, 1);
    }
    desk.silent.clear();
    let plan = desk.plan();
    assert_eq!(desk.executor.status(desk.now).unconfirmed, 0);
    assert_eq!(plan.summary.nodes[0].before, 2, "the reports have the last word");
}

#[test]
fn a_report_of_a_later_term_settles_a_move_at_once() {
    let mut desk = Desk::new(2, all_on_one(2, &[1, 2]));
    desk.plan();
    let order = desk.orders()[0];
    desk.obey(&order);
    desk.silent.insert(id(1), desk.now);
    desk.plan();
    assert_eq!(desk.executor.status(desk.now).unconfirmed, 0);
}

#[test]
fn a_move_that_nobody_confirms_is_forgotten_in_the_end() {
    let mut desk = Desk::new(2, all_on_one(2, &[1, 2]));
    desk.plan();
    let order = desk.orders()[0];
    desk.executor.ended(order.ticket, desk.now, MoveOutcome::Moved { stalled_ms: 1 });
    desk.silent.insert(id(2), desk.now);
    desk.round_after(59_999);
    assert_eq!(desk.executor.status(desk.now).unconfirmed, 1);
    desk.round_after(1);
    assert_eq!(desk.executor.status(desk.now).unconfirmed, 0);
}

#[test]
fn an_order_without_an_answer_is_given_up_and_counts_until_reports_are_newer() {
    let mut desk = Desk::new(2, all_on_one(2, &[1, 2]));
    desk.plan();
    let order = desk.orders()[0];
    desk.round_after(9_999);
    assert_eq!(desk.executor.status(desk.now).in_flight, 1);
    desk.round_after(1);
    let status = desk.executor.status(desk.now);
    assert_eq!((status.in_flight, status.unconfirmed), (0, 1));
    assert_eq!(status.failed[&order.tier][RejectReason::NoAnswer.name()], 1);
    desk.round_after(1);
    assert_eq!(desk.executor.status(desk.now).unconfirmed, 0);
    // An answer that comes after all this changes nothing but a count.
    desk.executor.ended(order.ticket, desk.now, MoveOutcome::Moved { stalled_ms: 1 });
    let status = desk.executor.status(desk.now);
    assert_eq!((status.late_answers, status.moved.len()), (1, 0));
}

#[test]
fn an_answer_that_comes_before_the_order_was_given_up_counts_whatever_the_time() {
    let mut desk = Desk::new(2, all_on_one(2, &[1, 2]));
    desk.plan();
    let order = desk.orders()[0];
    desk.executor.ended(order.ticket, desk.now + 60_000, MoveOutcome::Moved { stalled_ms: 1 });
    let status = desk.executor.status(desk.now);
    assert_eq!((status.moved[&order.tier], status.late_answers), (1, 0));
}

#[test]
fn a_ticket_of_another_planner_term_ends_nothing() {
    let mut desk = Desk::new(2, all_on_one(2, &[1, 2]));
    desk.plan();
    let order = desk.orders()[0];
    let other = Ticket { planner_term: PlannerTerm::new(2), ..order.ticket };
    desk.executor.ended(other, desk.now, MoveOutcome::Moved { stalled_ms: 1 });
    assert_eq!(desk.executor.status(desk.now).in_flight, 1);
}

#[test]
fn a_new_round_replaces_what_did_not_start() {
    let mut desk = Desk::new(3, all_on_one(9, &[1, 2, 3]));
    desk.plan();
    // Another party moved them meanwhile.
    for number in 4..=6 {
        desk.group(number).leader = Some(id(2));
    }
    for number in 7..=9 {
        desk.group(number).leader = Some(id(3));
    }
    desk.plan();
    assert_eq!(desk.orders(), []);
}

#[test]
fn a_group_that_moved_rests_even_if_an_election_hides_it() {
    let mut desk = Desk::new(2, all_on_one(2, &[1, 2]));
    desk.plan();
    let order = desk.orders()[0];
    desk.obey(&order);
    desk.plan();
    // It is elected back: reports no longer say that it moved.
    let number = order.group.get();
    (desk.group(number).leader, desk.group(number).term) = (Some(id(1)), 9);
    desk.group(number).moved_at_ms = None;
    let other = desk.truth.groups.iter().map(|group| group.id).find(|id| *id != order.group);
    let plan = desk.plan();
    assert_eq!(plan.moves.iter().map(|step| Some(step.group)).collect::<Vec<_>>(), [other]);
    desk.group(other.map_or(0, |id| id.get())).pin = Some(id(1));
    assert_eq!(desk.plan().moves, []);
    desk.round_after(300_000);
    assert_eq!(desk.orders().iter().map(|order| order.group).collect::<Vec<_>>(), [order.group]);
}

/// A move of group 1 took place, its answer was lost, and an election hid it.
fn hidden_move(leader_when_confirmed: Option<u64>) -> Desk {
    let mut desk = Desk::new(2, vec![group(1, 1, &[1, 2]), group(2, 1, &[1])]);
    desk.plan();
    let order = desk.orders()[0];
    assert_eq!(order.group, gid(1));
    desk.executor.ended(order.ticket, desk.now, MoveOutcome::Unknown);
    (desk.group(1).leader, desk.group(1).term) = (leader_when_confirmed.map(id), 8);
    desk.round_after(10_001);
    assert_eq!(desk.executor.status(desk.now).unconfirmed, 0);
    (desk.group(1).leader, desk.group(1).term) = (Some(id(1)), 9);
    desk
}

#[test]
fn a_move_whose_answer_was_lost_counts_for_rest_if_the_term_changed() {
    for leader_when_confirmed in [Some(2), Some(1), None] {
        let mut desk = hidden_move(leader_when_confirmed);
        desk.round_after(60_000);
        assert_eq!(desk.orders(), [], "{leader_when_confirmed:?}");
        desk.round_after(240_000);
        assert_eq!(desk.orders().len(), 1, "{leader_when_confirmed:?}");
    }
}

#[test]
fn a_move_that_did_not_take_place_is_no_reason_to_rest() {
    let mut desk = Desk::new(2, vec![group(1, 1, &[1, 2]), group(2, 1, &[1])]);
    desk.plan();
    let order = desk.orders()[0];
    desk.executor.ended(order.ticket, desk.now, MoveOutcome::Unknown);
    desk.round_after(9_999);
    assert_eq!(desk.executor.status(desk.now).unconfirmed, 1, "its host may still begin it");
    desk.round_after(2);
    assert_eq!(desk.orders().len(), 1, "the back_off is over, and it is in its old term");
}

#[test]
fn a_plan_that_is_too_old_is_not_carried_out() {
    let mut desk = Desk::new(2, all_on_one(2, &[1, 2]));
    desk.plan();
    desk.now += 5_001;
    assert_eq!(desk.orders(), []);
}

#[test]
fn a_clock_that_goes_back_stands_still() {
    let mut desk = Desk::new(2, all_on_one(2, &[1, 2]));
    desk.plan();
    assert_eq!(desk.executor.next_orders(0).len(), 1);
    desk.executor.control(super::super::Mode::Off, None);
    assert!(desk.executor.why(gid(1), 0).to_string().contains("group 1"));
}

#[test]
fn ten_thousand_groups_on_one_of_three_nodes_are_balanced_within_two_rounds() {
    let mut desk = Desk::with(
        3,
        all_on_one(10_000, &[1, 2, 3]),
        ExecutorSettings { warm_up_ms: 0, ..ExecutorSettings::default() },
    );
    let mut moved = 0;
    for _ in 0..2 {
        desk.plan();
        moved += desk.obey_all();
    }
    assert_eq!(moved, 6_666, "the fewest moves");
    let mut counts = desk.counts();
    counts.sort_unstable();
    assert_eq!(counts, [3_333, 3_333, 3_334]);
    assert_eq!(desk.plan().moves, []);
}
