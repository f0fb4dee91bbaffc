//! The time that commands carry. A shard's time is the largest that it was told and never goes back,
//! so a clock that jumps for a moment must not get into the log.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// The clock may differ by this much from what it said before and what passed since.
const BELIEVED: Duration = Duration::from_secs(60 * 60);
/// A clock that goes on with such a difference for this long was set right, and is followed.
const FOLLOWED_AFTER: Duration = Duration::from_secs(10 * 60);

/// The clock of the machine, without its jumps.
#[derive(Debug, Default)]
pub(super) struct SteadyClock {
    state: Mutex<Option<State>>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// What was last believed, and when.
    wall_ms: u64,
    at: Instant,
    /// Since when the clock has not been believed.
    strange_since: Option<Instant>,
}

impl SteadyClock {
    pub(super) const fn new() -> Self {
        Self { state: Mutex::new(None) }
    }

    /// Milliseconds since 1970. A clock before 1970 counts as 1970.
    pub(super) fn now_ms(&self) -> u64 {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.read(millis(wall), Instant::now())
    }

    fn read(&self, wall_ms: u64, at: Instant) -> u64 {
        let mut state = self.state.lock();
        let known = state.get_or_insert(State { wall_ms, at, strange_since: None });
        let passed = millis(at.saturating_duration_since(known.at));
        let expected = known.wall_ms.saturating_add(passed);
        if wall_ms.abs_diff(expected) <= millis(BELIEVED) {
            *known = State { wall_ms, at, strange_since: None };
            return wall_ms;
        }
        let since = *known.strange_since.get_or_insert_with(|| {
            tracing::warn!(
                wall_ms,
                expected,
                "the clock jumped: commands go on with the time before"
            );
            at
        });
        if at.saturating_duration_since(since) < FOLLOWED_AFTER {
            return expected;
        }
        tracing::warn!(wall_ms, expected, "the clock stayed where it jumped to, and is followed");
        *known = State { wall_ms, at, strange_since: None };
        wall_ms
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

    #[test]
    fn a_clock_that_jumps_for_a_moment_is_not_believed() {
        let (clock, begin) = (SteadyClock::new(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(clock.read(50 * DAY_MS, at(0)), 50 * DAY_MS);
        for jumped in [51 * DAY_MS, 49 * DAY_MS, u64::MAX, 0] {
            assert_eq!(clock.read(jumped, at(5)), 50 * DAY_MS + 5_000);
        }
        assert_eq!(clock.read(50 * DAY_MS + 9_500, at(9)), 50 * DAY_MS + 9_500, "it was adjusted");
    }

    #[test]
    fn a_clock_that_was_set_right_is_followed_after_a_while() {
        let (clock, begin) = (SteadyClock::new(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(clock.read(0, at(0)), 0);
        assert_eq!(clock.read(DAY_MS, at(1)), 1_000);
        assert_eq!(clock.read(DAY_MS + 599_000, at(600)), 600_000);
        assert_eq!(clock.read(DAY_MS + 600_000, at(601)), DAY_MS + 600_000);
        assert_eq!(clock.read(DAY_MS + 601_000, at(602)), DAY_MS + 601_000);
    }
}
