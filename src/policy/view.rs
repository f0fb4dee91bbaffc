//! The cluster as one host knows it, for the planner: the groups that it has a replica of, who
//! leads them as far as it heard, and what nodes say of themselves.
//!
//! What it says of logs is good for the groups that are led here; of others it knows no lag, so
//! nobody is a target for them.

use std::collections::BTreeMap;

use shardhost_groups::worker::Advert;
use shardhost_groups::{GroupStatus, NodeId};
use shardhost_storage::RequirementMode as Mode;

use super::planner;
use crate::host::Host;

/// What the planner is told of every node: they are equal until somebody says otherwise.
const WEIGHT: u32 = 1;

/// A snapshot of what `host` knows, at this time of the planner's clock.
#[must_use]
pub fn local_view(host: &Host, now_ms: u64, settings: planner::Settings) -> planner::Snapshot {
    let mut nodes = BTreeMap::from([(host.node_id(), own_node(host))]);
    for peer in host.transport_stats().peers {
        let incarnation = peer.incarnation.unwrap_or(0);
        let node = node(peer.node, peer.live, incarnation, peer.advert.as_ref());
        nodes.insert(peer.node, node);
    }
    let mut groups: Vec<planner::Group> = Vec::new();
    for group in host.groups() {
        groups.extend(group_of(host.node_id(), &group.status(), &nodes));
    }
    planner::Snapshot {
        now_ms,
        seed: 0,
        settings,
        nodes: nodes.into_values().collect(),
        groups,
        moves: Vec::new(),
        mutes: Vec::new(),
    }
}

fn own_node(host: &Host) -> planner::Node {
    node(host.node_id(), true, host.incarnation(), Some(&host.advert()))
}

fn node(id: NodeId, live: bool, incarnation: u64, advert: Option<&Advert>) -> planner::Node {
    planner::Node {
        id,
        weight: WEIGHT,
        zone: String::new(),
        capabilities: advert.map(|advert| advert.capabilities.clone()),
        draining: advert.is_some_and(|advert| advert.draining),
        fit: true,
        live,
        incarnation,
        live_since_ms: 0,
    }
}

/// The group, unless none of its voters is on a node that is known.
fn group_of(
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
