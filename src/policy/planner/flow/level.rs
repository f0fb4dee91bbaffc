//! Brings nodes near their fair share in bulk, so that few single paths are left to find.
//!
//! Within a set of nodes, those above their share give to those below it, along paths with the
//! fewest moves, as long as a path exists. Where some are left on both sides, no path leads from
//! the nodes that cannot reach the needy to those that can: the set splits into two, each with a
//! fair share.

use super::Balancer;
use super::paths::{FAR, Tree};

impl Balancer {
    pub(super) fn level(&mut self) {
        let mut sets = vec![self.members.clone()];
        while let Some(set) = sets.pop() {
            if set.len() < 2 {
                continue;
            }
            let share = self.shares(&set);
            for from in &set {
                self.give(*from, &set, &share);
            }
            let (needy, rest) = self.split(&set, &share);
            if !needy.is_empty() && !rest.is_empty() {
                sets.push(needy);
                sets.push(rest);
            }
        }
    }

    /// The fair share of each node of a set, rounded down; of all other nodes nothing.
    fn shares(&self, set: &[usize]) -> Vec<u64> {
        let total: u64 = set.iter().map(|node| self.counts[*node]).sum();
        let weights: u64 = set.iter().map(|node| self.weights[*node]).sum();
        let mut share = vec![0; self.weights.len()];
        for node in set {
            share[*node] = (total * self.weights[*node]).checked_div(weights).unwrap_or(0);
        }
        share
    }

    /// Gives away what a node has above its share. After a push the same tree still holds the
    /// shortest ways from this node, as long as their arcs do not run dry.
    fn give(&mut self, from: usize, set: &[usize], share: &[u64]) {
        while self.counts[from] > share[from] {
            let tree = Tree::new(&self.arcs, from, set, self.weights.len());
            let needy = |node: &usize| self.counts[*node] < share[*node];
            let reached = |node: &usize| tree.moves[*node] != FAR;
            let mut ends: Vec<usize> = set.iter().copied().filter(needy).filter(reached).collect();
            ends.sort_by_key(|node| tree.moves[*node]);
            let given: u64 = ends.iter().map(|to| self.give_to(*to, &tree, share)).sum();
            if given == 0 {
                return;
            }
        }
    }

    fn give_to(&mut self, to: usize, tree: &Tree, share: &[u64]) -> u64 {
        let way = tree.way(to);
        let cost: i64 = way.windows(2).map(|arc| i64::from(self.arcs.cost(arc[0], arc[1]))).sum();
        if cost != tree.moves[to] {
            return 0;
        }
        let width = way.windows(2).map(|arc| self.arcs.width(arc[0], arc[1])).min().unwrap_or(0);
        let excess = self.counts[way[0]].saturating_sub(share[way[0]]);
        let amount = width.min(excess).min(share[to] - self.counts[to]);
        self.push(&way, amount);
        amount
    }

    /// The nodes that can reach one below its share, and the others.
    fn split(&self, set: &[usize], share: &[u64]) -> (Vec<usize>, Vec<usize>) {
        let mut reaches = vec![false; self.weights.len()];
        let mut found: Vec<usize> =
            set.iter().copied().filter(|node| self.counts[*node] < share[*node]).collect();
        found.iter().for_each(|node| reaches[*node] = true);
        while let Some(to) = found.pop() {
            for from in set {
                if !reaches[*from] && self.arcs.width(*from, to) > 0 {
                    reaches[*from] = true;
                    found.push(*from);
                }
            }
        }
        set.iter().partition(|node| reaches[**node])
    }
}
