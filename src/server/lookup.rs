//! What the client services ask of the host.

use std::collections::BTreeMap;
use std::sync::Arc;

use shardhost_groups::Group;
use shardhost_storage::{GroupId, NodeId};

use tokio_util::sync::CancellationToken;

use super::shard_map::CurrentMap;
use crate::service::GroupLookup;
use crate::shards::ShardTimes;
use shardhost::host::Host;
use shardhost_proto::shard_map::ShardMap;

/// The shards of a host.
#[derive(Debug)]
pub(super) struct HostLookup {
    host: Host,
    map: Arc<CurrentMap>,
    times: Arc<ShardTimes>,
}

impl HostLookup {
    /// The shards of the cluster's map.
    pub(super) fn new(host: &Host, map: &Arc<CurrentMap>, times: &Arc<ShardTimes>) -> Self {
        Self { host: host.clone(), map: Arc::clone(map), times: Arc::clone(times) }
    }
}

impl GroupLookup for HostLookup {
    fn group(&self, id: GroupId) -> Option<Group> {
        self.host.group(id)
    }

    fn map(&self) -> Option<Arc<ShardMap>> {
        self.map.get()
    }

    fn times(&self) -> Arc<ShardTimes> {
        Arc::clone(&self.times)
    }

    fn addresses(&self) -> BTreeMap<NodeId, String> {
        let client_address = |(id, at): (&NodeId, &String)| {
            (*id, self.host.own_client_address(*id).unwrap_or_else(|| at.clone()))
        };
        self.host.directory().addresses().iter().map(client_address).collect()
    }

    fn stopped(&self) -> CancellationToken {
        self.host.stopped()
    }

    fn address(&self, node: NodeId) -> Option<String> {
        self.host.client_address(node)
    }
}
