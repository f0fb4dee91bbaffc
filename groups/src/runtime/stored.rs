//! What the log and the snapshot store hold, open or not.

use shardhost_storage::{
    GroupId, GroupMeta, LogPosition, PersistedGroup, ReplicaId, SnapshotError,
};

use super::parked::concerns_one_group;
use super::{Groups, RuntimeShared};
use crate::error::OpenGroupError;
use crate::lives::log_error;

impl Groups {
    /// Whether the log holds a replica of the group, open or not.
    ///
    /// # Errors
    /// [`OpenGroupError::Faulted`] when the log cannot be read.
    pub fn is_stored(&self, group: GroupId) -> Result<bool, OpenGroupError> {
        Ok(load(self.shared(), group)?.is_some())
    }

    /// The largest replica id of the group that was destroyed here.
    ///
    /// # Errors
    /// [`OpenGroupError::Faulted`] when the log cannot be read.
    pub fn tombstone(&self, group: GroupId) -> Result<Option<ReplicaId>, OpenGroupError> {
        let store = self.shared().store().map_err(|error| log_error(group, error))?;
        store.tombstone(group).map_err(|error| log_error(group, error))
    }

    /// The snapshots of a group that stand here, ascending.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn snapshots(&self, group: GroupId) -> Result<Vec<LogPosition>, SnapshotError> {
        self.shared().snapshots.list(group)
    }

    /// What the log's replica of one group knows of itself, open or not.
    ///
    /// # Errors
    /// [`OpenGroupError::Faulted`] when the log cannot be read.
    pub fn stored_group(&self, group: GroupId) -> Result<Option<GroupMeta>, OpenGroupError> {
        Ok(load(self.shared(), group)?.map(|persisted| persisted.meta))
    }

    /// The groups that the log holds, with what each replica knows of itself. Those that cannot be
    /// read are left out, and are parked: see [`Groups::parked`].
    ///
    /// # Errors
    /// When the log as a whole cannot be read.
    pub fn stored(&self) -> Result<Vec<GroupMeta>, shardhost_storage::LogError> {
        let store = self.shared().store()?;
        let mut stored = Vec::new();
        for group in store.groups()? {
            match store.load(group) {
                Ok(persisted) => stored.extend(persisted.map(|persisted| persisted.meta)),
                Err(error) if concerns_one_group(&error) => {
                    self.park_unreadable(group, log_error(group, error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(stored)
    }

    /// Parks a replica that cannot be read, unless it was destroyed meanwhile: a destruction removes the
    /// note, but not one that comes after it.
    fn park_unreadable(&self, group: GroupId, cause: OpenGroupError) {
        let parked = &self.shared().parked;
        parked.park(group, cause.clone());
        if load(self.shared(), group).is_ok() {
            parked.forget_cause(group, &cause);
        }
    }
}

/// What the log knows of this host's replica of a group.
pub(super) fn load(
    shared: &RuntimeShared,
    group: GroupId,
) -> Result<Option<PersistedGroup>, OpenGroupError> {
    let known = shared.store().and_then(|store| store.load(group));
    known.map_err(|error| log_error(group, error))
}
