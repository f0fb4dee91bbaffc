//! The count tier: leaders in proportion to weight. Exact, with the fewest moves, for groups whose
//! moves change nothing else. Groups that share a label, or carry load while load is balanced, move
//! one at a time, and only where neither spread nor load gets worse: with both constraints the
//! exact answer would be a matching under crossing limits, which no fast way is known for.

use super::flow::{Balancer, Cost, Problem};
use super::index::{NONE, Rows, Standing};
use super::state::{Effect, State};

/// How often both kinds of groups are balanced in turn. Each turn but the last improves the score.
const TURNS: usize = 64;

/// The count tier at work.
pub(super) struct Count {
    /// Groups that the balancer moves, by its own numbers.
    items: Vec<u32>,
    /// Groups that move one at a time.
    guarded: Vec<u32>,
    balancer: Balancer,
    leveled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sweep {
    /// From a node above its share to one below it: no such step has to be taken back.
    Level,
    Any,
}

impl Count {
    pub(super) fn new(state: &State<'_>) -> Self {
        let choosing = |group: &u32| state.candidates.allowed.row(*group as usize).len() > 1;
        let (items, guarded): (Vec<u32>, Vec<u32>) = (0..state.index.groups() as u32)
            .filter(choosing)
            .partition(|group| state.index.is_free(*group as usize));
        let balancer = Balancer::new(problem(state, &items));
        Self { items, guarded, balancer, leveled: false }
    }

    /// Balances counts. Returns the groups that moved.
    pub(super) fn balance(&mut self, state: &mut State<'_>) -> Vec<u32> {
        let mut moved = Vec::new();
        for _ in 0..TURNS {
            self.run(state, &mut moved);
            let before = moved.len();
            self.take_back(state, &mut moved);
            self.sweep(state, Sweep::Level, &mut moved);
            self.sweep(state, Sweep::Any, &mut moved);
            if moved.len() == before {
                break;
            }
        }
        moved
    }

    /// The proof for the state that [`Count::balance`] left.
    pub(super) fn certificate(&mut self, state: &State<'_>) -> Vec<(usize, Cost)> {
        self.balancer.follow(&state.counts);
        self.balancer.certificate()
    }

    fn run(&mut self, state: &mut State<'_>, moved: &mut Vec<u32>) {
        self.balancer.follow(&state.counts);
        if self.leveled {
            self.balancer.polish();
        } else {
            self.balancer.run();
        }
        self.leveled = true;
        for (group, to) in self.items.iter().zip(self.balancer.places()) {
            if state.place[*group as usize] != *to {
                state.shift(*group as usize, *to);
                moved.push(*group);
            }
        }
    }

    /// Sends groups home that are away for nothing.
    fn take_back(&self, state: &mut State<'_>, moved: &mut Vec<u32>) {
        for group in &self.guarded {
            let (at, home) = (*group as usize, state.candidates.home[*group as usize]);
            let away = state.place[at] != home && state.candidates.may_stay(at);
            if away && state.effect(at, home) <= (Effect { pairs: 0, load: 0, count: 0 }) {
                state.shift(at, home);
                moved.push(*group);
            }
        }
    }

    fn sweep(&self, state: &mut State<'_>, sweep: Sweep, moved: &mut Vec<u32>) {
        if self.guarded.is_empty() || is_level(state) {
            return;
        }
        let share = shares(state);
        for group in &self.guarded {
            if let Some(to) = step(state, *group as usize, sweep, &share) {
                state.shift(*group as usize, to);
                moved.push(*group);
            }
        }
    }
}

fn problem(state: &State<'_>, items: &[u32]) -> Problem {
    let mut fixed = state.counts.clone();
    let mut allowed = Rows::with_capacity(items.len());
    for group in items {
        fixed[state.place[*group as usize] as usize] -= 1;
        allowed.push(state.candidates.allowed.row(*group as usize));
    }
    let home = |group: &u32| {
        let may_stay = state.candidates.may_stay(*group as usize);
        if may_stay { state.candidates.home[*group as usize] } else { NONE }
    };
    Problem {
        weights: (0..state.index.nodes() as u32).map(|node| state.index.weight(node)).collect(),
        fixed,
        allowed,
        home: items.iter().map(home).collect(),
        place: items.iter().map(|group| state.place[*group as usize]).collect(),
    }
}

/// Nodes that some group may go to.
fn takers<'a>(state: &'a State<'_>) -> impl Iterator<Item = u32> + 'a {
    let takes = |standing: Standing| matches!(standing, Standing::Open | Standing::Warming);
    let nodes = 0..state.index.nodes() as u32;
    nodes.filter(move |node| takes(state.index.standing[*node as usize]))
}

/// Whether no step between any two nodes can lower the cost.
fn is_level(state: &State<'_>) -> bool {
    let last = (0..state.index.nodes() as u32).map(|node| state.last_cost(node)).max();
    let next = takers(state).map(|node| state.next_cost(node)).min();
    last.is_none_or(|last| next.is_none_or(|next| last <= next))
}

/// The share of each node in all leaders on nodes that take leaders, rounded down.
fn shares(state: &State<'_>) -> Vec<u64> {
    let total: u64 = takers(state).map(|node| state.counts[node as usize]).sum();
    let weights: u64 = takers(state).map(|node| state.index.weight(node)).sum();
    let share = |node| (total * state.index.weight(node)).checked_div(weights).unwrap_or(0);
    (0..state.index.nodes() as u32).map(share).collect()
}

/// The step of a group that lowers the cost most.
fn step(state: &State<'_>, group: usize, sweep: Sweep, share: &[u64]) -> Option<u32> {
    let from = state.place[group];
    if sweep == Sweep::Level && state.counts[from as usize] <= share[from as usize] {
        return None;
    }
    let wanted = |to: &u32| {
        *to != from && (sweep == Sweep::Any || state.counts[*to as usize] < share[*to as usize])
    };
    let harmless = |to: &u32| {
        let effect = state.effect(group, *to);
        effect.pairs <= 0 && effect.load <= 0 && effect.count < 0
    };
    let targets = state.candidates.allowed.row(group).iter().copied();
    targets.filter(wanted).filter(harmless).min_by_key(|to| {
        (state.next_cost(*to), *to != state.candidates.home[group], state.index.turn(*to))
    })
}
