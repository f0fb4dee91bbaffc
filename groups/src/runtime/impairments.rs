//! Why this host should lead nothing for now. Each source has a name; together they are the host's
//! impairment, for its groups at once and for its peers through [`crate::Groups::impairment`].

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use shardhost_storage::RequirementMode;
use tokio::sync::watch;

use super::inbox::Inbox;
use crate::nodes::{Advertisement, Impairment};
use crate::panics::Watched;
use crate::worker::Input;

/// The causes by source, and the rest of the host's advertisement.
#[derive(Debug)]
pub(super) struct Impairments {
    /// Held while the workers are notified, so that all see changes in one order.
    state: Mutex<State>,
    told: Watched<Option<Impairment>>,
}

#[derive(Debug, Default)]
struct State {
    advertisement: Advertisement,
    causes: BTreeMap<&'static str, Impairment>,
}

impl State {
    /// All that is wrong; hard, if anything is.
    fn together(&self) -> Option<Impairment> {
        let mode =
            self.causes.values().map(|cause| cause.mode).max_by_key(|mode| is_hard(*mode))?;
        let reasons: Vec<&str> = self.causes.values().map(|cause| &*cause.reason).collect();
        Some(Impairment { reason: reasons.join("; ").into(), mode })
    }

    fn said(&self) -> Arc<Advertisement> {
        Arc::new(Advertisement { impaired: self.together(), ..self.advertisement.clone() })
    }
}

const fn is_hard(mode: RequirementMode) -> bool {
    matches!(mode, RequirementMode::Hard)
}

impl Impairments {
    pub(super) fn new(advertisement: Advertisement) -> Self {
        let state = State { advertisement, causes: BTreeMap::new() };
        Self { state: Mutex::new(state), told: Watched::new(None) }
    }

    /// The host's advertisement from here on. Its impairment is not set here.
    pub(super) fn set_advertisement(&self, advertisement: Advertisement, inboxes: &[Inbox]) {
        let mut state = self.state.lock();
        state.advertisement = advertisement;
        tell(&state.said(), inboxes);
    }

    /// Sets or removes a cause. Returns whether that is news.
    pub(super) fn set(
        &self,
        source: &'static str,
        cause: Option<Impairment>,
        inboxes: &[Inbox],
    ) -> bool {
        let mut state = self.state.lock();
        let before = match &cause {
            Some(cause) => state.causes.insert(source, cause.clone()),
            None => state.causes.remove(source),
        };
        if before == cause {
            return false;
        }
        match &cause {
            Some(cause) => tracing::error!(source, reason = %cause.reason,
                "this host is impaired: it leads nothing as long as others can"),
            None => tracing::warn!(source, "this host is no longer impaired"),
        }
        tell(&state.said(), inboxes);
        let together = state.together();
        self.told.change(|told| {
            let news = *told != together;
            told.clone_from(&together);
            news
        });
        true
    }

    pub(super) fn watch(&self) -> watch::Receiver<Option<Impairment>> {
        self.told.subscribe()
    }
}

fn tell(advertisement: &Arc<Advertisement>, inboxes: &[Inbox]) {
    for inbox in inboxes {
        inbox.complete(Input::OwnAdvertisement(Arc::clone(advertisement)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn because(reason: &str, mode: RequirementMode) -> Option<Impairment> {
        Some(Impairment { reason: reason.into(), mode })
    }

    #[test]
    fn what_is_wrong_is_said_together_and_ends_cause_by_cause() {
        let impairments = Impairments::new(Advertisement::default());
        let seen = impairments.watch();
        let said = || seen.borrow().clone();
        assert!(impairments.set("space", because("little space", RequirementMode::Soft), &[]));
        assert!(!impairments.set("space", because("little space", RequirementMode::Soft), &[]));
        assert_eq!(said(), because("little space", RequirementMode::Soft));
        assert!(impairments.set("log", because("a write hangs", RequirementMode::Hard), &[]));
        assert_eq!(said(), because("a write hangs; little space", RequirementMode::Hard));
        assert!(impairments.set("log", None, &[]));
        assert_eq!(said(), because("little space", RequirementMode::Soft));
        assert!(impairments.set("space", None, &[]));
        assert_eq!(said(), None);
    }
}
