//! What holds for every snapshot.

use std::collections::BTreeMap;

use shardhost_storage::NodeId;

use super::super::{Outcome, Plan, Score, Snapshot, Tier, plan, why_all};
use super::build::{Dice, NOW, carry_out, checked_plan, counts, group, nodes, snapshot};
use super::random::random;

const SEEDS: u64 = 3_000;
/// A snapshot in which two groups that share labels would change places for nothing, were it not
/// noticed when the moves are brought into order.
const SEED_OF_AN_EXCHANGE: u64 = 59_551;

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data is JSON")
}

#[test]
fn every_plan_passes_the_checker() {
    // Also with budgets that cut it short: every prefix improves.
    for seed in (0..SEEDS).chain([SEED_OF_AN_EXCHANGE]) {
        let mut snapshot = random(seed);
        checked_plan(&snapshot);
        let mut dice = Dice::new(seed);
        snapshot.settings.moves_per_round = dice.below(6) as u32;
        snapshot.settings.out_per_node = 1 + dice.below(3) as u32;
        snapshot.settings.in_per_node = 1 + dice.below(3) as u32;
        checked_plan(&snapshot);
    }
}

#[test]
fn the_same_snapshot_in_another_order_gives_the_same_bytes() {
    for seed in 0..SEEDS / 10 {
        let snapshot = random(seed);
        let mut other = snapshot.clone();
        other.nodes.reverse();
        other.groups.reverse();
        other.groups.iter_mut().for_each(|group| group.voters.reverse());
        other.moves.reverse();
        other.back_offs.reverse();
        if other != snapshot {
            plan(&other).expect_err("it is not in canonical order");
        }
        let other = other.canonicalise().expect("a sound snapshot");
        assert_eq!(json(&other), json(&snapshot), "seed {seed}");
        assert_eq!(json(&checked_plan(&other)), json(&checked_plan(&snapshot)), "seed {seed}");
    }
}

#[test]
fn what_is_recorded_can_be_replayed() {
    for seed in 0..SEEDS / 10 {
        let snapshot = random(seed);
        let made = checked_plan(&snapshot);
        let read: Snapshot = serde_json::from_str(&json(&snapshot)).expect("a snapshot");
        let plan: Plan = serde_json::from_str(&json(&made)).expect("a plan");
        assert_eq!((&read, &plan), (&snapshot, &made), "seed {seed}");
        assert_eq!(json(&checked_plan(&read)), json(&plan), "seed {seed}");
    }
}

#[test]
fn every_group_has_an_answer_that_fits_the_plan() {
    for seed in 0..SEEDS / 3 {
        let mut snapshot = random(seed);
        snapshot.settings.moves_per_round = (seed % 8) as u32;
        let plan = checked_plan(&snapshot);
        let moves: BTreeMap<_, _> = plan.moves.iter().map(|step| (step.group, step.to)).collect();
        let answers = why_all(&snapshot, &plan).expect("a sound snapshot");
        assert_eq!(answers.len(), snapshot.groups.len(), "seed {seed}");
        for answer in answers {
            let target = match answer.outcome {
                Outcome::Moves { to, .. } => Some(to),
                Outcome::Stays(_) => None,
            };
            assert_eq!(target, moves.get(&answer.group).copied(), "seed {seed}: {answer}");
        }
    }
}

#[test]
fn a_plan_that_is_carried_out_leaves_nothing_to_plan() {
    // Without cool_down, so that nothing but the plan's own quality keeps groups where they are.
    for seed in 0..SEEDS {
        let mut snapshot = random(seed);
        snapshot.settings.cool_down_ms = 0;
        let first = checked_plan(&snapshot);
        carry_out(&mut snapshot, &first.moves);
        let second = checked_plan(&snapshot);
        assert!(second.moves.is_empty(), "seed {seed}: {:?}", second.moves);
    }
}

#[test]
fn small_budgets_lead_to_an_end_too() {
    // The score falls in each round, so there is an end; it is at the count of moves at the latest.
    for seed in 0..SEEDS / 10 {
        let mut snapshot = random(seed);
        snapshot.settings.cool_down_ms = 0;
        snapshot.settings.moves_per_round = 6;
        snapshot.settings.out_per_node = 3;
        snapshot.settings.in_per_node = 3;
        let rounds = (0..100).take_while(|_| {
            let plan = checked_plan(&snapshot);
            carry_out(&mut snapshot, &plan.moves);
            !plan.moves.is_empty()
        });
        assert!(rounds.count() < 50, "seed {seed}: rounds without end");
    }
}

#[test]
fn nothing_is_moved_that_must_not_be() {
    for seed in 0..SEEDS {
        let snapshot = random(seed);
        for step in checked_plan(&snapshot).moves {
            let at = snapshot.groups.binary_search_by_key(&step.group, |group| group.id);
            let group = &snapshot.groups[at.expect("a known group")];
            assert_eq!(group.leader, Some(step.from), "seed {seed}: an unknown leader was moved");
            let backed_off = snapshot.back_offs.iter().any(|back_off| {
                back_off.group == step.group
                    && back_off.target == step.to
                    && back_off.until_ms > NOW
            });
            assert!(
                !backed_off,
                "seed {seed}: group {} went to a target with a back-off",
                step.group
            );
            let cool_downs = group.moved_at_ms.is_some() && step.tier > Tier::Displaced;
            assert!(!cool_downs, "seed {seed}: group {} moved in its cool_down time", step.group);
            let flies = snapshot
                .moves
                .iter()
                .any(|entry| entry.group == step.group && !entry.is_confirmed());
            assert!(!flies, "seed {seed}: group {} has two moves", step.group);
        }
    }
}

