//! Windows, buckets, breakers: alone, and at work.

use std::collections::VecDeque;

use super::super::breaker::{Bad, Breaker, Scope};
use super::super::bucket::Bucket;
use super::super::window::Window;
use super::super::{
    BackOffSettings, BreakerSettings, BreakerState, End, ExecutorSettings, Hold, MoveOutcome,
    Order, Rate, Rates, WindowSettings,
};
use super::build::{Desk, all_on_one, id};
use crate::planner::Tier;
use shardhost_groups::RejectReason;

#[test]
fn a_window_grows_while_it_goes_well_and_halves_once_for_what_fails_together() {
    let mut window = Window::new(WindowSettings { first: 64, least: 8, most: 100 });
    (0..8).for_each(|_| window.grow());
    assert_eq!(window.size(), 72);
    (0..200).for_each(|_| window.grow());
    assert_eq!(window.size(), 100);
    // Moves 1 to 50 fail together: they began before the failure of the first of them was known.
    (1..=50).for_each(|number| window.cut(number, 51));
    assert_eq!(window.size(), 50);
    window.cut(51, 52);
    assert_eq!(window.size(), 25);
    (52..80).for_each(|number| window.cut(number, number + 1));
    assert_eq!(window.size(), 8);
}

#[test]
fn a_bucket_gives_a_burst_and_then_its_rate() {
    let mut bucket = Bucket::new(Rate { burst: 3, per_second: 2 }, 1_000);
    let mut taken = |until: u64| {
        let mut count = 0;
        while bucket.has_token(until) {
            bucket.take(until);
            count += 1;
        }
        count
    };
    assert_eq!(taken(1_000), 3);
    assert_eq!(taken(1_499), 0);
    assert_eq!(taken(1_500), 1);
    assert_eq!(taken(2_500), 2);
    assert_eq!(taken(900_000), 3);
    assert_eq!(taken(0), 0, "a clock that goes back gives nothing");
}

const BREAKER: BreakerSettings = BreakerSettings {
    of_last: 8,
    least_bad: 4,
    probes: 2,
    open: BackOffSettings { first_ms: 1_000, longest_ms: 4_000 },
};

fn bad() -> Option<Bad> {
    Some(Bad { giver: Some(id(1)), receiver: Some(id(2)) })
}

fn open_until(until_ms: u64, bad: u32, of: u32) -> BreakerState {
    BreakerState::Open { until_ms, bad, of }
}

#[test]
fn a_breaker_opens_for_a_growing_time_tries_a_few_and_closes() {
    let mut breaker = Breaker::new(BREAKER, Scope::OneEnd);
    (1..=3).for_each(|number| breaker.learn(number, bad(), 0));
    assert!(breaker.admits(0));
    breaker.learn(4, bad(), 0);
    assert_eq!(breaker.state(0), open_until(1_000, 4, 4));
    assert!(!breaker.admits(999));
    // The first try fails: open for twice as long, then for as long as it may be.
    for (at, until) in [(1_000, 3_000), (3_000, 7_000), (7_000, 11_000)] {
        breaker.start(at);
        breaker.learn(at, bad(), at);
        assert_eq!(breaker.state(at), open_until(until, 1, 1));
    }
    breaker.start(20_000);
    breaker.start(20_001);
    assert!(!breaker.admits(20_001), "two tries at a time");
    breaker.learn(20_000, None, 20_002);
    assert_eq!(breaker.state(20_002), BreakerState::Probing { good: 1, wanted: 2 });
    assert!(!breaker.admits(20_002), "one went well, one is under way");
    breaker.learn(20_001, None, 20_003);
    assert_eq!(breaker.state(20_003), BreakerState::Closed);
}

#[test]
fn a_breaker_bears_a_minority_of_failures() {
    let settings = BreakerSettings { of_last: 20, ..BREAKER };
    let mut breaker = Breaker::new(settings, Scope::OneEnd);
    for number in 0..100 {
        breaker.learn(number, if number % 3 == 0 { bad() } else { None }, 0);
    }
    assert_eq!(breaker.state(0), BreakerState::Closed);
}

#[test]
fn a_breaker_begins_short_again_after_a_rest() {
    let mut breaker = Breaker::new(BREAKER, Scope::OneEnd);
    (1..=4).for_each(|number| breaker.learn(number, bad(), 0));
    for number in 5..=6 {
        breaker.start(number);
        breaker.learn(number, None, 1_000);
    }
    (7..=10).for_each(|number| breaker.learn(number, bad(), 1_500));
    assert_eq!(breaker.state(1_500), open_until(3_500, 4, 4), "soon again: longer");
    for number in 11..=12 {
        breaker.start(number);
        breaker.learn(number, None, 4_000);
    }
    (13..=16).for_each(|number| breaker.learn(number, bad(), 6_000));
    assert_eq!(breaker.state(6_000), open_until(7_000, 4, 4), "after a rest: short");
}

