//! The map of shards: founded once.

use std::sync::Arc;

use super::super::error::Refusal;
use super::super::record::{Record, Settings};
use super::super::reply::{Done, Reply};
use super::super::view::View;
use super::Catalog;
use shardhost_proto::shard_map::MAX_SHARDS;
use shardhost_proto::shard_map::{KindShards, ShardMap};

/// The label that shards have, and other groups have not.
const SHARD_LABEL: &str = "shard";

impl Catalog {
    pub(super) fn found_shard_map(&mut self, map: &ShardMap) -> Reply {
        let settings = self.view.settings();
        if let Some(known) = &settings.shard_map {
            return match known.check(map) {
                Ok(()) => Ok(Done::unchanged(settings.revision)),
                Err(_) => Err(Refusal::OtherShardMap { cluster: Arc::clone(known) }),
            };
        }
        if let Some(cluster) = created_before(&self.view, map)
            && cluster.check(map).is_err()
        {
            return Err(Refusal::OtherShardMap { cluster: Arc::new(cluster) });
        }
        let shard_map = Some(Arc::new(map.clone()));
        let settings = Settings { shard_map, ..settings.clone() };
        self.store(Record::Settings(Arc::new(settings)))
    }
}

/// The map that follows from the shards that an earlier version created; `None`: there are none.
fn created_before(view: &View, map: &ShardMap) -> Option<ShardMap> {
    let mut cluster = map.clone();
    for (kind, shards) in &mut cluster.kinds {
        shards.count = count_of(view, kind, shards);
    }
    cluster.kinds.values().any(|shards| shards.count > 0).then_some(cluster)
}

/// One more than the largest number of a shard that there is or was.
fn count_of(view: &View, kind: &str, shards: &KindShards) -> u64 {
    let first = shards.first_group;
    let number = |group: shardhost_storage::GroupId| {
        group.get().checked_sub(first.get()).filter(|number| *number < MAX_SHARDS)
    };
    let is_shard = |labels: &[super::super::record::Label]| {
        labels.iter().any(|label| label.key.as_str() == SHARD_LABEL)
    };
    let groups = view.groups().range(first..).map(|(_, group)| group);
    let groups = groups.take_while(|group| number(group.id).is_some());
    let groups = groups.filter(|group| group.kind.as_str() == kind && is_shard(&group.labels));
    let ended = view.ended().range(first..).map(|(id, _)| *id);
    let ended = ended.take_while(|id| number(*id).is_some());
    let numbers = groups.map(|group| group.id).chain(ended).filter_map(number);
    numbers.max().map_or(0, |last| last + 1)
}
