//! An answer for every group, at every time.

use super::super::{
    Answer, Executor, ExecutorSettings, Hold, Mode, MoveOutcome, Wait, WindowSettings,
};
use super::build::{Desk, START, all_on_one, gid, group, id, stop};
use crate::planner::{Outcome, Stay, Tier};
use shardhost_groups::RejectReason;

fn answer(desk: &Desk, number: u64) -> Answer {
    let why = desk.executor.why(gid(number), desk.now);
    assert!(why.to_string().starts_with(&format!("group {number} ")), "{why}");
    why.answer
}

fn two() -> Desk {
    Desk::new(2, vec![group(1, 1, &[1, 2]), group(2, 1, &[1])])
}

#[test]
fn before_the_first_round_and_while_it_is_off_nothing_is_planned() {
    let mut desk = two();
    assert_eq!(answer(&desk, 1), Answer::NotPlanned(Hold::NoRound));
    desk.mode = Mode::Off;
    desk.round_after(1_000);
    assert_eq!(answer(&desk, 1), Answer::NotPlanned(Hold::Off));
    assert_eq!(answer(&desk, 99), Answer::NotPlanned(Hold::Off));
}

#[test]
fn a_planner_that_was_just_switched_off_plans_nothing_whatever_it_planned_before() {
    let mut desk = two();
    desk.plan();
    desk.executor.control(Mode::Off, None);
    for number in [1, 2, 99] {
        assert_eq!(answer(&desk, number), Answer::NotPlanned(Hold::Off));
    }
}

#[test]
fn a_planner_that_was_just_switched_on_waits_for_its_first_round() {
    let mut desk = two();
    desk.mode = Mode::Off;
    desk.round_after(1_000);
    desk.executor.control(Mode::On, None);
    assert_eq!(answer(&desk, 1), Answer::NotPlanned(Hold::NoRound));
    assert_eq!(desk.executor.status(desk.now).hold, Some(Hold::NoRound));
}

#[test]
fn a_group_that_nobody_reports_has_an_answer_too() {
    let mut desk = two();
    desk.plan();
    assert_eq!(answer(&desk, 99), Answer::NotReported);
}

#[test]
fn a_picture_that_cannot_be_planned_says_what_is_wrong() {
    let mut desk = two();
    desk.truth.groups.push(group(1, 1, &[1]));
    desk.round_after(1_000);
    let Answer::NotPlanned(Hold::Unplannable { error }) = answer(&desk, 1) else {
        panic!("{:?}", answer(&desk, 1));
    };
    assert!(error.contains("1 follows 1"), "{error}");
    assert_eq!(desk.orders(), []);
}

#[test]
fn a_move_that_may_not_start_says_why() {
    let to = id(2);
    let mut desk = two();
    desk.stopped = stop();
    desk.plan();
    let hold = Hold::Stopped(stop().expect("a stop"));
    assert_eq!(answer(&desk, 1), Answer::WouldMove { to, tier: Tier::Count, hold });
    desk.stopped = None;
    desk.mode = Mode::Shadow;
    desk.plan();
    let would = Answer::WouldMove { to, tier: Tier::Count, hold: Hold::Shadow };
    assert_eq!(answer(&desk, 1), would);
}

#[test]
fn a_move_in_the_grace_time_waits_for_it() {
    let groups = vec![group(1, 1, &[1, 2]), group(2, 1, &[1])];
    let mut desk = Desk::with(2, groups, ExecutorSettings::default());
    desk.plan();
    let (until_ms, longest_ms) = (START + 10_000, START + 60_000);
    let hold = Hold::WarmUp { until_ms, longest_ms, silent: Vec::new() };
    let waits = Answer::Waits { to: id(2), tier: Tier::Count, wait: Wait::Hold(hold) };
    assert_eq!(answer(&desk, 1), waits);
}

#[test]
fn a_move_goes_through_all_its_answers() {
    let (to, tier) = (id(2), Tier::Count);
    let mut desk = two();
    desk.plan();
    assert_eq!(answer(&desk, 1), Answer::Waits { to, tier, wait: Wait::Turn });
    let order = desk.orders()[0];
    let (ticket, since_ms) = (order.ticket, desk.now);
    assert_eq!(answer(&desk, 1), Answer::UnderWay { ticket, to, since_ms });
    desk.plan();
    assert_eq!(answer(&desk, 1), Answer::UnderWay { ticket, to, since_ms });
    desk.executor.ended(ticket, desk.now, MoveOutcome::Moved { stalled_ms: 1 });
    assert_eq!(answer(&desk, 1), Answer::Unconfirmed { ticket, to });
    (desk.group(1).leader, desk.group(1).term) = (Some(to), 8);
    desk.plan();
    assert_eq!(answer(&desk, 1), Answer::AsPlanned);
    let why = desk.executor.why(gid(1), desk.now);
    let outcome = why.explanation.map(|explanation| explanation.outcome);
    assert!(matches!(outcome, Some(Outcome::Stays(Stay::CoolDowns { .. }))), "{outcome:?}");
}

#[test]
fn a_move_that_failed_waits_for_the_next_round_and_is_then_muted() {
    let mut desk = two();
    desk.plan();
    let order = desk.orders()[0];
    desk.fail(&order, RejectReason::Refused);
    assert_eq!(answer(&desk, 1), Answer::NextRound { to: id(2) });
    desk.plan();
    let why = desk.executor.why(gid(1), desk.now);
    let outcome = why.explanation.map(|explanation| explanation.outcome);
    assert!(matches!(outcome, Some(Outcome::Stays(Stay::AllBackedOff { .. }))), "{outcome:?}");
}

#[test]
fn a_move_that_waits_for_the_pace_says_for_what() {
    let narrow = |window: u32, node_window: u32| {
        let of = |size| WindowSettings { first: size, least: size, most: size };
        let settings = ExecutorSettings {
            warm_up_ms: 0,
            window: of(window),
            node_window: of(node_window),
            ..ExecutorSettings::default()
        };
        let mut desk = Desk::with(2, all_on_one(4, &[1, 2]), settings);
        let plan = desk.plan();
        assert_eq!((plan.moves.len(), desk.orders().len()), (2, 1));
        answer(&desk, plan.moves[1].group.get())
    };
    let waits = |wait| Answer::Waits { to: id(2), tier: Tier::Count, wait };
    assert_eq!(narrow(1, 9), waits(Wait::Window { size: 1 }));
    assert_eq!(narrow(9, 1), waits(Wait::NodeWindow { node: id(1), size: 1 }));
}

#[test]
fn the_rest_of_a_bundle_waits_for_the_step_before() {
    let mut groups: Vec<_> = (1..=3).map(|number| group(number, 1, &[1, 2])).collect();
    groups.extend((4..=5).map(|number| group(number, 2, &[2, 3])));
    groups.push(group(6, 3, &[3]));
    let mut desk = Desk::new(3, groups);
    let plan = desk.plan();
    let order = desk.orders()[0];
    let Answer::Waits { wait, .. } = answer(&desk, plan.moves[1].group.get()) else {
        panic!("{:?}", answer(&desk, plan.moves[1].group.get()));
    };
    assert_eq!(wait, Wait::Bundle { after: order.ticket.number });
}

#[test]
fn a_fresh_executor_of_a_later_planner_term_knows_nothing_and_says_so() {
    let executor =
        Executor::new(super::super::PlannerTerm::new(4), START, ExecutorSettings::default());
    let why = executor.why(gid(5), START);
    assert_eq!(why.answer, Answer::NotPlanned(Hold::NoRound));
}
