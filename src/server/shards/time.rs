//! What time it is for a shard: the time that its commands carry.
//!
//! A state machine has no clock, so each command carries the time of the host that proposes it, and
//! the time of a shard is the largest one applied. It advances at the speed of a monotonic clock:
//! each host remembers the newest time that its replica applied and adds what passed on the host
//! since. A new leader continues from what it applied as a follower, so no wall clock takes part in
//! a change of leader, however wrong it is. A wall clock is read in two places only:
//!
//! - The first command of a new shard carries it. Nothing depends on how right it is: the time of a
//!   shard is used to tell how long something is ago, never to tell a date.
//! - A replica that is opened knows the newest applied time, and not how long ago that was. It
//!   believes the wall clock for at most [`MAX_STEP_MS`], and counts what is more as nothing.
//!
//! So a visibility or a window that is under way lasts longer by the time in which no host had the
//! shard open, less one minute; and a wall clock that is wrong shortens it by at most that minute
//! per opening, whatever it shows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use parking_lot::Mutex;
use shardhost::wall_clock;
use shardhost_storage::GroupId;

use super::queue::MAX_TIME_MS;

/// How far the time of a shard moves by the word of a wall clock when its replica is opened: one
/// minute, in milliseconds.
pub const MAX_STEP_MS: u64 = 60 * 1_000;

/// The times of the shards of one host.
#[derive(Debug, Default)]
pub struct ShardTimes {
    shards: DashMap<GroupId, Arc<Mutex<ShardTime>>>,
}

impl ShardTimes {
    /// The time for commands of a shard that this host proposes now, in milliseconds since 1970 by
    /// the clock that stood over the first command of the shard. At most [`MAX_TIME_MS`].
    #[must_use]
    pub fn now_ms(&self, group: GroupId) -> u64 {
        self.stamps().now_ms(group)
    }

    /// The same for many commands that come at once.
    #[must_use]
    pub fn stamps(&self) -> Stamps<'_> {
        Stamps { times: self, clock: Clock::read() }
    }

    fn at(&self, clock: Clock, group: GroupId) -> u64 {
        // Copied, so that the map is not locked longer.
        let known = self.shards.get(&group).map(|shard| *shard.lock());
        known.unwrap_or_default().at(clock)
    }

    /// The time of a shard whose machine begins; an earlier machine of the group is not updated any
    /// more.
    pub(crate) fn begin(self: &Arc<Self>, group: GroupId) -> TimeOfShard {
        let time = Arc::<Mutex<ShardTime>>::default();
        self.shards.insert(group, Arc::clone(&time));
        TimeOfShard { times: Arc::clone(self), group, time }
    }
}

/// Times for commands that a host proposes at one moment.
#[derive(Debug)]
pub struct Stamps<'a> {
    times: &'a ShardTimes,
    clock: Clock,
}

impl Stamps<'_> {
    /// See [`ShardTimes::now_ms`].
    #[must_use]
    pub fn now_ms(&self, group: GroupId) -> u64 {
        self.times.at(self.clock, group)
    }
}

/// The time of one shard, from its machine. Forgotten with the machine.
#[derive(Debug)]
pub(crate) struct TimeOfShard {
    times: Arc<ShardTimes>,
    group: GroupId,
    time: Arc<Mutex<ShardTime>>,
}

impl TimeOfShard {
    /// The machine was opened at this time; 0: it has none.
    pub(crate) fn opened(&self, time_ms: u64) {
        self.time.lock().opened(time_ms, Clock::read());
    }

    /// The machine applied a command, or restored a snapshot, and is at this time.
    pub(crate) fn applied(&self, time_ms: u64) {
        self.time.lock().applied(time_ms, Instant::now());
    }
}

impl Drop for TimeOfShard {
    fn drop(&mut self) {
        self.times.shards.remove_if(&self.group, |_, time| Arc::ptr_eq(time, &self.time));
    }
}

/// What the clocks of the host show.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// Milliseconds since 1970.
    wall_ms: u64,
    at: Instant,
}

impl Clock {
    fn read() -> Self {
        Self { wall_ms: wall_clock::now_ms(), at: Instant::now() }
    }
}

/// What is known of the time of a shard. The arithmetic, without a clock of its own.
#[derive(Clone, Copy, Debug, Default)]
struct ShardTime {
    /// A time that was right at an instant; `None`: no command carried one yet.
    known: Option<(u64, Instant)>,
}

impl ShardTime {
    fn at(self, clock: Clock) -> u64 {
        let time = match self.known {
            Some(_) => self.since(clock.at),
            // Not 0, which is a shard without a time.
            None => clock.wall_ms.max(1),
        };
        time.min(MAX_TIME_MS)
    }

    fn since(self, now: Instant) -> u64 {
        self.known
            .map_or(0, |(time, at)| time.saturating_add(millis(now.saturating_duration_since(at))))
    }

    fn opened(&mut self, time_ms: u64, clock: Clock) {
        if time_ms > 0 {
            let step = clock.wall_ms.saturating_sub(time_ms).min(MAX_STEP_MS);
            self.applied(time_ms.saturating_add(step), clock.at);
        }
    }

    /// Never goes back: what was applied is as old as its way through the log was long.
    fn applied(&mut self, time_ms: u64, now: Instant) {
        if time_ms > self.since(now) {
            self.known = Some((time_ms, now));
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
