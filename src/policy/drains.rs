//! The drain of this process's node: one at a time, with whoever asked for it.
//!
//! Whether a drain outlives the process is not known here: that is the catalog's.

use parking_lot::Mutex;
use shardhost_groups::NodeId;

use super::catalog::IntentId;
use super::{Drain, DrainOptions, DrainProgress, DrainState};
use crate::host::Host;

/// A drain is under way for somebody else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "node {node} is being drained already, by {owner:?}; `shardhost drain status {node}` shows how \
     far it is, `shardhost drain end {node}` ends it"
)]
pub struct AlreadyDraining {
    /// The node.
    pub node: NodeId,
    /// Who asked for it.
    pub owner: String,
}

/// A drain, and whose it is.
#[derive(Debug)]
struct Current {
    drain: Drain,
    owner: String,
    /// What it is in the catalog; `None`: nothing, it ends with the process.
    intent: Option<IntentId>,
}

/// The drains of a node, one after the other.
#[derive(Debug)]
pub struct Drains {
    host: Host,
    current: Mutex<Option<Current>>,
    /// The last one of the catalog's that was ended here; it is not begun again by a view from
    /// before that.
    ended: Mutex<Option<IntentId>>,
}

/// What there is to say of the drain of a node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DrainReport {
    /// How far it is.
    pub progress: DrainProgress,
    /// Who asked for it.
    pub owner: String,
    /// What it is in the catalog; `None`: nothing, it ends with the process.
    pub intent: Option<IntentId>,
}

impl Drains {
    /// No drain yet.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        Self { host: host.clone(), current: Mutex::default(), ended: Mutex::default() }
    }

    /// Begins to drain the node. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`AlreadyDraining`]: another drain is under way; it goes on.
    pub fn begin(
        &self,
        options: DrainOptions,
        owner: String,
        intent: Option<IntentId>,
    ) -> Result<(), AlreadyDraining> {
        let mut current = self.current.lock();
        if let Some(known) = current.as_ref()
            && known.drain.progress().state == DrainState::Running
        {
            let (node, owner) = (self.host.node_id(), known.owner.clone());
            return Err(AlreadyDraining { node, owner });
        }
        *current = Some(Current { drain: Drain::begin(&self.host, options), owner, intent });
        Ok(())
    }

    /// Ends a drain, done or not, and takes leaderships again. `intent`: what it is in the catalog,
    /// which knows that it is over.
    pub fn end(&self, intent: Option<IntentId>) {
        if intent.is_some() {
            *self.ended.lock() = intent;
        }
        match self.current.lock().take() {
            Some(current) => current.drain.undrain(),
            None => self.host.set_draining(false),
        }
    }

    /// Whether a drain of the catalog's was ended here.
    #[must_use]
    pub fn is_ended(&self, intent: IntentId) -> bool {
        *self.ended.lock() == Some(intent)
    }

    /// The last drain that was not ended, if there is one.
    #[must_use]
    pub fn report(&self) -> Option<DrainReport> {
        let current = self.current.lock();
        let Current { drain, owner, intent } = current.as_ref()?;
        let (progress, owner) = (drain.progress(), owner.clone());
        Some(DrainReport { progress, owner, intent: *intent })
    }
}
