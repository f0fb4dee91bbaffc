//! When a cell is flushed again whose flush failed for want of space.
//!
//! RocksDB recovers on a thread of its library: it waits until no flush of the database is in
//! progress, and then flushes. All cells share one thread for flushes, on which a failed one takes
//! a second; so flushes that are repeated at once, in several cells, keep every cell from
//! recovering for ever.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::error::StateDbError;

/// Before a cell whose flush failed is flushed again; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The cells whose last flush failed.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    failed: BTreeMap<usize, Retry>,
    /// A cell that failed is flushed only when the last try of any such cell is so long ago.
    quiet_until: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Retry {
    at: Instant,
    pause: Duration,
    error: StateDbError,
}

impl Retries {
    /// Why a cell is not to be flushed now: what its last flush ended with.
    pub(crate) fn resting(&self, cell: usize, now: Instant) -> Option<StateDbError> {
        let retry = self.failed.get(&cell)?;
        let due = retry.at <= now && self.quiet_until.is_none_or(|until| until <= now);
        (!due).then(|| retry.error.clone())
    }

    /// What came of a flush.
    pub(crate) fn note(&mut self, cell: usize, flushed: &Result<(), StateDbError>, now: Instant) {
        let before = self.failed.remove(&cell);
        let Err(error @ StateDbError::Passing { .. }) = flushed else { return };
        let pause = before.map_or(FIRST_PAUSE, |retry| (retry.pause * 2).min(LONGEST_PAUSE));
        self.failed.insert(cell, Retry { at: now + pause, pause, error: error.clone() });
        self.quiet_until = Some(now + FIRST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_that_failed_are_flushed_one_by_one_and_ever_more_rarely() {
        let (mut retries, begin) = (Retries::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let full = Err(StateDbError::Passing { action: "flushing", message: "full".to_owned() });
        let rests = |retries: &Retries, cell, seconds| retries.resting(cell, at(seconds)).is_some();
        retries.note(0, &full, at(0));
        retries.note(1, &full, at(0));
        assert!(!rests(&retries, 2, 0), "it did not fail");
        assert!(rests(&retries, 0, 1) && rests(&retries, 1, 1));
        assert!(!rests(&retries, 0, 2) && !rests(&retries, 1, 2));
        retries.note(0, &full, at(2));
        assert!(rests(&retries, 1, 3), "one after the other");
        assert!(!rests(&retries, 1, 4));
        retries.note(1, &Ok(()), at(4));
        assert!(!rests(&retries, 1, 4));
        assert!(rests(&retries, 0, 5), "four seconds after the second failure");
        assert!(!rests(&retries, 0, 6));
        let mut now = 6;
        for _ in 0..10 {
            retries.note(0, &full, at(now));
            now += LONGEST_PAUSE.as_secs();
            assert!(!rests(&retries, 0, now));
        }
    }
}
