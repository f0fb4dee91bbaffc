//! What the two sides of a pair of nodes refuse of each other, for operators: a node that others
//! refuse looks well from within.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A refused process tries again within the longest back-off. One that does not is no longer
/// reported after this long.
const TOLD_FOR: Duration = Duration::from_secs(15);

/// The last refusals between this node and a peer.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Why a greeting that claims to be from the peer was refused here, and when.
    ours: Mutex<Option<(Instant, String)>>,
    /// Why the peer refuses this node.
    theirs: Mutex<Option<String>>,
}

impl Refusals {
    /// A greeting, or an answer to one, that claims to be from the peer was refused here.
    pub fn refused(&self, cause: String, now: Instant) {
        *self.ours.lock() = Some((now, cause));
    }

    /// The peer refused a greeting of this node; or let one in.
    pub fn refused_by_peer(&self, cause: Option<String>) {
        *self.theirs.lock() = cause;
    }

    /// Why a greeting of the peer was refused lately.
    pub fn ours(&self, now: Instant) -> Option<String> {
        let ours = self.ours.lock();
        let (at, cause) = ours.as_ref()?;
        (now.saturating_duration_since(*at) < TOLD_FOR).then(|| cause.clone())
    }

    /// Why the peer refuses this node.
    pub fn theirs(&self) -> Option<String> {
        self.theirs.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_as_long_as_it_is_repeated() {
        let (refusals, begin) = (Refusals::default(), Instant::now());
        assert_eq!((refusals.ours(begin), refusals.theirs()), (None, None));
        refusals.refused("too old".into(), begin);
        assert_eq!(refusals.ours(begin).as_deref(), Some("too old"));
        assert_eq!(refusals.ours(begin + TOLD_FOR), None);
        refusals.refused_by_peer(Some("unknown".into()));
        assert_eq!(refusals.theirs().as_deref(), Some("unknown"));
        refusals.refused_by_peer(None);
        assert_eq!(refusals.theirs(), None);
    }
}
