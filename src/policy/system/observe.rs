//! One picture of the cluster, from the catalog and the reports of all hosts. Pure.
//!
//! Of a group counts what the host says that leads it in the highest term; of a node, what it says
//! itself, and whether the planner's host hears it.

use std::collections::BTreeMap;
use std::sync::Arc;

use shardhost_groups::{GroupId, NodeId};
use shardhost_storage::RequirementMode;

use super::report::{LedGroup, Reported};
use crate::policy::catalog::{self, GroupRecord, GroupState, NodeRecord, View};
use crate::policy::planner::snapshot::{MAX_LOAD, MAX_WEIGHT};
use crate::policy::planner::{self, Snapshot};

/// The newest report of a node.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    /// When it was asked for.
    pub(super) asked_ms: u64,
    /// Of its content, for asking only for news.
    pub(super) digest: u64,
    /// What it says.
    pub(super) reported: Arc<Reported>,
    /// Leaderships that were moved away by order, and when, on the planner's clock.
    pub(super) moved: Vec<(GroupId, u64)>,
}

/// Since when the planner's host hears a node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alive {
    pub(super) incarnation: u64,
    pub(super) since_ms: u64,
}

/// What a picture is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sources<'a> {
    pub(super) view: &'a View,
    pub(super) heard: &'a BTreeMap<NodeId, Heard>,
    pub(super) alive: &'a BTreeMap<NodeId, Alive>,
    /// Who led each group when that was last known.
    pub(super) last_leaders: &'a BTreeMap<GroupId, NodeId>,
}

/// The picture. Time, seed, settings, moves and mutes are for the executor to fill in.
pub(super) fn observe(sources: Sources<'_>) -> Snapshot {
    let nodes: Vec<planner::Node> =
        sources.view.nodes().values().map(|record| node_of(record, sources)).collect();
    let leaders = leaders_of(sources.heard);
    let moved = moved_of(sources.heard);
    let records = sources.view.groups().values();
    let active = records.filter(|record| record.state == GroupState::Active);
    let mut groups = Vec::new();
    for record in active {
        let leader = leaders.get(&record.id).copied();
        let mut group = group_of(record, leader, sources);
        group.moved_at_ms = moved.get(&record.id).copied();
        groups.push(group);
    }
    Snapshot { nodes, groups, ..Snapshot::default() }
}

fn node_of(record: &NodeRecord, sources: Sources<'_>) -> planner::Node {
    let heard = sources.heard.get(&record.id).map(|heard| &heard.reported);
    let alive = sources.alive.get(&record.id);
    let same_life = |reported: &&Arc<Reported>| {
        alive.is_none_or(|alive| alive.incarnation == reported.incarnation)
    };
    let heard = heard.filter(same_life);
    let drained = sources.view.drains().get(&record.id);
    planner::Node {
        id: record.id,
        weight: record.weight.min(MAX_WEIGHT),
        zone: record.zone.as_ref().map(ToString::to_string).unwrap_or_default(),
        capabilities: heard.map(|reported| reported.capabilities.clone()),
        draining: heard.is_some_and(|reported| reported.draining)
            || drained.is_some_and(|drain| drain.keeps_leaders_away()),
        fit: true,
        live: alive.is_some(),
        incarnation: alive.map_or(0, |alive| alive.incarnation),
        live_since_ms: alive.map_or(0, |alive| alive.since_ms),
    }
}

/// Who says that it leads which group, in the highest term.
fn leaders_of(heard: &BTreeMap<NodeId, Heard>) -> BTreeMap<GroupId, (NodeId, &LedGroup)> {
    let mut leaders: BTreeMap<GroupId, (NodeId, &LedGroup)> = BTreeMap::new();
    for (node, heard) in heard {
        for (group, led) in &heard.reported.groups {
            let known = leaders.get(group);
            if known.is_none_or(|(_, known)| known.term < led.term) {
                leaders.insert(*group, (*node, led));
            }
        }
    }
    leaders
}

/// When each group was last moved by order.
fn moved_of(heard: &BTreeMap<NodeId, Heard>) -> BTreeMap<GroupId, u64> {
    let mut moved = BTreeMap::new();
    for (group, at) in heard.values().flat_map(|heard| &heard.moved) {
        let newest = moved.entry(*group).or_insert(*at);
        *newest = (*newest).max(*at);
    }
    moved
}

fn group_of(
    record: &GroupRecord,
    leader: Option<(NodeId, &LedGroup)>,
    sources: Sources<'_>,
) -> planner::Group {
    let known = |node: &NodeId| sources.view.nodes().contains_key(node);
    let leading = leader.filter(|(node, _)| known(node));
    let voters = match leading {
        Some((own, led)) => led
            .voters
            .iter()
            .copied()
            .filter(known)
            .map(|node| planner::Voter {
                node,
                lag: if node == own { Some(0) } else { lag_of(led, node) },
            })
            .collect(),
        None => {
            let members = record.members().iter().copied().filter(known);
            members.map(|node| planner::Voter { node, lag: None }).collect()
        }
    };
    let placement = record.placement.as_deref();
    planner::Group {
        id: record.id,
        leader: leading.map(|(node, _)| node),
        last_leader: leading
            .map(|(node, _)| node)
            .or_else(|| sources.last_leaders.get(&record.id).copied().filter(known)),
        term: leading.map_or(0, |(_, led)| led.term),
        voters,
        requirement: match leading {
            Some((_, led)) => requirement_of(&led.requirement),
            None => requirement_of(&record.requirement()),
        },
        preference: placement
            .map_or_else(Vec::new, |placement| placement.preference.iter().map(place_of).collect()),
        pin: placement.and_then(|placement| placement.pin),
        label: placement.and_then(|placement| placement.spread.as_ref()).map(ToString::to_string),
        load: leading
            .map_or(0, |(_, led)| u32::try_from(led.operations).unwrap_or(MAX_LOAD).min(MAX_LOAD)),
        moved_at_ms: None,
    }
}

/// What a voter lacks, as its leader knows; what the leader does not name is level.
fn lag_of(led: &LedGroup, node: NodeId) -> Option<u64> {
    match led.lags.iter().find(|(lagging, _)| *lagging == node) {
        Some((_, entries)) => *entries,
        None => Some(0),
    }
}

fn requirement_of(requirement: &shardhost_storage::Requirement) -> planner::Requirement {
    let mode = match requirement.mode {
        RequirementMode::Hard => planner::RequirementMode::Hard,
        RequirementMode::Soft => planner::RequirementMode::Soft,
    };
    planner::Requirement { capabilities: requirement.capabilities.clone(), mode }
}

fn place_of(place: &catalog::Place) -> planner::Place {
    match place {
        catalog::Place::Node(node) => planner::Place::Node(*node),
        catalog::Place::Zone(zone) => planner::Place::Zone(zone.to_string()),
    }
}
