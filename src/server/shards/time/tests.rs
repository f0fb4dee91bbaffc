//! The time of a shard under wall clocks that are wrong, leaders that change and hosts that start
//! anew.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
const YEAR_MS: u64 = 365 * DAY_MS;

/// Right clocks, and instants that go with them.
#[derive(Clone, Copy)]
struct Truth {
    begin: Instant,
}

impl Truth {
    fn new() -> Self {
        Self { begin: Instant::now() }
    }

    fn at(self, ms: u64) -> Instant {
        self.begin + Duration::from_millis(ms)
    }

    fn wall(self, ms: u64, wrong_by: i64) -> Clock {
        Clock { wall_ms: (50 * YEAR_MS + ms).saturating_add_signed(wrong_by), at: self.at(ms) }
    }
}

#[test]
fn a_new_shard_begins_at_the_wall_clock_and_goes_on_by_the_monotonic_one() {
    let (truth, mut time) = (Truth::new(), ShardTime::default());
    assert_eq!(time.at(truth.wall(0, 0)), 50 * YEAR_MS);
    time.applied(50 * YEAR_MS, truth.at(10));
    for wrong in [YEAR_MS as i64, -(YEAR_MS as i64), 0] {
        assert_eq!(time.at(truth.wall(2_010, wrong)), 50 * YEAR_MS + 2_000);
    }
}

#[test]
fn nothing_that_was_applied_late_moves_it_back() {
    let (truth, mut time) = (Truth::new(), ShardTime::default());
    time.applied(1_000, truth.at(0));
    // Proposed at 1,300 and applied a while later.
    time.applied(1_300, truth.at(700));
    assert_eq!(time.since(truth.at(700)), 1_700);
    time.applied(5_000, truth.at(800));
    assert_eq!(time.since(truth.at(900)), 5_100);
}

#[test]
fn a_wall_clock_counts_for_a_minute_when_a_replica_is_opened() {
    let truth = Truth::new();
    let opened = |wrong_by| {
        let mut time = ShardTime::default();
        time.opened(50 * YEAR_MS, truth.wall(0, wrong_by));
        time.at(truth.wall(0, wrong_by)) - 50 * YEAR_MS
    };
    assert_eq!(opened(0), 0);
    assert_eq!(opened(7_000), 7_000);
    assert_eq!(opened(YEAR_MS as i64), MAX_STEP_MS);
    assert_eq!(opened(-(YEAR_MS as i64)), 0);
}

#[test]
fn no_clock_makes_a_time_that_commands_may_not_carry() {
    let (truth, mut time) = (Truth::new(), ShardTime::default());
    assert_eq!(time.at(Clock { wall_ms: u64::MAX, at: truth.at(0) }), MAX_TIME_MS);
    assert_eq!(time.at(Clock { wall_ms: 0, at: truth.at(0) }), 1);
    time.opened(MAX_TIME_MS, Clock { wall_ms: u64::MAX, at: truth.at(0) });
    assert_eq!(time.at(truth.wall(1_000, 0)), MAX_TIME_MS);
}

#[test]
fn the_time_of_a_machine_is_forgotten_with_it_and_not_with_an_earlier_one() {
    let (times, group) = (Arc::new(ShardTimes::default()), GroupId::new(7));
    let before = times.begin(group);
    before.applied(MAX_TIME_MS - YEAR_MS);
    let after = times.begin(group);
    assert!(times.now_ms(group) < MAX_TIME_MS - YEAR_MS, "another life of the group");
    after.applied(MAX_TIME_MS - YEAR_MS);
    before.applied(MAX_TIME_MS);
    drop(before);
    assert!((MAX_TIME_MS - YEAR_MS..MAX_TIME_MS).contains(&times.now_ms(group)));
    drop(after);
    assert!(times.shards.is_empty());
}

#[derive(Clone, Copy, PartialEq)]
enum Stamping {
    ByShardTime,
    /// The known bug: commands carry what the wall clock shows.
    ByWallClock,
}

/// Three hosts of a shard in which everything goes wrong that may.
struct World {
    random: StdRng,
    truth: Truth,
    now: u64,
    hosts: [ShardTime; 3],
    wrong_by: [i64; 3],
    leader: usize,
    /// The time of the shard.
    time: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let hosts = <[ShardTime; 3]>::default();
        Self { random, truth: Truth::new(), now: 0, hosts, wrong_by: [0; 3], leader: 0, time: 0 }
    }

    /// Whether the shard's time ran as it promises.
    fn holds(mut self, stamping: Stamping) -> bool {
        let mut steps = 0;
        self.command(stamping);
        let (first, began) = (self.time, self.now);
        for _ in 0..200 {
            let host = self.random.random_range(0..3);
            match self.random.random_range(0..5) {
                0 => {
                    let year = YEAR_MS as i64;
                    self.wrong_by[host] = self.random.random_range(-year..year);
                }
                1 => {
                    // What it knew is gone; what it applied is on disk.
                    self.hosts[host] = ShardTime::default();
                    let clock = self.truth.wall(self.now, self.wrong_by[host]);
                    self.hosts[host].opened(self.time, clock);
                    steps += 1;
                }
                2 => self.leader = host,
                _ => {
                    self.now += self.random.random_range(0..120_000);
                    self.command(stamping);
                }
            }
            let (moved, passed) = (self.time - first, self.now - began);
            if moved > passed + steps * MAX_STEP_MS {
                return false;
            }
        }
        true
    }

    fn command(&mut self, stamping: Stamping) {
        let clock = self.truth.wall(self.now, self.wrong_by[self.leader]);
        let stamp = match stamping {
            Stamping::ByShardTime => self.hosts[self.leader].at(clock),
            Stamping::ByWallClock => clock.wall_ms,
        };
        self.time = self.time.max(stamp);
        for host in &mut self.hosts {
            let late = self.random.random_range(0..500);
            host.applied(self.time, self.truth.at(self.now + late));
        }
    }
}

#[test]
fn no_wall_clock_hurries_a_shard() {
    let fails = |stamping| (0..200).filter(|seed| !World::new(*seed).holds(stamping)).count();
    assert_eq!(fails(Stamping::ByShardTime), 0);
    assert!(fails(Stamping::ByWallClock) > 100, "the world is too kind");
}

#[test]
fn a_shard_whose_hosts_live_keeps_pace_with_them() {
    for seed in 0..100 {
        let mut world = World::new(seed);
        world.command(Stamping::ByShardTime);
        let (first, began) = (world.time, world.now);
        for command in 1..=100 {
            world.leader = world.random.random_range(0..3);
            world.now += world.random.random_range(1..5_000);
            world.command(Stamping::ByShardTime);
            // Each change of leader loses at most what the follower applied late.
            let lost = (world.now - began) - (world.time - first);
            assert!(lost <= command * 500, "seed {seed}: {lost} ms behind");
        }
    }
}
