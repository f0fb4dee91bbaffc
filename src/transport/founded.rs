//! Which founding a node's cluster comes from. Two clusters can have one name and the same nodes: when
//! all of them were started on new disks by mistake, and the old ones are put back one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names the founding; 0: this node does not know of one. Becomes known while the node runs, when its
/// cluster is founded. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct FoundedBy(Arc<AtomicU64>);

impl FoundedBy {
    /// What is known now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// It is known from here on.
    pub fn set(&self, founding: u64) {
        self.0.store(founding, Ordering::Release);
    }

    /// Whether whoever says this belongs to the same cluster, as far as both know.
    #[must_use]
    pub fn may_be(&self, said: u64) -> bool {
        let own = self.get();
        own == said || own == 0 || said == 0
    }
}
