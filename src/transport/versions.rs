//! Which versions of a cluster a node takes part in, and which one its cluster is at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use shardhost_proto::version::ClusterVersion;

use super::handshake::Refusal;

/// What this process says of versions in greetings, and checks in those of others. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Versions {
    newest: ClusterVersion,
    /// 0: not known.
    cluster: Arc<AtomicU32>,
}

impl Versions {
    /// Of a process that takes part up to this version and does not know that of its cluster.
    #[must_use]
    pub fn up_to(newest: ClusterVersion) -> Self {
        Self { newest, cluster: Arc::default() }
    }

    /// The latest version that this process takes part in.
    #[must_use]
    pub const fn newest(&self) -> ClusterVersion {
        self.newest
    }

    /// The version of the cluster; `None`: not known.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterVersion> {
        match self.cluster.load(Ordering::Relaxed) {
            0 => None,
            number => Some(ClusterVersion::new(number)),
        }
    }

    /// The cluster is at this version, or at a later one.
    pub fn learn(&self, cluster: ClusterVersion) {
        self.cluster.fetch_max(cluster.get(), Ordering::Relaxed);
    }

    /// As a greeting names the cluster's; 0: not known.
    pub(super) fn cluster_number(&self) -> u32 {
        self.cluster.load(Ordering::Relaxed)
    }

    /// Checks what another process says: the latest version that it takes part in, and that of its
    /// cluster, 0 if it does not know.
    pub(super) fn check(&self, newest: u32, cluster: u32) -> Result<(), Refusal> {
        let theirs = ClusterVersion::new(newest);
        if let Some(cluster) = self.cluster().filter(|cluster| theirs < *cluster) {
            return Err(Refusal::OlderVersion { theirs, cluster });
        }
        let (cluster, ours) = (ClusterVersion::new(cluster), self.newest);
        if ours < cluster {
            return Err(Refusal::NewerVersion { cluster, ours });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: ClusterVersion = ClusterVersion::FIRST;
    const SECOND: ClusterVersion = ClusterVersion::new(2);

    #[test]
    fn a_program_that_does_not_know_the_clusters_version_is_refused_on_both_sides() {
        let (old, new) = (Versions::up_to(FIRST), Versions::up_to(SECOND));
        let both_ways = |one: &Versions, other: &Versions| {
            one.check(other.newest().get(), other.cluster_number())
        };
        assert_eq!(both_ways(&new, &old), Ok(()), "the version of the cluster is not known");
        new.learn(FIRST);
        assert_eq!((both_ways(&new, &old), both_ways(&old, &new)), (Ok(()), Ok(())));
        new.learn(SECOND);
        new.learn(FIRST);
        let refused = both_ways(&new, &old).unwrap_err();
        assert_eq!(refused, Refusal::OlderVersion { theirs: FIRST, cluster: SECOND });
        let refused = both_ways(&old, &new).unwrap_err();
        assert_eq!(refused, Refusal::NewerVersion { cluster: SECOND, ours: FIRST });
    }

    #[test]
    fn a_program_that_names_no_version_takes_part_in_the_first() {
        let new = Versions::up_to(SECOND);
        new.learn(FIRST);
        assert_eq!(new.check(0, 0), Ok(()));
        new.learn(SECOND);
        assert!(new.check(0, 0).is_err());
    }
}
