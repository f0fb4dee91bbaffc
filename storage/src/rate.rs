//! A rate of bytes that many share.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What may pass at once after a pause, as time at the full rate. It makes up for timers that
/// wake late.
const CREDIT: Duration = Duration::from_millis(20);

/// Lets bytes pass at a rate. Callers reserve a moment at which they may pass, first come, first
/// served. So callers that reserve a little at a time take turns, and none polls a clock.
#[derive(Debug)]
pub struct ByteRate {
    bytes_per_second: u64,
    /// When everything that was booked has passed.
    booked_until: Mutex<Instant>,
}

impl ByteRate {
    /// A rate of so many bytes per second; 0: any.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, booked_until: Mutex::new(Instant::now()) }
    }

    /// Books so many bytes: when they may pass.
    #[must_use]
    pub fn book(&self, bytes: usize, now: Instant) -> Instant {
        if self.bytes_per_second == 0 || bytes == 0 {
            return now;
        }
        let mut booked_until = self.booked_until.lock();
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let passes = earliest.max(*booked_until);
        *booked_until = passes + self.time_of(bytes);
        passes
    }

    /// Books so many bytes and blocks this thread until they may pass.
    pub fn wait(&self, bytes: usize) {
        let now = Instant::now();
        let wait = self.book(bytes, now).saturating_duration_since(now);
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
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
    fn bytes_pass_at_the_rate_however_many_ask_at_once() {
        let rate = ByteRate::new(1_000);
        let now = Instant::now() + SECOND;
        let first = rate.book(100, now);
        assert!(first <= now, "nothing is under way");
        for number in 0..10 {
            let expected = first + SECOND * (100 + 500 * number) / 1_000;
            assert_eq!(rate.book(500, now), expected, "piece {number}");
        }
    }

    #[test]
    fn a_pause_saves_up_no_more_than_the_credit() {
        let rate = ByteRate::new(1_000);
        let later = Instant::now() + 3600 * SECOND;
        assert_eq!(rate.book(20, later), later - CREDIT);
        assert_eq!(rate.book(1, later), later, "the credit is spent");
    }

    #[test]
    fn those_who_take_turns_get_equal_parts() {
        let rate = ByteRate::new(1 << 20);
        let mut due = [Instant::now() + SECOND; 3];
        let mut pieces = [0; 3];
        let end = due[0] + 10 * SECOND;
        // Whose piece passed asks for the next.
        while let Some(next) = (0..3).min_by_key(|one| due[*one]).filter(|one| due[*one] < end) {
            due[next] = rate.book(64 << 10, due[next]);
            pieces[next] += 1;
        }
        assert!(pieces.iter().all(|pieces| (53..=56).contains(pieces)), "{pieces:?} of 160");
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let (rate, now) = (ByteRate::new(0), Instant::now());
        for _ in 0..1_000 {
            assert_eq!(rate.book(4 << 20, now), now);
        }
    }

    #[test]
    fn whoever_waits_sleeps_until_its_turn() {
        let (rate, before) = (ByteRate::new(1 << 20), Instant::now());
        for _ in 0..4 {
            rate.wait(100 << 10);
        }
        assert!(before.elapsed() >= SECOND * 300 / 1024 - CREDIT, "{:?}", before.elapsed());
    }
}
