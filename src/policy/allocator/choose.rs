//! Which replicas move where: one pass, from what is known at the moment.
//!
//! First come replicas on nodes that are gone, those of the catalog before all others, then those of the
//! groups with the fewest members left. Only while no node is missing replicas are moved between nodes that
//! run: out of a zone that a group is in twice, and from the nodes that hold most to those that hold fewest.
//! No move takes from a group: the members that may lead it and the zones that it is in are not fewer after
//! it, and a move between nodes that run makes the difference of their numbers smaller. So moves end.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, NodeId};

use super::{Change, Reason, Stuck};
use crate::catalog::{Name, SYSTEM_GROUP};

/// Whether a node may get replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Open,
    /// It answers and takes none: it is being drained.
    Closed,
    /// It does not answer, and not for so long that it is replaced.
    Silent,
    /// It is to be replaced.
    Gone,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Place {
    pub standing: Standing,
    /// What fails together with it.
    pub zone: Option<Name>,
    /// What it has, in ascending order.
    pub capabilities: Box<[Name]>,
}

/// A group.
#[derive(Clone, Debug)]
pub struct Held {
    pub group: GroupId,
    pub members: Vec<NodeId>,
    /// What its leader must have.
    pub requires: Box<[Name]>,
    /// It has fewer members than it was created with: only what is gone is replaced.
    pub short: bool,
}

/// What a pass decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    pub changes: Vec<Change>,
    /// Groups with a replica on a node that is gone, and no place for another one.
    pub stuck: BTreeMap<GroupId, Stuck>,
    /// Replicas on nodes that are gone, of groups whose change is neither chosen nor under way.
    pub waiting: u64,
}

/// What a pass sees.
#[derive(Debug)]
pub struct Picture<'a> {
    pub places: &'a BTreeMap<NodeId, Place>,
    pub groups: &'a [Held],
    /// Groups whose change is under way, and the one that gives and the one that gets.
    pub moving: &'a BTreeMap<GroupId, (NodeId, NodeId)>,
    /// Nodes that groups are not to get replicas on for a while.
    pub avoided: &'a BTreeSet<(GroupId, NodeId)>,
    /// Groups that are left alone for a while.
    pub resting: &'a BTreeSet<GroupId>,
    /// Changes at most.
    pub limit: usize,
    /// Replicas move between nodes that run, too.
    pub spread: bool,
    /// A fault that the simulation must find.
    #[cfg(test)]
    pub bug: Option<Bug>,
}

/// Faults that the simulation must find.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Numbers that differ by one are levelled, too.
    LevelsOne,
    /// A replica leaves its zone for a fuller one.
    ForgetsZones,
    /// A node that lacks a requirement takes the place of one that has it.
    ForgetsRequirements,
    /// Changes under way do not count.
    ForgetsMoving,
    /// Only one group of those that lost a replica is looked at.
    ReplacesOne,
}

impl Picture<'_> {
    #[cfg(test)]
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

/// Whether a fault is switched on; never outside of tests.
macro_rules! bug {
    ($picture:expr, $bug:ident) => {{
        #[cfg(test)]
        let on = $picture.has(Bug::$bug);
        #[cfg(not(test))]
        let on = false;
        on
    }};
}

/// Decides. The same picture gives the same choice.
#[must_use]
pub fn choose(picture: &Picture<'_>) -> Choice {
    let mut work = Work::new(picture);
    work.replace_gone();
    let missing = |place: &Place| matches!(place.standing, Standing::Gone | Standing::Silent);
    let whole = !picture.places.iter().any(|(id, place)| missing(place) && work.held(*id) > 0);
    if picture.spread && whole {
        work.leave_shared_zones();
        work.level();
    }
    work.choice
}

struct Work<'a> {
    picture: &'a Picture<'a>,
    /// How many replicas each node holds when all changes have ended.
    counts: BTreeMap<NodeId, u64>,
    /// Groups that change.
    changing: BTreeSet<GroupId>,
    choice: Choice,
}

