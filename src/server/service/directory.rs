//! Which shards there are and where they are led, as far as this host knows.

use std::sync::Arc;

use shardhost_proto::client::directory_server::Directory;
use shardhost_proto::client::{MapTag, Shard, ShardsReply, ShardsRequest};
use shardhost_storage::GroupId;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use shardhost_proto::limits::MAP_UNKNOWN;

use super::GroupLookup;
use shardhost_proto::shard_map::{QUEUE_KIND, ShardMap, TABLE_KIND};

/// The directory of one host.
pub struct DirectoryService {
    lookup: Arc<dyn GroupLookup>,
}

impl DirectoryService {
    pub(super) fn new(lookup: Arc<dyn GroupLookup>) -> Self {
        Self { lookup }
    }

    fn shard(&self, id: GroupId) -> Shard {
        let mut shard = Shard { group: id.get(), ..Shard::default() };
        if let Some(group) = self.lookup.group(id) {
            let status = group.status();
            shard.term = status.term.get();
            if let Some(leader) = &status.leader {
                shard.leader_node = leader.node.get();
                shard.leader_address = self.lookup.address(leader.node).unwrap_or_default();
            }
        }
        shard
    }
}

fn map_unknown() -> Status {
    let text = "this node has not read the map of shards from the catalog yet; ask again";
    let mut status = Status::unavailable(text);
    status.metadata_mut().insert(MAP_UNKNOWN, MetadataValue::from_static("1"));
    status
}

/// Names a map to clients.
pub(super) fn tag_of(map: &ShardMap) -> MapTag {
    MapTag { fingerprint: map.fingerprint(), version: map.version, hash: map.hash.clone() }
}

#[tonic::async_trait]
impl Directory for DirectoryService {
    async fn shards(
        &self,
        request: Request<ShardsRequest>,
    ) -> Result<Response<ShardsReply>, Status> {
        let kind = request.into_inner().kind;
        if kind != TABLE_KIND && kind != QUEUE_KIND {
            return Err(Status::invalid_argument(format!(
                "there are no shards of kind {kind:?}; ask for {TABLE_KIND:?} or {QUEUE_KIND:?}"
            )));
        }
        let map = self.lookup.map().ok_or_else(map_unknown)?;
        let shards = map.groups(&kind).map(|id| self.shard(id)).collect();
        let nodes = self.lookup.addresses();
        let nodes = nodes.into_iter().map(|(node, address)| (node.get(), address)).collect();
        Ok(Response::new(ShardsReply { shards, nodes, map: Some(tag_of(&map)), sessions: true }))
    }
}
