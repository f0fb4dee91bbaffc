//! The cluster as one host knows it, for the planner: the groups that it has a replica of, their
//! leaders as far as it knows, and what nodes advertise.
//!
//! Its lags are valid for the groups that are led here; of others no lag is known, so no node is a
//! target for them. The intentions of the catalog are added by [`shardhost_policy::inputs::view`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use shardhost_policy::inputs::report::Rates;
use shardhost_policy::inputs::view::{group_of, node};
use shardhost_policy::planner;
use shardhost_policy::planner::snapshot::MAX_LOAD;

use super::SYSTEM_GROUP;
use crate::host::Host;

/// A snapshot of what `host` knows, at this time of the planner's clock.
#[must_use]
pub fn local_view(host: &Host, now_ms: u64, settings: planner::Settings) -> planner::Snapshot {
    let mut nodes = BTreeMap::from([(host.node_id(), own_node(host))]);
    for peer in host.transport_stats().peers {
        let incarnation = peer.incarnation.unwrap_or(0);
        let node = node(peer.node, peer.live, incarnation, peer.advertisement.as_ref());
        nodes.insert(peer.node, node);
    }
    let mut groups: Vec<planner::Group> = Vec::new();
    // The system group is not balanced: its leader plans for the others.
    for group in host.groups().into_iter().filter(|group| group.id() != SYSTEM_GROUP) {
        groups.extend(group_of(host.node_id(), &group.status(), &nodes));
    }
    planner::Snapshot {
        now_ms,
        seed: 0,
        settings,
        nodes: nodes.into_values().collect(),
        groups,
        moves: Vec::new(),
        back_offs: Vec::new(),
    }
}

/// Adds the load of the groups that `host` leads: operations per second, roughly. 0 at first,
/// because it takes two looks.
pub fn add_loads(snapshot: &mut planner::Snapshot, host: &Host, rates: &mut Rates) {
    let now = Instant::now();
    let mut leads = BTreeSet::new();
    for group in snapshot.groups.iter_mut().filter(|group| group.leader == Some(host.node_id())) {
        if let Some(known) = host.group(group.id) {
            let rate = rates.measure(&known.status(), now);
            group.load = u32::try_from(rate).unwrap_or(MAX_LOAD).min(MAX_LOAD);
            leads.insert(group.id);
        }
    }
    rates.keep(&leads);
}

fn own_node(host: &Host) -> planner::Node {
    node(host.node_id(), true, host.incarnation(), Some(&host.advertisement()))
}
