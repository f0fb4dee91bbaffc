//! Memory from pass to pass: targets that failed.

use super::super::ExecutorSettings;
use super::super::cool_down::CoolDown;
use super::build::{Desk, all_on_one, gid, group, id};
use crate::planner::{Group, Voter};
use shardhost_groups::RejectReason;

/// Two groups on node 1 that only node 2 could take one of, which refuses.
fn refused() -> Desk {
    let mut desk = Desk::new(2, all_on_one(2, &[1, 2]));
    desk.plan();
    let order = desk.orders()[0];
    desk.fail(&order, RejectReason::Refused);
    desk
}

/// Fails every order, and returns when, in seconds from here, for so many seconds.
fn failures(desk: &mut Desk, seconds: u64, number: u64) -> Vec<u64> {
    let mut at = Vec::new();
    for second in 1..=seconds {
        desk.plan();
        for order in desk.orders() {
            if order.group.get() == number {
                at.push(second);
            }
            desk.fail(&order, RejectReason::Refused);
        }
    }
    at
}

#[test]
fn a_target_that_failed_is_left_alone_for_a_growing_time() {
    let mut desk = Desk::new(2, vec![group(1, 1, &[1, 2]), group(2, 1, &[1])]);
    let at = failures(&mut desk, 1_900, 1);
    let pauses: Vec<u64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
}

#[test]
fn a_target_that_failed_for_one_group_is_asked_for_others() {
    let mut desk = refused();
    let plan = desk.plan();
    assert_eq!(plan.moves.len(), 1);
    assert_eq!(plan.moves[0].to, id(2));
    assert_eq!(desk.executor.status(desk.now).back_offs, 1);
}

#[test]
fn a_mute_is_forgotten_after_as_long_again() {
    let mut desk = refused();
    desk.truth.groups.iter_mut().for_each(|group| group.pin = Some(id(1)));
    desk.round_after(9_999);
    assert_eq!(desk.executor.status(desk.now).back_offs, 1);
    desk.round_after(1);
    assert_eq!(desk.executor.status(desk.now).back_offs, 0);
}

/// What may have changed since a target failed, and whether it is news.
type News = (&'static str, fn(&mut Desk), u64);

const NEWS: [News; 7] = [
    ("the target restarted", |desk| desk.node(2).incarnation += 1, 0),
    (
        "the target can do more",
        |desk| {
            desk.node(2).capabilities = Some(["fifo".to_owned()].into());
        },
        0,
    ),
    (
        "the members changed",
        |desk| {
            for group in &mut desk.truth.groups {
                group.voters.push(Voter { node: id(3), lag: None });
            }
        },
        0,
    ),
    (
        "it requires something else",
        |desk| {
            for group in &mut desk.truth.groups {
                group.requirement.capabilities.insert("fifo".to_owned());
            }
        },
        0,
    ),
    ("its leader restarted", |desk| desk.node(1).incarnation += 1, 0),
    ("nothing", |_| {}, 1),
    (
        "another leader",
        |desk| {
            desk.truth.groups.iter_mut().for_each(|group| group.leader = Some(id(2)));
        },
        1,
    ),
];

#[test]
fn news_about_a_target_ends_its_mute_and_nothing_else_does() {
    for (what, change, back_offs) in NEWS {
        let mut desk = refused();
        change(&mut desk);
        desk.round_after(1_000);
        assert_eq!(desk.executor.status(desk.now).back_offs, back_offs, "{what}");
    }
}

#[test]
fn what_is_nobodys_fault_mutes_nobody() {
    for (reason, back_offs) in [
        (RejectReason::StaleTerm, 0),
        (RejectReason::LeaderUnreachable, 0),
        (RejectReason::NotCaughtUp, 1),
    ] {
        let mut desk = Desk::new(2, all_on_one(2, &[1, 2]));
        desk.plan();
        let order = desk.orders()[0];
        desk.fail(&order, reason);
        assert_eq!(desk.executor.status(desk.now).back_offs, back_offs, "{reason}");
    }
}

#[test]
fn a_group_that_goes_another_way_forgets_nothing_of_the_first() {
    // Node 2 refuses every group; node 3 takes them.
    let mut desk = Desk::new(3, all_on_one(9, &[1, 2, 3]));
    for _ in 0..3 {
        desk.plan();
        for order in desk.orders() {
            if order.to == id(2) {
                desk.fail(&order, RejectReason::Refused)
            } else {
                desk.obey(&order)
            }
        }
    }
    assert_eq!(desk.counts()[1], 0);
    assert!(desk.counts()[2] >= 4, "{:?}", desk.counts());
}

/// When these groups moved, as far as is remembered at a time.
fn remembered(
    cool_down: &mut CoolDown,
    now: u64,
    numbers: std::ops::RangeInclusive<u64>,
) -> Vec<u64> {
    let mut groups: Vec<_> = numbers.map(|number| group(number, 1, &[1])).collect();
    cool_down.exchange(&mut groups, now, 100);
    groups.iter().filter_map(|group| group.moved_at_ms).collect()
}

#[test]
fn the_newest_time_at_which_a_group_moved_is_remembered_while_it_rests() {
    let mut cool_down = CoolDown::new(10);
    cool_down.note(gid(1), 50);
    cool_down.note(gid(1), 40);
    // A report knows of a later move, and the next no more of any.
    let mut reported = [Group { moved_at_ms: Some(60), ..group(2, 1, &[1]) }];
    cool_down.exchange(&mut reported, 90, 100);
    assert_eq!(remembered(&mut cool_down, 149, 1..=2), [50, 60]);
    assert_eq!(remembered(&mut cool_down, 150, 1..=2), [60]);
    assert!(remembered(&mut cool_down, 160, 1..=2).is_empty());
}

#[test]
fn the_oldest_move_is_forgotten_for_one_too_many() {
    let mut cool_down = CoolDown::new(3);
    for number in 1..=5 {
        cool_down.note(gid(number), 100 - number);
    }
    assert_eq!(remembered(&mut cool_down, 100, 1..=5), [99, 98, 97]);
}

#[test]
fn a_node_that_does_not_report_is_neither_source_nor_target() {
    let settings = ExecutorSettings { warm_up_ms: 0, ..ExecutorSettings::default() };
    let mut desk = Desk::with(3, all_on_one(9, &[1, 2, 3]), settings);
    desk.silent.insert(id(2), desk.now);
    desk.round_after(10_000);
    assert_eq!(desk.executor.status(desk.now).plan.map(|plan| plan.moves), Some(6));
    desk.round_after(1);
    let plan = desk.plan();
    assert!(plan.moves.iter().all(|step| step.to == id(3)), "{:?}", plan.moves);
    assert_eq!(plan.moves.len(), 4);
}
