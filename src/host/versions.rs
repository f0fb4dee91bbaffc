//! Which versions of a cluster a host takes part in, and which one its data directory asks for.

use std::io;

use shardhost_proto::version::ClusterVersion;
use shardhost_storage::{LogError, LogStore};

use super::{Host, HostConfig, StartError};
use crate::transport::Versions;

/// Why a data directory is not prepared for a version.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// This node does not take part in clusters at that version. Start a later program.
    #[error("it takes part up to version {newest}, not {version}; start a later program")]
    NotKnown { version: ClusterVersion, newest: ClusterVersion },
    /// It cannot be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The host is stopping.
    #[error("it is stopping: {0}")]
    Stopping(io::Error),
}

/// Refuses a store that asks for a later version than the node is to take part in.
pub(super) fn check(store: &dyn LogStore, config: &HostConfig) -> Result<(), StartError> {
    let (prepared, newest) = (store.version(), config.newest_version);
    if prepared > newest {
        return Err(StartError::Version { prepared, newest });
    }
    Ok(())
}

impl Host {
    /// Which versions of a cluster this node takes part in, and that of its cluster.
    #[must_use]
    pub fn versions(&self) -> &Versions {
        self.inner.transport.versions()
    }

    /// The version that a program must know to open the data directory; the first one when the host has
    /// stopped.
    #[must_use]
    pub fn prepared_version(&self) -> ClusterVersion {
        self.inner.store.upgrade().map_or(ClusterVersion::FIRST, |store| store.version())
    }

    /// Lets no program open the data directory any more that does not know this version. Durable when
    /// this returns.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub async fn prepare_for(&self, version: ClusterVersion) -> Result<(), PrepareError> {
        let newest = self.versions().newest();
        if version > newest {
            return Err(PrepareError::NotKnown { version, newest });
        }
        let store = self.inner.store.upgrade();
        let store =
            store.ok_or_else(|| PrepareError::Stopping(io::Error::other("the log is closed")))?;
        let written = tokio::task::spawn_blocking(move || store.raise_version(version)).await;
        Ok(written.map_err(|error| PrepareError::Stopping(io::Error::other(error)))??)
    }
}
