//! Replicas that leave nodes that run: while no node is missing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::NodeId;

use super::choose::{Held, Standing, Work, bug, meets};
use super::{Reason, Step};
use crate::catalog::SYSTEM_GROUP;

impl<'a> Work<'a> {
    /// Removes what is more than rules ask for: what could not lead first, then what the rule does not allow,
    /// shares its zone, and is on the fullest node.
    pub(super) fn remove_excess(&mut self) {
        for held in self.picture.groups {
            for learner in [false, true] {
                let most = if bug!(self.picture, RemovesOneMore) { 0 } else { -1 };
                if !self.may_choose() || !self.is_free(held.group) || held.lacks(learner) > most {
                    continue;
                }
                let of_kind = held.members.iter().copied();
                let of_kind = of_kind.filter(|member| held.is_learner(*member) == learner);
                let rank = |old: &NodeId| {
                    let place = self.place(*old);
                    (
                        place.is_none_or(|place| !meets(place, held)),
                        place.is_none_or(|place| !self.is_allowed(held, place)),
                        self.keeps_wishes(held, *old, None),
                        self.neighbors(held, *old, Some(*old)),
                        self.held(*old),
                        *old,
                    )
                };
                let wanted = held.wanted(learner).unwrap_or_default();
                if let Some(old) = of_kind.max_by_key(rank) {
                    self.take(held, Step::Remove { old, learner, wanted }, Reason::Excess);
                }
            }
        }
    }

    /// Moves replicas off nodes that rules do not allow.
    pub(super) fn leave_forbidden(&mut self) {
        for held in self.picture.groups.iter().filter(|held| held.rule.is_some()) {
            if !self.may_choose() || !self.is_settled(held) {
                continue;
            }
            let forbidden = |old: &&NodeId| {
                self.place(**old).is_some_and(|place| !self.is_allowed(held, place))
            };
            let mut forbidden = held.members.iter().filter(forbidden).copied().peekable();
            if forbidden.peek().is_none() {
                continue;
            }
            // The first one that has a better place.
            let moved = forbidden.find_map(|old| {
                let keeps = |new| self.keeps_leaders(held, old, new);
                let new = self.successor_among(held, Some(old), keeps)?;
                Some(self.move_of(held, old, new))
            });
            match moved {
                Some(step) => self.take(held, step, Reason::Rule),
                None => {
                    let stuck = self.why_stuck(held);
                    self.choice.stuck.insert(held.group, stuck);
                }
            }
        }
    }

    /// Whether a group loses nothing by a move between nodes that run and are allowed.
    fn loses_nothing(&self, held: &Held<'_>, old: NodeId, new: NodeId) -> bool {
        self.place(new).is_some_and(|place| self.takes(held, new, place))
            && self.keeps_leaders(held, old, new)
            && self.keeps_wishes(held, old, Some(new))
            && (self.neighbors(held, new, Some(old)) <= self.neighbors(held, old, Some(old))
                || bug!(self.picture, ForgetsZones))
    }

    /// Moves replicas out of zones that their groups are in more than once.
    pub(super) fn leave_shared_zones(&mut self) {
        for held in self.picture.groups.iter().filter(|held| held.group != SYSTEM_GROUP) {
            if !self.may_choose() || !self.is_settled(held) {
                continue;
            }
            let shared = |old: &&NodeId| {
                self.is(**old, Standing::Open)
                    && !self.is_uncounted(held, **old)
                    && self.neighbors(held, **old, Some(**old)) > 0
            };
            // The fullest one that has a better place gives.
            let mut givers: Vec<NodeId> = held.members.iter().filter(shared).copied().collect();
            givers.sort_by_key(|old| Reverse((self.held(*old), *old)));
            let moved = givers.into_iter().find_map(|old| {
                let new = self.place_in_another_zone(held, old)?;
                Some(self.move_of(held, old, new))
            });
            if let Some(step) = moved {
                self.take(held, step, Reason::Zone);
            }
        }
    }

    fn place_in_another_zone(&self, held: &Held<'_>, old: NodeId) -> Option<NodeId> {
        let before = self.neighbors(held, old, Some(old));
        let better = self.picture.places.keys().filter(|new| {
            self.loses_nothing(held, old, **new) && self.neighbors(held, **new, Some(old)) < before
        });
        let rank = |id: &&NodeId| (self.neighbors(held, **id, Some(old)), self.held(**id), **id);
        better.min_by_key(rank).copied()
    }

    /// Moves replicas from the fullest nodes to the emptiest, until their numbers differ by one at most.
    pub(super) fn level(&mut self) {
        let open = self.picture.places.iter().filter(|(_, place)| place.standing == Standing::Open);
        let open: Vec<NodeId> = open.map(|(id, _)| *id).collect();
        let mut holds: BTreeMap<NodeId, Vec<&Held<'_>>> = BTreeMap::new();
        for held in self.picture.groups {
            if held.group == SYSTEM_GROUP || !self.is_settled(held) {
                continue;
            }
            let moves =
                |member: &&NodeId| open.contains(member) && !self.is_uncounted(held, **member);
            for member in held.members.iter().filter(moves) {
                holds.entry(*member).or_default().push(held);
            }
        }
        // Pairs between which nothing can move: that stays so during the pass.
        let mut barren: BTreeSet<(NodeId, NodeId)> = BTreeSet::new();
        while self.may_choose() {
            let Some((old, new)) = self.widest(&open, &barren) else { return };
            let mine = holds.get(&old).map_or(&[][..], |held| &held[..]);
            let moves =
                |held: &&&Held<'_>| self.is_free(held.group) && self.loses_nothing(held, old, new);
            match mine.iter().find(moves) {
                Some(held) => self.take(held, self.move_of(held, old, new), Reason::Count),
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
