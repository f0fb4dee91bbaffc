//! Good and bad histories by hand, random ones against all orders, and how long it takes.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::table::{Action, Answer, Table, TableOp};
use super::{History, Limits, Model, Operation, Outcome, Recorder, Verdict, check};

type Register = Table<char, u32>;
type Op = TableOp<char, u32>;
type Step = Operation<Op, Answer<u32>>;

const WRITTEN: Answer<u32> = Answer::Written;

fn value(value: u32) -> Answer<u32> {
    Answer::Value(Some(value))
}

fn done(client: u64, from: u64, to: u64, action: Action<u32>, answer: Answer<u32>) -> Step {
    let op = TableOp::new('x', action);
    Operation { client, op, called: from, outcome: Outcome::Answered { at: to, answer } }
}

fn lost(client: u64, from: u64, action: Action<u32>) -> Step {
    Operation { client, op: TableOp::new('x', action), called: from, outcome: Outcome::Unknown }
}

fn judge(steps: impl IntoIterator<Item = Step>) -> Verdict<Register> {
    check(&Table::new(), &steps.into_iter().collect(), Limits::default())
}

fn swap(expect: Option<u32>, value: u32) -> Action<u32> {
    Action::CompareAndSet { expect, value: Some(value) }
}

#[test]
fn a_history_without_operations_is_linearizable() {
    judge([]).demand();
}

#[test]
fn operations_one_after_the_other_are_taken_as_they_came() {
    judge([
        done(1, 1, 2, Action::Get, Answer::Value(None)),
        done(1, 3, 4, Action::Put(1), Answer::Done { existed: false }),
        done(2, 5, 6, swap(Some(1), 2), Answer::Done { existed: true }),
        done(1, 7, 8, swap(Some(1), 3), Answer::Differs { actual: Some(2) }),
        done(2, 9, 10, Action::Delete, Answer::Done { existed: true }),
        done(2, 11, 12, Action::Get, Answer::Value(None)),
    ])
    .demand();
}

#[test]
fn concurrent_operations_may_come_in_any_order() {
    // Both reads run while the write does; the one that returns first saw the newer value.
    judge([
        done(1, 1, 10, Action::Put(1), WRITTEN),
        done(2, 2, 5, Action::Get, value(1)),
        done(3, 3, 9, Action::Get, value(1)),
        done(3, 11, 12, Action::Get, value(1)),
    ])
    .demand();
    judge([
        done(1, 1, 10, Action::Put(1), WRITTEN),
        done(2, 2, 5, Action::Get, Answer::Value(None)),
        done(3, 6, 9, Action::Get, value(1)),
    ])
    .demand();
}

#[test]
fn operations_that_touch_are_concurrent() {
    judge([
        done(1, 1, 5, Action::Put(1), WRITTEN),
        done(2, 5, 6, Action::Get, Answer::Value(None)),
    ])
    .demand();
}

#[test]
fn a_stale_read_is_found() {
    let verdict = judge([
        done(1, 1, 2, Action::Put(1), WRITTEN),
        done(1, 3, 4, Action::Put(2), WRITTEN),
        done(2, 5, 6, Action::Get, value(1)),
        done(2, 7, 8, Action::Get, value(2)),
    ]);
    let Verdict::Violation(violation) = verdict else { panic!("{verdict}") };
    assert_eq!(violation.prefix_len(), 3, "the last read has no part in it");
    assert_eq!(violation.stuck.len(), 1);
    assert_eq!(violation.state(), &Some(2));
}

#[test]
fn reads_that_go_back_in_time_are_found() {
    let verdict = judge([
        done(1, 1, 20, Action::Put(1), WRITTEN),
        done(2, 2, 3, Action::Get, value(1)),
        done(3, 4, 5, Action::Get, Answer::Value(None)),
    ]);
    assert!(verdict.is_violation(), "{verdict}");
}

