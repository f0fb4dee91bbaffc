//! The cluster as one host knows it, for the planner: the groups that it has a replica of, their
//! leaders as far as it knows, and what nodes advertise.
//!
//! Its lags are valid for the groups that are led here; of others no lag is known, so no node is a
//! target for them.
//!
//! The catalog's intentions (weights, zones, drains, pins, preferences, labels) are added by the
//! same functions for all that decide: the planner, `balance now`, and the targets of a drain.

use std::collections::BTreeMap;

use shardhost_groups::nodes::Advertisement;
use shardhost_groups::{GroupId, GroupStatus, NodeId};
use shardhost_storage::RequirementMode as Mode;

use crate::catalog::{self, GroupRecord, NodeRecord, StrandedCause, StrandedGroup, View};
use crate::planner;
use crate::planner::snapshot::MAX_WEIGHT;

/// The weight of every node until the catalog sets another one.
const WEIGHT: u32 = 1;

/// The knowledge of several hosts as one snapshot: for a group the leader's, for a node its own,
/// else that of others.
#[must_use]
pub fn merge(views: Vec<(NodeId, planner::Snapshot)>) -> planner::Snapshot {
    let mut merged = planner::Snapshot::default();
    let mut nodes: BTreeMap<NodeId, planner::Node> = BTreeMap::new();
    let mut groups: BTreeMap<GroupId, planner::Group> = BTreeMap::new();
    for (from, view) in views {
        merged.now_ms = merged.now_ms.max(view.now_ms);
        merged.settings = view.settings;
        for node in view.nodes {
            let known = nodes.get(&node.id);
            if node.id == from || known.is_none_or(|known| known.incarnation < node.incarnation) {
                nodes.insert(node.id, node);
            }
        }
        for group in view.groups {
            let rank = |one: &planner::Group, led: bool| (one.term, led);
            let known = groups.get(&group.id);
            let led = group.leader == Some(from);
            let newer = known.is_none_or(|known| {
                let says_itself = known.voters.iter().any(|voter| voter.lag.is_some());
                rank(&group, led) > rank(known, says_itself)
            });
            if newer {
                groups.insert(group.id, group);
            }
        }
    }
    merged.nodes = nodes.into_values().collect();
    merged.groups = groups.into_values().collect();
    merged
}

/// Adds what the catalog intends to what a host knows.
pub fn add_intentions(snapshot: &mut planner::Snapshot, view: &View) {
    for node in &mut snapshot.nodes {
        if let Some(record) = view.nodes().get(&node.id) {
            intend_node(node, record, view);
        }
    }
    for group in &mut snapshot.groups {
        if let Some(record) = view.groups().get(&group.id) {
            intend_group(group, record);
        }
    }
}

/// What the catalog intends with a node.
pub fn intend_node(node: &mut planner::Node, record: &NodeRecord, view: &View) {
    node.weight = record.weight.min(MAX_WEIGHT);
    node.zone = record.zone.as_ref().map(ToString::to_string).unwrap_or_default();
    node.draining |= view.drains().get(&node.id).is_some_and(|drain| drain.keeps_leaders_away());
}

/// Where the catalog would have a group led.
pub fn intend_group(group: &mut planner::Group, record: &GroupRecord) {
    let Some(placement) = record.placement.as_deref() else { return };
    group.preference = placement.preference.iter().map(place_of).collect();
    group.pin = placement.pin;
    group.label = placement.spread.as_ref().map(ToString::to_string);
}

fn place_of(place: &catalog::Place) -> planner::Place {
    match place {
        catalog::Place::Node(node) => planner::Place::Node(*node),
        catalog::Place::Zone(zone) => planner::Place::Zone(zone.to_string()),
    }
}

