//! One snapshot of the cluster, from the catalog and the reports of all hosts. Pure.
//!
//! For a group, the report of its leader in the highest term counts; for a node, its own report,
//! and whether the planner's host receives its heartbeats.

use std::collections::BTreeMap;
use std::sync::Arc;

use shardhost_groups::{GroupId, NodeId};
use shardhost_storage::RequirementMode;

use super::report::{LedGroup, Reported};
use super::view::{intend_group, intend_node};
use crate::catalog::{GroupRecord, GroupState, NodeRecord, View};
use crate::planner::snapshot::MAX_LOAD;
use crate::planner::{self, Snapshot};

/// The newest report of a node.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When it was asked for.
    pub asked_ms: u64,
    /// Of its content, for asking only for news.
    pub digest: u64,
    pub reported: Arc<Reported>,
    /// Leaderships that were moved away by order, and when, on the planner's clock.
    pub moved: Vec<(GroupId, u64)>,
}

/// Since when the planner's host receives heartbeats of a node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alive {
    pub incarnation: u64,
    pub since_ms: u64,
}

/// The inputs of a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    pub view: &'a View,
    /// The last report of each node.
    pub heard: &'a BTreeMap<NodeId, Heard>,
    pub alive: &'a BTreeMap<NodeId, Alive>,
    /// Who led each group when that was last known.
    pub last_leaders: &'a BTreeMap<GroupId, NodeId>,
}

/// The snapshot. The executor adds time, seed, settings, moves and back-offs.
pub fn observe(sources: Sources<'_>) -> Snapshot {
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
    let mut node = planner::Node {
        id: record.id,
        weight: record.weight,
        zone: String::new(),
        capabilities: heard.map(|reported| reported.capabilities.clone()),
        draining: heard.is_some_and(|reported| reported.draining),
        fit: heard.is_none_or(|reported| !reported.impaired),
        live: alive.is_some(),
        incarnation: alive.map_or(0, |alive| alive.incarnation),
        live_since_ms: alive.map_or(0, |alive| alive.since_ms),
    };
    intend_node(&mut node, record, sources.view);
    node
}

/// Which node claims to lead which group, in the highest term.
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
    let mut group = planner::Group {
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
        preference: Vec::new(),
        pin: None,
        label: None,
        load: leading
            .map_or(0, |(_, led)| u32::try_from(led.operations).unwrap_or(MAX_LOAD).min(MAX_LOAD)),
        moved_at_ms: None,
    };
    intend_group(&mut group, record);
    group
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{
        Catalog, Command, DrainFallback, Name, NewDrain, NewGroup, NewNode, Operation, Placement,
        Stranding, Subject,
    };
    use shardhost_storage::Requirement;

    const GROUP: GroupId = GroupId::new(7);

    fn node(id: u64) -> NodeId {
        NodeId::must(id)
    }

    /// Three nodes and a group on all of them, which is pinned to the third.
    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        let mut apply = |operation| catalog.apply(&Command::new(1_000, operation)).unwrap();
        for id in 1..=3 {
            let address = format!("host-{id}:7400");
            let weight = id as u32;
            let zone = Some(Name::new(Subject::Zone, "a").unwrap());
            apply(Operation::PutNode(NewNode { id: node(id), address, zone, weight, store: id }));
        }
        let kind = Name::new(Subject::Kind, "table").unwrap();
        let mut new = NewGroup::new(GROUP, kind, [1, 2, 3].map(node));
        new.requirement = Requirement::hard(["fifo"]).unwrap();
        new.placement = Placement { pin: Some(node(3)), ..Placement::default() };
        apply(Operation::CreateGroup(new));
        catalog
    }

    fn report(term: u64, lags: Vec<(NodeId, Option<u64>)>) -> Heard {
        let led = LedGroup {
            term,
            voters: [1, 2, 3].map(node).into(),
            requirement: Arc::default(),
            operations: 96,
            lags,
        };
        let groups = [(GROUP, led)].into();
        let reported = Reported { incarnation: 5, groups, ..Reported::default() };
        Heard { asked_ms: 0, digest: 1, reported: Arc::new(reported), moved: vec![(GROUP, term)] }
    }

    fn picture(view: &View, heard: BTreeMap<NodeId, Heard>) -> Snapshot {
        let alive = |id| (node(id), Alive { incarnation: 5, since_ms: 9 });
        let alive = [alive(1), alive(2)].into();
        let last_leaders = [(GROUP, node(2))].into();
        observe(Sources { view, heard: &heard, alive: &alive, last_leaders: &last_leaders })
    }

    #[test]
    fn of_two_who_say_that_they_lead_the_later_term_counts() {
        let heard = [
            (node(1), report(4, vec![])),
            (node(2), report(5, vec![(node(1), Some(2_048)), (node(3), None)])),
        ];
        let snapshot = picture(catalog().view(), heard.into()).canonicalise().unwrap();
        let group = &snapshot.groups[0];
        assert_eq!((group.leader, group.term, group.load), (Some(node(2)), 5, 96));
        assert_eq!((group.pin, group.moved_at_ms), (Some(node(3)), Some(5)));
        let lags: Vec<_> = group.voters.iter().map(|voter| voter.lag).collect();
        assert_eq!(lags, [Some(2_048), Some(0), None]);
        assert!(group.requirement.capabilities.is_empty(), "the group's own word counts");
    }

    #[test]
    fn a_group_that_nobody_reports_counts_where_it_was_and_is_led_by_nobody() {
        let snapshot = picture(catalog().view(), BTreeMap::new()).canonicalise().unwrap();
        let group = &snapshot.groups[0];
        assert_eq!((group.leader, group.last_leader), (None, Some(node(2))));
        assert!(group.voters.iter().all(|voter| voter.lag.is_none()));
        assert!(group.requirement.capabilities.contains("fifo"), "what the catalog intends");
    }

    #[test]
    fn a_node_is_live_when_the_planners_host_hears_it_and_drains_when_anybody_says_so() {
        let mut catalog = catalog();
        let drain = NewDrain {
            node: node(1),
            owner: "ann".to_owned(),
            deadline_ms: 2_000,
            expires_ms: 3_000,
            fallback: DrainFallback::Proceed,
            stranding: Stranding::Accept,
        };
        catalog.apply(&Command::new(1_000, Operation::BeginDrain(drain))).unwrap();
        let mut of_a_life_before = report(4, vec![]);
        Arc::make_mut(&mut of_a_life_before.reported).incarnation = 4;
        let heard = [(node(1), report(4, vec![])), (node(2), of_a_life_before)];
        let snapshot = picture(catalog.view(), heard.into());
        let of = |what: fn(&planner::Node) -> bool| -> Vec<bool> {
            snapshot.nodes.iter().map(what).collect()
        };
        assert_eq!(of(|node| node.live), [true, true, false]);
        assert_eq!(of(|node| node.draining), [true, false, false]);
        assert_eq!(of(|node| node.capabilities.is_some()), [true, false, false]);
        let weights: Vec<u32> = snapshot.nodes.iter().map(|node| node.weight).collect();
        assert_eq!(weights, [1, 2, 3]);
    }
}