#[test]
fn a_lost_update_is_found() {
    let verdict = judge([
        done(1, 1, 2, Action::Put(0), WRITTEN),
        done(1, 3, 9, swap(Some(0), 1), WRITTEN),
        done(2, 4, 8, swap(Some(0), 2), WRITTEN),
    ]);
    assert!(verdict.is_violation(), "{verdict}");
    let verdict = judge([
        done(1, 1, 2, Action::Put(1), WRITTEN),
        done(2, 3, 4, Action::Get, Answer::Value(None)),
    ]);
    assert!(verdict.is_violation(), "{verdict}");
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    let verdict = judge([lost(1, 1, Action::Put(1)), done(2, 2, 3, Action::Get, value(7))]);
    assert!(verdict.is_violation(), "{verdict}");
}

#[test]
fn a_value_that_was_written_later_is_found() {
    let verdict =
        judge([done(2, 1, 2, Action::Get, value(1)), done(1, 3, 4, Action::Put(1), WRITTEN)]);
    assert!(verdict.is_violation(), "{verdict}");
    let verdict = judge([done(2, 1, 2, Action::Get, value(1)), lost(1, 3, Action::Put(1))]);
    assert!(verdict.is_violation(), "{verdict}");
}

#[test]
fn what_nobody_heard_of_took_effect_late_or_never() {
    let write = || lost(1, 1, Action::Put(1));
    let none = Answer::Value(None);
    judge([write()]).demand();
    judge([write(), done(2, 2, 3, Action::Get, none.clone())]).demand();
    judge([write(), done(2, 2, 3, Action::Get, value(1))]).demand();
    judge([
        write(),
        done(2, 2, 3, Action::Get, none.clone()),
        done(2, 1_000, 1_001, Action::Get, value(1)),
    ])
    .demand();
    let verdict =
        judge([write(), done(2, 2, 3, Action::Get, value(1)), done(2, 4, 5, Action::Get, none)]);
    assert!(verdict.is_violation(), "it took effect twice, or was undone: {verdict}");
}

#[test]
fn keys_are_judged_apart() {
    let at = |key, step: Step| Operation { op: TableOp::new(key, step.op.action), ..step };
    let history: History<_, _> = [
        at('a', done(1, 1, 2, Action::Put(1), WRITTEN)),
        at('b', done(1, 3, 4, Action::Get, Answer::Value(None))),
        at('b', done(1, 5, 6, Action::Get, value(1))),
    ]
    .into_iter()
    .collect();
    let verdict = check(&Register::new(), &history, Limits::default());
    let Verdict::Violation(violation) = verdict else { panic!("{verdict}") };
    assert_eq!((violation.key, violation.of), ('b', 2));
}

#[test]
fn a_check_out_of_its_limits_is_no_success() {
    let steps = || (0..100).map(|at| done(1, 2 * at, 2 * at + 1, Action::Put(1), WRITTEN));
    for limits in [Limits::default().steps(50), Limits::default().time(Duration::ZERO)] {
        let history = steps().cycle().take(100_000).collect();
        let verdict = check(&Register::new(), &history, limits);
        assert!(matches!(verdict, Verdict::OutOfTime { .. }), "{verdict}");
        assert!(!verdict.is_linearizable() && !verdict.is_violation());
        std::panic::catch_unwind(|| verdict.demand()).expect_err("it is a failure");
    }
}

#[test]
fn an_explanation_names_the_order_the_state_and_what_does_not_fit() {
    let before = (1..=50).map(|n| done(1, 10 * n, 10 * n + 5, Action::Put(n as u32), WRITTEN));
    let verdict = judge(before.chain([
        lost(4, 507, Action::Put(99)),
        done(2, 510, 520, Action::Get, value(49)),
        done(3, 512, 530, Action::Get, value(50)),
        done(3, 540, 550, Action::Get, value(50)),
    ]));
    let text = verdict.to_string();
    let expected = [
        "no order explains the first 53 of 54 operations on 'x'",
        "at first: None",
        "... 35 operations ...",
        "[   512,    530] client 3: TableOp { key: 'x', action: Get } -> Value(Some(50))  => Some(50)",
        "[   500,    505] client 1: TableOp { key: 'x', action: Put(50) } -> Written  => Some(50)",
        "none of these can go on from Some(50):",
        "[   510,    520] client 2: TableOp { key: 'x', action: Get } -> Value(Some(49))",
        "[   507,      ?] client 4: TableOp { key: 'x', action: Put(99) } -> unknown",
    ];
    for line in expected {
        assert!(text.contains(line), "{line:?} is missing in\n{text}");
    }
    assert!(text.lines().count() < 25, "{text}");
}

