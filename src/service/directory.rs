//! Which shards there are and where they are led, as far as this host knows.

use std::sync::Arc;

use shardhost_proto::client::directory_server::Directory;
use shardhost_proto::client::{Shard, ShardsReply, ShardsRequest};
use shardhost_storage::GroupId;
use tonic::{Request, Response, Status};

use super::GroupLookup;
use crate::shards::{QUEUE_KIND, TABLE_KIND};

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
        let shards = self.lookup.shards(&kind).into_iter().map(|id| self.shard(id)).collect();
        let nodes = self.lookup.addresses();
        let nodes = nodes.into_iter().map(|(node, address)| (node.get(), address)).collect();
        Ok(Response::new(ShardsReply { shards, nodes }))
    }
}
