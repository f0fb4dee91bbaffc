//! The count tier against all placements there are: nothing costs less, and nothing that costs as
//! little needs fewer moves.

use super::super::Snapshot;
use super::build::{Dice, checked_plan, group, nodes, snapshot};

/// Where a group is, and where it may go: numbers of nodes.
type Shape = (u64, Vec<u64>);

fn shapes_of_one_group(nodes: u64) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for set in 1_u64..1 << nodes {
        let voters: Vec<u64> = (1..=nodes).filter(|node| set >> (node - 1) & 1 == 1).collect();
        shapes.extend(voters.iter().map(|leader| (*leader, voters.clone())));
    }
    shapes
}

fn snapshot_of(shapes: &[&Shape], weights: &[u32], draining: Option<u64>) -> Snapshot {
    let mut nodes = nodes(weights.len() as u64);
    for (node, weight) in nodes.iter_mut().zip(weights) {
        node.weight = *weight;
        node.draining = draining == Some(node.id.get());
    }
    let group = |(at, shape): (u64, &&Shape)| group(at, shape.0, &shape.1);
    snapshot(nodes, (1..).zip(shapes).map(group).collect())
}

/// Leaders that have to leave, cost of all, and moves, of the best placement.
fn best(shapes: &[&Shape], weights: &[u32], draining: Option<u64>) -> (u64, u64, u64) {
    let mut counts = vec![0; weights.len()];
    search(shapes, weights, draining, &mut counts, (0, 0))
}

fn search(
    shapes: &[&Shape],
    weights: &[u32],
    draining: Option<u64>,
    counts: &mut [u64],
    (left, moves): (u64, u64),
) -> (u64, u64, u64) {
    let Some(((home, voters), rest)) = shapes.split_first() else {
        return (left, cost(weights, counts), moves);
    };
    let targets = voters.iter().filter(|node| *node == home || Some(**node) != draining);
    let found = targets.map(|node| {
        counts[*node as usize - 1] += 1;
        let left = left + u64::from(Some(*node) == draining);
        let step = (left, moves + u64::from(node != home));
        let found = search(rest, weights, draining, counts, step);
        counts[*node as usize - 1] -= 1;
        found
    });
    found.min().expect("home is always there")
}

fn cost(weights: &[u32], counts: &[u64]) -> u64 {
    let of_node = |(weight, count): (&u32, &u64)| {
        (1..=*count).map(|nth| (2 * nth - 1) * 1_048_576 / u64::from(*weight)).sum::<u64>()
    };
    weights.iter().zip(counts).map(of_node).sum()
}

fn compare(shapes: &[&Shape], weights: &[u32], draining: Option<u64>) {
    let plan = checked_plan(&snapshot_of(shapes, weights, draining));
    let score = plan.summary.after;
    assert_eq!(
        (score.displaced, score.count, plan.moves.len() as u64),
        best(shapes, weights, draining),
        "weights {weights:?}, draining {draining:?}, groups (leader, voters) {shapes:?}"
    );
    assert!(plan.deferred.is_empty(), "{shapes:?}: {:?}", plan.deferred);
}

#[test]
fn of_all_small_cases_none_has_a_better_balance_or_the_same_with_fewer_moves() {
    // Every leader and every set of voters, for up to 4 groups on 3 nodes. The order of groups has
    // no meaning, so each set of shapes is taken once.
    let shapes = shapes_of_one_group(3);
    let mut sets: Vec<Vec<usize>> = vec![Vec::new()];
    let mut cases = 0;
    for _ in 0..4 {
        let longer = |set: &Vec<usize>| {
            let set = set.clone();
            let from = set.last().copied().unwrap_or(0);
            (from..shapes.len()).map(move |next| [set.as_slice(), &[next]].concat())
        };
        sets = sets.iter().flat_map(longer).collect();
        for set in &sets {
            let groups: Vec<&Shape> = set.iter().map(|at| &shapes[*at]).collect();
            compare(&groups, &[1, 1, 1], None);
            compare(&groups, &[1, 2, 3], None);
            compare(&groups, &[2, 1, 1], Some(3));
            cases += 3;
        }
    }
    assert_eq!(cases, 3 * (12 + 78 + 364 + 1_365), "all sets of 1 to 4 of 12 shapes");
}

#[test]
fn of_random_larger_cases_none_has_a_better_balance_or_the_same_with_fewer_moves() {
    for seed in 0..4_000 {
        let mut dice = Dice::new(seed);
        let nodes = 2 + dice.below(3);
        let weights: Vec<u32> = (0..nodes).map(|_| 1 + dice.below(4) as u32).collect();
        let draining = (dice.below(3) == 0).then(|| 1 + dice.below(nodes));
        let groups = 1 + dice.below(6);
        let shapes: Vec<Shape> = (0..groups)
            .map(|_| {
                let count = 1 + dice.below(nodes);
                let voters = dice.pick(count, nodes);
                (voters[dice.below(voters.len() as u64) as usize], voters)
            })
            .collect();
        compare(&shapes.iter().collect::<Vec<_>>(), &weights, draining);
    }
}

#[test]
fn of_random_small_cases_none_has_fewer_pairs_of_one_label_in_one_zone() {
    // Zones of two nodes, and groups of two labels.
    for seed in 0..2_000 {
        let mut dice = Dice::new(seed);
        let nodes = 3 + dice.below(4);
        let shapes: Vec<Shape> = (0..1 + dice.below(5))
            .map(|_| {
                let count = 1 + dice.below(3);
                let voters = dice.pick(count, nodes);
                (voters[dice.below(voters.len() as u64) as usize], voters)
            })
            .collect();
        let weights = vec![1; nodes as usize];
        let mut snapshot = snapshot_of(&shapes.iter().collect::<Vec<_>>(), &weights, None);
        snapshot.nodes.iter_mut().for_each(|node| node.zone = zone_of(node.id.get()).to_string());
        for group in &mut snapshot.groups {
            group.label = Some(format!("label-{}", label_of(group.id.get())));
        }
        let plan = checked_plan(&snapshot);
        let fewest = fewest_pairs(&shapes, &mut Vec::new());
        assert_eq!(plan.summary.after.pairs, fewest, "seed {seed}, groups {shapes:?}");
    }
}

fn zone_of(node: u64) -> u64 {
    node / 2
}

fn label_of(group: u64) -> u64 {
    group % 2
}

fn fewest_pairs(shapes: &[Shape], chosen: &mut Vec<u64>) -> u64 {
    let Some((_, voters)) = shapes.get(chosen.len()) else {
        let places: Vec<(u64, u64)> =
            (1..).zip(&*chosen).map(|(group, node)| (label_of(group), zone_of(*node))).collect();
        let pairs = (0..places.len())
            .map(|at| places[..at].iter().filter(|place| **place == places[at]).count() as u64);
        return pairs.sum();
    };
    let found = voters.iter().map(|node| {
        chosen.push(*node);
        let found = fewest_pairs(shapes, chosen);
        chosen.pop();
        found
    });
    found.min().expect("a group has a voter")
}