#[test]
fn a_recorder_writes_down_what_clients_saw() {
    let recorder = Recorder::new();
    let put = recorder.call(1, TableOp::new('x', Action::Put(1)));
    let get = recorder.clone().call(2, TableOp::new('x', Action::Get));
    get.answered(Answer::Value(None));
    put.answered(Answer::Done { existed: false });
    recorder.call(3, TableOp::new('x', Action::Put(2))).refused();
    drop(recorder.call(3, TableOp::new('x', Action::Put(3))));
    let expected = [
        done(1, 1, 4, Action::Put(1), Answer::Done { existed: false }),
        done(2, 2, 3, Action::Get, Answer::Value(None)),
        lost(3, 6, Action::Put(3)),
    ];
    assert_eq!(recorder.history().operations(), expected);
}

/// Ten clients that take turns on one key, each overlapping the next.
fn long_history(count: u64, unheard_every: u64) -> Vec<Step> {
    let (mut state, mut steps) = (None, Vec::new());
    for at in 0..count {
        let action = match at % 4 {
            0 => Action::Put(at as u32),
            1 => swap(state, at as u32),
            _ => Action::Get,
        };
        let op = TableOp::new('x', action);
        let after = Register::new().step(&state, &op, None).expect("any answer will do");
        let answer = match &op.action {
            Action::Get => Answer::Value(state),
            _ => Answer::Done { existed: state.is_some() },
        };
        let heard = at % unheard_every != 0;
        let outcome =
            if heard { Outcome::Answered { at: at * 10 + 25, answer } } else { Outcome::Unknown };
        steps.push(Operation { client: at % 10, op, called: at * 10, outcome });
        state = after;
    }
    steps
}

#[test]
fn ten_thousand_operations_take_well_under_a_second() {
    let began = Instant::now();
    judge(long_history(10_000, u64::MAX)).demand();
    let calm = began.elapsed();
    assert!(calm < Duration::from_secs(1), "{calm:?}");
    // A read of an old value at the end is found as quickly.
    let late = done(1, 200_000, 200_001, Action::Get, value(0));
    let began = Instant::now();
    let verdict = judge(long_history(10_000, u64::MAX).into_iter().chain([late]));
    assert!(verdict.is_violation());
    let found = began.elapsed();
    assert!(found < Duration::from_secs(1), "{found:?}");
    println!("10,000 operations: {calm:?}; with a violation: {found:?}");
}

