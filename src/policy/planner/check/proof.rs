//! The proof that counts are optimal.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::NodeId;

use super::super::plan::{Plan, Price};
use super::super::snapshot::Group;
use super::reading::{Reading, cost};
use super::{CheckError, Placement};

pub(super) fn check(
    reading: &Reading<'_>,
    plan: &Plan,
    full: &Placement,
) -> Result<(), CheckError> {
    let proof = Proof::new(reading, plan, full);
    plan.certificate.prices.iter().try_for_each(|price| proof.check_cost(price))?;
    for group in &reading.snapshot.groups {
        let choices = reading.choices(group);
        match full.get(&group.id) {
            Some(at) if choices.len() > 1 && proof.is_free(group) => {
                proof.check_free(group, *at, &choices)?;
            }
            Some(at) if choices.len() > 1 => proof.check_single(group, *at, &choices)?,
            _ => {}
        }
    }
    Ok(())
}

struct Proof<'a> {
    reading: &'a Reading<'a>,
    prices: BTreeMap<NodeId, Price>,
    counts: BTreeMap<NodeId, u64>,
    pairs: BTreeMap<(&'a str, &'a str), u64>,
    loads: BTreeMap<NodeId, u64>,
    comfort: BTreeMap<NodeId, u64>,
    labels: BTreeMap<&'a str, u64>,
}

impl<'a> Proof<'a> {
    fn new(reading: &'a Reading<'a>, plan: &Plan, full: &Placement) -> Self {
        let mut counts = BTreeMap::new();
        full.values().for_each(|node| *counts.entry(*node).or_insert(0) += 1);
        let mut labels = BTreeMap::new();
        for label in reading.snapshot.groups.iter().filter_map(|group| group.label.as_deref()) {
            *labels.entry(label).or_insert(0) += 1;
        }
        let ids = reading.snapshot.nodes.iter().map(|node| node.id);
        Self {
            reading,
            prices: plan.certificate.prices.iter().map(|price| (price.node, *price)).collect(),
            counts,
            pairs: reading.pairs(full),
            loads: reading.loads(full),
            comfort: ids.map(|id| (id, reading.comfort(id))).collect(),
            labels,
        }
    }

    fn is_free(&self, group: &Group) -> bool {
        let label = group.label.as_deref();
        self.reading.load(group) == 0 && label.is_none_or(|label| self.labels[label] < 2)
    }

    /// What the last leader of a node costs, and what one more would.
    fn costs(&self, node: NodeId) -> (u64, u64) {
        let Some(known) = self.reading.node(node) else { return (0, 0) };
        let count = self.counts.get(&node).copied().unwrap_or(0);
        (if count == 0 { 0 } else { cost(known, count) }, cost(known, count + 1))
    }

    fn check_cost(&self, price: &Price) -> Result<(), CheckError> {
        let (last, next) = self.costs(price.node);
        let paid = (price.cost, price.moves);
        if paid < (last, 0) || paid > (next, 0) {
            return Err(CheckError::PriceOffCost { price: *price, last, next });
        }
        Ok(())
    }

    fn price(&self, node: NodeId) -> Result<Price, CheckError> {
        self.prices.get(&node).copied().ok_or(CheckError::NoPrice { node })
    }

    fn check_free(
        &self,
        group: &Group,
        at: NodeId,
        choices: &BTreeSet<NodeId>,
    ) -> Result<(), CheckError> {
        let home = self.reading.place(group).filter(|home| choices.contains(home));
        let from = self.price(at)?;
        for node in choices.iter().filter(|node| **node != at) {
            let to = self.price(*node)?;
            let added = i64::from(home == Some(at)) - i64::from(home == Some(*node));
            if (from.cost, from.moves) > (to.cost, to.moves + added) {
                return Err(CheckError::PriceGap { group: group.id, from, to });
            }
        }
        Ok(())
    }

    fn check_single(
        &self,
        group: &Group,
        at: NodeId,
        choices: &BTreeSet<NodeId>,
    ) -> Result<(), CheckError> {
        for to in choices.iter().filter(|node| **node != at) {
            let cheaper = self.costs(*to).1 < self.costs(at).0;
            if cheaper && !self.crowds(group, at, *to) && !self.violation_costs(group, at, *to) {
                return Err(CheckError::SingleStep { group: group.id, from: at, to: *to });
            }
        }
        Ok(())
    }

    /// Whether the move makes more pairs of one label in one zone.
    fn crowds(&self, group: &Group, from: NodeId, to: NodeId) -> bool {
        let zone = |node| self.reading.node(node).map_or("", |node| node.zone.as_str());
        let (Some(label), true) = (group.label.as_deref(), zone(from) != zone(to)) else {
            return false;
        };
        let there = |node| self.pairs.get(&(label, zone(node))).copied().unwrap_or(0);
        there(to) + 1 > there(from)
    }

    /// Whether the move makes more load above what nodes are comfortable with.
    fn violation_costs(&self, group: &Group, from: NodeId, to: NodeId) -> bool {
        let load = self.reading.load(group);
        let excess = |node: NodeId, more: u64, less: u64| {
            let load = self.loads.get(&node).copied().unwrap_or(0) + more - less;
            load.saturating_sub(self.comfort.get(&node).copied().unwrap_or(u64::MAX))
        };
        let before = excess(from, 0, 0) + excess(to, 0, 0);
        excess(from, 0, load) + excess(to, load, 0) > before
    }
}
