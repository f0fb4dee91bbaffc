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
mod repair;
#[cfg(test)]
mod simulation;
mod spread;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, NodeId};

pub use self::change::{Change, Reason, Step, Stuck};
pub use self::choose::{Choice, Held, Picture, Place, Standing, choose};
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
/// For how long an order whose outcome is unknown keeps its group from another one.
const UNKNOWN_FOR_MS: u64 = 30_000;
/// For how long a change may be under way before it is decided anew: the target may be gone.
const MOVING_FOR_MS: u64 = 600_000;
/// For how long a node is left out for a group after a change to it took too long, or was refused too often.
const AVOIDED_FOR_MS: u64 = 3_600_000;
/// Refusals of one change after which another node is tried.
const MOST_REFUSALS: u32 = 3;
/// How long a group that refused is left alone at first; twice as long with each further refusal.
const FIRST_REST_MS: u64 = 2_000;
const LONGEST_REST_MS: u64 = 120_000;
/// Nodes that run get replicas of each other when all have run for a part of the time after which one is
/// replaced.
const SETTLED_PART: u64 = 2;

/// How an order ended at the leader of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The change is recorded in the group: any leader continues it.
    Begun,
    /// It was not begun, and why.
    Refused(String),
    /// It may have begun.
    Unknown,
}

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

/// A change that was ordered.
#[derive(Clone, Copy, Debug)]
struct Moving {
    change: Change,
    ordered_ms: u64,
    begun: bool,
}

/// A group that refused.
#[derive(Clone, Debug)]
struct Rest {
    until_ms: u64,
    refusals: u32,
    why: String,
    /// The node that the last refused change was to, if it was to one.
    to: Option<NodeId>,
    /// How often in a row.
    same: u32,
}

/// A node that a group did not get a replica on.
#[derive(Clone, Copy, Debug)]
struct Avoided {
    until_ms: u64,
    /// The addition may still be recorded in the group.
    begun: bool,
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
    choice: Choice,
    /// Changes between nodes that run that may be under way; `None`: as many as at first.
    spreading: Option<usize>,
    /// The last pass left changes out, for want of room.
    has_more: bool,
    moved: u64,
    refused: u64,
}