#[test]
fn a_node_that_is_gone_is_forgotten_in_the_end() {
    let mut desk = four_nodes(64);
    desk.plan();
    for _ in 0..20 {
        for order in desk.orders() {
            if order.to == id(3) {
                desk.fail(&order, RejectReason::Silent);
            } else {
                desk.obey(&order);
            }
        }
    }
    assert_eq!(desk.executor.status(desk.now).troubled.len(), 1);
    desk.truth.nodes.retain(|node| node.id != id(3));
    desk.plan();
    assert_eq!(desk.executor.status(desk.now).troubled.len(), 1, "it may come back");
    desk.round_after(20_000);
    assert_eq!(desk.executor.status(desk.now).troubled, []);
}

#[test]
fn what_began_before_a_breaker_opened_neither_closes_nor_opens_it() {
    let mut breaker = Breaker::new(BREAKER, Scope::OneEnd);
    (1..=4).for_each(|number| breaker.learn(number, bad(), 0));
    breaker.start(9);
    for number in 5..=8 {
        breaker.learn(number, bad(), 1_000);
        breaker.learn(number, None, 1_000);
        breaker.forget(number);
    }
    assert_eq!(breaker.state(1_000), BreakerState::Probing { good: 0, wanted: 2 });
    breaker.forget(9);
    breaker.start(10);
    breaker.start(11);
    assert!(!breaker.admits(1_000), "a try that said nothing makes room for another");
}

#[test]
fn the_breaker_of_all_moves_leaves_the_fault_of_one_node_to_that_node() {
    let of = |node| Some(Bad { giver: None, receiver: Some(id(node)) });
    let mut breaker = Breaker::new(BREAKER, Scope::All);
    (1..=8).for_each(|number| breaker.learn(number, of(2), 0));
    (9..=11).for_each(|number| breaker.learn(number, of(3), 0));
    assert_eq!(breaker.state(0), BreakerState::Closed);
    // Half of it is the other's.
    breaker.learn(12, of(3), 0);
    assert_eq!(breaker.state(0), open_until(1_000, 8, 8));
}

/// Groups on two nodes, and two that could take them.
fn four_nodes(count: u64) -> Desk {
    let groups = all_on_one(count, &[1, 2, 3, 4]);
    let mut desk = Desk::new(4, groups);
    for group in desk.truth.groups.iter_mut().filter(|group| group.id.get() % 2 == 0) {
        group.leader = Some(id(2));
    }
    desk
}

#[test]
fn a_target_that_never_answers_is_spared_and_the_others_are_served() {
    let mut desk = four_nodes(64);
    for _ in 0..3 {
        desk.plan();
        for _ in 0..40 {
            for order in desk.orders() {
                if order.to == id(3) {
                    desk.fail(&order, RejectReason::Silent);
                } else {
                    desk.obey(&order);
                }
            }
        }
    }
    let status = desk.executor.status(desk.now);
    assert_eq!(status.troubled.len(), 1, "{:?}", status.troubled);
    assert_eq!((status.troubled[0].node, status.troubled[0].end), (id(3), End::Receiver));
    assert_eq!(status.breaker, BreakerState::Closed);
    // Balanced without it; nothing waits.
    assert_eq!(desk.counts()[2..], [0, 21], "{:?}", desk.counts());
    assert_eq!((status.queued, status.in_flight), (0, 0));
    let why = desk.executor.why(super::build::gid(1), desk.now).to_string();
    assert!(why.contains("node 3: its circuit breaker is open until"), "{why}");
    // When its breaker lets a few through and these go well, it gets its part.
    desk.round_after(700_000);
    for _ in 0..400 {
        desk.plan();
        desk.obey_all();
    }
    assert_eq!(desk.counts(), [16; 4]);
}

#[test]
fn a_group_that_stood_still_for_as_long_as_it_may_slows_nobody_down() {
    let mut desk = four_nodes(200);
    desk.plan();
    let orders = desk.orders();
    for order in &orders {
        desk.executor.ended(order.ticket, desk.now, MoveOutcome::Moved { stalled_ms: 100 });
    }
    let status = desk.executor.status(desk.now);
    assert_eq!((status.hold, status.breaker), (None, BreakerState::Closed));
    assert!(status.window > 64, "{}", status.window);
}

/// Fails all moves of a round for a reason, and gives the executor's window and troubled ends.
fn after_failing(reason: RejectReason) -> (u32, Vec<(u64, End)>) {
    let mut desk = Desk::new(2, all_on_one(100, &[1, 2]));
    desk.plan();
    let orders = desk.orders();
    assert_eq!(orders.len(), 50);
    orders.iter().for_each(|order| desk.fail(order, reason));
    let status = desk.executor.status(desk.now);
    (status.window, status.troubled.iter().map(|node| (node.node.get(), node.end)).collect())
}

