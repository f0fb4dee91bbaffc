//! Nothing grows without end.

use super::super::{Bounds, ExecutorSettings, MoveOutcome};
use super::build::{Desk, all_on_one, gid};
use shardhost_groups::RejectReason;

fn bounded(bounds: Bounds) -> Desk {
    let settings = ExecutorSettings { warm_up_ms: 0, bounds, ..ExecutorSettings::default() };
    Desk::with(2, all_on_one(40, &[1, 2]), settings)
}

#[test]
fn a_full_ledger_starts_nothing_until_moves_are_confirmed() {
    let mut desk = bounded(Bounds { ledger: 3, ..Bounds::default() });
    desk.plan();
    let orders = desk.orders();
    assert_eq!(orders.len(), 3);
    for order in &orders {
        desk.executor.ended(order.ticket, desk.now, MoveOutcome::Moved { stalled_ms: 1 });
    }
    assert_eq!(desk.orders(), []);
    let why = desk.executor.why(gid(20), desk.now).to_string();
    assert!(why.contains("confirmed") || why.contains("stays"), "{why}");
    desk.plan();
    assert_eq!(desk.orders().len(), 3);
}

#[test]
fn the_mute_that_ends_first_makes_room_for_another() {
    let mut desk = bounded(Bounds { back_offs: 4, ..Bounds::default() });
    desk.plan();
    for order in desk.orders() {
        desk.fail(&order, RejectReason::Refused);
    }
    assert_eq!(desk.executor.status(desk.now).back_offs, 4);
}

#[test]
fn a_queue_takes_the_first_bundles_that_fit() {
    let mut desk = bounded(Bounds { queue: 7, ..Bounds::default() });
    let round = desk.round_after(1_000);
    assert_eq!(round.queued, 7);
    let plan = &round.made.expect("a plan").plan;
    let first: Vec<_> = plan.moves[..7].iter().map(|step| step.group).collect();
    assert_eq!(desk.orders().iter().map(|order| order.group).collect::<Vec<_>>(), first);
}

#[test]
fn records_are_bounded_by_their_number_and_their_groups() {
    for (bounds, kept) in [
        (Bounds { records: 3, ..Bounds::default() }, 3),
        (Bounds { recorded_groups: 85, ..Bounds::default() }, 2),
        (Bounds { recorded_groups: 1, ..Bounds::default() }, 1),
        (Bounds { records: 0, ..Bounds::default() }, 0),
    ] {
        let mut desk = bounded(bounds);
        for number in 1..=10 {
            desk.group(number).pin = Some(super::build::id(1));
            desk.plan();
            let order = desk.orders();
            order.iter().for_each(|order| desk.fail(order, RejectReason::TransferInProgress));
        }
        assert_eq!(desk.executor.recorded().count(), kept);
    }
}
