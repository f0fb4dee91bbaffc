//! What a snapshot means, read anew: where a group counts, where it may be, and what that is worth.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, NodeId};

use super::super::plan::Score;
use super::super::snapshot::{Group, Node, Place, RequirementMode, Snapshot, Voter};
use super::Placement;

/// A snapshot with its nodes and groups by id.
pub(super) struct Reading<'a> {
    pub(super) snapshot: &'a Snapshot,
    nodes: BTreeMap<NodeId, &'a Node>,
    groups: BTreeMap<GroupId, &'a Group>,
}

/// Whether a node has what a group asks for; `None`: unknown.
fn has_all(node: &Node, group: &Group) -> Option<bool> {
    let wanted = &group.requirement.capabilities;
    if wanted.is_empty() {
        return Some(true);
    }
    let has = node.capabilities.as_ref()?;
    Some(wanted.iter().all(|name| has.contains(name)))
}

fn should_empty(node: &Node) -> bool {
    node.draining || !node.fit || node.weight == 0
}

impl<'a> Reading<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            nodes: snapshot.nodes.iter().map(|node| (node.id, node)).collect(),
            groups: snapshot.groups.iter().map(|group| (group.id, group)).collect(),
        }
    }

    pub(super) fn node(&self, id: NodeId) -> Option<&'a Node> {
        self.nodes.get(&id).copied()
    }

    pub(super) fn group(&self, id: GroupId) -> Option<&'a Group> {
        self.groups.get(&id).copied()
    }

    fn live(&self, id: NodeId) -> Option<&'a Node> {
        self.node(id).filter(|node| node.live)
    }

    pub(super) fn place(&self, group: &Group) -> Option<NodeId> {
        let place = match self.flight(group.id) {
            Some(to) => Some(to),
            None => group.leader.or(group.last_leader),
        };
        place.filter(|node| self.live(*node).is_some())
    }

    pub(super) fn placement(&self) -> Placement {
        let groups = self.snapshot.groups.iter();
        groups.filter_map(|group| Some((group.id, self.place(group)?))).collect()
    }

    fn flight(&self, group: GroupId) -> Option<NodeId> {
        let entry = self.snapshot.moves.iter().find(|entry| entry.group == group)?;
        let confirmed = match (entry.completed_at_ms, entry.from_reported_ms, entry.to_reported_ms)
        {
            (Some(end), Some(from), Some(to)) => from > end && to > end,
            _ => false,
        };
        (!confirmed).then_some(entry.to)
    }

    /// All nodes where a group may be when the plan is done.
    pub(super) fn choices(&self, group: &Group) -> BTreeSet<NodeId> {
        let Some(place) = self.place(group) else { return BTreeSet::new() };
        let stay = BTreeSet::from([place]);
        if self.flight(group.id).is_some() || group.leader.is_none() {
            return stay;
        }
        let at = self.nodes[&place];
        let leave = has_all(at, group) == Some(false) || should_empty(at);
        let mut targets: Vec<_> = self.targets(group);
        if leave {
            let best = targets.iter().map(|(target_rank, _)| *target_rank).min();
            targets.retain(|(target_rank, _)| Some(*target_rank) == best);
            let chosen: BTreeSet<_> = targets.into_iter().map(|(_, node)| node).collect();
            return if chosen.is_empty() { stay } else { chosen };
        }
        let settings = &self.snapshot.settings;
        if group
            .moved_at_ms
            .is_some_and(|at| self.snapshot.now_ms < at.saturating_add(settings.cool_down_ms))
        {
            return stay;
        }
        targets.retain(|((unknown, warming, _), _)| !unknown && !warming);
        targets.push(((false, false, self.rank(group, at)), place));
        let best = targets.iter().map(|(target_rank, _)| *target_rank).min();
        targets.retain(|(target_rank, _)| Some(*target_rank) == best);
        targets.into_iter().map(|(_, node)| node).collect()
    }

    /// Voters that can take a group, and how reluctantly each is chosen.
    fn targets(&self, group: &Group) -> Vec<((bool, bool, u64), NodeId)> {
        let mut targets = Vec::new();
        for voter in group.voters.iter().filter(|voter| Some(voter.node) != self.place(group)) {
            let Some(node) = self.live(voter.node) else { continue };
            if !self.can_take(group, voter, node) {
                continue;
            }
            let age = self.snapshot.now_ms.saturating_sub(node.live_since_ms);
            let warming = age < self.snapshot.settings.warm_up_ms;
            let unknown = has_all(node, group).is_none();
            targets.push(((unknown, warming, self.rank(group, node)), node.id));
        }
        targets
    }

    fn can_take(&self, group: &Group, voter: &Voter, node: &Node) -> bool {
        let backed_off = self.snapshot.back_offs.iter().any(|back_off| {
            back_off.group == group.id
                && back_off.target == node.id
                && back_off.until_ms > self.snapshot.now_ms
        });
        let settings = &self.snapshot.settings;
        has_all(node, group) != Some(false)
            && !should_empty(node)
            && voter.lag.is_some_and(|lag| lag <= settings.max_lag_entries)
            && !backed_off
    }

    fn rank(&self, group: &Group, node: &Node) -> u64 {
        let pin = group.pin.filter(|pin| group.voters.iter().any(|voter| voter.node == *pin));
        if pin == Some(node.id) {
            return 0;
        }
        let distinct: BTreeSet<_> = group.preference.iter().collect();
        let names: &[Place] =
            if distinct.len() == group.preference.len() { &group.preference } else { &[] };
        let better = names.iter().take_while(|place| match place {
            Place::Node(id) => *id != node.id,
            Place::Zone(zone) => *zone != node.zone,
        });
        better.count() as u64 + if pin.is_some() { 1 } else { 0 }
    }

    /// A placement's score, counted anew.
    pub(super) fn score(&self, placement: &Placement) -> Score {
        let mut score = Score::default();
        for (group, node) in placement {
            let (group, node) = (self.groups[group], self.nodes[node]);
            let lacks = u64::from(has_all(node, group) == Some(false));
            match group.requirement.mode {
                RequirementMode::Hard => score.hard += lacks,
                RequirementMode::Soft => score.soft += lacks,
            }
            score.displaced += u64::from(should_empty(node));
            score.rank += self.rank(group, node);
        }
        score.pairs = self.pairs(placement).values().map(|n| n * (n - 1) / 2).sum();
        let loads = self.loads(placement);
        score.load =
            loads.iter().map(|(node, load)| load.saturating_sub(self.comfort(*node))).sum();
        score.count = self.nodes.values().map(|node| cost_of_all(node, placement)).sum();
        score
    }

    /// Leaders per label and zone.
    pub(super) fn pairs<'b>(&'b self, placement: &Placement) -> BTreeMap<(&'b str, &'b str), u64> {
        let mut pairs = BTreeMap::new();
        for (group, node) in placement {
            if let Some(label) = &self.groups[group].label {
                *pairs.entry((label.as_str(), self.nodes[node].zone.as_str())).or_insert(0) += 1;
            }
        }
        pairs
    }

    pub(super) fn load(&self, group: &Group) -> u64 {
        if self.snapshot.settings.load_tier { u64::from(group.load) } else { 0 }
    }

    pub(super) fn loads(&self, placement: &Placement) -> BTreeMap<NodeId, u64> {
        let mut loads = BTreeMap::new();
        for (group, node) in placement {
            *loads.entry(*node).or_insert(0) += self.load(self.groups[group]);
        }
        loads
    }

    /// The load that a node is comfortable with: a fair share and a quarter of the tolerance.
    pub(super) fn comfort(&self, id: NodeId) -> u64 {
        let open = |node: &Node| {
            let age = self.snapshot.now_ms.saturating_sub(node.live_since_ms);
            node.live && !should_empty(node) && age >= self.snapshot.settings.warm_up_ms
        };
        let nodes = self.nodes.values().filter(|node| open(node));
        let weights: u128 = nodes.map(|node| u128::from(node.weight)).sum();
        let node = self.nodes[&id];
        if weights == 0 || !open(node) || !self.snapshot.settings.load_tier {
            return u64::MAX;
        }
        let total: u128 = self.loads(&self.placement()).values().map(|n| u128::from(*n)).sum();
        let tolerance = u128::from(self.snapshot.settings.load_tolerance_percent);
        let comfort = total * u128::from(node.weight) * (400 + tolerance);
        u64::try_from(comfort.div_ceil(weights * 400)).unwrap_or(u64::MAX)
    }
}

fn cost_of_all(node: &Node, placement: &Placement) -> u64 {
    let leaders = placement.values().filter(|place| **place == node.id).count() as u64;
    (1..=leaders).map(|nth| cost(node, nth)).sum()
}

/// What the `nth` leader of a node costs.
pub(super) fn cost(node: &Node, nth: u64) -> u64 {
    match node.weight {
        0 => 0,
        weight => (2 * nth - 1) * 1_048_576 / u64::from(weight),
    }
}
