//! The map of shards and its message.

use std::collections::BTreeMap;

use shardhost_storage::GroupId;

use super::super::command::malformed;
use super::super::error::Refusal;
use super::super::wire;
use shardhost_proto::shard_map::{KindShards, ShardMap};

pub(in super::super) fn map_to(map: &ShardMap) -> wire::ShardMap {
    let kind = |(kind, shards): (&String, &KindShards)| wire::ShardKind {
        kind: kind.clone(),
        count: shards.count,
        first_group: shards.first_group.get(),
    };
    wire::ShardMap {
        version: map.version,
        generation: map.generation,
        hash: map.hash.clone(),
        kinds: map.kinds.iter().map(kind).collect(),
    }
}

pub(in super::super) fn map_from(message: &wire::ShardMap) -> Result<ShardMap, Refusal> {
    let mut kinds = BTreeMap::new();
    for one in &message.kinds {
        let first_group = GroupId::new(one.first_group);
        let shards = KindShards { count: one.count, first_group };
        if kinds.insert(one.kind.clone(), shards).is_some() {
            return Err(malformed("a kind of shard is named twice"));
        }
    }
    let (version, generation) = (message.version, message.generation);
    let map = ShardMap { version, generation, hash: message.hash.clone(), kinds };
    map.validate().map_err(malformed)?;
    Ok(map)
}