#[test]
fn some_unheard_operations_among_thousands_are_borne() {
    let began = Instant::now();
    judge(long_history(3_000, 50)).demand();
    let took = began.elapsed();
    println!("3,000 operations, 60 of them unheard of: {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// Tries every order of every choice of those that had not returned at a moment.
fn explained_by_some_order(steps: &[Step], moment: u64) -> bool {
    let returned =
        |step: &&Step| matches!(step.outcome, Outcome::Answered { at, .. } if at <= moment);
    let called = steps.iter().filter(|step| step.called <= moment);
    let (heard, under_way): (Vec<&Step>, Vec<&Step>) = called.partition(returned);
    (0..1_u32 << under_way.len()).any(|choice| {
        let chosen = under_way.iter().enumerate().filter(|(at, _)| choice & (1 << at) != 0);
        let mut all: Vec<&Step> = heard.iter().copied().chain(chosen.map(|(_, s)| *s)).collect();
        let count = all.len();
        some_permutation(&mut all, count, &|order| in_real_time(order) && in_model(order))
    })
}

fn some_permutation(all: &mut [&Step], count: usize, fits: &dyn Fn(&[&Step]) -> bool) -> bool {
    if count <= 1 {
        return fits(all);
    }
    (0..count).any(|at| {
        all.swap(at, count - 1);
        let found = some_permutation(all, count - 1, fits);
        all.swap(at, count - 1);
        found
    })
}

fn in_real_time(order: &[&Step]) -> bool {
    let returned_before = |later: &Step, earlier: &Step| match later.outcome {
        Outcome::Answered { at, .. } => at < earlier.called,
        Outcome::Unknown => false,
    };
    let mut pairs = (0..order.len()).flat_map(|a| (a + 1..order.len()).map(move |b| (a, b)));
    pairs.all(|(first, second)| !returned_before(order[second], order[first]))
}

fn in_model(order: &[&Step]) -> bool {
    let mut state = Some(None);
    for step in order {
        let Some(now) = state else { return false };
        state = Register::new().step(&now, &step.op, step.outcome.answer());
    }
    state.is_some()
}

fn action() -> impl Strategy<Value = Action<u32>> {
    let expect = prop::option::of(0_u32..2);
    prop_oneof![
        3 => Just(Action::Get),
        2 => (0_u32..2).prop_map(Action::Put),
        1 => Just(Action::Delete),
        2 => (expect.clone(), expect).prop_map(|(expect, value)| Action::CompareAndSet {
            expect,
            value
        }),
    ]
}

/// Operations that took effect at a point between call and return, some unheard of, and then at
/// most one answer that is replaced by any other.
fn small_history() -> impl Strategy<Value = Vec<Step>> {
    let one = (action(), 0_u64..12, 0_u64..4, 0_u64..4, 0..5);
    let wrong = prop::option::of((any::<prop::sample::Index>(), prop::option::of(0_u32..2)));
    (prop::collection::vec(one, 1..7), wrong).prop_map(|(mut parts, wrong)| {
        parts.sort_by_key(|(_, point, ..)| *point);
        let (mut state, mut steps) = (None, Vec::new());
        for (client, (action, point, before, after, heard)) in parts.into_iter().enumerate() {
            let op = TableOp::new('x', action);
            let existed = state.is_some();
            let next = Register::new().step(&state, &op, None).expect("any answer will do");
            let answer = match &op.action {
                Action::Get => Answer::Value(state),
                Action::CompareAndSet { expect, .. } if *expect != state => {
                    Answer::Differs { actual: state }
                }
                _ => Answer::Done { existed },
            };
            let outcome = match heard {
                0 => Outcome::Unknown,
                _ => Outcome::Answered { at: point + after, answer },
            };
            let called = point.saturating_sub(before);
            steps.push(Operation { client: client as u64, op, called, outcome });
            state = next;
        }
        if let Some((which, wrong)) = wrong
            && let Outcome::Answered { answer, .. } = &mut which.get_mut(&mut steps).outcome
        {
            *answer = match answer {
                Answer::Value(_) => Answer::Value(wrong),
                Answer::Differs { .. } => Answer::Differs { actual: wrong },
                _ => Answer::Done { existed: wrong.is_some() },
            };
        }
        steps
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn small_histories_are_judged_as_by_trying_every_order(steps in small_history()) {
        let verdict = judge(steps.clone());
        let explained = explained_by_some_order(&steps, u64::MAX);
        prop_assert_eq!(verdict.is_linearizable(), explained, "{}", verdict);
    }

    /// The beginning that is shown has no order, and one operation less of it has one.
    #[test]
    fn an_explanation_is_the_shortest_beginning(steps in small_history()) {
        if let Verdict::Violation(violation) = judge(steps.clone()) {
            let end = match violation.stuck[0].outcome {
                Outcome::Answered { at, .. } => at,
                Outcome::Unknown => return Err(TestCaseError::fail("an unheard one is stuck")),
            };
            prop_assert!(!explained_by_some_order(&steps, end));
            prop_assert!(end == 0 || explained_by_some_order(&steps, end - 1));
        }
    }
}
