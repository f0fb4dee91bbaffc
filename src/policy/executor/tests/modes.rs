//! Off, shadow, on, the kill switch, and the warm_up of a fresh executor.

use super::super::{Answer, ExecutorSettings, Hold, Mode, NoPlan};
use super::build::{Desk, START, all_on_one, gid, id, stop};

fn nine() -> Desk {
    Desk::new(3, all_on_one(9, &[1, 2, 3]))
}

#[test]
fn off_plans_nothing_and_moves_nothing() {
    let mut desk = nine();
    desk.mode = Mode::Off;
    let round = desk.round_after(1_000);
    assert_eq!(round.made, Err(NoPlan::Off));
    assert_eq!((round.queued, round.hold), (0, Some(Hold::Off)));
    assert_eq!(desk.orders(), []);
    assert_eq!(desk.executor.recorded().count(), 0);
}

#[test]
fn shadow_plans_counts_each_move_once_and_moves_nothing() {
    let mut desk = nine();
    desk.mode = Mode::Shadow;
    assert_eq!(desk.plan().moves.len(), 6);
    assert_eq!(desk.orders(), []);
    desk.plan();
    let status = desk.executor.status(desk.now);
    assert_eq!((status.would_move, status.hold), (6, Some(Hold::Shadow)));
    assert_eq!(desk.executor.recorded().count(), 1);
}

#[test]
fn on_moves_what_is_planned() {
    let mut desk = nine();
    desk.plan();
    assert_eq!(desk.obey_all(), 6);
    assert_eq!(desk.counts(), [3, 3, 3]);
    assert_eq!(desk.plan().moves, []);
}

#[test]
fn after_the_kill_switch_nothing_starts_and_what_is_under_way_ends() {
    let mut desk = nine();
    desk.executor = super::super::Executor::new(
        desk.executor.planner_term(),
        START,
        ExecutorSettings {
            warm_up_ms: 0,
            window: super::super::WindowSettings { first: 2, least: 2, most: 2 },
            ..ExecutorSettings::default()
        },
    );
    desk.plan();
    let first = desk.orders();
    assert_eq!(first.len(), 2);
    // Received between two passes: the rest of the plan is dropped at once.
    desk.executor.control(Mode::On, stop());
    desk.obey(&first[0]);
    assert_eq!(desk.orders(), []);
    desk.stopped = stop();
    assert_eq!(desk.plan().moves.len(), 4, "it plans, to show what it would do");
    desk.obey(&first[1]);
    assert_eq!(desk.orders(), []);
    assert_eq!(desk.counts().iter().sum::<usize>(), 9);
    assert_eq!(desk.counts()[0], 7);
    desk.stopped = None;
    desk.plan();
    assert_eq!(desk.obey_all(), 4);
}

#[test]
fn the_kill_switch_says_why_in_the_operators_words() {
    let mut desk = nine();
    desk.stopped = stop();
    desk.plan();
    let why = desk.executor.why(gid(1), desk.now);
    assert!(matches!(why.answer, Answer::WouldMove { .. } | Answer::AsPlanned), "{why}");
    let hold = desk.executor.status(desk.now).hold.expect("it is stopped");
    assert!(hold.to_string().contains("maintenance"), "{hold}");
}

fn fresh() -> Desk {
    Desk::with(3, all_on_one(9, &[1, 2, 3]), ExecutorSettings::default())
}

#[test]
fn a_fresh_executor_moves_nothing_until_its_grace_is_over() {
    let mut desk = fresh();
    for _ in 0..9 {
        assert_eq!(desk.plan().moves.len(), 6);
        assert_eq!(desk.orders(), []);
    }
    assert!(matches!(desk.executor.status(desk.now).hold, Some(Hold::WarmUp { .. })));
    desk.plan();
    assert_eq!(desk.orders().len(), 6);
}

#[test]
fn a_fresh_executor_waits_for_every_live_node_but_not_for_ever() {
    // Node 3 reported before the executor began, and never since.
    let mut desk = fresh();
    desk.silent.insert(id(3), START - 1);
    for _ in 0..59 {
        desk.round_after(1_000);
        assert_eq!(desk.orders(), []);
    }
    let hold = desk.executor.status(desk.now).hold.expect("it waits");
    assert!(hold.to_string().contains("reports of node 3"), "{hold}");
    desk.round_after(1_000);
    // It continues without the silent one, which is neither source nor target.
    let orders = desk.orders();
    assert!(!orders.is_empty() && orders.iter().all(|order| order.to == id(2)), "{orders:?}");
}

#[test]
fn a_node_that_is_known_to_be_down_is_not_waited_for() {
    let mut desk = fresh();
    desk.silent.insert(id(3), START - 1);
    desk.node(3).live = false;
    desk.round_after(10_000);
    assert!(!desk.orders().is_empty());
}
