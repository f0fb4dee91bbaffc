//! What a host lets through.

use super::super::{Fence, Order, OrderRefusal, PlannerTerm, Standing, Ticket};
use super::build::{gid, id, stop};
use crate::planner::Tier;

fn order(planner_term: u64) -> Order {
    Order {
        ticket: Ticket { planner_term: PlannerTerm::new(planner_term), number: 1 },
        group: gid(1),
        from: id(1),
        to: id(2),
        to_incarnation: 102,
        term: 7,
        tier: Tier::Count,
        bundle: 0,
    }
}

const LEADS: Standing = Standing { term: 7, leads: true, target_incarnation: Some(102) };

#[test]
fn an_order_of_the_newest_planner_that_fits_the_present_is_tried() {
    let mut fence = Fence::default();
    assert_eq!(fence.admit(&order(4), &LEADS, 1), Ok(()));
    assert_eq!(fence.admit(&order(5), &LEADS, 1), Ok(()));
    assert_eq!(fence.seen(), Some(PlannerTerm::new(5)));
}

#[test]
fn a_planner_that_was_replaced_gets_nothing_whoever_told_of_the_later_one() {
    let refusal =
        OrderRefusal::StalePlannerTerm { given: PlannerTerm::new(4), seen: PlannerTerm::new(5) };
    let mut by_order = Fence::default();
    by_order.admit(&order(5), &LEADS, 1).expect("the first planner_term that is heard");
    let mut by_report = Fence::default();
    by_report.hear(PlannerTerm::new(5), 1).expect("the first planner_term that is heard");
    for mut fence in [by_order, by_report] {
        assert_eq!(fence.admit(&order(4), &LEADS, 1), Err(refusal.clone()));
        assert_eq!(fence.hear(PlannerTerm::new(4), 1), Err(refusal.clone()));
    }
}

#[test]
fn an_order_for_another_present_is_refused_with_both_numbers() {
    let refused = |standing: Standing| Fence::default().admit(&order(4), &standing, 1);
    let other_term = OrderRefusal::OtherTerm { given: 7, actual: 9 };
    assert_eq!(refused(Standing { term: 9, ..LEADS }), Err(other_term));
    assert_eq!(refused(Standing { leads: false, ..LEADS }), Err(OrderRefusal::NotLeader));
    let other_life = OrderRefusal::OtherLife { given: 102, actual: 103 };
    assert_eq!(refused(Standing { target_incarnation: Some(103), ..LEADS }), Err(other_life));
    assert_eq!(refused(Standing { target_incarnation: None, ..LEADS }), Ok(()));
}

#[test]
fn a_kill_switch_that_a_host_heard_stops_orders_there_until_it_is_released() {
    let mut fence = Fence::default();
    fence.stop(stop());
    let refusal = fence.admit(&order(4), &LEADS, 1).expect_err("the switch is set");
    assert!(refusal.to_string().contains("maintenance"), "{refusal}");
    fence.stop(None);
    assert_eq!(fence.admit(&order(4), &LEADS, 1), Ok(()));
}

#[test]
fn an_planner_term_that_the_system_group_cannot_have_reached_is_refused_and_not_remembered() {
    for (system_term, most) in [(Some(7), 7 + (1 << 16)), (None, 1 << 32)] {
        let mut fence = Fence::default();
        fence.system_term(system_term);
        for given in [most + 1, u64::MAX] {
            let (given, most) = (PlannerTerm::new(given), PlannerTerm::new(most));
            let refusal = OrderRefusal::ImpossiblePlannerTerm { given, most };
            assert_eq!(fence.hear(given, 1), Err(refusal));
        }
        assert_eq!(fence.admit(&order(4), &LEADS, 1), Ok(()));
        assert_eq!(fence.hear(PlannerTerm::new(most), 1), Ok(()));
    }
}

#[test]
fn an_planner_term_that_is_never_heard_again_gives_way_to_the_planner_that_goes_on() {
    let mut fence = Fence::default();
    fence.hear(PlannerTerm::new(900), 1).expect("within the bound");
    let ten_minutes = 10 * 60 * 1_000;
    assert!(fence.hear(PlannerTerm::new(4), 1 + ten_minutes).is_err(), "it may ask again");
    assert_eq!(fence.hear(PlannerTerm::new(4), 2 + ten_minutes), Ok(()));
    assert_eq!(fence.seen(), Some(PlannerTerm::new(4)));
}
