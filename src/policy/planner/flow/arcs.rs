//! Which items can shift between each two nodes, and what a shift adds to the number of moves.

use super::super::index::{NONE, Rows};

/// What shifting an item adds to the number of moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Undo,
    /// 0: it moved already, or has to move anyway.
    Moved,
    Home,
}

const CLASSES: usize = 3;
pub(super) const NO_ARC: i8 = i8::MAX;

/// Items on their nodes, and the arcs that they make.
pub(super) struct Arcs {
    nodes: usize,
    allowed: Rows,
    home: Vec<u32>,
    pub(super) place: Vec<u32>,
    /// Per pair of nodes and class: items that may be there. Those that left since are skipped.
    lists: Vec<Vec<u32>>,
    /// Per pair of nodes and class: how many items are there.
    counts: Vec<u32>,
    /// Per pair of nodes: the least that a shift adds.
    cheapest: Vec<i8>,
}

impl Arcs {
    /// Items at `place`; `home` is `NONE` for an item that has to move anyway.
    pub(super) fn new(nodes: usize, allowed: Rows, home: Vec<u32>, place: Vec<u32>) -> Self {
        let pairs = nodes * nodes;
        let mut arcs = Self {
            nodes,
            allowed,
            home,
            place,
            lists: vec![Vec::new(); pairs * CLASSES],
            counts: vec![0; pairs * CLASSES],
            cheapest: vec![NO_ARC; pairs],
        };
        for item in 0..arcs.allowed.len() {
            arcs.count_out(item);
        }
        for (list, count) in arcs.lists.iter_mut().zip(&arcs.counts) {
            list.reserve_exact(*count as usize);
        }
        // Backwards, so that the first item is the first to be taken.
        for item in (0..arcs.allowed.len()).rev() {
            arcs.list(item);
        }
        arcs
    }

    /// The row of a node: the least that a shift from it to each node adds.
    pub(super) fn row(&self, from: usize) -> &[i8] {
        &self.cheapest[from * self.nodes..(from + 1) * self.nodes]
    }

    pub(super) fn cost(&self, from: usize, to: usize) -> i8 {
        self.cheapest[from * self.nodes + to]
    }

    /// How many items can shift at that least.
    pub(super) fn width(&self, from: usize, to: usize) -> u64 {
        let pair = from * self.nodes + to;
        match self.cheapest[pair] {
            NO_ARC => 0,
            cost => self.counts[pair * CLASSES + class_at(cost)].into(),
        }
    }

    /// Shifts one of the cheapest items, if there is one, and returns it.
    pub(super) fn shift(&mut self, from: usize, to: usize) -> Option<u32> {
        let pair = from * self.nodes + to;
        let class = class_at(Some(self.cheapest[pair]).filter(|cost| *cost != NO_ARC)?);
        let item = loop {
            let item = self.lists[pair * CLASSES + class].pop()?;
            if self.place[item as usize] as usize == from {
                break item;
            }
        };
        self.uncount(item as usize);
        self.place[item as usize] = to as u32;
        self.count_out(item as usize);
        self.list(item as usize);
        Some(item)
    }

    fn class(&self, item: usize, from: u32, to: u32) -> Class {
        match self.home[item] {
            NONE => Class::Moved,
            home if home == to => Class::Undo,
            home if home == from => Class::Home,
            _ => Class::Moved,
        }
    }

    fn count_out(&mut self, item: usize) {
        let from = self.place[item];
        for to in self.allowed.row(item).iter().filter(|to| **to != from) {
            let class = self.class(item, from, *to) as usize;
            let pair = from as usize * self.nodes + *to as usize;
            self.counts[pair * CLASSES + class] += 1;
            self.cheapest[pair] = self.cheapest[pair].min(cost_of(class));
        }
    }

    fn uncount(&mut self, item: usize) {
        let from = self.place[item];
        for to in self.allowed.row(item).iter().filter(|to| **to != from) {
            let class = self.class(item, from, *to) as usize;
            let pair = from as usize * self.nodes + *to as usize;
            let counts = &mut self.counts[pair * CLASSES..(pair + 1) * CLASSES];
            counts[class] -= 1;
            if counts[class] == 0 {
                let least = counts.iter().position(|count| *count > 0);
                self.cheapest[pair] = least.map_or(NO_ARC, cost_of);
            }
        }
    }

    fn list(&mut self, item: usize) {
        let from = self.place[item];
        for to in self.allowed.row(item).iter().filter(|to| **to != from) {
            let class = self.class(item, from, *to) as usize;
            let pair = from as usize * self.nodes + *to as usize;
            self.lists[pair * CLASSES + class].push(item as u32);
        }
    }
}

fn cost_of(class: usize) -> i8 {
    class as i8 - 1
}

fn class_at(cost: i8) -> usize {
    (cost + 1) as usize
}
