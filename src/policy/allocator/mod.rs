//! Which nodes hold replicas: replicas on nodes that are gone are replaced, and replicas are spread over
//! zones and nodes.
//!
//! [`choose`] decides from one picture of the cluster. The [`Allocator`] remembers between passes since when a
//! node does not answer, which changes are under way, and which groups refused one. Every change replaces one
//! member of a group by another one: a learner catches up, and takes the place in one joint change. The leader
//! of the group does that, or refuses.
//!
//! Time is an argument: milliseconds of a clock that never goes back.

mod choose;
#[cfg(test)]
mod simulation;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use shardhost_storage::{GroupId, NodeId};

pub use self::choose::{Choice, Held, Picture, Place, Standing, choose};
pub use self::status::{AllocatorStatus, GoneNode, MovingReplica, StuckGroup};
use crate::catalog::{
    GroupRecord, GroupState, NodeRecord, PlannerMode, ReplicaSettings, SYSTEM_GROUP, View,
};

/// Changes under way at most.
pub const MAX_MOVING: usize = 256;
/// Changes under way between nodes that run: they compete with users for disk and network.
pub const MAX_SPREADING: usize = 8;
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

/// Why a replica moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its node is gone.
    Gone,
    /// Its group has another member in the same zone.
    Zone,
    /// Its node holds more replicas than others.
    Count,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "its node is gone",
            Self::Zone => "its zone has another replica of the group",
            Self::Count => "its node holds more replicas than others",
        })
    }
}

/// Why a replica on a node that is gone is not replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Every other node that answers holds a replica of the group.
    NoOtherNode,
    /// Those that hold none are being drained.
    Drained,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoOtherNode => "every other node that answers holds a replica of it; add a node",
            Self::Drained => "the other nodes are drained; end a drain, or add a node",
        })
    }
}

/// One replica of a group goes to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub group: GroupId,
    pub old: NodeId,
    pub new: NodeId,
    pub reason: Reason,
    /// A node whose replica was begun and did not come: that addition is given up.
    pub instead_of: Option<NodeId>,
}

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
    /// The nodes that hold the catalog.
    pub system: &'a BTreeSet<NodeId>,
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
    /// The node that the last refused change was to.
    to: NodeId,
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
        let moving = self
            .moving
            .iter()
            .map(|(group, moving)| (*group, (moving.change.old, moving.change.new)));
        let resting = self.resting.iter().filter(|(_, rest)| rest.until_ms > seen.now_ms);
        self.avoided.retain(|_, avoided| avoided.until_ms > seen.now_ms);
        let avoided: BTreeSet<(GroupId, NodeId)> = self.avoided.keys().copied().collect();
        let spreading = self.moving.values().filter(|moving| moving.change.reason != Reason::Gone);
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
        let mut spread = spreading.count();
        let orders = choice.changes.iter().map(|change| self.instead(*change));
        let orders = orders.filter(|change| {
            spread += usize::from(change.reason != Reason::Gone);
            change.reason == Reason::Gone || spread <= MAX_SPREADING
        });
        let orders: Vec<Change> =
            if settings.mode == PlannerMode::On { orders.collect() } else { Vec::new() };
        for change in &orders {
            let moving = Moving { change: *change, ordered_ms: seen.now_ms, begun: false };
            self.moving.insert(change.group, moving);
        }
        let wanted: BTreeSet<GroupId> = choice.changes.iter().map(|change| change.group).collect();
        self.resting.retain(|group, rest| rest.until_ms > seen.now_ms || wanted.contains(group));
        self.choice = choice;
        orders
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
                self.rest(group, moving.change.new, now_ms, why);
            }
        }
    }

    fn rest(&mut self, group: GroupId, to: NodeId, now_ms: u64, why: String) {
        let before = self.resting.get(&group);
        let refusals = before.map_or(0, |rest| rest.refusals);
        let same = before.filter(|rest| rest.to == to).map_or(1, |rest| rest.same + 1);
        let rest = (FIRST_REST_MS << refusals.min(10)).min(LONGEST_REST_MS);
        let (until_ms, refusals) = (now_ms + rest, refusals.saturating_add(1));
        self.resting.insert(group, Rest { until_ms, refusals, why, to, same });
        if same >= MOST_REFUSALS {
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
        let (system, mut moved, mut overdue) = (seen.system, 0, Vec::new());
        self.moving.retain(|group, moving| {
            let Change { old, new, .. } = moving.change;
            let has = |node: NodeId| match *group {
                SYSTEM_GROUP => Some(system.contains(&node)),
                group => Some(seen.view.groups().get(&group)?.has_member(node)),
            };
            let (Some(has_old), Some(has_new)) = (has(old), has(new)) else { return false };
            if has_new && !has_old {
                moved += 1;
                return false;
            }
            let allowed = if moving.begun { MOVING_FOR_MS } else { UNKNOWN_FOR_MS };
            let late = seen.now_ms >= moving.ordered_ms + allowed;
            if late && moving.begun {
                overdue.push((*group, new));
            }
            seen.live.contains(&new) && !late
        });
        self.moved += moved;
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
            None if drains.get(&node).is_some_and(|drain| drain.keeps_leaders_away()) => {
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
fn groups_of(seen: &Observation<'_>) -> Vec<Held> {
    let system = Held {
        group: SYSTEM_GROUP,
        members: seen.system.iter().copied().collect(),
        requires: Box::default(),
        short: false,
    };
    let active = seen.view.groups().values().filter(|group| group.state == GroupState::Active);
    let held = |group: &GroupRecord| Held {
        group: group.id,
        members: group.members().to_vec(),
        requires: group.capabilities.clone(),
        short: group.members().len() < group.founders.len(),
    };
    std::iter::once(system).chain(active.map(|group| held(group))).collect()
}
