//! A placement of all leaders and its score, kept up to date move by move. Decides nothing.

use super::candidates::{CandidateTable, ViolationCost};
use super::index::{Index, NONE};
use super::plan::Score;

/// What a node's first leader costs at weight 1. More than the square of the largest weight, and so
/// costs that differ before rounding differ after it in the same way, or not at all.
const COST_SCALE: u64 = 1 << 20;

/// What the `nth` leader (from 1) of a node of this weight costs. Zero without weight: those
/// leaders are counted as displaced.
pub(super) fn marginal(weight: u64, nth: u64) -> u64 {
    ((2 * nth).saturating_sub(1) * COST_SCALE).checked_div(weight).unwrap_or(0)
}

/// What a move would change in the last three tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Effect {
    pub(super) pairs: i64,
    pub(super) load: i64,
    pub(super) count: i64,
}

/// How many leaders of each label are in each zone: for each label a few slots of zone and number,
/// the first free slot ends them. Labels have few zones.
#[derive(Clone)]
struct Zones {
    starts: Vec<u32>,
    slots: Vec<(u32, u32)>,
}

impl Zones {
    fn new(index: &Index<'_>, candidates: &CandidateTable) -> Self {
        // A label is never in more zones than its groups have places.
        let mut room = vec![0; index.labels];
        for (group, label) in index.label_of.iter().enumerate().filter(|(_, l)| **l != NONE) {
            room[*label as usize] += 1 + candidates.allowed.row(group).len() as u32;
        }
        let mut starts = vec![0];
        for room in room {
            starts.push(starts[starts.len() - 1] + room.min(index.zones));
        }
        let slots = vec![(NONE, 0); starts[index.labels] as usize];
        Self { starts, slots }
    }

    fn range(&self, label: u32) -> std::ops::Range<usize> {
        self.starts[label as usize] as usize..self.starts[label as usize + 1] as usize
    }

    fn get(&self, label: u32, zone: u32) -> u32 {
        let mut used = self.slots[self.range(label)].iter().take_while(|slot| slot.0 != NONE);
        used.find(|slot| slot.0 == zone).map_or(0, |slot| slot.1)
    }

    /// # Panics
    /// If the label is in more zones than its groups have places.
    fn slot(&mut self, label: u32, zone: u32) -> &mut u32 {
        let range = self.range(label);
        let mut slots = self.slots[range].iter_mut();
        let slot = slots.find(|slot| slot.0 == zone || slot.0 == NONE);
        let slot = slot.expect("a label has room for every zone that its groups may be in");
        slot.0 = zone;
        &mut slot.1
    }
}

/// A placement of all leaders.
#[derive(Clone)]
pub(super) struct State<'a> {
    pub(super) index: &'a Index<'a>,
    pub(super) candidates: &'a CandidateTable,
    /// Per group: where it is led.
    pub(super) place: Vec<u32>,
    /// Per node: how many leaders it has.
    pub(super) counts: Vec<u64>,
    pub(super) loads: Vec<u64>,
    /// Per node: the load that it is comfortable with.
    pub(super) comfort: Vec<u64>,
    pub(super) score: Score,
    zones: Zones,
}

impl<'a> State<'a> {
    /// Every group where it is.
    pub(super) fn at_home(index: &'a Index<'a>, candidates: &'a CandidateTable) -> Self {
        let nodes = index.nodes();
        let mut state = Self {
            index,
            candidates,
            place: vec![NONE; index.groups()],
            counts: vec![0; nodes],
            loads: vec![0; nodes],
            comfort: vec![u64::MAX; nodes],
            score: Score::default(),
            zones: Zones::new(index, candidates),
        };
        for group in 0..index.groups() {
            if candidates.home[group] != NONE {
                state.arrive(group, candidates.home[group]);
            }
        }
        state.comfort = super::load::limits(&state, super::load::Limit::Comfort);
        state.score.load = (0..nodes).map(|node| state.excess(node, state.loads[node])).sum();
        state
    }

    /// Moves a group that is led somewhere.
    pub(super) fn shift(&mut self, group: usize, to: u32) {
        self.leave(group);
        self.arrive(group, to);
    }

