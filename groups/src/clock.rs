//! The clock of leases: it is monotonic, cannot be set, and runs while the machine is suspended.
//! The core gets moments; only the threads around it read the clock.

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
    /// The present moment; `None` when the clock cannot be read: then leases are not used.
    fn now(&self) -> Option<Moment>;
}

/// The machine's raw monotonic clock, which no time service speeds up or slows down, plus the
/// time that the machine was suspended.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Option<Moment> {
        (0..ATTEMPTS).find_map(|_| together(|clock| nanoseconds(clock_gettime(clock))))
    }
}

/// How far apart the readings of one moment may be, and so how wrong it may be: far below the
/// margin between a lease and the vote locks behind it.
const TOGETHER: Duration = Duration::from_micros(100);
/// Readings are tried so often. A machine that is never left alone for that long has no clock to
/// rely on.
const ATTEMPTS: usize = 32;

/// The moment, if nothing came between the readings that make it up: three clocks are read one
/// after the other, and whatever time passes between two of them, preempted or suspended, goes
/// missing in their difference. The clock that is read first and last counts both.
fn together(read: impl Fn(ClockId) -> Option<u64>) -> Option<Moment> {
    let before = read(ClockId::Boottime)?;
    let raw = read(ClockId::MonotonicRaw)?;
    let without_suspension = read(ClockId::Monotonic)?;
    let after = read(ClockId::Boottime)?;
    if Moment(after).since(Moment(before)) > TOGETHER {
        return None;
    }
    Some(Moment(raw.checked_add(before.saturating_sub(without_suspension))?))
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

    /// A machine whose clocks are read once each, and what happens between two readings.
    fn reading(interruptions: [(u64, u64); 4]) -> Option<Moment> {
        let (awake, suspended) = (std::cell::Cell::new(1_000), std::cell::Cell::new(5_000_000));
        let reading = std::cell::Cell::new(0);
        together(|clock| {
            let (preempted, slept) = interruptions[reading.replace(reading.get() + 1)];
            awake.set(awake.get() + preempted);
            suspended.set(suspended.get() + slept);
            Some(match clock {
                ClockId::Boottime => awake.get() + suspended.get(),
                _ => awake.get(),
            })
        })
    }

    #[test]
    fn a_reading_with_an_interruption_does_not_count() {
        assert_eq!(reading([(0, 0); 4]), Some(Moment::new(5_001_000)));
        for at in 1..4 {
            let mut interruptions = [(0, 0); 4];
            interruptions[at] = (1_000_000, 0);
            assert_eq!(reading(interruptions), None, "preempted before reading {at}");
            interruptions[at] = (0, 1_000_000);
            assert_eq!(reading(interruptions), None, "suspended before reading {at}");
            interruptions[at] = (200, 0);
            let moment = reading(interruptions).unwrap().get();
            assert!((5_000_800..=5_001_200).contains(&moment), "{moment}");
        }
    }

    #[test]
    fn moments_stay_at_the_end_of_time() {
        assert_eq!(Moment::NEVER + Duration::from_secs(1), Moment::NEVER);
        assert_eq!(Moment::new(5) + Duration::from_nanos(7), Moment::new(12));
        assert_eq!(Moment::ZERO + Duration::MAX, Moment::NEVER);
    }
}
