//! What became of orders: which changes are under way, which were refused, which did not end, and what is done
//! about that.
//!
//! An order is booked on by its ticket: an answer that comes after its group got another order says nothing of that.
//! An addition that does not end, whichever leader of the system group ordered it, is given up for one on another
//! node, later each time, so that large replicas that take long come through as well.

use shardhost_storage::{GroupId, NodeId};

use super::{
    Allocator, Change, MAX_MOVING, MIN_SPREADING, Observation, Order, QUICK_MS, Reason,
    ReplicaSettings, SLOW_MS, SYSTEM_GROUP, Step,
};

/// For how long an order whose outcome is unknown keeps its group from another one.
pub(super) const UNKNOWN_FOR_MS: u64 = 30_000;
/// For how long a change that was begun may be seen in no members of its group. Leaders report them every few
/// seconds: it was given up before that. Where the report is late, the leader says that it is in the way.
pub(super) const UNSEEN_FOR_MS: u64 = 30_000;
/// For how long an addition may be under way before it is given up for one on another node, at first. Twice as
/// long each time, because the group may be large.
pub(super) const MOVING_FOR_MS: u64 = 600_000;
/// Times that it doubles.
const MOST_IMPATIENCE: u32 = 6;
/// For how long a target may not answer before its addition is given up.
pub(super) const SILENT_FOR_MS: u64 = 30_000;
/// For how long a node is left out for a group after a change to it took too long, or an operator gave it up.
pub(super) const AVOIDED_FOR_MS: u64 = 3_600_000;
/// How long a group that refused is left alone at first; twice as long with each further refusal.
pub(super) const FIRST_REST_MS: u64 = 2_000;
pub(super) const LONGEST_REST_MS: u64 = 120_000;
/// For how long an addition counts as under way that the members of its group do not show. Leaders say it again
/// whenever their group is to change.
pub(super) const SAID_FOR_MS: u64 = LONGEST_REST_MS + UNSEEN_FOR_MS;
/// Between two times that the leader is asked whether the learner that is replaced may go.
const ASK_AGAIN_MS: u64 = 3_000;

/// How an order ended at the leader of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The change is recorded in the group: any leader continues it.
    Begun,
    /// It was not begun, and why.
    Refused(String),
    /// It was not begun: the replica on this node is to catch up first. It was added by an order before, or by an
    /// operator.
    InTheWay(NodeId),
    /// It may have begun.
    Unknown,
}

/// A change that was ordered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moving {
    pub(super) ticket: u64,
    pub(super) change: Change,
    pub(super) ordered_ms: u64,
    /// When the order was sent last.
    sent_ms: u64,
    pub(super) begun: bool,
    /// The members of the group showed it.
    pub(super) seen: bool,
}

/// A group that refused.
#[derive(Clone, Debug)]
pub(super) struct Rest {
    pub(super) until_ms: u64,
    refusals: u32,
    pub(super) why: String,
}

/// A node that a group did not get a replica on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avoided {
    pub(super) until_ms: u64,
}

/// An addition that keeps a group from another change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InTheWay {
    pub(super) node: NodeId,
    /// Since when that is known.
    since_ms: u64,
    /// When it was said last.
    said_ms: u64,
    /// It is known not to end.
    overdue: bool,
}

impl InTheWay {
    const fn known_since(node: NodeId, now_ms: u64) -> Self {
        Self { node, since_ms: now_ms, said_ms: now_ms, overdue: false }
    }

    const fn overdue(node: NodeId, now_ms: u64) -> Self {
        Self { overdue: true, ..Self::known_since(node, now_ms) }
    }
}

/// What an allocator can do wrong with its orders. Only tests put it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OrderBug {
    /// An answer counts for whichever order of its group is under way.
    CountsLateAnswers,
    /// A change that was given up counts as under way.
    KeepsGivenUp,
    /// Only what the allocator ordered itself is given up when it does not end.
    LeavesInTheWay,
    /// An addition that has ended counts as under way.
    KeepsEnded,
    /// Of two learners any goes, although it is known which of them does not come.
    RemovesAny,
}

