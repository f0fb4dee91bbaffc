//! Bounds that hosts enforce and clients know, so that a client refuses before it sends.

use std::time::Duration;

/// Largest batch of requests or replies, in bytes, encoded. A larger one ends the stream, with an error
/// that names this.
pub const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Requests in one batch. More end the stream.
pub const MAX_BATCH_REQUESTS: usize = 16_384;
/// Pairs that a scan of a table returns when it names no limit.
pub const DEFAULT_SCAN_LIMIT: u32 = 1_000;
/// Pairs that a scan of a table returns at most.
pub const MAX_SCAN_LIMIT: u32 = 10_000;
/// Messages that one receive takes at most.
pub const MAX_RECEIVE: u32 = 1_000;
/// Sequence numbers of one session that may be unanswered at once.
pub const SESSION_WINDOW: u64 = 2_048;
/// Metadata key of a refused request for the directory of shards: the node does not know them yet.
pub const MAP_UNKNOWN: &str = "map-unknown";
/// Longest time that is waited for anything: 30 years. No clock ends in the middle of it.
pub const MAX_WAIT: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// A time that a caller chose, as long as it may be: an instant that is so far away exists.
#[must_use]
pub fn wait_of(chosen: Duration) -> Duration {
    chosen.min(MAX_WAIT)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn there_is_an_instant_after_every_wait() {
        for chosen in [Duration::ZERO, Duration::from_secs(u64::MAX), Duration::MAX] {
            assert!(Instant::now().checked_add(wait_of(chosen)).is_some(), "{chosen:?}");
        }
        assert_eq!(wait_of(Duration::from_secs(9)), Duration::from_secs(9));
    }
}
