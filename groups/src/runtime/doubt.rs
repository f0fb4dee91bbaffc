//! The log of this host turns out to be older than what its replicas acknowledged.

use std::sync::atomic::Ordering;

use shardhost_storage::{Certainty, Doubt, GroupId, GroupWrite, LogBatch, LogError};

use super::Groups;
use crate::worker::Input;

impl Groups {
    /// From here on no replica takes part in an election before enough of its peers have said what
    /// they hold. Blocks until that is durable; says of how many replicas.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub fn raise_doubt(&self, doubt: Doubt) -> Result<usize, LogError> {
        let shared = self.shared();
        shared.doubted.store(true, Ordering::SeqCst);
        let store = shared.store()?;
        let certainty = Some(Certainty::InDoubt(doubt));
        let groups = store.groups()?.into_iter();
        // A damaged replica takes part in nothing.
        let groups = groups.filter(|group| matches!(store.load(*group), Ok(Some(_))));
        let writes: Vec<_> =
            groups.map(|group| GroupWrite { certainty, ..GroupWrite::new(group) }).collect();
        let count = writes.len();
        shared.log.write(LogBatch { writes })?;
        for inbox in &shared.inboxes {
            inbox.complete(Input::RaiseDoubt { group: None, doubt });
        }
        Ok(count)
    }

    /// A replica was opened from what the log held before a doubt was raised.
    pub(super) fn catch_up_with_doubt(&self, group: GroupId, worker: usize) {
        let shared = self.shared();
        if !shared.doubted.load(Ordering::SeqCst) {
            return;
        }
        let known = shared.store().and_then(|store| store.load(group));
        if let Ok(Some(known)) = known
            && let Certainty::InDoubt(doubt) = known.certainty
        {
            shared.inboxes[worker].complete(Input::RaiseDoubt { group: Some(group), doubt });
        }
    }
}
