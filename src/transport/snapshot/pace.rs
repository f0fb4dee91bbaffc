//! The rate that all snapshots of a host share.
//!
//! Bytes book a moment at which they may leave, one chunk at a time, first come, first served. So
//! snapshots that are sent at the same time take turns, and nobody waits by looking at a clock.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What may leave at once after a pause, as time at the full rate. It makes up for timers that
/// wake late.
const CREDIT: Duration = Duration::from_millis(20);

/// Lets bytes pass at a rate.
pub(super) struct Pace {
    bytes_per_second: u64,
    /// When everything that was booked has left.
    booked_until: Mutex<Instant>,
}

impl Pace {
    /// A pace of so many bytes per second; 0: any.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, booked_until: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may leave.
    pub async fn take(&self, bytes: usize) {
        if self.bytes_per_second > 0 && bytes > 0 {
            tokio::time::sleep_until(self.book(bytes, Instant::now())).await;
        }
    }

    fn book(&self, bytes: usize, now: Instant) -> Instant {
        let mut booked_until = self.booked_until.lock();
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let leaves = earliest.max(*booked_until);
        *booked_until = leaves + self.time_of(bytes);
        leaves
    }

    fn time_of(&self, bytes: usize) -> Duration {
        let nanoseconds = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn bytes_leave_at_the_rate_however_many_ask_at_once() {
        let pace = Pace::new(1_000);
        let now = Instant::now() + SECOND;
        let first = pace.book(100, now);
        assert!(first <= now, "nothing is under way");
        let leaves: Vec<_> = (0..10).map(|_| pace.book(500, now)).collect();
        for (number, leaves) in leaves.iter().enumerate() {
            let before = 100 + 500 * number;
            let expected = first + SECOND * u32::try_from(before).unwrap() / 1_000;
            assert_eq!(*leaves, expected, "chunk {number}");
        }
    }

    #[test]
    fn a_pause_saves_up_no_more_than_the_credit() {
        let pace = Pace::new(1_000);
        let later = Instant::now() + 3600 * SECOND;
        assert_eq!(pace.book(20, later), later - CREDIT);
        assert_eq!(pace.book(1, later), later, "the credit is spent");
    }

    #[test]
    fn snapshots_that_take_turns_get_equal_parts() {
        let pace = Pace::new(1 << 20);
        let mut due = [Instant::now() + SECOND; 3];
        let mut chunks = [0; 3];
        let end = due[0] + 10 * SECOND;
        // Whoever's chunk left asks for the next.
        while let Some(next) = (0..3).min_by_key(|one| due[*one]).filter(|one| due[*one] < end) {
            due[next] = pace.book(64 << 10, due[next]);
            chunks[next] += 1;
        }
        assert!(chunks.iter().all(|chunks| (53..=56).contains(chunks)), "{chunks:?} of 160");
    }

    #[tokio::test]
    async fn without_a_rate_nobody_waits() {
        let pace = Pace::new(0);
        for _ in 0..1_000 {
            let taken = std::pin::pin!(pace.take(4 << 20));
            assert!(futures::poll!(taken).is_ready());
        }
    }

    #[tokio::test]
    async fn whoever_waits_sleeps_until_its_turn() {
        let (pace, before) = (Pace::new(1 << 20), Instant::now());
        for _ in 0..4 {
            pace.take(100 << 10).await;
        }
        let took = Instant::now() - before;
        assert!(took >= SECOND * 300 / 1024 - CREDIT, "{took:?}");
    }
}
