//! Ways with the fewest moves between nodes. There is never a circle that saves moves, so no way is
//! longer than there are nodes, and looking as often as that finds all. (With such a circle, which
//! would be a bug, looking would never end: so it is counted.)

use super::arcs::{Arcs, NO_ARC};
use super::{Balancer, Cost};

/// No node before or after this one.
const END: usize = usize::MAX;
pub(super) const FAR: i64 = i64::MAX;

/// From each node, the cheapest place to end.
pub(super) struct Prices {
    pub(super) cost: Vec<Cost>,
    next: Vec<usize>,
}

impl Prices {
    /// The nodes on the way to the cheapest end.
    pub(super) fn way(&self, from: usize) -> Vec<usize> {
        follow(&self.next, from)
    }
}

/// From one node, the fewest moves to each.
pub(super) struct Tree {
    pub(super) moves: Vec<i64>,
    before: Vec<usize>,
}

impl Tree {
    pub(super) fn new(arcs: &Arcs, from: usize, among: &[usize], nodes: usize) -> Self {
        let mut tree = Self { moves: vec![FAR; nodes], before: vec![END; nodes] };
        tree.moves[from] = 0;
        for _ in among {
            let relaxed = among.iter().filter(|node| tree.relax(arcs, **node, among));
            if relaxed.count() == 0 {
                break;
            }
        }
        tree
    }

    /// The nodes on the way to `to`.
    pub(super) fn way(&self, to: usize) -> Vec<usize> {
        let mut way = follow(&self.before, to);
        way.reverse();
        way
    }

    fn relax(&mut self, arcs: &Arcs, node: usize, among: &[usize]) -> bool {
        let here = self.moves[node];
        if here == FAR {
            return false;
        }
        let (row, mut changed) = (arcs.row(node), false);
        for to in among {
            if row[*to] != NO_ARC && here + i64::from(row[*to]) < self.moves[*to] {
                self.moves[*to] = here + i64::from(row[*to]);
                self.before[*to] = node;
                changed = true;
            }
        }
        changed
    }
}

fn follow(links: &[usize], from: usize) -> Vec<usize> {
    let mut way = vec![from];
    let mut at = from;
    while links[at] != END && way.len() < links.len() {
        at = links[at];
        way.push(at);
    }
    way
}

impl Balancer {
    pub(super) fn prices(&self) -> Prices {
        let nodes = self.weights.len();
        let mut prices = Prices { cost: vec![(u64::MAX, 0); nodes], next: vec![END; nodes] };
        for node in &self.members {
            prices.cost[*node] = (self.next_cost(*node), 0);
        }
        for _ in &self.members {
            if !self.improve(&mut prices) {
                break;
            }
        }
        prices
    }

    fn improve(&self, prices: &mut Prices) -> bool {
        let mut changed = false;
        for from in &self.members {
            let row = self.arcs.row(*from);
            let mut best = prices.cost[*from];
            for to in &self.members {
                if row[*to] == NO_ARC {
                    continue;
                }
                let (cost, moves) = prices.cost[*to];
                let through = (cost, moves + i64::from(row[*to]));
                if through < best {
                    best = through;
                    prices.next[*from] = *to;
                    changed = true;
                }
            }
            prices.cost[*from] = best;
        }
        changed
    }
}
