//! Where the nodes are reached that joined later: the catalog knows them, the configuration of this host
//! need not.
//!
//! What the catalog said last is kept in the data directory: after a restart the catalog itself may be
//! reached only through such nodes.

use std::collections::BTreeMap;

use shardhost_storage::NodeId;

use crate::data_dir::DataDir;
use crate::data_dir::addresses::PeerAddresses;
use crate::host::Host;
use shardhost_policy::catalog::View;

/// The nodes that only the catalog names, in the directory of a host.
pub(super) struct Joined {
    host: Host,
    kept: PeerAddresses,
}

impl Joined {
    /// Adds those to the directory that the catalog named last.
    pub(super) fn open(host: &Host) -> Self {
        let path = DataDir::catalog_nodes_path(&host.config().data_dir);
        let joined = Self { host: host.clone(), kept: PeerAddresses::open(path) };
        let kept = joined.kept.all();
        for (node, address) in kept.into_iter().filter(|(node, _)| !joined.is_configured(*node)) {
            host.directory().set(node, address);
        }
        joined
    }

    fn is_configured(&self, node: NodeId) -> bool {
        node == self.host.node_id() || self.host.config().peers.contains_key(&node)
    }

    /// The catalog names these nodes now.
    pub(super) fn take(&self, view: &View) {
        let nodes = view.nodes().iter().filter(|(node, _)| !self.is_configured(**node));
        let wanted: BTreeMap<NodeId, &str> =
            nodes.map(|(node, record)| (*node, &*record.address)).collect();
        for node in view.settings().removed_nodes.iter().filter(|node| self.is_configured(**node)) {
            if *node != self.host.node_id() && self.host.directory().address(*node).is_some() {
                tracing::info!(%node, "the node was removed from the cluster; the configuration still names it");
                self.host.directory().remove(*node);
            }
        }
        // Of two nodes that moved at the same time neither can greet the other; each named its address to the catalog.
        for (node, record) in view.nodes().iter().filter(|(node, _)| self.is_configured(**node)) {
            if self.host.config().peers.get(node).is_some_and(|known| **known != *record.address) {
                self.host.node_is_said_to_be_at(*node, &record.address);
            }
        }
        let kept = self.kept.all();
        for (node, address) in &wanted {
            if kept.get(node).map(String::as_str) != Some(*address) {
                tracing::info!(%node, address, "the catalog names a node that is not configured here");
                self.host.directory().set(*node, *address);
                self.keep(*node, Some(address));
            }
        }
        for node in kept.keys().filter(|node| !wanted.contains_key(node)) {
            tracing::info!(%node, "the catalog does not name the node any more");
            if !self.is_configured(*node) {
                self.host.directory().remove(*node);
            }
            self.keep(*node, None);
        }
    }

    fn keep(&self, node: NodeId, address: Option<&str>) {
        if let Err(error) = self.kept.found(node, address) {
            tracing::error!(%node, %error, "where a node is reached cannot be kept for the next start");
        }
    }
}
