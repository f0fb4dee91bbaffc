//! Which replicas move where: one pass, from what is known at the moment.
//!
//! First come replicas on nodes that are gone, those of the catalog before all others, then those of the
//! groups with the fewest members left; then groups that have fewer replicas than their rules ask for. Only
//! while no node is missing replicas leave nodes that run: those that are too many by a rule, those on nodes
//! that a rule does not allow, those in a zone that their group is in twice, and those on the nodes that hold
//! most. No move takes from a group: the members that may lead it are not fewer after it, nor, unless a rule
//! asks for it, the zones that it is in; and a move between nodes that run ends a breach of a rule or makes
//! the difference of their numbers smaller. So moves end.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, NodeId};

use super::{Change, Reason, Step, Stuck};
use crate::catalog::{self, Name, ReplicaRule, SYSTEM_GROUP};

/// Whether a node may get replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Open,
    /// It answers and takes none: it is being drained, or is impaired.
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
pub struct Held<'a> {
    pub group: GroupId,
    /// All of them.
    pub members: Vec<NodeId>,
    /// Those without a vote; `None`: not known, and their number is left as it is.
    pub learners: Option<&'a [NodeId]>,
    /// What its leader must have.
    pub requires: &'a [Name],
    /// Where its leader is wanted: a replica there is not moved for balance.
    pub wanted: Vec<catalog::Place>,
    /// It has fewer members than it was created with: only what is gone is replaced, unless a rule says how
    /// many there are to be.
    pub short: bool,
    /// What holds for its replicas.
    pub rule: Option<&'a ReplicaRule>,
}

impl Held<'_> {
    pub(super) fn is_learner(&self, node: NodeId) -> bool {
        self.learners.is_some_and(|learners| learners.contains(&node))
    }

    pub(super) fn voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.iter().copied().filter(|member| !self.is_learner(*member))
    }

    /// How many replicas its rule asks for, with a vote or without; `None`: as many as there are.
    pub(super) fn wanted(&self, learner: bool) -> Option<u32> {
        let rule = self.rule.filter(|_| self.learners.is_some())?;
        if learner { rule.learners } else { rule.voters }
    }

    /// How many more replicas its rule asks for, with a vote or without; negative: how many fewer.
    pub(super) fn lacks(&self, learner: bool) -> i64 {
        let learners = self.learners.map_or(0, <[NodeId]>::len);
        let present = if learner { learners } else { self.members.len() - learners };
        self.wanted(learner).map_or(0, |wanted| i64::from(wanted) - present as i64)
    }

    /// Whether it is to be left alone but for repairs.
    fn is_incomplete(&self) -> bool {
        match self.rule.and_then(|rule| rule.voters) {
            Some(_) => self.lacks(false) > 0,
            None => self.short,
        }
    }
}

/// What a pass decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    pub changes: Vec<Change>,
    /// Groups with a replica on a node that is gone or not allowed, or with too few, and no place for another
    /// one.
    pub stuck: BTreeMap<GroupId, Stuck>,
    /// Replicas on nodes that are gone, of groups whose change is neither chosen nor under way.
    pub waiting: u64,
}

/// What a pass sees.
#[derive(Debug)]
pub struct Picture<'a> {
    pub places: &'a BTreeMap<NodeId, Place>,
    pub groups: &'a [Held<'a>],
    /// Groups whose change is under way, and which.
    pub moving: &'a BTreeMap<GroupId, Step>,
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
    /// Replicas go to nodes that the rule does not allow.
    ForgetsRules,
    /// A voter is removed from a group that has as many as its rule asks for.
    RemovesOneMore,
    /// Voters that are too many are removed while others do not answer.
    RemovesInNeed,
    /// The place where the leader is wanted is left for balance.
    ForgetsWishes,
    /// Learners whose number no rule names move for balance, in two changes of their group.
    MovesUncounted,
}

impl Picture<'_> {
    #[cfg(test)]
    pub(super) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

/// Whether a fault is switched on; never outside of tests.
macro_rules! bug {
    ($picture:expr, $bug:ident) => {{
        #[cfg(test)]
        let on = $picture.has(crate::allocator::choose::Bug::$bug);
        #[cfg(not(test))]
        let on = false;
        on
    }};
}
pub(super) use bug;