#[test]
fn each_failure_slows_down_who_may_be_blamed_for_it() {
    for reason in [
        RejectReason::StaleTerm,
        RejectReason::TransferInProgress,
        RejectReason::Refused,
        RejectReason::NotCaughtUp,
    ] {
        assert_eq!(after_failing(reason), (64, vec![]), "{reason}");
    }
    for reason in [RejectReason::LeaderUnreachable, RejectReason::NoAnswer] {
        assert_eq!(after_failing(reason), (32, vec![(1, End::Giver)]), "{reason}");
    }
    let (giver, receiver) = ((1, End::Giver), (2, End::Receiver));
    assert_eq!(after_failing(RejectReason::Silent), (32, vec![receiver]));
    assert_eq!(after_failing(RejectReason::Aborted), (32, vec![giver, receiver]));
}

#[test]
fn failures_everywhere_open_the_breaker_of_all_moves() {
    let mut desk = four_nodes(200);
    desk.plan();
    let orders = desk.orders();
    for order in orders {
        desk.executor.ended(order.ticket, desk.now, MoveOutcome::Moved { stalled_ms: 101 });
    }
    let Some(Hold::Breaker(state)) = desk.executor.status(desk.now).hold else {
        panic!("{:?}", desk.executor.status(desk.now));
    };
    assert!(matches!(state, BreakerState::Open { .. }), "{state}");
    assert_eq!(desk.orders(), []);
    assert_eq!(desk.executor.status(desk.now).longest_stall_ms, 101);
}

#[test]
fn a_giver_that_never_answers_holds_up_nobody_else() {
    let mut desk = four_nodes(64);
    let mut given_up = 0;
    for _ in 0..120 {
        desk.plan();
        loop {
            let orders: Vec<_> = desk.orders();
            let (hung, fine): (Vec<_>, Vec<_>) =
                orders.into_iter().partition(|order| order.from == id(1));
            given_up += hung.len();
            if fine.is_empty() {
                break;
            }
            fine.iter().for_each(|order| desk.obey(order));
        }
    }
    assert_eq!(desk.counts()[0], 32);
    assert_eq!(desk.counts().iter().sum::<usize>(), 64);
    assert!(desk.counts()[1] <= 16, "{:?}", desk.counts());
    assert!(given_up < 64, "{given_up} orders went to a host that never answered");
}

/// How long it takes, in milliseconds, until `desk` has nothing to move, if each move takes
/// `takes_ms` and a round comes each second.
fn time_to_rest(desk: &mut Desk, takes_ms: u64) -> u64 {
    let (began, mut next_round) = (desk.now, desk.now);
    let mut under_way: VecDeque<(u64, Order)> = VecDeque::new();
    loop {
        if desk.now >= next_round {
            next_round += 1_000;
            if desk.round_after(0).queued == 0 && under_way.is_empty() {
                return desk.now - began;
            }
        }
        while under_way.front().is_some_and(|(end, _)| *end <= desk.now) {
            let (_, order) = under_way.pop_front().expect("it has a front");
            desk.obey(&order);
        }
        under_way.extend(desk.orders().into_iter().map(|order| (desk.now + takes_ms, order)));
        desk.now += 1;
    }
}

#[test]
fn ten_thousand_groups_on_one_node_are_balanced_by_the_second_round() {
    for (nodes, moves) in [(3, 6_666), (5, 8_000)] {
        for takes_ms in [2, 20] {
            let voters: Vec<u64> = (1..=nodes).collect();
            let mut desk = Desk::new(nodes, all_on_one(10_000, &voters));
            assert_eq!(time_to_rest(&mut desk, takes_ms), 1_000, "moves of {takes_ms} ms");
            assert_eq!(desk.executor.status(desk.now).ordered[&Tier::Count], moves);
        }
    }
}

#[test]
fn moves_of_one_tier_do_not_wait_for_those_of_another() {
    let rate = |burst| Rate { burst, per_second: 0 };
    let rates = Rates { violations: rate(100), wishes: rate(1), balance: rate(2) };
    let settings = ExecutorSettings { warm_up_ms: 0, rates, ..ExecutorSettings::default() };
    let mut desk = Desk::with(3, all_on_one(30, &[1, 2, 3]), settings);
    desk.plan();
    assert_eq!(desk.orders().len(), 2);
    // A drain is a violation, and has separate tokens.
    desk.node(1).draining = true;
    desk.plan();
    assert_eq!(desk.orders().len(), 28);
}