/// The groups of a snapshot that no node could lead without `node`, and why. Groups that it could
/// not lead either are left out.
#[must_use]
pub fn stranded_without(snapshot: &planner::Snapshot, node: NodeId) -> Vec<StrandedGroup> {
    let nodes: BTreeMap<NodeId, &planner::Node> =
        snapshot.nodes.iter().map(|node| (node.id, node)).collect();
    let Some(leaving) = nodes.get(&node) else { return Vec::new() };
    let stranded = |group: &planner::Group| {
        let capable = |node: &&planner::Node| !lacks(node, &group.requirement);
        let member = group.voters.iter().any(|voter| voter.node == node);
        if !member || leaving.weight == 0 || !capable(leaving) {
            return None;
        }
        let others = group.voters.iter().filter(|voter| voter.node != node);
        let others = others.filter_map(|voter| nodes.get(&voter.node).copied());
        let able: Vec<_> = others.filter(|other| other.weight > 0).collect();
        let cause = StrandedCause::of(&able, |other| capable(other), |other| other.draining)
            .or_else(|| {
                let live = |other: &&planner::Node| other.live && !other.draining && capable(other);
                (!able.iter().any(live)).then_some(StrandedCause::NotLive)
            })?;
        Some(StrandedGroup { group: group.id, cause })
    };
    snapshot.groups.iter().filter_map(stranded).collect()
}

/// Whether a node is known to lack a hard requirement. A node that did not report may have it.
fn lacks(node: &planner::Node, requirement: &planner::Requirement) -> bool {
    let hard = requirement.mode == planner::RequirementMode::Hard;
    let known = node.capabilities.as_ref();
    hard && known.is_some_and(|known| !requirement.capabilities.is_subset(known))
}

/// A node as it is known: by what it advertises, before the catalog adds its intentions.
#[must_use]
pub fn node(
    id: NodeId,
    live: bool,
    incarnation: u64,
    advertisement: Option<&Advertisement>,
) -> planner::Node {
    planner::Node {
        id,
        weight: WEIGHT,
        zone: String::new(),
        capabilities: advertisement.map(|advertisement| advertisement.capabilities.clone()),
        draining: advertisement.is_some_and(|advertisement| advertisement.draining),
        fit: advertisement.is_none_or(|advertisement| advertisement.impaired.is_none()),
        live,
        incarnation,
        live_since_ms: 0,
    }
}

/// A group as the host `own` knows it, unless none of its voters is on one of `nodes`.
#[must_use]
pub fn group_of(
    own: NodeId,
    status: &GroupStatus,
    nodes: &BTreeMap<NodeId, planner::Node>,
) -> Option<planner::Group> {
    let known = |node: &NodeId| nodes.contains_key(node);
    let mut voters: Vec<planner::Voter> = status
        .membership
        .voters()
        .filter(|(_, node)| known(node))
        .map(|(_, node)| planner::Voter { node, lag: lag_of(own, node, status) })
        .collect();
    voters.sort_unstable_by_key(|voter| voter.node);
    let requirement = &status.membership.requirement;
    let mode = match requirement.mode {
        Mode::Hard => planner::RequirementMode::Hard,
        Mode::Soft => planner::RequirementMode::Soft,
    };
    let capabilities = requirement.capabilities.clone();
    let leader = status.leader.map(|leader| leader.node).filter(known);
    (!voters.is_empty()).then(|| planner::Group {
        id: status.id,
        leader,
        last_leader: leader,
        term: status.term.get(),
        voters,
        requirement: planner::Requirement { capabilities, mode },
        preference: Vec::new(),
        pin: None,
        label: None,
        load: 0,
        moved_at_ms: None,
    })
}

