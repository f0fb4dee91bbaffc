//! Which nodes hold replicas: replicas on nodes that are gone are replaced, groups have as many as their rules
//! ask for and where those allow them, and replicas are spread over zones and nodes.
//!
//! [`choose`] decides from one picture of the cluster. The [`Allocator`] remembers between passes since when a
//! node does not answer, which changes are under way, and which groups refused one. Every change
//! replaces, adds or removes one member of a group: a learner catches up, and gets its vote or takes the other's
//! place in one joint change. The leader of the group does that, or refuses.
//!
//! Time is an argument: milliseconds of a clock that never goes back.

mod change;
mod choose;
mod orders;
mod repair;
#[cfg(test)]
mod simulation;
mod spread;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, NodeId};

pub use self::change::{Change, Order, Reason, Step, Stuck};
pub use self::choose::{Choice, Held, Picture, Place, Standing, choose};
#[cfg(test)]
use self::orders::OrderBug;
pub use self::orders::Outcome;
use self::orders::{Avoided, InTheWay, Moving, Rest};
pub use self::status::{AllocatorStatus, GoneNode, MovingReplica, StuckGroup};
use crate::catalog::{
    self, GroupRecord, GroupState, NodeRecord, PlannerMode, ReplicaRule, ReplicaSettings,
    SYSTEM_GROUP, View, rule_of, rule_of_catalog,
};

/// Changes under way at most.
pub const MAX_MOVING: usize = 256;
/// Changes under way at most between nodes that run, at first: they compete with users for disk and network.
/// While they end quickly there may be more, up to [`MAX_MOVING`].
pub const MIN_SPREADING: usize = 8;
/// One that took no longer makes room for one more.
const QUICK_MS: u64 = 3_000;
/// One that took longer halves the room.
const SLOW_MS: u64 = 10_000;
/// Nodes that run get replicas of each other when all have run for a part of the time after which one is
/// replaced.
const SETTLED_PART: u64 = 2;

/// What is known at a pass.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    pub now_ms: u64,
    pub view: &'a View,
    /// The nodes that answer.
    pub live: &'a BTreeSet<NodeId>,
    /// Those of them that say that something is wrong with them, as a disk that is nearly full: they get none.
    pub impaired: &'a BTreeSet<NodeId>,
    /// The nodes that hold the catalog.
    pub system: &'a BTreeSet<NodeId>,
    /// Those of them without a vote, in ascending order.
    pub system_learners: &'a [NodeId],
}

/// The memory between passes. One exists where the system group is led, and ends with that leadership.
#[derive(Debug, Default)]
pub struct Allocator {
    /// Since when nodes do not answer.
    silent: BTreeMap<NodeId, u64>,
    /// Since when the nodes that answer are these.
    settled: Option<(BTreeSet<NodeId>, u64)>,
    moving: BTreeMap<GroupId, Moving>,
    resting: BTreeMap<GroupId, Rest>,
    avoided: BTreeMap<(GroupId, NodeId), Avoided>,
    /// Additions that are under way and not of the newest order of their group.
    in_the_way: BTreeMap<GroupId, InTheWay>,
    /// Additions that were given up since one of the group ended.
    impatience: BTreeMap<GroupId, u32>,
    choice: Choice,
    /// Changes between nodes that run that may be under way; `None`: as many as at first.
    spreading: Option<usize>,
    /// The last pass left changes out, for want of room.
    has_more: bool,
    moved: u64,
    refused: u64,
    /// Of the newest order.
    ticket: u64,
    #[cfg(test)]
    bug: Option<OrderBug>,
    #[cfg(test)]
    choice_bug: Option<choose::Bug>,
}