impl Allocator {
    /// Looks at the cluster, and returns the changes that are to be ordered now.
    pub fn pass(&mut self, seen: &Observation<'_>) -> Vec<Change> {
        let settings = seen.view.settings().replicas;
        let Some(settings) = settings.filter(|settings| settings.mode != PlannerMode::Off) else {
            *self = Self { moved: self.moved, refused: self.refused, ..Self::default() };
            return Vec::new();
        };
        self.look_who_answers(seen);
        self.settle(seen);
        let places = self.places(seen, settings);
        let groups = groups_of(seen);
        let moving = self.moving.iter().map(|(group, moving)| (*group, moving.change.step));
        let resting = self.resting.iter().filter(|(_, rest)| rest.until_ms > seen.now_ms);
        self.avoided.retain(|_, avoided| avoided.until_ms > seen.now_ms);
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
            bug: None,
        });
        let (mut spread, most) = (spreading.count(), self.room_for_spreading());
        let orders = choice.changes.iter().map(|change| self.instead(*change));
        let orders = orders.filter(|change| {
            spread += usize::from(!change.urgent);
            change.urgent || spread <= most
        });
        let orders: Vec<Change> =
            if settings.mode == PlannerMode::On { orders.collect() } else { Vec::new() };
        let left_out = choice.waiting > 0 || orders.len() < choice.changes.len();
        self.has_more = settings.mode == PlannerMode::On && left_out;
        for change in &orders {
            let moving = Moving { change: *change, ordered_ms: seen.now_ms, begun: false };
            self.moving.insert(change.group, moving);
        }
        let wanted: BTreeSet<GroupId> = choice.changes.iter().map(|change| change.group).collect();
        self.resting.retain(|group, rest| rest.until_ms > seen.now_ms || wanted.contains(group));
        self.choice = choice;
        orders
    }

    /// Whether changes wait for others to end.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.has_more
    }

    fn room_for_spreading(&self) -> usize {
        self.spreading.unwrap_or(MIN_SPREADING)
    }

    /// A change between nodes that run took so long: small groups move by the dozen, and large ones, or those of
    /// a cluster that is busy, a few at a time.
    fn learn(&mut self, took_ms: u64) {
        let room = self.room_for_spreading();
        self.spreading = Some(match took_ms {
            0..=QUICK_MS => (room + 1).min(MAX_MOVING),
            SLOW_MS.. => (room / 2).max(MIN_SPREADING),
            _ => room,
        });
    }

    /// An order ended.
    pub fn ended(&mut self, group: GroupId, now_ms: u64, outcome: Outcome) {
        match outcome {
            Outcome::Begun => {
                if let Some(moving) = self.moving.get_mut(&group) {
                    moving.begun = true;
                }
                self.resting.remove(&group);
            }
            // It is decided anew when the order has surely ended.
            Outcome::Unknown => {}
            Outcome::Refused(why) => {
                let Some(moving) = self.moving.remove(&group) else { return };
                self.refused += 1;
                self.rest(group, moving.change.step.new_node(), now_ms, why);
            }
        }
    }

    fn rest(&mut self, group: GroupId, to: Option<NodeId>, now_ms: u64, why: String) {
        let before = self.resting.get(&group);
        let refusals = before.map_or(0, |rest| rest.refusals);
        let same = before.filter(|rest| rest.to == to).map_or(1, |rest| rest.same + 1);
        let rest = (FIRST_REST_MS << refusals.min(10)).min(LONGEST_REST_MS);
        let (until_ms, refusals) = (now_ms + rest, refusals.saturating_add(1));
        self.resting.insert(group, Rest { until_ms, refusals, why, to, same });
        if let Some(to) = to.filter(|_| same >= MOST_REFUSALS) {
            let until_ms = now_ms + AVOIDED_FOR_MS;
            self.avoided.entry((group, to)).or_insert(Avoided { until_ms, begun: false });
        }
    }

    /// A change of a group whose last one was begun and did not end takes the place of that.
    fn instead(&self, change: Change) -> Change {
        let of_group = (change.group, NodeId::must(1))..=(change.group, NodeId::must(u64::MAX));
        let mut begun = self.avoided.range(of_group).filter(|(_, avoided)| avoided.begun);
        Change { instead_of: begun.next().map(|((_, node), _)| *node), ..change }
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

    /// Forgets changes that have ended, and those that take too long.
    fn settle(&mut self, seen: &Observation<'_>) {
        let (mut moved, mut overdue, mut took) = (0, Vec::new(), Vec::new());
        self.moving.retain(|group, moving| {
            let Some(ended) = has_ended(seen, *group, moving.change.step) else { return false };
            if ended {
                moved += 1;
                let took_ms = seen.now_ms.saturating_sub(moving.ordered_ms);
                took.extend((!moving.change.urgent).then_some(took_ms));
                return false;
            }
            let allowed = if moving.begun { MOVING_FOR_MS } else { UNKNOWN_FOR_MS };
            let late = seen.now_ms >= moving.ordered_ms + allowed;
            let new = moving.change.step.new_node();
            if late && moving.begun {
                overdue.extend(new.map(|new| (*group, new)));
            }
            new.is_none_or(|new| seen.live.contains(&new)) && !late
        });
        self.moved += moved;
        took.into_iter().for_each(|took_ms| self.learn(took_ms));
        for key in overdue {
            let until_ms = seen.now_ms + AVOIDED_FOR_MS;
            self.avoided.insert(key, Avoided { until_ms, begun: true });
        }
        self.resting
            .retain(|group, _| *group == SYSTEM_GROUP || seen.view.groups().contains_key(group));
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

/// Whether a change is seen in the members of its group; `None`: there is no such group.
fn has_ended(seen: &Observation<'_>, group: GroupId, step: Step) -> Option<bool> {
    let record = seen.view.groups().get(&group);
    if group != SYSTEM_GROUP && record.is_none() {
        return None;
    }
    let has = |node: NodeId| record.map_or(seen.system.contains(&node), |one| one.has_member(node));
    let learners = record.map_or(Some(seen.system_learners), |one| one.learners());
    let learns = |node: NodeId| learners.is_some_and(|learners| learners.contains(&node));
    Some(match step {
        Step::Replace { old, new } => has(new) && !has(old),
        Step::Add { new, learner, .. } => has(new) && (learner || !learns(new)),
        Step::Remove { old, .. } => !has(old),
    })
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
