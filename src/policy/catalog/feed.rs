//! The last changes of the catalog, for readers that follow it.
//!
//! Only which record each revision changed is kept: what a reader wants is the record as it is.
//! Part of the replicated state, so every replica answers the same.

use std::collections::VecDeque;

use super::record::{RecordKey, Revision};

/// Changes that are kept. A reader that is further behind lists everything anew.
pub const MAX_CHANGES: usize = 16_384;

/// A reader cannot continue from its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changes since revision {oldest} are known; list the records anew")]
pub struct Compacted {
    /// Changes after this revision are known.
    pub oldest: Revision,
}

/// Which record each of the last revisions changed. There is no gap between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Feed {
    last: Revision,
    keys: VecDeque<RecordKey>,
}

impl Feed {
    /// A feed that ends at `last`; `keys` are the changes up to it, the oldest first.
    pub(super) fn new(last: Revision, keys: VecDeque<RecordKey>) -> Self {
        Self { last, keys }
    }

    pub(super) fn push(&mut self, key: RecordKey) -> Revision {
        if self.keys.len() == MAX_CHANGES {
            self.keys.pop_front();
        }
        self.keys.push_back(key);
        self.last = self.last.next();
        self.last
    }

    /// The revision after which all changes are here.
    pub(super) fn oldest(&self) -> Revision {
        // There are never more changes than revisions; see `new` and `push`.
        Revision::new(self.last.get().saturating_sub(self.keys.len() as u64))
    }

    /// The changes after `since`, the oldest first.
    pub(super) fn after(
        &self,
        since: Revision,
    ) -> Result<impl Iterator<Item = (Revision, RecordKey)> + '_, Compacted> {
        let oldest = self.oldest();
        // A revision that was never given out is that of another catalog.
        if since < oldest || since > self.last {
            return Err(Compacted { oldest });
        }
        // At most `MAX_CHANGES`.
        let skip = (since.get() - oldest.get()) as usize;
        let numbers = since.get() + 1..;
        Ok(numbers.map(Revision::new).zip(self.keys.iter().skip(skip).copied()))
    }

    pub(super) fn keys(&self) -> impl ExactSizeIterator<Item = RecordKey> + '_ {
        self.keys.iter().copied()
    }
}
