//! The clock of leases: it never goes back, nobody sets it, and it goes on while the machine is
//! suspended. The core is told moments; only the threads around it read the clock.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// A moment of one machine's monotonic clock, in nanoseconds. Means nothing on another machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// A moment that lies before every other.
    pub const ZERO: Self = Self(0);
    /// A moment that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// So many nanoseconds after the clock's beginning.
    #[must_use]
    pub const fn new(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }
    /// Nanoseconds since the clock's beginning.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
    /// The time since an earlier moment; zero if that is the later one.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, length: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Where moments come from.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The present moment; `None` when the clock cannot be read: then nobody relies on leases.
    fn now(&self) -> Option<Moment>;
}

/// The machine's raw monotonic clock, which no time service speeds up or slows down, plus the
/// time that the machine was suspended.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Option<Moment> {
        let raw = nanoseconds(clock_gettime(ClockId::MonotonicRaw))?;
        let with_suspension = nanoseconds(clock_gettime(ClockId::Boottime))?;
        let without = nanoseconds(clock_gettime(ClockId::Monotonic))?;
        Some(Moment(raw.checked_add(with_suspension.saturating_sub(without))?))
    }
}

fn nanoseconds(time: Timespec) -> Option<u64> {
    let seconds = u64::try_from(time.tv_sec).ok()?.checked_mul(1_000_000_000)?;
    seconds.checked_add(u64::try_from(time.tv_nsec).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_goes_forward_with_the_time_that_passes() {
        let (begin, real) = (SystemClock.now().unwrap(), std::time::Instant::now());
        while real.elapsed() < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        let end = SystemClock.now().unwrap();
        let passed = end.since(begin);
        let most = real.elapsed() + Duration::from_millis(1);
        assert!(passed >= Duration::from_millis(4) && passed <= most, "{passed:?} of {most:?}");
        assert_eq!(begin.since(end), Duration::ZERO);
    }

    #[test]
    fn moments_stay_at_the_end_of_time() {
        assert_eq!(Moment::NEVER + Duration::from_secs(1), Moment::NEVER);
        assert_eq!(Moment::new(5) + Duration::from_nanos(7), Moment::new(12));
        assert_eq!(Moment::ZERO + Duration::MAX, Moment::NEVER);
    }
}
