//! The checker against corrupted plans.

use shardhost_storage::NodeId;

use super::super::{CheckError, Plan, Snapshot, check};
use super::build::{checked_plan, group, nodes, snapshot};
use super::random::random;

fn unbalanced() -> (Snapshot, Plan) {
    let groups = (1..=9).map(|id| group(id, 1, &[1, 2, 3])).collect();
    let snapshot = snapshot(nodes(3), groups);
    let plan = checked_plan(&snapshot);
    (snapshot, plan)
}

#[test]
fn a_plan_that_stops_too_early_is_not_optimal() {
    // The plan of a pass of four moves, presented as the full plan, with prices to match.
    let (mut snapshot, _) = unbalanced();
    snapshot.settings.moves_per_round = 4;
    let mut plan = checked_plan(&snapshot);
    plan.deferred.clear();
    plan.summary.after = plan.summary.after_round;
    plan.summary.nodes.iter_mut().for_each(|node| node.after = node.after_round);
    let error = check(&snapshot, &plan).expect_err("two more moves would help");
    assert!(matches!(error, CheckError::PriceOffCost { .. }), "{error}");
    let costs = [5_u64, 2, 2].map(|leaders| (2 * leaders + 1) << 20);
    for (price, cost) in plan.certificate.prices.iter_mut().zip(costs) {
        (price.cost, price.moves) = (cost, 0);
    }
    let error = check(&snapshot, &plan).expect_err("two more moves would help");
    assert!(matches!(error, CheckError::PriceGap { .. }), "{error}");
}

#[test]
fn moves_that_buy_nothing_are_found() {
    // Groups 1 and 2 change places: the counts are as they were, only two moves more.
    let groups = vec![group(1, 1, &[1, 2]), group(2, 2, &[1, 2]), group(3, 1, &[1])];
    let snapshot = snapshot(nodes(2), groups);
    let mut moved = snapshot.clone();
    (moved.groups[0].leader, moved.groups[1].leader) = (Some(NodeId::must(2)), None);
    let mut plan = checked_plan(&snapshot);
    let (_, other) = unbalanced();
    for (group, from, to) in [(&snapshot.groups[0], 1, 2), (&snapshot.groups[1], 2, 1)] {
        let mut step = other.moves[0];
        (step.group, step.term, step.bundle) = (group.id, group.term, 0);
        (step.from, step.to) = (NodeId::must(from), NodeId::must(to));
        step.to_incarnation = 100 + to;
        plan.moves.push(step);
    }
    let error = check(&snapshot, &plan).expect_err("a pointless exchange");
    assert!(matches!(error, CheckError::NoBetter { bundle: 0, .. }), "{error}");
}

/// Ways to corrupt a plan, and the expected finding.
type Sabotage = (fn(&mut Plan), fn(&CheckError) -> bool);

const SABOTAGES: [Sabotage; 9] = [
    (|plan| plan.moves[0].term += 1, |error| matches!(error, CheckError::WrongFence { .. })),
    (
        |plan| plan.moves[0].to_incarnation += 1,
        |error| matches!(error, CheckError::WrongFence { .. }),
    ),
    (
        |plan| plan.moves[0].to = plan.moves[0].from,
        |error| matches!(error, CheckError::NotAllowed { .. }),
    ),
    (
        |plan| plan.moves[0].from = plan.moves[0].to,
        |error| matches!(error, CheckError::NotThere { .. }),
    ),
    (
        |plan| plan.moves[1].group = plan.moves[0].group,
        |error| matches!(error, CheckError::MovedTwice { .. }),
    ),
    (
        |plan| plan.moves[0].bundle = 7,
        |error| matches!(error, CheckError::BundleNumber { .. } | CheckError::NoBetter { .. }),
    ),
    (
        |plan| plan.summary.after.count -= 1,
        |error| matches!(error, CheckError::WrongScore { when: "after", .. }),
    ),
    (
        |plan| plan.summary.nodes[0].before += 1,
        |error| matches!(error, CheckError::WrongCounts { .. }),
    ),
    (
        |plan| plan.certificate.prices.truncate(2),
        |error| matches!(error, CheckError::NoPrice { .. }),
    ),
];

#[test]
fn each_sabotage_is_found_by_its_name() {
    let (snapshot, plan) = unbalanced();
    for (at, (spoil, found)) in SABOTAGES.iter().enumerate() {
        let mut spoiled = plan.clone();
        spoil(&mut spoiled);
        let error = check(&snapshot, &spoiled).expect_err("a spoiled plan");
        assert!(found(&error), "sabotage {at}: {error}");
    }
}

#[test]
fn every_price_and_every_move_of_random_plans_matters() {
    let (mut prices, mut moves) = (0, 0);
    for seed in 0..300 {
        let snapshot = random(seed);
        let plan = checked_plan(&snapshot);
        for at in 0..plan.certificate.prices.len() {
            let mut spoiled = plan.clone();
            spoiled.certificate.prices[at].cost += 1 << 40;
            check(&snapshot, &spoiled).expect_err("a price out of reach");
            prices += 1;
        }
        for at in 0..plan.moves.len() {
            let mut spoiled = plan.clone();
            spoiled.moves.remove(at);
            check(&snapshot, &spoiled).expect_err("a move is missing");
            moves += 1;
        }
    }
    assert!(prices > 100 && moves > 500, "{prices} prices and {moves} moves were tried");
}

#[test]
fn a_group_that_must_leave_is_not_forgotten() {
    let (mut snapshot, plan) = unbalanced();
    snapshot.nodes[1].draining = true;
    check(&snapshot, &plan).expect_err("a plan for another snapshot");
    let mut nobody = checked_plan(&snapshot);
    nobody.moves.clear();
    check(&snapshot, &nobody).expect_err("a plan without its moves");
}
