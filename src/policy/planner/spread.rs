//! The spread tier: groups with one label have their leaders in different zones, as far as
//! possible. Labels are independent, so each is balanced over zones separately and exactly. Later
//! tiers choose the node within a zone.

use super::flow::{Balancer, Problem};
use super::index::{NONE, Rows};
use super::load::heat;
use super::state::State;

/// Spreads all labels. Returns the groups that moved.
pub(super) fn balance(state: &mut State<'_>) -> Vec<u32> {
    let mut members = vec![Vec::new(); state.index.labels];
    for group in 0..state.index.groups() {
        let label = state.index.label_of[group];
        if label != NONE && state.place[group] != NONE {
            members[label as usize].push(group as u32);
        }
    }
    let mut moved = Vec::new();
    for groups in &members {
        spread(state, groups, &mut moved);
    }
    moved
}

/// The groups of one label.
fn spread(state: &mut State<'_>, groups: &[u32], moved: &mut Vec<u32>) {
    let crowded = |group: &u32| {
        let at = *group as usize;
        state.companions(at, state.place[at]) > 0
    };
    if !groups.iter().any(crowded) {
        return;
    }
    let label = Label::new(state, groups);
    let mut balancer = Balancer::new(label.problem(state));
    balancer.run();
    for (group, zone) in label.items.iter().zip(balancer.places()) {
        let zone = label.zones[*zone as usize];
        if zone != zone_of(state, state.place[*group as usize]) {
            let to = best_of_zone(state, *group as usize, zone);
            state.shift(*group as usize, to);
            moved.push(*group);
        }
    }
}

/// A label's zones in dense numbers.
struct Label {
    zones: Vec<u32>,
    /// Groups that can choose between zones.
    items: Vec<u32>,
    fixed: Vec<u32>,
}

impl Label {
    fn new(state: &State<'_>, groups: &[u32]) -> Self {
        let chooses = |group: &u32| zones_of(state, *group).len() > 1;
        let (items, fixed): (Vec<u32>, Vec<u32>) = groups.iter().partition(|group| chooses(group));
        let places = groups.iter().map(|group| zone_of(state, state.place[*group as usize]));
        let mut zones: Vec<u32> =
            items.iter().flat_map(|group| zones_of(state, *group)).chain(places).collect();
        zones.sort_unstable();
        zones.dedup();
        Self { zones, items, fixed }
    }

    fn problem(&self, state: &State<'_>) -> Problem {
        let place_of = |group: &u32| self.number(zone_of(state, state.place[*group as usize]));
        let home_of = |group: &u32| match state.candidates.may_stay(*group as usize) {
            true => self.number(zone_of(state, state.candidates.home[*group as usize])),
            false => NONE,
        };
        let mut fixed = vec![0; self.zones.len()];
        self.fixed.iter().for_each(|group| fixed[place_of(group) as usize] += 1);
        let mut allowed = Rows::with_capacity(self.items.len());
        for group in &self.items {
            let zones = zones_of(state, *group);
            allowed.push(&zones.iter().map(|zone| self.number(*zone)).collect::<Vec<_>>());
        }
        Problem {
            weights: vec![1; self.zones.len()],
            fixed,
            allowed,
            home: self.items.iter().map(home_of).collect(),
            place: self.items.iter().map(place_of).collect(),
        }
    }

    fn number(&self, zone: u32) -> u32 {
        self.zones.partition_point(|known| *known < zone) as u32
    }
}

fn zone_of(state: &State<'_>, node: u32) -> u32 {
    state.index.zone_of[node as usize]
}

fn zones_of(state: &State<'_>, group: u32) -> Vec<u32> {
    let nodes = state.candidates.allowed.row(group as usize).iter();
    let mut zones: Vec<u32> = nodes.map(|node| zone_of(state, *node)).collect();
    zones.sort_unstable();
    zones.dedup();
    zones
}

fn best_of_zone(state: &State<'_>, group: usize, zone: u32) -> u32 {
    let nodes = state.candidates.allowed.row(group).iter().copied();
    let inside = nodes.filter(|node| zone_of(state, *node) == zone);
    let heat_at = |node| if state.index.load(group) > 0 { heat(state, node) } else { 0 };
    let best =
        inside.min_by_key(|node| (heat_at(*node), state.next_cost(*node), state.index.turn(*node)));
    best.unwrap_or(state.place[group])
}
