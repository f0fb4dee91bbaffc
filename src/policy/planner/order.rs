//! The order of moves: higher tiers first, and within a tier so that nodes fill evenly. Moves that
//! help only together stay together.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::plan::Tier;
use super::solve::Solution;
use super::state::{State, marginal};

/// A group that is to move. Ordered as moves of a tier should start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Step {
    pub(super) tier: Tier,
    /// It violates no Hard requirement. Those that do come first.
    mild: bool,
    /// What the leader costs on its target, if the target's come in the order of groups.
    fill: u64,
    pub(super) group: u32,
    pub(super) from: u32,
    pub(super) to: u32,
}

/// Runs of moves, one after the other.
#[derive(Debug, Default)]
pub(super) struct Runs {
    steps: Vec<Step>,
    ends: Vec<usize>,
}

impl Runs {
    /// Ends the run that was pushed to `steps` step by step.
    fn end(&mut self) {
        self.ends.push(self.steps.len());
    }

    pub(super) fn push(&mut self, run: &[Step]) {
        self.steps.extend_from_slice(run);
        self.end();
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// All moves, whatever their run.
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[Step]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.steps[start..*end])
    }
}

/// All moves, in runs of moves that may need each other.
pub(super) fn runs(before: &State<'_>, after: &State<'_>, how: &Solution) -> Runs {
    let mut steps = steps(before, after, how);
    steps.sort_unstable();
    let singles = steps.partition_point(|step| step.tier < Tier::Spread);
    let spread = steps.partition_point(|step| step.tier < Tier::Load);
    let load = steps.partition_point(|step| step.tier < Tier::Count);
    let mut runs = Runs { steps: Vec::with_capacity(steps.len()), ends: Vec::new() };
    steps[..singles].iter().for_each(|step| runs.push(&[*step]));
    by_label(before, &mut steps[singles..spread], &mut runs);
    by_load(before, &mut steps[spread..load], &mut runs);
    Chains::new(after, &steps[load..]).append(&mut runs);
    runs
}

fn steps(before: &State<'_>, after: &State<'_>, how: &Solution) -> Vec<Step> {
    let mut filled = before.counts.clone();
    let mut steps = Vec::new();
    for group in 0..before.place.len() {
        let (from, to) = (before.place[group], after.place[group]);
        if from == to {
            continue;
        }
        filled[to as usize] += 1;
        let fill = marginal(before.index.weight(to), filled[to as usize]);
        let tier = how.tier[group].unwrap_or(Tier::Count);
        let mild = !before.candidates.home_violation_cost[group].hard;
        steps.push(Step { tier, mild, fill, group: group as u32, from, to });
    }
    steps
}

fn by_label(state: &State<'_>, steps: &mut [Step], runs: &mut Runs) {
    let label = |step: &Step| state.index.label_of[step.group as usize];
    steps.sort_by_key(label);
    steps.chunk_by(|one, other| label(one) == label(other)).for_each(|run| runs.push(run));
}

fn by_load(state: &State<'_>, steps: &mut [Step], runs: &mut Runs) {
    steps.sort_by_key(|step| Reverse(state.index.load(step.group as usize)));
    steps.iter().for_each(|step| runs.push(&[*step]));
}

/// Takes moves of the count tier apart into chains from nodes that end with fewer leaders to nodes
/// that end with more. Each such chain lowers the cost, whatever was done before it: its reverse
/// would otherwise improve the full plan, or need fewer moves.
struct Chains {
    /// Per node: moves away from it.
    out: Vec<VecDeque<Step>>,
    /// Per node: leaders that it still gives away, less those that it still gets.
    surplus: Vec<i64>,
    /// Nodes that give, the fullest first.
    givers: BinaryHeap<(u64, Reverse<usize>)>,
    counts: Vec<u64>,
    weights: Vec<u64>,
}

impl Chains {
    fn new(after: &State<'_>, steps: &[Step]) -> Self {
        let nodes = after.index.nodes();
        let mut chains = Self {
            out: vec![VecDeque::new(); nodes],
            surplus: vec![0; nodes],
            givers: BinaryHeap::new(),
            counts: after.counts.clone(),
            weights: (0..nodes as u32).map(|node| after.index.weight(node)).collect(),
        };
        for step in steps {
            chains.surplus[step.from as usize] += 1;
            chains.surplus[step.to as usize] -= 1;
            chains.counts[step.from as usize] += 1;
            chains.counts[step.to as usize] -= 1;
            chains.out[step.from as usize].push_back(*step);
        }
        (0..nodes).for_each(|node| chains.offer(node));
        chains
    }

    fn offer(&mut self, node: usize) {
        if self.surplus[node] > 0 {
            let cost = marginal(self.weights[node], self.counts[node]);
            self.givers.push((cost, Reverse(node)));
        }
    }

    /// Follows moves from a node until one gets more than it gives. The last move comes first.
    fn chain(&mut self, from: usize, runs: &mut Runs) {
        let start = runs.steps.len();
        let mut at = from;
        while let Some(step) = self.out[at].pop_front() {
            runs.steps.push(step);
            at = step.to as usize;
            if self.surplus[at] < 0 || at == from {
                break;
            }
        }
        self.surplus[from] -= 1;
        self.surplus[at] += 1;
        self.counts[from] -= 1;
        self.counts[at] += 1;
        runs.steps[start..].reverse();
        runs.end();
    }

    /// All chains: from the fullest node each time, and circles at last.
    fn append(mut self, runs: &mut Runs) {
        while let Some((_, Reverse(from))) = self.givers.pop() {
            self.chain(from, runs);
            self.offer(from);
        }
        while let Some(from) = self.out.iter().position(|out| !out.is_empty()) {
            self.chain(from, runs);
        }
    }
}
