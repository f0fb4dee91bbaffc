//! Nodes: registered, updated, removed.

use std::collections::BTreeSet;
use std::sync::Arc;

use shardhost_storage::NodeId;

use super::super::command::NewNode;
use super::super::error::{MAX_NAMED_GROUPS, Refusal, Subject};
use super::super::name::Name;
use super::super::record::{
    Advertisement, GroupRecord, GroupState, NodeRecord, Record, RecordKey, Revision, Settings,
};
use super::super::reply::{Done, Reply};
use super::super::{MAX_NODES, MAX_REMOVED_NODES, UNKNOWN_STORE};
use super::{Catalog, check_limit};

impl Catalog {
    pub(super) fn put_node(&mut self, new: &NewNode) -> Reply {
        let known = self.view.nodes().get(&new.id);
        if self.view.settings().removed_nodes.binary_search(&new.id).is_ok() {
            return Err(Refusal::NodeRemoved { node: new.id });
        }
        if known.is_none() {
            check_limit(Subject::Nodes, self.view.nodes().len() + 1, MAX_NODES)?;
        }
        let taken = |other: &&Arc<NodeRecord>| other.id != new.id && *other.address == *new.address;
        if let Some(other) = self.view.nodes().values().find(taken) {
            let address = new.address.clone();
            return Err(Refusal::AddressTaken { address, node: other.id });
        }
        // A disk that was never recorded was not lost.
        let same_disk =
            known.filter(|known| known.store == new.store || known.store == UNKNOWN_STORE);
        let record = NodeRecord {
            id: new.id,
            revision: known.map_or_else(Revision::default, |known| known.revision),
            address: new.address.as_str().into(),
            zone: new.zone.clone(),
            weight: new.weight,
            store: new.store,
            store_since: same_disk
                .map_or_else(|| self.view.revision().next(), |known| known.store_since),
            advertisement: known.and_then(|known| known.advertisement.clone()),
        };
        self.store(Record::Node(Arc::new(record)))
    }

    pub(super) fn advertise(
        &mut self,
        node: NodeId,
        incarnation: u64,
        capabilities: &BTreeSet<Name>,
    ) -> Reply {
        let known = self.node(node)?;
        if let Some(last) =
            known.advertisement.as_ref().filter(|last| last.incarnation > incarnation)
        {
            let (given, actual) = (incarnation, last.incarnation);
            return Err(Refusal::StaleAdvertisement { node, given, actual });
        }
        let capabilities = capabilities.iter().cloned().collect();
        let advertisement = Some(Advertisement { incarnation, capabilities });
        let record = NodeRecord { advertisement, ..known.clone() };
        self.store(Record::Node(Arc::new(record)))
    }

    pub(super) fn remove_node(&mut self, node: NodeId) -> Reply {
        self.node(node)?;
        // A group that is being destroyed changes its members no more, and waits for no node that is not known.
        let remembers = self.remembers_removals();
        let stays = |group: &&Arc<GroupRecord>| !remembers || group.state == GroupState::Active;
        let members = self.view.groups().values().filter(stays);
        let members = members.filter(|group| group.has_member(node));
        let held: Vec<_> = members.map(|group| group.id).collect();
        if !held.is_empty() {
            let total = held.len();
            let groups = held.into_iter().take(MAX_NAMED_GROUPS).collect();
            return Err(Refusal::NodeInUse { node, groups, total });
        }
        let removed = self.remembers_removals().then(|| self.with_removed(node)).transpose()?;
        if let Some(settings) = removed {
            self.put(Record::Settings(Arc::new(settings)));
        }
        if self.view.drains().contains_key(&node) {
            self.remove(RecordKey::Drain(node));
        }
        Ok(Done::changed(self.remove(RecordKey::Node(node))))
    }

    /// The settings, with one more removed node.
    fn with_removed(&self, node: NodeId) -> Result<Settings, Refusal> {
        let settings = self.view.settings();
        let count = settings.removed_nodes.len() + 1;
        check_limit(Subject::RemovedNodes, count, MAX_REMOVED_NODES)?;
        let removed = settings.removed_nodes.iter().copied().chain([node]);
        let removed: BTreeSet<NodeId> = removed.collect();
        Ok(Settings { removed_nodes: removed.into_iter().collect(), ..settings.clone() })
    }

    pub(super) fn node(&self, node: NodeId) -> Result<&NodeRecord, Refusal> {
        self.view.nodes().get(&node).map(AsRef::as_ref).ok_or(Refusal::UnknownNode { node })
    }
}