/// Decides. The same picture gives the same choice.
#[must_use]
pub fn choose(picture: &Picture<'_>) -> Choice {
    let mut work = Work::new(picture);
    work.replace_gone();
    work.add_missing();
    let missing = |place: &Place| matches!(place.standing, Standing::Gone | Standing::Silent);
    let gone = |id: &NodeId| picture.places.get(id).is_some_and(missing);
    let whole = !picture.groups.iter().any(|held| held.members.iter().any(gone));
    if picture.spread && (whole || bug!(picture, RemovesInNeed)) {
        work.remove_excess();
    }
    if picture.spread && whole {
        work.leave_forbidden();
        work.leave_shared_zones();
        work.level();
    }
    work.choice
}

/// A pass under way.
pub(super) struct Work<'a> {
    pub(super) picture: &'a Picture<'a>,
    /// How many replicas each node holds when all changes have ended.
    counts: BTreeMap<NodeId, u64>,
    /// Groups that change.
    changing: BTreeSet<GroupId>,
    pub(super) choice: Choice,
}

impl<'a> Work<'a> {
    fn new(picture: &'a Picture<'a>) -> Self {
        let mut counts: BTreeMap<NodeId, u64> = picture.places.keys().map(|id| (*id, 0)).collect();
        for held in picture.groups.iter().filter(|held| held.group != SYSTEM_GROUP) {
            for member in &held.members {
                *counts.entry(*member).or_default() += 1;
            }
        }
        let changing = picture.moving.keys().copied().collect();
        let mut work = Self { picture, counts, changing, choice: Choice::default() };
        let members: BTreeMap<GroupId, &[NodeId]> =
            picture.groups.iter().map(|held| (held.group, &*held.members)).collect();
        for (group, step) in picture.moving {
            if bug!(picture, ForgetsMoving) {
                break;
            }
            if let Some(members) = members.get(group) {
                let old = step.old().filter(|old| members.contains(old));
                let new = step.new_node().filter(|new| !members.contains(new));
                work.count(*group, old, new);
            }
        }
        work
    }

    fn count(&mut self, group: GroupId, old: Option<NodeId>, new: Option<NodeId>) {
        if group == SYSTEM_GROUP {
            return;
        }
        if let Some(old) = old {
            self.counts.entry(old).and_modify(|count| *count = count.saturating_sub(1));
        }
        if let Some(new) = new {
            *self.counts.entry(new).or_default() += 1;
        }
    }

    pub(super) fn held(&self, node: NodeId) -> u64 {
        self.counts.get(&node).copied().unwrap_or(0)
    }

