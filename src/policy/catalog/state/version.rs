//! The version of the cluster: what the rules of the other changes may ask for.

use std::collections::BTreeMap;
use std::sync::Arc;

use shardhost_proto::version::ClusterVersion;
use shardhost_storage::NodeId;

use super::super::error::Refusal;
use super::super::record::{NodeRecord, Record, ReplicaSettings, Settings};
use super::super::reply::{Done, Reply};
use super::super::{REPLICAS_MOVED, UNKNOWN_STORE};
use super::Catalog;

/// From this one on the numbers of removed nodes are remembered.
const REMOVALS_REMEMBERED: ClusterVersion = ClusterVersion::new(2);
/// From this one on a drain is extended by its own clock.
const DRAINS_EXTENDED_BY_THEIR_CLOCK: ClusterVersion = ClusterVersion::new(2);

impl Catalog {
    pub(super) fn raise_version(
        &mut self,
        version: ClusterVersion,
        prepared: &BTreeMap<NodeId, u64>,
    ) -> Reply {
        let settings = self.view.settings();
        if version <= settings.cluster_version {
            return Ok(Done::unchanged(settings.revision));
        }
        // One that was announced and never seen has no data directory yet.
        let seen = self.view.nodes().values().filter(|node| node.store != UNKNOWN_STORE);
        // Nor is another disk prepared than the one that was asked.
        let lacks = |node: &&Arc<NodeRecord>| prepared.get(&node.id) != Some(&node.store);
        if let Some(node) = seen.filter(|node| lacks(node)).map(|node| node.id).next() {
            return Err(Refusal::NotPrepared { node, version });
        }
        let settings = Settings { cluster_version: version, ..settings.clone() };
        self.store(Record::Settings(Arc::new(settings)))
    }

    pub(super) fn set_replicas(&mut self, replicas: ReplicaSettings) -> Reply {
        self.check_version(REPLICAS_MOVED)?;
        let settings = Settings { replicas: Some(replicas), ..self.view.settings().clone() };
        self.store(Record::Settings(Arc::new(settings)))
    }

    pub(super) fn check_version(&self, needed: ClusterVersion) -> Result<(), Refusal> {
        let present = self.view.settings().cluster_version;
        if present < needed {
            return Err(Refusal::NeedsVersion { needed, present });
        }
        Ok(())
    }

    pub(super) fn remembers_removals(&self) -> bool {
        self.view.settings().cluster_version >= REMOVALS_REMEMBERED
    }

    pub(super) fn extends_drains_by_their_clock(&self) -> bool {
        self.view.settings().cluster_version >= DRAINS_EXTENDED_BY_THEIR_CLOCK
    }
}
