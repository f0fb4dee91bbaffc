//! The clock of the machine, which people and other nodes can move: for what is compared across
//! nodes or shown, never for a deadline.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since 1970. A clock before 1970 counts as 1970.
#[must_use]
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}