/// Groups with load on some nodes, all led by the first.
fn all_on_one(seed: u64, node_count: u64) -> Snapshot {
    let mut dice = Dice::new(seed);
    let groups = (1..=200).map(|id| {
        let others = dice.pick(3, node_count - 1);
        let voters: Vec<u64> = [1].into_iter().chain(others.iter().map(|node| node + 1)).collect();
        let mut made = group(id, 1, &voters);
        made.load = 50 + dice.below(100) as u32;
        made
    });
    let groups = groups.collect();
    let mut made = snapshot(nodes(node_count), groups);
    made.settings.cool_down_ms = 0;
    made.settings.load_tier = true;
    made
}

#[test]
fn all_on_one_node_is_balanced_within_two_rounds() {
    for seed in 0..20 {
        for load_tier in [false, true] {
            let mut snapshot = all_on_one(seed, 5);
            snapshot.settings.load_tier = load_tier;
            for _ in 0..2 {
                let plan = checked_plan(&snapshot);
                carry_out(&mut snapshot, &plan.moves);
            }
            let plan = checked_plan(&snapshot);
            assert_eq!(counts(&plan), [40; 5], "seed {seed}");
            assert_eq!(plan.moves, [], "seed {seed}");
        }
    }
}

#[test]
fn noise_in_load_moves_nobody_for_an_hour_after_convergence() {
    for seed in 0..5 {
        let mut snapshot = all_on_one(seed, 5);
        let first = checked_plan(&snapshot);
        carry_out(&mut snapshot, &first.moves);
        let quiet: Vec<u32> = snapshot.groups.iter().map(|group| group.load).collect();
        let mut dice = Dice::new(seed + 1_000);
        for second in 0..3_600 {
            snapshot.now_ms = NOW + second * 1_000;
            for (group, quiet) in snapshot.groups.iter_mut().zip(&quiet) {
                group.load = quiet * (80 + dice.below(41) as u32) / 100;
            }
            let plan = plan(&snapshot).expect("a sound snapshot");
            assert_eq!(plan.moves, [], "seed {seed}, second {second}");
        }
    }
}

#[test]
fn no_tier_is_worsened_for_a_later_one() {
    // Whatever tier falls first between before and after, all before it are as they were; and a
    // move never claims a tier before that one.
    let parts = |score: Score| {
        let capability = (score.hard, score.soft);
        (capability, score.displaced, score.rank, score.pairs, score.load, score.count)
    };
    for seed in 0..SEEDS {
        let plan = checked_plan(&random(seed));
        let (before, after) = (parts(plan.summary.before), parts(plan.summary.after));
        assert!(after <= before, "seed {seed}: {before:?}, then {after:?}");
        let first = plan.moves.iter().map(|step| step.tier).min();
        let falls = match first {
            None => after == before,
            Some(Tier::Capability) => after.0 < before.0,
            Some(Tier::Displaced) => after.0 == before.0 && after.1 < before.1,
            Some(Tier::Preference) => (after.0, after.1) == (before.0, before.1),
            Some(_) => (after.0, after.1, after.2) == (before.0, before.1, before.2),
        };
        assert!(falls, "seed {seed}, {first:?}: {before:?}, then {after:?}");
    }
}

#[test]
fn a_seed_decides_only_between_equals() {
    // Another seed may move other groups, but reaches the same score when nothing is guarded.
    for seed in 0..SEEDS / 10 {
        let mut snapshot = random(seed);
        snapshot.settings.load_tier = false;
        snapshot.groups.iter_mut().for_each(|group| group.label = None);
        let scores: Vec<Score> = [0, 1, 2]
            .map(|seed| {
                snapshot.seed = seed;
                checked_plan(&snapshot).summary.after
            })
            .into();
        assert!(scores.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}: {scores:?}");
    }
}

#[test]
fn node_ids_of_any_size_are_found() {
    // Above a limit ids are looked up in another way.
    let far = u64::MAX - 5;
    let rename = |id: NodeId| NodeId::must(id.get() + far);
    let mut snapshot = snapshot(nodes(3), (1..10).map(|id| group(id, 1, &[1, 2, 3])).collect());
    snapshot.nodes.iter_mut().for_each(|node| node.id = rename(node.id));
    for group in &mut snapshot.groups {
        group.leader = group.leader.map(rename);
        group.voters.iter_mut().for_each(|voter| voter.node = rename(voter.node));
    }
    assert_eq!(counts(&checked_plan(&snapshot)), [3, 3, 3]);
}

#[test]
fn balancing_load_changes_nothing_that_counts_more() {
    for seed in 0..SEEDS {
        let mut snapshot = random(seed);
        let scores = [false, true].map(|load_tier| {
            snapshot.settings.load_tier = load_tier;
            let score = checked_plan(&snapshot).summary.after;
            Score { load: 0, count: 0, ..score }
        });
        assert_eq!(scores[0], scores[1], "seed {seed}");
    }
}