/// What a voter lacks, as far as the leader knows; of others nothing is known.
fn lag_of(own: NodeId, node: NodeId, status: &GroupStatus) -> Option<u64> {
    if !status.is_leader() {
        return None;
    }
    if node == own {
        return Some(0);
    }
    let peer = status.peers.iter().find(|peer| peer.node == node)?;
    Some(status.last.get().saturating_sub(peer.matched.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(term: u64, leader: u64, lag: Option<u64>) -> planner::Group {
        let id = NodeId::must;
        let voters = [1, 2, 3].map(|node| planner::Voter { node: id(node), lag });
        planner::Group {
            id: GroupId::new(7),
            leader: Some(id(leader)),
            last_leader: Some(id(leader)),
            term,
            voters: voters.to_vec(),
            requirement: planner::Requirement::default(),
            preference: Vec::new(),
            pin: None,
            label: None,
            load: 0,
            moved_at_ms: None,
        }
    }

    fn view(of: u64, known: &[(u64, u64)], group: planner::Group) -> (NodeId, planner::Snapshot) {
        let named = known.iter().map(|(id, incarnation)| {
            let advertisement = Advertisement { draining: *id == of, ..Advertisement::default() };
            node(NodeId::must(*id), true, *incarnation, Some(&advertisement))
        });
        let nodes = named.collect();
        let snapshot = planner::Snapshot { nodes, groups: vec![group], ..Default::default() };
        (NodeId::must(of), snapshot)
    }

    #[test]
    fn of_a_group_counts_what_its_newest_leader_says() {
        let old = view(1, &[], group(4, 1, Some(0)));
        let heard = view(3, &[], group(5, 2, None));
        let leader = view(2, &[], group(5, 2, Some(9)));
        for views in [vec![&old, &heard, &leader], vec![&leader, &heard, &old]] {
            let merged = merge(views.into_iter().cloned().collect());
            assert_eq!(merged.groups, [group(5, 2, Some(9))]);
        }
    }

    #[test]
    fn of_a_node_counts_what_it_says_itself() {
        let itself = view(1, &[(1, 5), (2, 1)], group(1, 1, None));
        let other = view(2, &[(1, 5), (2, 3)], group(1, 1, None));
        for views in [vec![&itself, &other], vec![&other, &itself]] {
            let merged = merge(views.into_iter().cloned().collect());
            let draining: Vec<_> = merged.nodes.iter().map(|node| node.draining).collect();
            let incarnations: Vec<_> = merged.nodes.iter().map(|node| node.incarnation).collect();
            assert_eq!((draining, incarnations), (vec![true, true], vec![5, 3]));
        }
    }

    fn picture(nodes: &[(u64, u32, bool)], capable: &[u64]) -> planner::Snapshot {
        let of = |(id, weight, live): &(u64, u32, bool)| {
            let has = capable.contains(id).then(|| "fifo".to_owned());
            let advertisement = Advertisement {
                capabilities: has.into_iter().collect(),
                ..Advertisement::default()
            };
            let known = node(NodeId::must(*id), *live, 1, Some(&advertisement));
            planner::Node { weight: *weight, ..known }
        };
        let mut group = group(1, 1, None);
        group.requirement.capabilities.insert("fifo".to_owned());
        let nodes = nodes.iter().map(of).collect();
        planner::Snapshot { nodes, groups: vec![group], ..planner::Snapshot::default() }
    }

    #[test]
    fn a_group_is_stranded_when_nobody_who_answers_could_lead_it() {
        let cause = |snapshot: &planner::Snapshot, node| {
            stranded_without(snapshot, NodeId::must(node)).first().map(|one| one.cause)
        };
        let all = [(1, 1, true), (2, 1, true), (3, 1, true)];
        assert_eq!(cause(&picture(&all, &[1, 3]), 1), None);
        assert_eq!(cause(&picture(&all, &[1, 3]), 2), None, "it leads nothing of it anyway");
        assert_eq!(cause(&picture(&all, &[1]), 1), Some(StrandedCause::NotCapable));
        let away = [(1, 1, true), (2, 1, true), (3, 1, false)];
        assert_eq!(cause(&picture(&away, &[1, 3]), 1), Some(StrandedCause::NotLive));
        let weightless = [(1, 1, true), (2, 0, true), (3, 0, true)];
        assert_eq!(cause(&picture(&weightless, &[1, 2, 3]), 1), Some(StrandedCause::NoMember));
        let mut drains = picture(&all, &[1, 3]);
        drains.nodes[2].draining = true;
        assert_eq!(cause(&drains, 1), Some(StrandedCause::Draining));
        drains.groups[0].requirement.mode = planner::RequirementMode::Soft;
        assert_eq!(cause(&drains, 1), None, "another one serves it anyway");
    }
}
