//! A host without groups, for tests of what is before them.

use std::collections::BTreeMap;
use std::sync::Arc;

use shardhost_groups::Group;
use shardhost_proto::shard_map::ShardMap;
use shardhost_storage::{GroupId, NodeId};

use super::GroupLookup;
use crate::shards::ShardTimes;

/// It knows no map of shards either.
pub(super) struct NoGroups;

impl GroupLookup for NoGroups {
    fn group(&self, _: GroupId) -> Option<Group> {
        None
    }

    fn map(&self) -> Option<Arc<ShardMap>> {
        None
    }

    fn times(&self) -> Arc<ShardTimes> {
        Arc::default()
    }

    fn addresses(&self) -> BTreeMap<NodeId, String> {
        BTreeMap::new()
    }
}
