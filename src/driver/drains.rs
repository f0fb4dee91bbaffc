//! The drain of this process's node: one at a time, with its owner.
//!
//! A drain that the catalog intends comes before one that only this process knows of, and is followed
//! when it is changed. Whether a drain outlives the process is not known here: that is the catalog's.

use parking_lot::Mutex;
use shardhost_groups::NodeId;
use tokio::sync::watch;

use super::{CatalogView, Drain, DrainOptions, DrainProgress, Fallback};
use crate::host::Host;
use shardhost_policy::catalog::{DrainIntent, DrainState as IntentState, IntentId, Revision};

/// A drain for another owner is in progress.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "node {node} is being drained already, by {owner:?}; `shardhost drain status {node}` shows how \
     far it is, `shardhost drain end {node}` ends it"
)]
pub struct AlreadyDraining {
    pub node: NodeId,
    pub owner: String,
}

/// A drain, and whose it is.
#[derive(Debug)]
struct Current {
    drain: Drain,
    owner: String,
    /// What it is in the catalog; `None`: nothing, it ends with the process.
    intent: Option<IntentId>,
    /// The revision of that which was followed last.
    followed: Option<Revision>,
}

/// The drains of a node, one after the other.
#[derive(Debug)]
pub struct Drains {
    host: Host,
    /// What the cluster intends; `None`: there is no catalog.
    catalog: Option<watch::Receiver<CatalogView>>,
    current: Mutex<Option<Current>>,
    /// The last one of the catalog's that was ended here; it is not begun again by a view from
    /// before that.
    ended: Mutex<Option<IntentId>>,
}

/// What there is to say of the drain of a node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DrainReport {
    pub progress: DrainProgress,
    pub owner: String,
    /// What it is in the catalog; `None`: nothing, it ends with the process.
    pub intent: Option<IntentId>,
}

impl Drains {
    /// No drain yet.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        let (current, ended) = (Mutex::default(), Mutex::default());
        Self { host: host.clone(), catalog: None, current, ended }
    }

    /// No drain yet; leaderships go where the catalog would have them.
    pub(super) fn with_catalog(host: &Host, catalog: watch::Receiver<CatalogView>) -> Self {
        Self { catalog: Some(catalog), ..Self::new(host) }
    }

    /// Begins to drain the node. Must be called within a Tokio runtime. One that the catalog intends
    /// replaces what was under way, and is not begun again after it was ended here.
    ///
    /// # Errors
    /// [`AlreadyDraining`]: another drain is in progress that the catalog does not intend; it continues.
    pub fn begin(
        &self,
        options: DrainOptions,
        owner: String,
        intent: Option<IntentId>,
    ) -> Result<(), AlreadyDraining> {
        if intent.is_some_and(|intent| self.is_ended(intent)) {
            return Ok(());
        }
        let mut current = self.current.lock();
        if let Some(known) = current.as_ref().filter(|known| !known.drain.is_over()) {
            match intent {
                Some(_) if known.intent == intent => return Ok(()),
                Some(_) => {}
                None => {
                    let (node, owner) = (self.host.node_id(), known.owner.clone());
                    return Err(AlreadyDraining { node, owner });
                }
            }
        }
        let drain = Drain::with_catalog(&self.host, options, self.catalog.clone());
        // A drain that is replaced here ends, and the node keeps advertising that it is draining.
        *current = Some(Current { drain, owner, intent, followed: None });
        Ok(())
    }

    /// Drains the node as the catalog intends, with the deadline that it has by now. Must be called
    /// within a Tokio runtime.
    pub(super) fn follow(&self, intent: &DrainIntent) {
        // Whatever is to happen at the deadline, the catalog does, and this node follows.
        let left = time_left(intent);
        let mut options = DrainOptions::default().fallback(Fallback::KeepDraining);
        options.deadline = left.unwrap_or(options.deadline);
        if let Err(error) = self.begin(options, intent.owner.to_string(), Some(intent.id)) {
            tracing::error!(%error, "the drain that the catalog intends does not begin");
        }
        if let Some(current) = self.current.lock().as_mut()
            && current.intent == Some(intent.id)
            && current.followed != Some(intent.revision)
        {
            current.followed = Some(intent.revision);
            current.drain.set_deadline(left);
        }
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
        let Current { drain, owner, intent, .. } = current.as_ref()?;
        let (progress, owner) = (drain.progress(), owner.clone());
        Some(DrainReport { progress, owner, intent: *intent })
    }
}

/// How long the node has to become empty; `None`: it was.
fn time_left(intent: &DrainIntent) -> Option<std::time::Duration> {
    match intent.state {
        IntentState::Drained => None,
        IntentState::Draining | IntentState::Partial | IntentState::GivenUp => Some(intent.left()),
    }
}