    /// What moving a group to a node that it may lead on would change.
    pub(super) fn effect(&self, group: usize, to: u32) -> Effect {
        let from = self.place[group];
        Effect {
            pairs: self.pairs_effect(group, from, to),
            load: self.load_effect(group, from, to),
            count: self.next_cost(to).cast_signed() - self.last_cost(from).cast_signed(),
        }
    }

    /// What the last leader of a node costs.
    pub(super) fn last_cost(&self, node: u32) -> u64 {
        marginal(self.index.weight(node), self.counts[node as usize])
    }

    /// What one more leader of a node would cost.
    pub(super) fn next_cost(&self, node: u32) -> u64 {
        marginal(self.index.weight(node), self.counts[node as usize] + 1)
    }

    /// How many leaders of the group's label are in the node's zone, others than its own.
    pub(super) fn companions(&self, group: usize, node: u32) -> u32 {
        let (label, zone) = (self.index.label_of[group], self.index.zone_of[node as usize]);
        if label == NONE {
            return 0;
        }
        let place = self.place[group];
        let own = place != NONE && self.index.zone_of[place as usize] == zone;
        self.zones.get(label, zone) - u32::from(own)
    }

    fn pairs_effect(&self, group: usize, from: u32, to: u32) -> i64 {
        i64::from(self.companions(group, to)) - i64::from(self.companions(group, from))
    }

    fn load_effect(&self, group: usize, from: u32, to: u32) -> i64 {
        let load = self.index.load(group);
        if load == 0 || from == to {
            return 0;
        }
        let (from, to) = (from as usize, to as usize);
        let change = |node: usize, after: u64| {
            let before = self.excess(node, self.loads[node]);
            self.excess(node, after).cast_signed() - before.cast_signed()
        };
        change(from, self.loads[from] - load) + change(to, self.loads[to] + load)
    }

    fn excess(&self, node: usize, load: u64) -> u64 {
        load.saturating_sub(self.comfort[node])
    }

    fn violation_cost(&self, group: usize, node: u32) -> ViolationCost {
        if node == self.candidates.home[group] {
            return self.candidates.home_violation_cost[group];
        }
        ViolationCost { rank: self.candidates.target_rank[group], ..ViolationCost::default() }
    }

    fn leave(&mut self, group: usize) {
        let node = self.place[group];
        let violation_cost = self.violation_cost(group, node);
        self.score.hard -= u64::from(violation_cost.hard);
        self.score.soft -= u64::from(violation_cost.soft);
        self.score.displaced -= u64::from(violation_cost.displaced);
        self.score.rank -= u64::from(violation_cost.rank);
        self.score.count -= self.last_cost(node);
        let at = node as usize;
        let left = self.loads[at] - self.index.load(group);
        self.score.load -= self.excess(at, self.loads[at]) - self.excess(at, left);
        self.loads[at] = left;
        self.counts[at] -= 1;
        if self.index.label_of[group] != NONE {
            let count = self.zones.slot(self.index.label_of[group], self.index.zone_of[at]);
            *count -= 1;
            self.score.pairs -= u64::from(*count);
        }
        self.place[group] = NONE;
    }

    fn arrive(&mut self, group: usize, node: u32) {
        let violation_cost = self.violation_cost(group, node);
        self.score.hard += u64::from(violation_cost.hard);
        self.score.soft += u64::from(violation_cost.soft);
        self.score.displaced += u64::from(violation_cost.displaced);
        self.score.rank += u64::from(violation_cost.rank);
        self.score.count += self.next_cost(node);
        let at = node as usize;
        let more = self.loads[at] + self.index.load(group);
        self.score.load += self.excess(at, more) - self.excess(at, self.loads[at]);
        self.loads[at] = more;
        self.counts[at] += 1;
        if self.index.label_of[group] != NONE {
            let count = self.zones.slot(self.index.label_of[group], self.index.zone_of[at]);
            self.score.pairs += u64::from(*count);
            *count += 1;
        }
        self.place[group] = node;
    }
}
