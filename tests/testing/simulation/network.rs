//! What the network does to messages.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_groups::NodeId;

use super::chance::Chance;

/// How bad the network is, in times per thousand messages and milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub loss: u64,
    pub duplication: u64,
    /// Milliseconds that a message takes, at most.
    pub delay: u64,
    /// A few messages come very late.
    pub late: u64,
    /// So many orders to campaign come late.
    pub late_orders: u64,
}

impl Weather {
    /// Nothing is lost, and nothing takes long.
    pub const CALM: Self = Self { loss: 0, duplication: 0, delay: 3, late: 0, late_orders: 0 };
}

/// Which nodes cannot reach which.
#[derive(Clone, Debug, Default)]
pub struct Network {
    blocked: BTreeSet<(NodeId, NodeId)>,
    slow: BTreeMap<(NodeId, NodeId), u64>,
}

impl Network {
    /// All nodes reach each other again.
    pub fn heal(&mut self) {
        self.blocked.clear();
        self.slow.clear();
    }

    /// Messages take so many milliseconds longer.
    pub fn slow(&mut self, from: NodeId, to: NodeId, delay: u64) {
        self.slow.insert((from, to), delay);
    }

    /// How much longer messages take.
    pub fn detour(&self, from: NodeId, to: NodeId) -> u64 {
        self.slow.get(&(from, to)).copied().unwrap_or(0)
    }

    /// Nothing comes through any more, this way.
    pub fn block(&mut self, from: NodeId, to: NodeId) {
        self.blocked.insert((from, to));
    }

    /// Cuts the nodes into two sides, or lets messages pass one way only.
    pub fn partition(&mut self, nodes: &[NodeId], chance: &mut Chance) {
        let one_way = chance.per_mille(300);
        let side: BTreeSet<NodeId> =
            nodes.iter().copied().filter(|_| chance.per_mille(500)).collect();
        for &from in nodes {
            for &to in nodes {
                if side.contains(&from) && !side.contains(&to) {
                    self.block(from, to);
                    if !one_way {
                        self.block(to, from);
                    }
                }
            }
        }
    }

    /// Whether anything comes through, this way.
    pub fn passes(&self, from: NodeId, to: NodeId) -> bool {
        !self.blocked.contains(&(from, to))
    }

    /// When copies of a message arrive, in milliseconds from now.
    pub fn arrivals(&self, weather: Weather, order: bool, chance: &mut Chance) -> Vec<u64> {
        if order && chance.per_mille(weather.late_orders) {
            return vec![chance.between(500, 4_000)];
        }
        if chance.per_mille(weather.loss) {
            return Vec::new();
        }
        let copies = 1 + u64::from(chance.per_mille(weather.duplication));
        (0..copies)
            .map(|_| match chance.per_mille(weather.late) {
                true => chance.between(100, 3_000),
                false => chance.between(0, weather.delay),
            })
            .collect()
    }
}
