//! The full plan: where each group should be led. Tier after tier, from the first to the last.

use super::candidates::Constraint;
use super::count::Count;
use super::flow::Cost;
use super::index::NONE;
use super::load::{self, Limit, heat};
use super::order::{self, Runs, Step};
use super::plan::Tier;
use super::state::State;
use super::{round, spread};

/// How often load and count are balanced in turn.
const TURNS: usize = 8;

/// How often moves that buy nothing are taken out.
const PRUNINGS: usize = 8;

/// Where everything should be, and what first took a group away from where it is.
pub(super) struct Solution {
    pub(super) tier: Vec<Option<Tier>>,
    pub(super) prices: Vec<(usize, Cost)>,
}

/// Moves the state from the current placement to the best one. Returns the order of the moves.
pub(super) fn solve(state: &mut State<'_>) -> (Solution, Runs) {
    let before = state.clone();
    let mut tier = vec![None; state.index.groups()];
    place_leaving(state, &mut tier);
    mark(&mut tier, &spread::balance(state), Tier::Spread);
    let mut solution = Solution { tier, prices: Vec::new() };
    balance(state, &mut solution);
    let mut runs = order::runs(&before, state, &solution);
    for _ in 0..PRUNINGS {
        let idle = round::idle(&before, &runs);
        if idle.is_empty() {
            break;
        }
        take_back(state, &before, &idle, &mut solution.tier);
        balance(state, &mut solution);
        runs = order::runs(&before, state, &solution);
    }
    (solution, runs)
}

/// Load and count, as often as one gives the other something to do.
fn balance(state: &mut State<'_>, solution: &mut Solution) {
    let tolerance = load::limits(state, Limit::Tolerance);
    let mut count = Count::new(state);
    for turn in 0..TURNS {
        let moved = load::balance(state, &tolerance);
        if turn > 0 && moved.is_empty() {
            break;
        }
        mark(&mut solution.tier, &moved, Tier::Load);
        mark(&mut solution.tier, &count.balance(state), Tier::Count);
    }
    solution.prices = count.certificate(state);
}

/// Sends groups home that are away for nothing, and with them all that are free to move: the exact
/// balance begins where nothing moved.
fn take_back(state: &mut State<'_>, before: &State<'_>, idle: &[Step], tiers: &mut [Option<Tier>]) {
    let free = |group: &usize| state.index.is_free(*group) && state.candidates.may_stay(*group);
    let free: Vec<usize> = (0..state.index.groups()).filter(free).collect();
    for group in free.into_iter().chain(idle.iter().map(|step| step.group as usize)) {
        if state.place[group] != before.place[group] {
            state.shift(group, before.place[group]);
            tiers[group] = None;
        }
    }
}

fn mark(tiers: &mut [Option<Tier>], moved: &[u32], tier: Tier) {
    for group in moved {
        tiers[*group as usize].get_or_insert(tier);
    }
}

/// Gives every group that has to leave a place to begin with.
fn place_leaving(state: &mut State<'_>, tiers: &mut [Option<Tier>]) {
    for (group, mark) in tiers.iter_mut().enumerate() {
        let Constraint::Leaves(tier) = state.candidates.constraint[group] else { continue };
        let targets = state.candidates.allowed.row(group).iter().copied();
        let heat_at = |node| if state.index.load(group) > 0 { heat(state, node) } else { 0 };
        let best = targets.min_by_key(|node| {
            let crowd = state.companions(group, *node);
            (crowd, heat_at(*node), state.next_cost(*node), state.index.turn(*node))
        });
        if let Some(to) = best.filter(|to| *to != NONE) {
            state.shift(group, to);
            *mark = Some(tier);
        }
    }
}