    pub(super) fn place(&self, node: NodeId) -> Option<&'a Place> {
        self.picture.places.get(&node)
    }

    pub(super) fn is(&self, node: NodeId, standing: Standing) -> bool {
        self.place(node).is_some_and(|place| place.standing == standing)
    }

    pub(super) fn may_choose(&self) -> bool {
        self.choice.changes.len() < self.picture.limit
    }

    pub(super) fn is_changing(&self, group: GroupId) -> bool {
        self.changing.contains(&group)
    }

    pub(super) fn is_free(&self, group: GroupId) -> bool {
        !self.is_changing(group) && !self.picture.resting.contains(&group)
    }

    /// Whether replicas of a group may leave nodes that run.
    pub(super) fn is_settled(&self, held: &Held<'_>) -> bool {
        self.is_free(held.group) && !held.is_incomplete()
    }

    pub(super) fn take(&mut self, held: &Held<'_>, step: Step, reason: Reason) {
        self.count(held.group, step.old(), step.new_node());
        self.changing.insert(held.group);
        let alone = || held.voters().count() < LEAST_VOTERS;
        let votes = matches!(step, Step::Add { learner: false, .. });
        let urgent = reason == Reason::Gone || votes && alone();
        let group = held.group;
        self.choice.changes.push(Change { group, step, reason, urgent, instead_of: None });
    }

    /// Whether a node may get a replica of a group.
    pub(super) fn takes(&self, held: &Held<'_>, node: NodeId, place: &Place) -> bool {
        place.standing == Standing::Open
            && self.is_allowed(held, place)
            && !held.members.contains(&node)
            && !self.picture.avoided.contains(&(held.group, node))
    }

    /// Whether the rule of a group allows a node.
    pub(super) fn is_allowed(&self, held: &Held<'_>, place: &Place) -> bool {
        let allows = |rule: &ReplicaRule| rule.allows(place.zone.as_ref(), &place.capabilities);
        held.rule.is_none_or(allows) || bug!(self.picture, ForgetsRules)
    }

    /// The best node for a replica more, or for one in the place of `old`.
    pub(super) fn successor(&self, held: &Held<'_>, old: Option<NodeId>) -> Option<NodeId> {
        self.successor_among(held, old, |_| true)
    }

    /// The same, of some nodes.
    pub(super) fn successor_among(
        &self,
        held: &Held<'_>,
        old: Option<NodeId>,
        may: impl Fn(NodeId) -> bool,
    ) -> Option<NodeId> {
        let places = self.picture.places.iter();
        let open = places.filter(|(id, place)| self.takes(held, **id, place) && may(**id));
        let rank = |(id, place): &(&NodeId, &Place)| {
            (!meets(place, held), self.neighbors(held, **id, old), self.held(**id), **id)
        };
        open.min_by_key(rank).map(|(id, _)| *id)
    }

    pub(super) fn why_stuck(&self, held: &Held<'_>) -> Stuck {
        let others = self.picture.places.iter().filter(|(id, _)| !held.members.contains(id));
        let others: Vec<(&NodeId, &Place)> = others
            .filter(|(_, place)| matches!(place.standing, Standing::Open | Standing::Closed))
            .collect();
        let open = |(_, place): &&(&NodeId, &Place)| place.standing == Standing::Open;
        let avoided =
            |(id, _): &&(&NodeId, &Place)| self.picture.avoided.contains(&(held.group, **id));
        if others.is_empty() {
            Stuck::NoOtherNode
        } else if others.iter().filter(open).any(|other| avoided(&other)) {
            Stuck::Avoided
        } else if others.iter().filter(open).count() > 0 {
            Stuck::Ruled
        } else {
            Stuck::Closed
        }
    }

    /// Other members in the zone of a node, when `old` is none any more.
    pub(super) fn neighbors(&self, held: &Held<'_>, node: NodeId, old: Option<NodeId>) -> usize {
        let Some(zone) = self.place(node).and_then(|place| place.zone.as_ref()) else { return 0 };
        let others = held.members.iter().filter(|member| Some(**member) != old && **member != node);
        let zones = others.filter_map(|member| self.place(*member)?.zone.as_ref());
        zones.filter(|other| *other == zone).count()
    }

    /// A member on `new` takes the place of one that runs. A learner goes in a second change, when the one in its place
    /// has caught up; only a rule for their number says in between that there is one more. Without such a rule
    /// there is a single change.
    pub(super) fn move_of(&self, held: &Held<'_>, old: NodeId, new: NodeId) -> Step {
        match held.learners.filter(|_| held.is_learner(old) && !self.is_uncounted(held, old)) {
            Some(learners) => Step::ReplaceLearner { old, new, has: learners.len() as u32 },
            None => Step::Replace { old, new },
        }
    }

    /// Whether a member is a learner of a group whose rule names no number of them: an operator put it there.
    pub(super) fn is_uncounted(&self, held: &Held<'_>, node: NodeId) -> bool {
        let uncounted = held.is_learner(node) && held.wanted(true).is_none();
        uncounted && !bug!(self.picture, MovesUncounted)
    }

    /// Whether as many members may lead a group after a move between nodes that run.
    pub(super) fn keeps_leaders(&self, held: &Held<'_>, old: NodeId, new: NodeId) -> bool {
        let fit = |node| self.place(node).is_some_and(|place| meets(place, held));
        fit(new) || !fit(old) || bug!(self.picture, ForgetsRequirements)
    }

    /// Whether no place where the leader is wanted loses its last member.
    pub(super) fn keeps_wishes(&self, held: &Held<'_>, old: NodeId, new: Option<NodeId>) -> bool {
        let is_in = |node: NodeId, wanted: &catalog::Place| match wanted {
            catalog::Place::Node(id) => *id == node,
            catalog::Place::Zone(zone) => {
                self.place(node).is_some_and(|place| place.zone.as_ref() == Some(zone))
            }
        };
        let others = || held.members.iter().copied().filter(|member| *member != old).chain(new);
        held.wanted
            .iter()
            .filter(|wanted| is_in(old, wanted))
            .all(|wanted| others().any(|node| is_in(node, wanted)))
            || bug!(self.picture, ForgetsWishes)
    }
}

/// A group with fewer voters outlives no loss.
const LEAST_VOTERS: usize = 3;

pub(super) fn meets(place: &Place, held: &Held<'_>) -> bool {
    held.requires.iter().all(|name| place.capabilities.binary_search(name).is_ok())
}
