//! Where the nodes of the cluster are reached. The addresses may change while the host runs.
//!
//! The directory knows addresses only, not liveness. Beside the configured address a node may have
//! one where it was found instead.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use shardhost_storage::NodeId;
use tokio::sync::watch;

/// The addresses of all nodes, this one included. Clones share their content.
#[derive(Clone, Debug)]
pub struct PeerDirectory {
    addresses: Arc<ArcSwap<BTreeMap<NodeId, String>>>,
    /// Where nodes were found that are not where they should be.
    found: Arc<ArcSwap<BTreeMap<NodeId, String>>>,
    revision: Arc<watch::Sender<u64>>,
}

impl PeerDirectory {
    /// A directory of `host:port` addresses.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = (NodeId, String)>) -> Self {
        let addresses = addresses.into_iter().collect::<BTreeMap<_, _>>();
        Self {
            addresses: Arc::new(ArcSwap::from_pointee(addresses)),
            found: Arc::default(),
            revision: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Replaces all addresses. Streams follow: to changed addresses they are made anew, to added
    /// nodes they start, to removed nodes they stop.
    pub fn replace(&self, addresses: impl IntoIterator<Item = (NodeId, String)>) {
        self.addresses.store(Arc::new(addresses.into_iter().collect()));
        self.found.store(Arc::default());
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
        self.found.rcu(|found| without(found, node));
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Removes a node.
    pub fn remove(&self, node: NodeId) {
        self.addresses.rcu(|old| {
            let mut changed = BTreeMap::clone(old);
            changed.remove(&node);
            changed
        });
        self.found.rcu(|found| without(found, node));
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Where the node is reached, if it is known: where it was found, or else as it was set.
    #[must_use]
    pub fn address(&self, node: NodeId) -> Option<String> {
        let set = self.addresses.load().get(&node).cloned()?;
        Some(self.found.load().get(&node).cloned().unwrap_or(set))
    }

    /// All nodes, and where they are reached.
    #[must_use]
    pub fn addresses(&self) -> Arc<BTreeMap<NodeId, String>> {
        let (set, found) = (self.addresses.load_full(), self.found.load());
        if found.is_empty() {
            return set;
        }
        let mut reached = BTreeMap::clone(&set);
        for (node, address) in &mut reached {
            if let Some(found) = found.get(node) {
                address.clone_from(found);
            }
        }
        Arc::new(reached)
    }

    /// All nodes and their addresses as they were set.
    pub(super) fn configured(&self) -> Arc<BTreeMap<NodeId, String>> {
        self.addresses.load_full()
    }

    /// The node answers at this address, and not where it should be; `None`: it is where it should be.
    pub(super) fn note_found(&self, node: NodeId, address: Option<&str>) {
        if self.found.load().get(&node).map(String::as_str) == address {
            return;
        }
        self.found.rcu(|found| {
            let mut changed = without(found, node);
            if let Some(address) = address {
                changed.insert(node, address.to_owned());
            }
            changed
        });
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Changes whenever an address may have.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

fn without(found: &BTreeMap<NodeId, String>, node: NodeId) -> BTreeMap<NodeId, String> {
    let mut changed = BTreeMap::clone(found);
    changed.remove(&node);
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_reached_where_it_was_found_until_its_address_is_set_anew() {
        let (one, two) = (NodeId::must(1), NodeId::must(2));
        let directory = PeerDirectory::new([(one, "a:1".to_owned()), (two, "b:1".to_owned())]);
        directory.note_found(two, Some("c:1"));
        assert_eq!(directory.address(two).as_deref(), Some("c:1"));
        assert_eq!(directory.addresses()[&two], "c:1");
        assert_eq!(directory.configured()[&two], "b:1");
        directory.note_found(two, None);
        assert_eq!(directory.address(two).as_deref(), Some("b:1"));
        directory.note_found(two, Some("c:1"));
        directory.set(two, "d:1");
        assert_eq!(directory.address(two).as_deref(), Some("d:1"));
        directory.note_found(two, Some("c:1"));
        directory.remove(two);
        assert_eq!(directory.address(two), None);
    }
}
