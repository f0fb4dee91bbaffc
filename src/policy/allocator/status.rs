//! The allocator at a glance, for operators. Data, and how it is gathered.

use serde::{Deserialize, Serialize};
use shardhost_storage::{GroupId, NodeId};

use super::{Allocator, Change, Step, held_of};
use crate::catalog::{GroupRecord, PlannerMode, View};

/// Groups and changes that are named at most.
const MAX_NAMED: usize = 100;

/// The state of the allocator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AllocatorStatus {
    /// Nodes that do not answer.
    pub gone: Vec<GoneNode>,
    /// Changes that are under way, the first hundred.
    pub moving: Vec<MovingReplica>,
    pub moving_total: u64,
    /// Changes that the last pass chose, the first hundred; in mode shadow none of them is ordered.
    pub chosen: Vec<MovingReplica>,
    pub chosen_total: u64,
    /// Replicas on nodes that are gone, whose turn is yet to come.
    pub waiting: u64,
    /// Groups that cannot be repaired, or refused a change, the first hundred.
    pub stuck: Vec<StuckGroup>,
    pub stuck_total: u64,
    /// Changes that ended, and orders that were refused, since this node leads the system group.
    pub moved: u64,
    pub refused: u64,
}

/// A node that does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GoneNode {
    pub node: u64,
    /// For how long, as far as the leader of the system group knows, in milliseconds.
    pub silent_ms: u64,
}

/// A replica that moves, or is to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MovingReplica {
    pub group: u64,
    /// The node that it leaves; absent: the group gets one more.
    pub from: Option<u64>,
    /// The node that it goes to; absent: the group gets one fewer.
    pub to: Option<u64>,
    /// One that is added gets no vote.
    #[serde(default)]
    pub learner: bool,
    pub reason: String,
}

/// A group that keeps a replica where it should not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StuckGroup {
    pub group: u64,
    pub why: String,
}

impl From<Change> for MovingReplica {
    fn from(change: Change) -> Self {
        let Change { group, step, reason, .. } = change;
        let (from, to) = (step.old().map(NodeId::get), step.new_node().map(NodeId::get));
        let learner = matches!(step, Step::Add { learner: true, .. });
        Self { group: group.get(), from, to, learner, reason: reason.to_string() }
    }
}

impl MovingReplica {
    /// What becomes of it, in words.
    #[must_use]
    pub fn words(&self) -> String {
        let kind = if self.learner { "a learner" } else { "a replica" };
        match (self.from, self.to) {
            (Some(from), Some(to)) => format!("{kind} from node {from} to node {to}"),
            (None, Some(to)) => format!("{kind} more, on node {to}"),
            (Some(from), None) => format!("{kind} fewer, on node {from}"),
            (None, None) => kind.to_owned(),
        }
    }
}

/// What the rule of a group asks for and is not so, in words; `None`: there is no rule, or it is met.
fn unmet(view: &View, record: &GroupRecord) -> Option<String> {
    let held = held_of(record, &view.settings().rules);
    let rule = held.rule?;
    let mut unmet = Vec::new();
    for (learner, what) in [(false, "voters"), (true, "learners")] {
        if let Some(wanted) = held.wanted(learner).filter(|_| held.lacks(learner) != 0) {
            let has = i64::from(wanted) - held.lacks(learner);
            unmet.push(format!("it is to have {what}: {wanted}, and has {has}"));
        }
    }
    let allows = |node: &NodeId| {
        view.nodes().get(node).is_none_or(|node| {
            let said = node.advertisement.as_ref();
            rule.allows(node.zone.as_ref(), said.map_or(&[][..], |said| &said.capabilities))
        })
    };
    let forbidden = held.members.iter().filter(|node| !allows(node));
    unmet.extend(forbidden.map(|node| format!("its replica on node {node} may not be there")));
    (!unmet.is_empty()).then(|| format!("by rule {}, {}", rule.name, unmet.join(", ")))
}

impl Allocator {
    /// The state as of a moment.
    #[must_use]
    pub fn status(&self, now_ms: u64) -> AllocatorStatus {
        let gone = self.silent.iter().map(|(node, since)| GoneNode {
            node: node.get(),
            silent_ms: now_ms.saturating_sub(*since),
        });
        let moving = self.moving.values().map(|moving| moving.change.into());
        let chosen = self.choice.changes.iter().map(|change| (*change).into());
        let stuck = |group: GroupId, why: String| StuckGroup { group: group.get(), why };
        let no_place = self.choice.stuck.iter().map(|(group, why)| stuck(*group, why.to_string()));
        let refused = self.resting.iter().map(|(group, rest)| stuck(*group, rest.why.clone()));
        AllocatorStatus {
            gone: gone.collect(),
            moving: moving.take(MAX_NAMED).collect(),
            moving_total: self.moving.len() as u64,
            chosen: chosen.take(MAX_NAMED).collect(),
            chosen_total: self.choice.changes.len() as u64,
            waiting: self.choice.waiting,
            stuck: no_place.chain(refused).take(MAX_NAMED).collect(),
            stuck_total: (self.choice.stuck.len() + self.resting.len()) as u64,
            moved: self.moved,
            refused: self.refused,
        }
    }

    /// Why the replicas of a group are where they are, in the cluster of this catalog.
    #[must_use]
    pub fn why(&self, view: &View, group: GroupId) -> String {
        if let Some(moving) = self.moving.get(&group) {
            let replica = MovingReplica::from(moving.change);
            let stage = if moving.begun { "is under way" } else { "was ordered" };
            return format!("{}, because {}; it {stage}", replica.words(), replica.reason);
        }
        if let Some(why) = self.choice.stuck.get(&group) {
            return format!("a replica is needed on another node, and has no place: {why}");
        }
        if let Some(rest) = self.resting.get(&group) {
            return format!("a change was refused, and is tried again: {}", rest.why);
        }
        if let Some(change) = self.choice.changes.iter().find(|change| change.group == group) {
            let replica = MovingReplica::from(*change);
            return format!("planned: {}, because {}", replica.words(), replica.reason);
        }
        let is_off = view.settings().replicas.is_none_or(|one| one.mode == PlannerMode::Off);
        let unmet = view.groups().get(&group).and_then(|record| unmet(view, record));
        let off = "the mode is off (`shardhost replicas mode on` switches it on)";
        match (is_off, unmet) {
            (true, Some(unmet)) => format!("{unmet}; nothing is done about it, because {off}"),
            (true, None) => format!("its replicas stay where they are, because {off}"),
            (false, Some(unmet)) => format!(
                "{unmet}; its turn comes when no node is missing, none came or went for a while, and changes of \
                 other groups have ended"
            ),
            (false, None) => "its replicas are where they should be, as far as the leader of the system group knows"
                .to_owned(),
        }
    }
}
