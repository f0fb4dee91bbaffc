//! The map of shards in the catalog: founded by the leader of the system group from its configuration.

use super::client::{CatalogClient, CatalogError};
use shardhost_policy::catalog::{Operation, Refusal, View};
use shardhost_proto::shard_map::{MapMismatch, ShardMap};

/// Ensures that the catalog has a map of shards before the shards of the configuration are created.
/// A map of the configuration that contradicts the catalog's is logged, and nothing is created from
/// it.
pub(super) async fn found(
    client: &CatalogClient,
    view: &View,
    configured: &ShardMap,
) -> Result<Agreement, CatalogError> {
    if let Some(known) = &view.settings().shard_map {
        return Ok(known.check(configured).map_or_else(Agreement::Differs, |()| Agreement::Same));
    }
    match client.apply(Operation::FoundShardMap { map: configured.clone() }).await {
        Ok(_) => Ok(Agreement::Same),
        Err(CatalogError::Refused(Refusal::OtherShardMap { cluster })) => {
            let cluster = Box::new(ShardMap::clone(&cluster));
            let configured = Box::new(configured.clone());
            Ok(Agreement::Differs(MapMismatch { cluster, configured }))
        }
        Err(error) => Err(error),
    }
}

/// How the configuration's map compares with the catalog's.
pub(super) enum Agreement {
    Same,
    Differs(MapMismatch),
}
