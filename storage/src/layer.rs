//! Log stores on top of others.

use std::fmt;

use shardhost_proto::version::ClusterVersion;

use crate::ids::{GroupId, LogIndex, ReplicaId, Term};
use crate::store::{DatabaseStats, LogError, LogStore, StoreStats};
use crate::types::{Entry, GroupMeta, LogBatch, PersistedGroup};

/// A log store that does something differently from the one below it, as one that counts or measures.
/// What it does not define itself is done there. Every layer is a [`LogStore`]; implement it by its
/// path, for the methods of both have the same names.
pub trait LogLayer: fmt::Debug + Send + Sync + 'static {
    /// The store that keeps the log.
    fn below(&self) -> &dyn LogStore;

    /// See [`LogStore::load`].
    ///
    /// # Errors
    /// As there.
    fn load(&self, group: GroupId) -> Result<Option<PersistedGroup>, LogError> {
        self.below().load(group)
    }

    /// See [`LogStore::meta`].
    ///
    /// # Errors
    /// As there.
    fn meta(&self, group: GroupId) -> Result<Option<GroupMeta>, LogError> {
        self.below().meta(group)
    }

    /// See [`LogStore::tombstone`].
    ///
    /// # Errors
    /// As there.
    fn tombstone(&self, group: GroupId) -> Result<Option<ReplicaId>, LogError> {
        self.below().tombstone(group)
    }

    /// See [`LogStore::entries`].
    ///
    /// # Errors
    /// As there.
    fn entries(
        &self,
        group: GroupId,
        from: LogIndex,
        to: LogIndex,
        max_bytes: u64,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogError> {
        self.below().entries(group, from, to, max_bytes, out)
    }

    /// See [`LogStore::write`].
    ///
    /// # Errors
    /// As there.
    fn write(&self, batch: &LogBatch) -> Result<(), LogError> {
        self.below().write(batch)
    }
}

impl<L: LogLayer> LogStore for L {
    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        self.below().groups()
    }

    fn load(&self, group: GroupId) -> Result<Option<PersistedGroup>, LogError> {
        LogLayer::load(self, group)
    }

    fn meta(&self, group: GroupId) -> Result<Option<GroupMeta>, LogError> {
        LogLayer::meta(self, group)
    }

    fn tombstone(&self, group: GroupId) -> Result<Option<ReplicaId>, LogError> {
        LogLayer::tombstone(self, group)
    }

    fn entries(
        &self,
        group: GroupId,
        from: LogIndex,
        to: LogIndex,
        max_bytes: u64,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogError> {
        LogLayer::entries(self, group, from, to, max_bytes, out)
    }

    fn term(&self, group: GroupId, index: LogIndex) -> Result<Term, LogError> {
        self.below().term(group, index)
    }

    fn write(&self, batch: &LogBatch) -> Result<(), LogError> {
        LogLayer::write(self, batch)
    }

    fn replica(&self, group: GroupId) -> Result<Option<ReplicaId>, LogError> {
        self.below().replica(group)
    }

    fn id(&self) -> u64 {
        self.below().id()
    }

    fn version(&self) -> ClusterVersion {
        self.below().version()
    }

    fn raise_version(&self, version: ClusterVersion) -> Result<(), LogError> {
        self.below().raise_version(version)
    }

    fn stats(&self) -> StoreStats {
        self.below().stats()
    }

    fn database(&self) -> Option<DatabaseStats> {
        self.below().database()
    }
}
