//! The log of this host turns out to be older than what its replicas acknowledged.

use parking_lot::Mutex;
use shardhost_storage::{Certainty, Doubt, GroupWrite, LogBatch, LogError};

use super::open::Prepared;
use super::{Groups, RuntimeShared};
use crate::worker::Input;

/// How often the groups are looked up anew when one of them ended before the doubt was written.
const ATTEMPTS: usize = 16;

/// The doubt that was raised, and the order of raising it and of opening replicas: a worker hears
/// of a doubt after it got a replica that does not know of it.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    raised: Mutex<Option<Doubt>>,
    order: Mutex<()>,
}

impl Doubts {
    /// The doubt that was raised since the host started.
    pub(super) fn raised(&self) -> Option<Doubt> {
        *self.raised.lock()
    }

    /// Hands replicas to their workers; no doubt is raised meanwhile.
    pub(super) fn in_order<T>(&self, hand_over: impl FnOnce() -> T) -> T {
        let _held = self.order.lock();
        hand_over()
    }
}

impl Groups {
    /// From here on no replica takes part in an election before enough of its peers have said what
    /// they hold. Blocks until that is durable; says of how many replicas.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub fn raise_doubt(&self, doubt: Doubt) -> Result<usize, LogError> {
        let shared = self.shared();
        *shared.doubts.raised.lock() = Some(doubt);
        let mut attempts = ATTEMPTS;
        let count = loop {
            attempts -= 1;
            match shared.write_doubt(doubt) {
                // One of the groups ended meanwhile, so nothing was written.
                Err(LogError::Invalid { .. }) if attempts > 0 => {}
                outcome => break outcome?,
            }
        };
        shared.doubts.in_order(|| {
            for inbox in &shared.inboxes {
                inbox.complete(Input::RaiseDoubt { group: None, doubt });
            }
        });
        Ok(count)
    }
}

impl RuntimeShared {
    fn write_doubt(&self, doubt: Doubt) -> Result<usize, LogError> {
        let store = self.store()?;
        let certainty = Some(Certainty::InDoubt(doubt));
        let groups = store.groups()?.into_iter();
        // A damaged replica takes part in nothing.
        let groups = groups.filter(|group| matches!(store.load(*group), Ok(Some(_))));
        let writes: Vec<_> =
            groups.map(|group| GroupWrite { certainty, ..GroupWrite::new(group) }).collect();
        let count = writes.len();
        self.log.write(LogBatch { writes })?;
        Ok(count)
    }

    /// A replica that was opened from what the log held before a doubt was raised learns of it.
    pub(super) fn with_present_doubt(&self, mut prepared: Prepared) -> Prepared {
        let Some(raised) = self.doubts.raised() else { return prepared };
        let group = prepared.group();
        match self.store().and_then(|store| store.load(group)) {
            Ok(Some(known)) => {
                if let Certainty::InDoubt(doubt) = known.certainty {
                    prepared.core_mut().open_in_doubt(doubt);
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%group, %error, "cannot read whether the replica is in doubt");
                prepared.core_mut().open_in_doubt(raised);
            }
        }
        prepared
    }
}