impl<'a> Work<'a> {
    fn new(picture: &'a Picture<'a>) -> Self {
        let mut counts: BTreeMap<NodeId, u64> = picture.places.keys().map(|id| (*id, 0)).collect();
        for held in picture.groups.iter().filter(|held| held.group != SYSTEM_GROUP) {
            for member in &held.members {
                *counts.entry(*member).or_default() += 1;
            }
        }
        let members: BTreeMap<GroupId, &[NodeId]> =
            picture.groups.iter().map(|held| (held.group, &*held.members)).collect();
        for (group, (old, new)) in picture.moving {
            if bug!(picture, ForgetsMoving) {
                break;
            }
            let Some(members) = members.get(group).filter(|_| *group != SYSTEM_GROUP) else {
                continue;
            };
            if members.contains(old) {
                counts.entry(*old).and_modify(|count| *count = count.saturating_sub(1));
            }
            if !members.contains(new) {
                *counts.entry(*new).or_default() += 1;
            }
        }
        let changing = picture.moving.keys().copied().collect();
        Self { picture, counts, changing, choice: Choice::default() }
    }

    fn held(&self, node: NodeId) -> u64 {
        self.counts.get(&node).copied().unwrap_or(0)
    }

    fn place(&self, node: NodeId) -> Option<&'a Place> {
        self.picture.places.get(&node)
    }

    fn is(&self, node: NodeId, standing: Standing) -> bool {
        self.place(node).is_some_and(|place| place.standing == standing)
    }

    fn may_choose(&self) -> bool {
        self.choice.changes.len() < self.picture.limit
    }

    fn is_free(&self, group: GroupId) -> bool {
        !self.changing.contains(&group) && !self.picture.resting.contains(&group)
    }

    fn take(&mut self, group: GroupId, old: NodeId, new: NodeId, reason: Reason) {
        if group != SYSTEM_GROUP {
            self.counts.entry(old).and_modify(|count| *count = count.saturating_sub(1));
            *self.counts.entry(new).or_default() += 1;
        }
        self.changing.insert(group);
        self.choice.changes.push(Change { group, old, new, reason, instead_of: None });
    }

    fn replace_gone(&mut self) {
        let mut lost: Vec<(bool, usize, &Held)> = Vec::new();
        for held in self.picture.groups {
            if held.members.iter().any(|member| self.is(*member, Standing::Gone)) {
                let here = |node: &&NodeId| {
                    self.is(**node, Standing::Open) || self.is(**node, Standing::Closed)
                };
                lost.push((
                    held.group != SYSTEM_GROUP,
                    held.members.iter().filter(here).count(),
                    held,
                ));
            }
        }
        lost.sort_by_key(|(other, left, held)| (*other, *left, held.group));
        if bug!(self.picture, ReplacesOne) {
            lost.truncate(1);
        }
        for (_, _, held) in lost {
            let mut gone =
                held.members.iter().copied().filter(|node| self.is(*node, Standing::Gone));
            let Some(old) = gone.next() else { continue };
            if self.changing.contains(&held.group) {
                continue;
            }
            match self.successor(held, old) {
                None => {
                    let stuck = self.why_stuck(held);
                    self.choice.stuck.insert(held.group, stuck);
                }
                Some(new) if self.may_choose() && self.is_free(held.group) => {
                    self.take(held.group, old, new, Reason::Gone);
                }
                Some(_) => self.choice.waiting += 1,
            }
        }
    }

    /// Whether a node may get a replica of a group.
    fn takes(&self, held: &Held, node: NodeId, place: &Place) -> bool {
        place.standing == Standing::Open
            && !held.members.contains(&node)
            && !self.picture.avoided.contains(&(held.group, node))
    }

    /// The best node for a replica in the place of one that is gone.
    fn successor(&self, held: &Held, old: NodeId) -> Option<NodeId> {
        let places = self.picture.places.iter();
        let open = places.filter(|(id, place)| self.takes(held, **id, place));
        let rank = |(id, place): &(&NodeId, &Place)| {
            (!meets(place, held), self.neighbors(held, **id, old), self.held(**id), **id)
        };
        open.min_by_key(rank).map(|(id, _)| *id)
    }

    fn why_stuck(&self, held: &Held) -> Stuck {
        let answers = |place: &&Place| matches!(place.standing, Standing::Open | Standing::Closed);
        let others = self.picture.places.iter().filter(|(id, _)| !held.members.contains(id));
        match others.map(|(_, place)| place).filter(answers).count() {
            0 => Stuck::NoOtherNode,
            _ => Stuck::Drained,
        }
    }

    /// Other members in the zone of a node, when `old` is none any more.
    fn neighbors(&self, held: &Held, node: NodeId, old: NodeId) -> usize {
        let Some(zone) = self.place(node).and_then(|place| place.zone.as_ref()) else { return 0 };
        let others = held.members.iter().filter(|member| **member != old && **member != node);
        let zones = others.filter_map(|member| self.place(*member)?.zone.as_ref());
        zones.filter(|other| *other == zone).count()
    }

    /// Whether a group loses nothing by a move between nodes that run.
    fn loses_nothing(&self, held: &Held, old: NodeId, new: NodeId) -> bool {
        let fit = |node| self.place(node).is_some_and(|place| meets(place, held));
        self.place(new).is_some_and(|place| self.takes(held, new, place))
            && (fit(new) || !fit(old) || bug!(self.picture, ForgetsRequirements))
            && (self.neighbors(held, new, old) <= self.neighbors(held, old, old)
                || bug!(self.picture, ForgetsZones))
    }

    /// Moves replicas out of zones that their groups are in more than once.
    fn leave_shared_zones(&mut self) {
        for held in self.picture.groups.iter().filter(|held| held.group != SYSTEM_GROUP) {
            if !self.may_choose() || !self.is_free(held.group) || held.short {
                continue;
            }
            let shared = |old: &&NodeId| {
                self.is(**old, Standing::Open) && self.neighbors(held, **old, **old) > 0
            };
            // The fullest one of them gives.
            let givers = held.members.iter().filter(shared);
            let Some(old) = givers.max_by_key(|old| (self.held(**old), **old)).copied() else {
                continue;
            };
            let before = self.neighbors(held, old, old);
            let better = self.picture.places.iter().filter(|(new, place)| {
                self.takes(held, **new, place)
                    && self.loses_nothing(held, old, **new)
                    && self.neighbors(held, **new, old) < before
            });
            let rank = |(id, _): &(&NodeId, &Place)| {
                (self.neighbors(held, **id, old), self.held(**id), **id)
            };
            if let Some(new) = better.min_by_key(rank).map(|(id, _)| *id) {
                self.take(held.group, old, new, Reason::Zone);
            }
        }
    }

    /// Moves replicas from the fullest nodes to the emptiest, until their numbers differ by one at most.
    fn level(&mut self) {
        let open = self.picture.places.iter().filter(|(_, place)| place.standing == Standing::Open);
        let open: Vec<NodeId> = open.map(|(id, _)| *id).collect();
        let mut holds: BTreeMap<NodeId, Vec<&Held>> = BTreeMap::new();
        for held in
            self.picture.groups.iter().filter(|held| held.group != SYSTEM_GROUP && !held.short)
        {
            for member in held.members.iter().filter(|member| open.contains(member)) {
                holds.entry(*member).or_default().push(held);
            }
        }
        // Pairs between which nothing can move: that stays so during the pass.
        let mut barren: BTreeSet<(NodeId, NodeId)> = BTreeSet::new();
        while self.may_choose() {
            let Some((old, new)) = self.widest(&open, &barren) else { return };
            let mine = holds.get(&old).map_or(&[][..], |held| &held[..]);
            let moves =
                |held: &&&Held| self.is_free(held.group) && self.loses_nothing(held, old, new);
            match mine.iter().find(moves) {
                Some(held) => self.take(held.group, old, new, Reason::Count),
                None => drop(barren.insert((old, new))),
            }
        }
    }

    /// The two nodes whose numbers differ most, by two or more, and between which something may move.
    fn widest(
        &self,
        open: &[NodeId],
        barren: &BTreeSet<(NodeId, NodeId)>,
    ) -> Option<(NodeId, NodeId)> {
        let mut by_count: Vec<(u64, NodeId)> =
            open.iter().map(|id| (self.held(*id), *id)).collect();
        by_count.sort_unstable();
        let mut widest: Option<(u64, NodeId, NodeId)> = None;
        for (most, old) in by_count.iter().rev() {
            let gap = |(least, new): &(u64, NodeId)| {
                let gap = most.saturating_sub(*least);
                let least = if bug!(self.picture, LevelsOne) { 1 } else { 2 };
                (gap >= least && !barren.contains(&(*old, *new))).then_some((gap, *old, *new))
            };
            // Of the emptiest one that is left for this node.
            if let Some(found) = by_count.iter().find_map(gap)
                && widest.is_none_or(|(gap, ..)| found.0 > gap)
            {
                widest = Some(found);
            }
        }
        widest.map(|(_, old, new)| (old, new))
    }
}

fn meets(place: &Place, held: &Held) -> bool {
    held.requires.iter().all(|name| place.capabilities.binary_search(name).is_ok())
}
