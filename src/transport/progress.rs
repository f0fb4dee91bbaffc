//! How far a peer has come with the frames of a stream, by its reports.
//!
//! A connection that carries nothing any more need not break: HTTP/2 notices after ten seconds, and
//! takes megabytes for the wire meanwhile. The receiver of a bulk lane reports how many frames it
//! has taken. A stream of which nothing more is taken for long is given up, however much its
//! connection still accepts.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The slowest link that is no stalled one, in bytes per second: a frame may take as long as it needs
/// at this rate, beside the time in which any is taken.
const SLOWEST_RATE: u64 = 64 << 10;

/// The frames of one stream of a lane.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Whether the peer reports how many frames it has taken; an older version does not.
    told: bool,
    handed: u64,
    taken: u64,
    /// Bytes of the frames that were handed and not taken; as many as a connection accepts.
    owed: VecDeque<u64>,
    /// Since when the peer owes a word.
    owed_since: Option<Instant>,
}

impl Progress {
    /// A stream begins. What the lane counted before is forgotten.
    pub fn begin(told: bool) -> Self {
        Self { told, ..Self::default() }
    }

    /// A frame was handed to the connection.
    pub fn handed(&mut self, bytes: u64, now: Instant) {
        if !self.told {
            return;
        }
        self.handed += 1;
        self.owed.push_back(bytes);
        self.owed_since.get_or_insert(now);
    }

    /// The peer reports how many frames it has taken. It cannot have taken more than it was handed.
    pub fn taken(&mut self, frames: u64, now: Instant) {
        if frames > self.taken && frames <= self.handed {
            let news = usize::try_from(frames - self.taken).unwrap_or(usize::MAX);
            self.owed.drain(..news.min(self.owed.len()));
            self.taken = frames;
            self.owed_since = (frames < self.handed).then_some(now);
        }
    }

    /// The peer is silent, or this process was stopped: outstanding frames count from here on.
    pub fn excuse(&mut self, now: Instant) {
        self.owed_since = self.owed_since.map(|_| now);
    }

    /// Whether the peer has taken nothing for this long, and for as long as the next frame needs on a
    /// slow link, although there was something.
    pub fn is_stalled(&self, now: Instant, limit: Duration) -> bool {
        let owed_for = self.owed_since.map(|since| now.saturating_duration_since(since));
        let bytes = self.owed.front().copied().unwrap_or(0);
        let allowed = limit + Duration::from_millis(bytes.saturating_mul(1_000) / SLOWEST_RATE);
        self.told && owed_for.is_some_and(|owed| owed >= allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(1);

    #[test]
    fn a_stream_is_stalled_when_the_peer_takes_nothing_of_what_it_was_handed() {
        let begin = Instant::now();
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        let mut progress = Progress::begin(true);
        assert!(!progress.is_stalled(at(9_000), TIMEOUT), "there was nothing to take");
        progress.handed(0, at(0));
        progress.handed(0, at(500));
        assert!(!progress.is_stalled(at(999), TIMEOUT));
        assert!(progress.is_stalled(at(1_000), TIMEOUT));
        progress.taken(1, at(1_000));
        assert!(!progress.is_stalled(at(1_999), TIMEOUT), "it continues, however slowly");
        assert!(progress.is_stalled(at(2_000), TIMEOUT));
        progress.taken(2, at(2_000));
        assert!(!progress.is_stalled(at(9_000), TIMEOUT));
    }

    #[test]
    fn a_large_frame_has_the_time_that_it_needs_on_a_slow_link() {
        let begin = Instant::now();
        let mut progress = Progress::begin(true);
        progress.handed(2 * SLOWEST_RATE, begin);
        progress.handed(0, begin);
        assert!(!progress.is_stalled(begin + TIMEOUT * 2, TIMEOUT));
        assert!(progress.is_stalled(begin + TIMEOUT * 3, TIMEOUT));
        progress.taken(1, begin + TIMEOUT * 3);
        assert!(progress.is_stalled(begin + TIMEOUT * 4, TIMEOUT));
    }

    #[test]
    fn what_a_peer_cannot_have_taken_says_nothing() {
        let begin = Instant::now();
        let mut progress = Progress::begin(true);
        progress.handed(0, begin);
        progress.taken(u64::MAX, begin);
        assert!(progress.is_stalled(begin + TIMEOUT, TIMEOUT));
    }

    #[test]
    fn a_peer_that_comes_back_has_its_time_again() {
        let begin = Instant::now();
        let mut progress = Progress::begin(true);
        progress.excuse(begin);
        assert!(!progress.is_stalled(begin + TIMEOUT, TIMEOUT), "it owed nothing");
        progress.handed(0, begin);
        progress.excuse(begin + TIMEOUT);
        assert!(!progress.is_stalled(begin + TIMEOUT * 3 / 2, TIMEOUT));
        assert!(progress.is_stalled(begin + TIMEOUT * 2, TIMEOUT));
    }

    #[test]
    fn a_peer_of_an_older_version_owes_no_word() {
        let begin = Instant::now();
        let mut progress = Progress::begin(false);
        progress.handed(0, begin);
        assert!(!progress.is_stalled(begin + TIMEOUT, TIMEOUT));
    }
}
