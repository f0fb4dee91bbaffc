//! The clock and the pace of a planner.

use std::time::{Duration, Instant};

/// Between two rounds.
pub const ROUND_EVERY: Duration = Duration::from_secs(1);
/// How long reports are waited for; who is later is in the next round.
pub const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// The time of one planner: it begins with the time of day and never jumps, whatever the wall clock
/// does. All times that a planner keeps are of this clock; hosts report the age of past events.
#[derive(Clone, Copy, Debug)]
pub struct PlannerClock {
    began: Instant,
    began_ms: u64,
}

impl PlannerClock {
    /// A clock that begins at `began`, which is `began_ms` milliseconds after 1970.
    #[must_use]
    pub const fn new(began: Instant, began_ms: u64) -> Self {
        Self { began, began_ms }
    }

    /// Milliseconds, at least those that it began with.
    #[must_use]
    pub fn at(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.began).as_millis();
        self.began_ms.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// Milliseconds now.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.at(Instant::now())
    }
}