impl Allocator {
    #[cfg(test)]
    pub(super) fn has(&self, bug: OrderBug) -> bool {
        self.bug == Some(bug)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests put a bug in")]
    const fn has(&self, _: OrderBug) -> bool {
        false
    }

    pub(super) fn order(&mut self, change: Change, now_ms: u64) -> Order {
        if let Some(node) = change.instead_of {
            self.avoid(change.group, node, now_ms);
            self.in_the_way.insert(change.group, InTheWay::overdue(node, now_ms));
        }
        self.ticket += 1;
        let (ticket, ordered_ms, sent_ms) = (self.ticket, now_ms, now_ms);
        let moving = Moving { ticket, change, ordered_ms, sent_ms, begun: false, seen: false };
        self.moving.insert(change.group, moving);
        Order { ticket, change }
    }

    /// Orders under way whose leaders are to look once more: a learner goes when the other one holds what it held.
    pub(super) fn sent_again(&mut self, now_ms: u64) -> Vec<Order> {
        let is_due = |moving: &&mut Moving| {
            moving.seen
                && matches!(moving.change.step, Step::ReplaceLearner { .. })
                && now_ms >= moving.sent_ms + ASK_AGAIN_MS
        };
        let due = self.moving.values_mut().filter(is_due);
        due.map(|moving| {
            moving.sent_ms = now_ms;
            Order { ticket: moving.ticket, change: moving.change }
        })
        .collect()
    }

    /// An order ended. An answer to one that was decided anew meanwhile says nothing of the order after it.
    pub fn ended(&mut self, order: Order, now_ms: u64, outcome: Outcome) {
        let group = order.change.group;
        let counts_late = self.has(OrderBug::CountsLateAnswers);
        let is_it = |moving: &&mut Moving| moving.ticket == order.ticket || counts_late;
        let Some(moving) = self.moving.get_mut(&group).filter(is_it) else { return };
        match outcome {
            Outcome::Begun => {
                moving.begun = true;
                self.resting.remove(&group);
                self.in_the_way.remove(&group);
                return;
            }
            // It is decided anew when the order has surely ended.
            Outcome::Unknown => return,
            // It was begun by an earlier copy of the order.
            _ if moving.begun => return,
            Outcome::Refused(why) => self.rest(group, now_ms, why),
            Outcome::InTheWay(node) => {
                self.note_in_the_way(group, node, now_ms);
                self.rest(
                    group,
                    now_ms,
                    format!("its replica on node {node} is to catch up first"),
                );
            }
        }
        self.moving.remove(&group);
        self.refused += 1;
    }

    fn note_in_the_way(&mut self, group: GroupId, node: NodeId, now_ms: u64) {
        let new = InTheWay::known_since(node, now_ms);
        let known = self.in_the_way.entry(group).or_insert(new);
        if known.node != node {
            *known = new;
        }
        known.said_ms = now_ms;
    }

    fn rest(&mut self, group: GroupId, now_ms: u64, why: String) {
        let refusals = self.resting.get(&group).map_or(0, |rest| rest.refusals);
        let rest = (FIRST_REST_MS << refusals.min(10)).min(LONGEST_REST_MS);
        let (until_ms, refusals) = (now_ms + rest, refusals.saturating_add(1));
        self.resting.insert(group, Rest { until_ms, refusals, why });
    }

    /// For how long an addition to a group may be under way.
    fn patience_ms(&self, group: GroupId) -> u64 {
        let given_up = self.impatience.get(&group).copied().unwrap_or(0);
        MOVING_FOR_MS << given_up.min(MOST_IMPATIENCE)
    }

    /// A change of a group in which an addition does not end takes the place of that.
    pub(super) fn instead(
        &self,
        change: Change,
        seen: &Observation<'_>,
        settings: ReplicaSettings,
    ) -> Change {
        let InTheWay { node, since_ms, overdue, .. } = match self.in_the_way.get(&change.group) {
            Some(one) if one.overdue || !self.has(OrderBug::LeavesInTheWay) => *one,
            _ => return change,
        };
        let is_gone = |since: &u64| seen.now_ms >= since + settings.replace_after_ms;
        let ends_never = overdue
            || seen.now_ms >= since_ms + self.patience_ms(change.group)
            || self.silent.get(&node).is_some_and(is_gone);
        let instead_of = ends_never.then_some(node);
        match (change.step, instead_of) {
            // Of two learners on nodes that run the one goes that does not come.
            (Step::Remove { learner: true, wanted, .. }, Some(old))
                if change.reason == Reason::Excess && !self.has(OrderBug::RemovesAny) =>
            {
                let step = Step::Remove { old, learner: true, wanted };
                Change { step, instead_of, ..change }
            }
            _ => Change { instead_of, ..change },
        }
    }

    pub(super) fn room_for_spreading(&self) -> usize {
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

    /// Forgets changes that have ended or were given up, and those that take too long.
    pub(super) fn settle(&mut self, seen: &Observation<'_>) {
        let now_ms = seen.now_ms;
        let known = std::mem::take(&mut self.moving);
        for (group, mut moving) in known {
            let Some(shown) = shown(seen, group, moving.change.step) else { continue };
            moving.seen |= shown == Shown::UnderWay;
            match self.fate_of(group, &moving, shown, now_ms) {
                Fate::UnderWay => drop(self.moving.insert(group, moving)),
                Fate::Ended => {
                    self.moved += 1;
                    self.impatience.remove(&group);
                    self.in_the_way.remove(&group);
                    if !moving.change.urgent {
                        self.learn(now_ms.saturating_sub(moving.ordered_ms));
                    }
                }
                Fate::Forgotten => {}
                Fate::GivenUp(node) => {
                    let until_ms = now_ms + AVOIDED_FOR_MS;
                    self.avoided.insert((group, node), Avoided { until_ms });
                }
                Fate::Overdue(node) => {
                    self.in_the_way.insert(group, InTheWay::overdue(node, now_ms));
                }
            }
        }
        let exists =
            |group: &GroupId| *group == SYSTEM_GROUP || seen.view.groups().contains_key(group);
        self.resting.retain(|group, _| exists(group));
        let keeps_ended = self.has(OrderBug::KeepsEnded);
        self.in_the_way.retain(|group, one| {
            let was_said = now_ms < one.said_ms + SAID_FOR_MS;
            exists(group) && (was_said || may_catch_up(seen, *group, one.node) || keeps_ended)
        });
        self.impatience.retain(|group, _| exists(group));
        self.avoided.retain(|(group, _), avoided| exists(group) && avoided.until_ms > now_ms);
    }

    /// An addition to this node is given up because it did not end: the next one may take longer.
    fn avoid(&mut self, group: GroupId, node: NodeId, now_ms: u64) {
        let until_ms = now_ms + AVOIDED_FOR_MS;
        if self.avoided.insert((group, node), Avoided { until_ms }).is_none() {
            *self.impatience.entry(group).or_default() += 1;
        }
    }

    fn fate_of(&self, group: GroupId, moving: &Moving, shown: Shown, now_ms: u64) -> Fate {
        let keeps_given_up = self.has(OrderBug::KeepsGivenUp);
        let new = moving.change.step.new_node();
        let overdue = new.map_or(Fate::Forgotten, Fate::Overdue);
        let silent = new.and_then(|new| self.silent.get(&new));
        let is_silent = silent.is_some_and(|since| now_ms >= since + SILENT_FOR_MS);
        let since_order_ms = now_ms.saturating_sub(moving.ordered_ms);
        match shown {
            Shown::Ended => Fate::Ended,
            // It was there before.
            Shown::Nothing if moving.seen && !keeps_given_up => {
                new.map_or(Fate::Forgotten, Fate::GivenUp)
            }
            _ if is_silent => overdue,
            _ if !moving.begun && since_order_ms >= UNKNOWN_FOR_MS => Fate::Forgotten,
            _ if moving.begun && since_order_ms >= self.patience_ms(group) => overdue,
            _ if silent.is_some() => Fate::UnderWay,
            Shown::Nothing if !keeps_given_up && since_order_ms >= UNSEEN_FOR_MS => {
                new.map_or(Fate::Forgotten, Fate::GivenUp)
            }
            _ => Fate::UnderWay,
        }
    }
}

/// Whether a replica on a node may be one that was added and has no vote yet, as far as the members of its group
/// show.
fn may_catch_up(seen: &Observation<'_>, group: GroupId, node: NodeId) -> bool {
    match seen.view.groups().get(&group) {
        Some(record) => {
            let learns = |learners: &[NodeId]| learners.contains(&node);
            record.has_member(node) && record.learners().is_none_or(learns)
        }
        None => group == SYSTEM_GROUP && seen.system_learners.contains(&node),
    }
}

/// What becomes of a change that was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    UnderWay,
    Ended,
    /// It is decided anew.
    Forgotten,
    /// An operator gave the addition to this node up.
    GivenUp(NodeId),
    /// The addition to this node does not end.
    Overdue(NodeId),
}

/// What the members of a group show of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Nothing,
    UnderWay,
    Ended,
}

/// `None`: there is no such group.
fn shown(seen: &Observation<'_>, group: GroupId, step: Step) -> Option<Shown> {
    let record = seen.view.groups().get(&group);
    if group != SYSTEM_GROUP && record.is_none() {
        return None;
    }
    let has = |node: NodeId| record.map_or(seen.system.contains(&node), |one| one.has_member(node));
    let learners = record.map_or(Some(seen.system_learners), |one| one.learners());
    let learns = |node: NodeId| learners.is_some_and(|learners| learners.contains(&node));
    let (under_way, ended) = match step {
        Step::Replace { old, new } | Step::ReplaceLearner { old, new, .. } => {
            (has(new), has(new) && !has(old))
        }
        Step::Add { new, learner, .. } => (has(new), has(new) && (learner || !learns(new))),
        Step::Remove { old, .. } => (false, !has(old)),
    };
    Some(match (ended, under_way) {
        (true, _) => Shown::Ended,
        (false, true) => Shown::UnderWay,
        (false, false) => Shown::Nothing,
    })
}
