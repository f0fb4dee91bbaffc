//! The exact balance of items over nodes: each item may be on some nodes, a node's cost rises with
//! each item, and the sum of costs is to be least, with the fewest items moved.
//!
//! This is optimal semi-matching (Harvey, Ladner, Lovasz, Tamir 2006) with weights. The least
//! number of moves that a given number of items per node needs is an M-convex function of these
//! numbers (Murota, Discrete Convex Analysis, 2003), and so is its sum with the nodes' costs. Two
//! planner_inputs follow, and all is built on them. Shifting along a path with the fewest moves keeps the
//! number of moves least for the numbers reached. And where no single path improves cost, or moves
//! at equal cost, nothing does.
//!
//! Knows nothing of groups, tiers or reasons: zones are balanced by it as well as nodes.

mod arcs;
mod level;
mod paths;

use super::index::Rows;
use super::state::marginal;
use arcs::Arcs;

/// What one more item costs on a node when it may be passed on: the cost at the best end, and the
/// moves on the way.
pub(super) type Cost = (u64, i64);

/// How many single pushes are made for each item at most.
const PUSHES_PER_ITEM: usize = 4;

/// Items, nodes, and which may be where.
pub(super) struct Problem {
    /// Per node. Zero only for nodes that no item may be on.
    pub(super) weights: Vec<u64>,
    /// Per node: items that stay.
    pub(super) fixed: Vec<u64>,
    /// Per item: where it may be.
    pub(super) allowed: Rows,
    /// Per item: where it is today, or `NONE` if it cannot stay there.
    pub(super) home: Vec<u32>,
    /// Per item: where to begin. An item with a home begins there.
    pub(super) place: Vec<u32>,
}

/// The items on their way to the best balance.
pub(super) struct Balancer {
    weights: Vec<u64>,
    counts: Vec<u64>,
    /// Nodes that some item may be on.
    members: Vec<usize>,
    arcs: Arcs,
}

impl Balancer {
    pub(super) fn new(problem: Problem) -> Self {
        let Problem { weights, fixed: mut counts, allowed, home, place } = problem;
        let mut member = vec![false; weights.len()];
        for item in 0..allowed.len() {
            counts[place[item] as usize] += 1;
            allowed.row(item).iter().for_each(|node| member[*node as usize] = true);
        }
        let members = (0..weights.len()).filter(|node| member[*node]).collect();
        let arcs = Arcs::new(weights.len(), allowed, home, place);
        Self { weights, counts, members, arcs }
    }

    pub(super) fn run(&mut self) {
        self.level();
        self.polish();
    }

    /// Finds the best balance from one that is nearly so. Each push is an improvement, and after
    /// leveling few are left; the bound is far above what was ever seen.
    pub(super) fn polish(&mut self) {
        let pushes = PUSHES_PER_ITEM * self.arcs.place.len() + self.members.len();
        for _ in 0..pushes {
            let prices = self.prices();
            let gain = |node: &usize| {
                let last = (self.last_cost(*node)?, 0);
                (last > prices.cost[*node]).then(|| {
                    let (cost, moves) = prices.cost[*node];
                    ((last.0 - cost, -moves), *node)
                })
            };
            let best = self.members.iter().filter_map(gain).max_by_key(|(gain, _)| *gain);
            let Some((_, from)) = best else { return };
            self.push(&prices.way(from), 1);
        }
    }

    /// What stays on the nodes changed: these are the counts of all, items included.
    pub(super) fn follow(&mut self, counts: &[u64]) {
        self.counts.copy_from_slice(counts);
    }

    pub(super) fn places(&self) -> &[u32] {
        &self.arcs.place
    }

    /// The price of each node that an item may be on.
    pub(super) fn certificate(&self) -> Vec<(usize, Cost)> {
        let prices = self.prices();
        self.members.iter().map(|node| (*node, prices.cost[*node])).collect()
    }

    fn last_cost(&self, node: usize) -> Option<u64> {
        let count = self.counts[node];
        (count > 0).then(|| marginal(self.weights[node], count))
    }

    fn next_cost(&self, node: usize) -> u64 {
        marginal(self.weights[node], self.counts[node] + 1)
    }

    /// Shifts `amount` items along each arc of a way. The last arc first, so that no item is taken
    /// twice.
    fn push(&mut self, way: &[usize], amount: u64) {
        for arc in way.windows(2).rev() {
            for _ in 0..amount {
                let shifted = self.arcs.shift(arc[0], arc[1]);
                debug_assert!(shifted.is_some(), "a way is as wide as its narrowest arc");
            }
        }
        if let [from, .., to] = way {
            self.counts[*from] -= amount;
            self.counts[*to] += amount;
        }
    }
}
