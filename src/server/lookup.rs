//! What the client services ask of the host.

use std::collections::BTreeMap;

use shardhost_groups::Group;
use shardhost_storage::{GroupId, NodeId};

use tokio_util::sync::CancellationToken;

use super::{ServerConfig, group_of_shard};
use crate::host::Host;
use crate::service::GroupLookup;
use crate::shards::{QUEUE_KIND as QUEUE, TABLE_KIND as TABLE};

/// The shards of a host's configuration.
#[derive(Debug)]
pub struct HostLookup {
    host: Host,
    tables: Vec<GroupId>,
    queues: Vec<GroupId>,
}

impl HostLookup {
    /// Derives the shards from the configuration.
    #[must_use]
    pub fn new(host: &Host, config: &ServerConfig) -> Self {
        let all = |kind, count| (0..count).filter_map(|n| group_of_shard(kind, n)).collect();
        Self {
            host: host.clone(),
            tables: all(TABLE, config.shards.tables),
            queues: all(QUEUE, config.shards.queues),
        }
    }
}

impl GroupLookup for HostLookup {
    fn group(&self, id: GroupId) -> Option<Group> {
        self.host.group(id)
    }

    fn shards(&self, kind: &str) -> Vec<GroupId> {
        match kind {
            TABLE => self.tables.clone(),
            QUEUE => self.queues.clone(),
            _ => Vec::new(),
        }
    }

    fn addresses(&self) -> BTreeMap<NodeId, String> {
        self.host.directory().addresses().iter().map(|(id, at)| (*id, at.clone())).collect()
    }

    fn stopped(&self) -> CancellationToken {
        self.host.stopped()
    }

    fn address(&self, node: NodeId) -> Option<String> {
        self.host.directory().address(node)
    }
}
