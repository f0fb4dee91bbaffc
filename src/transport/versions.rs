//! Which versions of a cluster a node takes part in, and which one its cluster is at.

use std::sync::Arc;

use shardhost_proto::version::ClusterVersion;
use tokio::sync::watch;

use super::handshake::Refusal;

/// What this process says of versions in greetings, and checks in those of others. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Versions {
    newest: ClusterVersion,
    /// 0: not known.
    cluster: Arc<watch::Sender<u32>>,
}

impl Versions {
    /// Of a process that takes part up to this version and does not know that of its cluster.
    #[must_use]
    pub fn up_to(newest: ClusterVersion) -> Self {
        Self { newest, cluster: Arc::new(watch::Sender::new(0)) }
    }

    /// The latest version that this process takes part in.
    #[must_use]
    pub const fn newest(&self) -> ClusterVersion {
        self.newest
    }

    /// The version of the cluster; `None`: not known.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterVersion> {
        match self.cluster_number() {
            0 => None,
            number => Some(ClusterVersion::new(number)),
        }
    }

    /// The cluster is at this version, or at a later one.
    pub fn learn(&self, cluster: ClusterVersion) {
        self.cluster.send_if_modified(|known| {
            let news = cluster.get() > *known;
            *known = cluster.get().max(*known);
            news
        });
    }

    /// As a greeting names the cluster's; 0: not known.
    pub(super) fn cluster_number(&self) -> u32 {
        *self.cluster.borrow()
    }

    /// Waits until the cluster is known to be at a version that a process does not know which takes part up
    /// to this one.
    pub(super) async fn outgrow(&self, newest: u32) -> Refusal {
        let mut own = self.cluster.subscribe();
        loop {
            if let Err(refusal) = self.check(newest, 0) {
                return refusal;
            }
            // It fails only when no sender is left, and this value is one.
            if own.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
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

    /// The two may have greeted before either knew the version of the cluster.
    #[tokio::test]
    async fn a_stream_ends_when_the_cluster_outgrows_its_other_end() {
        let new = Versions::up_to(SECOND);
        let outgrown = new.outgrow(FIRST.get());
        tokio::pin!(outgrown);
        assert!(futures::poll!(&mut outgrown).is_pending());
        new.learn(FIRST);
        assert!(futures::poll!(&mut outgrown).is_pending());
        new.learn(SECOND);
        assert_eq!(outgrown.await, Refusal::OlderVersion { theirs: FIRST, cluster: SECOND });
        assert!(futures::poll!(Box::pin(new.outgrow(SECOND.get()))).is_pending());
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
