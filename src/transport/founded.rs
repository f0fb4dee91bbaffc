//! Which founding a node's cluster comes from. Two clusters can have one name and the same nodes: when
//! all of them were started on new disks by mistake, and the old ones are put back one by one.

use std::sync::Arc;

use tokio::sync::watch;

/// Names the founding; 0: this node does not know of one. Becomes known while the node runs: when its
/// cluster is founded, or when it joins one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct FoundedBy(Arc<watch::Sender<u64>>);

impl FoundedBy {
    /// The present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        *self.0.borrow()
    }

    /// It is known from here on.
    pub fn set(&self, founding: u64) {
        self.0.send_replace(founding);
    }

    /// Sets it, if nothing is known yet; returns whether the known value equals this one.
    pub fn learn(&self, founding: u64) -> bool {
        self.0.send_if_modified(|known| {
            let news = *known == 0 && founding != 0;
            if news {
                *known = founding;
            }
            news
        });
        self.get() == founding
    }

    /// Whether a node with this bootstrap belongs to the same cluster, as far as both know.
    #[must_use]
    pub fn may_be(&self, said: u64) -> bool {
        same(self.get(), said)
    }

    /// Waits until a node with this bootstrap is known to belong to another cluster.
    pub async fn differs(&self, said: u64) {
        let mut own = self.0.subscribe();
        // It fails only when no sender is left, and this value is one.
        if own.wait_for(|own| !same(*own, said)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

const fn same(own: u64, said: u64) -> bool {
    own == said || own == 0 || said == 0
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn what_is_known_is_not_learned_anew() {
        let founded = FoundedBy::default();
        assert!(founded.learn(0));
        assert!(founded.learn(5));
        assert!(!founded.learn(7));
        assert_eq!(founded.get(), 5);
    }

    #[test]
    fn whoever_belongs_to_another_cluster_is_told_apart_once_that_is_known() {
        let founded = FoundedBy::default();
        assert!(founded.differs(7).now_or_never().is_none());
        founded.set(7);
        assert!(founded.differs(7).now_or_never().is_none());
        assert!(founded.differs(0).now_or_never().is_none());
        assert!(founded.differs(5).now_or_never().is_some());
    }
}