impl Allocator {
    /// Looks at the cluster, and returns the orders that are to be sent now.
    pub fn pass(&mut self, seen: &Observation<'_>) -> Vec<Order> {
        let settings = seen.view.settings().replicas;
        let Some(settings) = settings.filter(|settings| settings.mode != PlannerMode::Off) else {
            let Self { moved, refused, ticket, .. } = *self;
            *self = Self { moved, refused, ticket, ..Self::default() };
            return Vec::new();
        };
        self.look_who_answers(seen);
        self.settle(seen);
        let places = self.places(seen, settings);
        let groups = groups_of(seen);
        let moving = self.moving.iter().map(|(group, moving)| (*group, moving.change.step));
        let resting = self.resting.iter().filter(|(_, rest)| rest.until_ms > seen.now_ms);
        let avoided: BTreeSet<(GroupId, NodeId)> = self.avoided.keys().copied().collect();
        let spreading = self.moving.values().filter(|moving| !moving.change.urgent);
        let choice = choose(&Picture {
            places: &places,
            groups: &groups,
            moving: &moving.collect(),
            resting: &resting.map(|(group, _)| *group).collect(),
            avoided: &avoided,
            limit: MAX_MOVING.saturating_sub(self.moving.len()),
            spread: self.has_settled(seen, settings),
            #[cfg(test)]
            bug: self.choice_bug,
        });
        let (mut spread, most) = (spreading.count(), self.room_for_spreading());
        let orders = choice.changes.iter().map(|change| self.instead(*change, seen, settings));
        let orders = orders.filter(|change| {
            spread += usize::from(!change.urgent);
            change.urgent || spread <= most
        });
        let orders: Vec<Change> =
            if settings.mode == PlannerMode::On { orders.collect() } else { Vec::new() };
        let left_out = choice.waiting > 0 || orders.len() < choice.changes.len();
        self.has_more = settings.mode == PlannerMode::On && left_out;
        let mut sent = self.sent_again(seen.now_ms);
        sent.extend(orders.into_iter().map(|change| self.order(change, seen.now_ms)));
        let wanted: BTreeSet<GroupId> = choice.changes.iter().map(|change| change.group).collect();
        self.resting.retain(|group, rest| rest.until_ms > seen.now_ms || wanted.contains(group));
        self.choice = choice;
        sent
    }

    /// Whether changes wait for others to end.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.has_more
    }

    fn look_who_answers(&mut self, seen: &Observation<'_>) {
        let known = seen.view.nodes();
        self.silent.retain(|node, _| known.contains_key(node) && !seen.live.contains(node));
        for node in known.keys().filter(|node| !seen.live.contains(node)) {
            self.silent.entry(*node).or_insert(seen.now_ms);
        }
        let live: BTreeSet<NodeId> =
            known.keys().filter(|node| seen.live.contains(node)).copied().collect();
        if self.settled.as_ref().is_none_or(|(before, _)| *before != live) {
            self.settled = Some((live, seen.now_ms));
        }
    }

    fn has_settled(&self, seen: &Observation<'_>, settings: ReplicaSettings) -> bool {
        let wait = settings.replace_after_ms / SETTLED_PART;
        self.settled.as_ref().is_some_and(|(_, since)| seen.now_ms >= since + wait)
    }

    fn places(&self, seen: &Observation<'_>, settings: ReplicaSettings) -> BTreeMap<NodeId, Place> {
        let drains = seen.view.drains();
        let standing = |node: NodeId| match self.silent.get(&node) {
            Some(since) if seen.now_ms >= since + settings.replace_after_ms => Standing::Gone,
            Some(_) => Standing::Silent,
            None if drains.get(&node).is_some_and(|drain| drain.keeps_leaders_away())
                || seen.impaired.contains(&node) =>
            {
                Standing::Closed
            }
            None => Standing::Open,
        };
        let place = |node: &NodeRecord| Place {
            standing: standing(node.id),
            zone: node.zone.clone(),
            capabilities: node
                .advertisement
                .iter()
                .flat_map(|one| one.capabilities.iter().cloned())
                .collect(),
        };
        let known = seen.view.nodes().values().map(|node| (node.id, place(node)));
        // A member there was reported late.
        let removed = seen.view.settings().removed_nodes.iter().map(|node| {
            let (standing, zone, capabilities) = (Standing::Gone, None, Box::default());
            (*node, Place { standing, zone, capabilities })
        });
        removed.chain(known).collect()
    }
}

/// All groups that are to be, the catalog too.
fn groups_of<'a>(seen: &Observation<'a>) -> Vec<Held<'a>> {
    let rules = &seen.view.settings().rules;
    let system = Held {
        group: SYSTEM_GROUP,
        members: seen.system.iter().copied().collect(),
        learners: Some(seen.system_learners),
        requires: &[],
        wanted: Vec::new(),
        short: false,
        rule: rule_of_catalog(rules),
    };
    let active = seen.view.groups().values().filter(|group| group.state == GroupState::Active);
    std::iter::once(system).chain(active.map(|group| held_of(group, rules))).collect()
}

fn held_of<'a>(group: &'a GroupRecord, rules: &'a [ReplicaRule]) -> Held<'a> {
    let wanted = |placement: &catalog::Placement| {
        let pin = placement.pin.map(catalog::Place::Node);
        placement.preference.iter().cloned().chain(pin).collect()
    };
    Held {
        group: group.id,
        members: group.members().to_vec(),
        learners: group.learners(),
        requires: &group.capabilities,
        wanted: group.placement.as_deref().map_or_else(Vec::new, wanted),
        short: group.members().len() < group.founders.len(),
        rule: rule_of(rules, group),
    }
}
