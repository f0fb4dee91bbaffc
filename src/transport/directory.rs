//! Where the nodes of the cluster are reached. The addresses may change while the host runs.
//!
//! The directory knows addresses only: whether a node lives is not its business.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use shardhost_storage::NodeId;
use tokio::sync::watch;

/// The addresses of all nodes, this one included. Clones share their content.
#[derive(Clone, Debug)]
pub struct PeerDirectory {
    addresses: Arc<ArcSwap<BTreeMap<NodeId, String>>>,
    revision: Arc<watch::Sender<u64>>,
}

impl PeerDirectory {
    /// A directory of `host:port` addresses.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = (NodeId, String)>) -> Self {
        let addresses = addresses.into_iter().collect::<BTreeMap<_, _>>();
        Self {
            addresses: Arc::new(ArcSwap::from_pointee(addresses)),
            revision: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Replaces all addresses. Streams follow: to changed addresses they are made anew, to added
    /// nodes they start, to removed nodes they stop.
    pub fn replace(&self, addresses: impl IntoIterator<Item = (NodeId, String)>) {
        self.addresses.store(Arc::new(addresses.into_iter().collect()));
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Adds a node or changes its address.
    pub fn set(&self, node: NodeId, address: impl Into<String>) {
        let address = address.into();
        self.addresses.rcu(|old| {
            let mut changed = BTreeMap::clone(old);
            changed.insert(node, address.clone());
            changed
        });
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Removes a node.
    pub fn remove(&self, node: NodeId) {
        self.addresses.rcu(|old| {
            let mut changed = BTreeMap::clone(old);
            changed.remove(&node);
            changed
        });
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Where the node is reached, if it is known.
    #[must_use]
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.addresses.load().get(&node).cloned()
    }

    /// All nodes and their addresses.
    #[must_use]
    pub fn addresses(&self) -> Arc<BTreeMap<NodeId, String>> {
        self.addresses.load_full()
    }

    /// Changes whenever an address may have.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}
