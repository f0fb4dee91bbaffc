//! The order of moves: higher tiers first, and within a tier so that nodes fill evenly. Moves that
//! help only together stand together.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::arrange::Arrangement;
use super::plan::Tier;
use super::state::{State, marginal};

/// A group that is to move. Ordered as moves of a tier should start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Step {
    pub(super) tier: Tier,
    /// What the leader costs on its target, if the target's come in the order of groups.
    fill: u64,
    pub(super) group: u32,
    pub(super) from: u32,
    pub(super) to: u32,
}

/// All moves, in runs of moves that may need each other.
pub(super) fn runs(before: &State<'_>, after: &State<'_>, how: &Arrangement) -> Vec<Vec<Step>> {
    let mut steps = steps(before, after, how);
    steps.sort_unstable();
    let singles = steps.partition_point(|step| step.tier < Tier::Spread);
    let spread = steps.partition_point(|step| step.tier < Tier::Load);
    let load = steps.partition_point(|step| step.tier < Tier::Count);
    let mut runs: Vec<Vec<Step>> = steps[..singles].iter().map(|step| vec![*step]).collect();
    runs.extend(by_label(before, &mut steps[singles..spread]));
    runs.extend(by_load(before, &mut steps[spread..load]));
    runs.extend(Chains::new(after, &steps[load..]));
    runs
}

fn steps(before: &State<'_>, after: &State<'_>, how: &Arrangement) -> Vec<Step> {
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
        steps.push(Step { tier, fill, group: group as u32, from, to });
    }
    steps
}

fn by_label(state: &State<'_>, steps: &mut [Step]) -> Vec<Vec<Step>> {
    let label = |step: &Step| state.index.label_of[step.group as usize];
    steps.sort_by_key(label);
    steps.chunk_by(|one, other| label(one) == label(other)).map(<[Step]>::to_vec).collect()
}

fn by_load(state: &State<'_>, steps: &mut [Step]) -> Vec<Vec<Step>> {
    steps.sort_by_key(|step| Reverse(state.index.load(step.group as usize)));
    steps.iter().map(|step| vec![*step]).collect()
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
    fn chain(&mut self, from: usize) -> Vec<Step> {
        let mut chain = Vec::new();
        let mut at = from;
        while let Some(step) = self.out[at].pop_front() {
            chain.push(step);
            at = step.to as usize;
            if self.surplus[at] < 0 || at == from {
                break;
            }
        }
        self.surplus[from] -= 1;
        self.surplus[at] += 1;
        self.counts[from] -= 1;
        self.counts[at] += 1;
        chain.reverse();
        chain
    }
}

impl Iterator for Chains {
    type Item = Vec<Step>;

    fn next(&mut self) -> Option<Vec<Step>> {
        if let Some((_, Reverse(from))) = self.givers.pop() {
            let chain = self.chain(from);
            self.offer(from);
            return Some(chain);
        }
        let from = self.out.iter().position(|out| !out.is_empty())?;
        Some(self.chain(from))
    }
}
