//! The drain of this process's node: one at a time, with its owner.
//!
//! A drain that the catalog intends comes before one that only this process knows of, and is followed
//! when it is changed. Whether a drain outlives the process is not known here: that is the catalog's.

use parking_lot::Mutex;
use shardhost_groups::NodeId;
use tokio::sync::watch;

use super::drain_doubts::{DoubtfulDrain, DrainDoubts};
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
    /// Those that the catalog may have recorded or not. Locked before all else.
    doubts: Mutex<DrainDoubts>,
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

/// How a drain is ended while the catalog does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndWithoutCatalog {
    /// Only this process knows of it.
    Surely,
    /// It is over here. If the catalog recorded it, it is ended there when the catalog answers.
    InDoubt,
    /// The catalog intends it, or may intend one that this process does not know.
    NotPossible,
}

impl EndWithoutCatalog {
    /// `intent`: that of the drain of this process, if there is one.
    const fn of(intent: Option<Option<IntentId>>, in_doubt: bool) -> Self {
        match (intent, in_doubt) {
            (Some(Some(_)), _) | (None, false) => Self::NotPossible,
            (_, true) => Self::InDoubt,
            (Some(None), false) => Self::Surely,
        }
    }
}

impl Drains {
    /// No drain yet.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        let (current, ended, doubts) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { host: host.clone(), catalog: None, current, ended, doubts }
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
        let mut doubts = self.doubts.lock();
        if doubts.is_ended(intent) {
            return;
        }
        doubts.settle(intent);
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

    /// Ends a drain as far as that is possible while the catalog does not answer.
    pub fn end_without_catalog(&self) -> EndWithoutCatalog {
        let mut doubts = self.doubts.lock();
        let intent = self.report().map(|report| report.intent);
        let how = EndWithoutCatalog::of(intent, doubts.are_open());
        if how != EndWithoutCatalog::NotPossible {
            doubts.end(false);
            self.end(None);
        }
        how
    }

    /// A drain is about to be recorded in the catalog: whether it is, is in doubt until there is an answer.
    pub fn doubt(&self, drain: DoubtfulDrain) {
        self.doubts.lock().note(drain);
    }

    /// The catalog answered: it is recorded, or surely not.
    pub fn is_certain(&self, drain: &DoubtfulDrain) {
        self.doubts.lock().forget(drain);
    }

    /// Those in doubt are over: the drain that the catalog knew was ended. One that is recorded later is
    /// ended then.
    pub fn end_doubtful(&self) {
        self.doubts.lock().end(true);
    }

    /// Whether the catalog may have recorded a drain of this node that this process does not know to be.
    #[must_use]
    pub fn are_in_doubt(&self) -> bool {
        self.doubts.lock().are_open()
    }

    /// Whether this drain of the catalog's was ended here when it was not known to be recorded.
    pub(super) fn was_ended_in_doubt(&self, intent: &DrainIntent) -> bool {
        self.doubts.lock().is_ended(intent)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_is_not_said_to_be_over_while_the_catalog_may_have_recorded_it() {
        use EndWithoutCatalog as E;
        let recorded = Some(Some(IntentId::new(Revision::new(4))));
        for (intent, in_doubt, how) in [
            (Some(None), false, E::Surely),
            (Some(None), true, E::InDoubt),
            (None, true, E::InDoubt),
            (None, false, E::NotPossible),
            (recorded, false, E::NotPossible),
            (recorded, true, E::NotPossible),
        ] {
            assert_eq!(E::of(intent, in_doubt), how, "{intent:?}, {in_doubt}");
        }
    }
}
