//! The load tier: leaders leave nodes whose load is beyond the tolerance. Loads come in buckets of
//! different size, so the least excess is not searched for (that is bin packing); the largest
//! groups of overloaded nodes go first, each to the coolest node, while the excess falls.

use super::index::{NONE, Standing};
use super::state::State;

/// How often all groups are looked at. Each round but the last lessens the excess.
const ROUNDS: usize = 16;

/// Which limit of a node's load is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// The aim: fair share and a quarter of the tolerance.
    Comfort,
    /// Fair share and the tolerance: what makes the tier act.
    Tolerance,
}

/// The limit of each node. Nodes that take no leaders have none.
pub(super) fn limits(state: &State<'_>, limit: Limit) -> Vec<u64> {
    let (index, settings) = (state.index, &state.index.snapshot.settings);
    let open = |node: &u32| index.standing[*node as usize] == Standing::Open;
    let nodes = 0..index.nodes() as u32;
    let weights: u128 = nodes.clone().filter(open).map(|node| u128::from(index.weight(node))).sum();
    if !settings.load_tier || weights == 0 {
        return vec![u64::MAX; index.nodes()];
    }
    let total: u128 = state.loads.iter().map(|load| u128::from(*load)).sum();
    let tolerance = u128::from(settings.load_tolerance_percent);
    let percent = 400 + if limit == Limit::Comfort { tolerance } else { tolerance * 4 };
    let of_node = |node: u32| {
        let limit = (total * u128::from(index.weight(node)) * percent).div_ceil(weights * 400);
        if open(&node) { u64::try_from(limit).unwrap_or(u64::MAX) } else { u64::MAX }
    };
    nodes.map(of_node).collect()
}

/// Balances load, if some node is beyond `tolerance`. Returns the groups that moved, in order.
pub(super) fn balance(state: &mut State<'_>, tolerance: &[u64]) -> Vec<u32> {
    let mut moved = Vec::new();
    if state.loads.iter().zip(tolerance).all(|(load, limit)| load <= limit) {
        return moved;
    }
    let order = busiest_first(state);
    for _ in 0..ROUNDS {
        let before = moved.len();
        for group in &order {
            if let Some(to) = relief(state, *group as usize) {
                state.shift(*group as usize, to);
                moved.push(*group);
            }
        }
        if moved.len() == before {
            break;
        }
    }
    moved
}

fn busiest_first(state: &State<'_>) -> Vec<u32> {
    let movable = |group: &u32| {
        let at = *group as usize;
        state.index.load(at) > 0
            && state.place[at] != NONE
            && state.candidates.allowed.row(at).len() > 1
    };
    let mut order: Vec<u32> = (0..state.index.groups() as u32).filter(movable).collect();
    order.sort_by_key(|group| std::cmp::Reverse(state.index.load(*group as usize)));
    order
}

/// The coolest node to which the group can go so that the excess falls.
fn relief(state: &State<'_>, group: usize) -> Option<u32> {
    let place = state.place[group];
    if state.loads[place as usize] <= state.comfort[place as usize] {
        return None;
    }
    let helps = |to: &u32| {
        let effect = state.effect(group, *to);
        *to != place && effect.pairs <= 0 && effect.load < 0
    };
    let targets = state.candidates.allowed.row(group).iter().copied().filter(helps);
    targets.min_by_key(|to| (heat(state, *to), state.next_cost(*to), state.index.turn(*to)))
}

/// Load per weight, comparable between nodes.
pub(super) fn heat(state: &State<'_>, node: u32) -> u128 {
    let load = u128::from(state.loads[node as usize]) << 32;
    load.checked_div(u128::from(state.index.weight(node))).unwrap_or(u128::MAX)
}
