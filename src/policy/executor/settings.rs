//! Numbers that pace the executor: limits, timeouts, back-offs. Data only.

use crate::planner::{self, Tier};

/// A time that doubles with each failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackOffSettings {
    /// After the first failure, in milliseconds.
    pub first_ms: u64,
    pub longest_ms: u64,
}

impl BackOffSettings {
    /// The time after one that lasted `last_ms`.
    pub(super) fn after(self, last_ms: u64) -> u64 {
        last_ms.saturating_mul(2).clamp(self.first_ms, self.longest_ms)
    }
}

/// How many moves may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSettings {
    pub first: u32,
    /// At least, however much fails.
    pub least: u32,
    /// At most, however well it goes.
    pub most: u32,
}

/// How fast moves may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once, after a rest.
    pub burst: u32,
    pub per_second: u32,
}

/// How fast moves of each kind of tier may start. Each tier has a separate bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    pub violations: Rate,
    pub wishes: Rate,
    pub balance: Rate,
}

impl Rates {
    pub(super) const fn of(&self, tier: Tier) -> Rate {
        match tier {
            Tier::Capability | Tier::Displaced => self.violations,
            Tier::Preference | Tier::Spread => self.wishes,
            Tier::Load | Tier::Count => self.balance,
        }
    }
}

/// When a circuit breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// MoveOutcomes that it looks back on.
    pub of_last: usize,
    /// It opens only after so many bad ones, and when they are at least half.
    pub least_bad: usize,
    /// Moves that are tried when it has been open for long enough.
    pub probes: u32,
    /// How long it stays open.
    pub open: BackOffSettings,
}

/// How load becomes buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadSettings {
    /// The time in which the smoothed load follows about half of a change, in milliseconds.
    pub smoothing_ms: u64,
    /// Less than this, in operations per second, is idle.
    pub idle_below: u32,
    /// So long after a change its end is taken for the load, in milliseconds. A few times the time
    /// of smoothing.
    pub centre_ms: u64,
}

/// Bounds of the executor's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Moves under way or not yet confirmed. When it is reached, nothing starts.
    pub ledger: usize,
    /// Targets that are left alone. The one that ends first is forgotten for another.
    pub back_offs: usize,
    /// Moves that wait to start. The rest of a larger plan waits for the next round.
    pub queue: usize,
    /// Groups of which it is remembered when they moved. The oldest is forgotten for another.
    pub cool_down: usize,
    pub records: usize,
    /// Groups in all recorded rounds together, of which the newest round is kept in any case.
    pub recorded_groups: usize,
}

/// Everything that paces the executor. All times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorSettings {
    /// What the planner is given. Its budgets are wide: a round plans everything, and the pace of
    /// what starts is kept here.
    pub planner: planner::Settings,
    /// A fresh executor moves nothing for so long, and until every live node reported.
    pub warm_up_ms: u64,
    /// After this time it continues without nodes that did not report.
    pub warm_up_longest_ms: u64,
    /// A node that did not report for so long is neither source nor target.
    pub silent_ms: u64,
    /// Nothing of a plan is started when it is older than this.
    pub plan_life_ms: u64,
    /// An order without an answer counts as unknown after this. A host gives up before.
    pub answer_ms: u64,
    /// A move without confirmation is forgotten this long after it ended.
    pub expiry_ms: u64,
    /// A group whose proposals paused for longer counts against the pace.
    pub longest_stall_ms: u64,
    /// How long a target is left alone that a group failed to reach.
    pub back_off: BackOffSettings,
    /// Moves under way in all.
    pub window: WindowSettings,
    /// Moves under way from one node, and to one node.
    pub node_window: WindowSettings,
    pub rates: Rates,
    pub breaker: BreakerSettings,
    /// Looks at the moves from one node, and at those to one node.
    pub node_breaker: BreakerSettings,
    pub load: LoadSettings,
    /// Bounds of the executor's memory.
    pub bounds: Bounds,
}

/// Entries that a target may lack when it is asked; it is levelled before anything stops.
const MAX_LAG: u64 = 1_024;

impl Default for ExecutorSettings {
    fn default() -> Self {
        Self {
            planner: planner::Settings {
                max_lag_entries: MAX_LAG,
                moves_per_round: u32::MAX,
                out_per_node: u32::MAX,
                in_per_node: u32::MAX,
                load_tier: true,
                ..planner::Settings::default()
            },
            warm_up_ms: 10_000,
            warm_up_longest_ms: 60_000,
            silent_ms: 10_000,
            plan_life_ms: 5_000,
            answer_ms: 10_000,
            expiry_ms: 60_000,
            longest_stall_ms: 100,
            back_off: BackOffSettings { first_ms: 5_000, longest_ms: 600_000 },
            window: WindowSettings { first: 64, least: 8, most: 1_024 },
            node_window: WindowSettings { first: 64, least: 1, most: 1_024 },
            rates: Rates::default(),
            breaker: BreakerSettings {
                of_last: 64,
                least_bad: 16,
                probes: 4,
                open: BackOffSettings { first_ms: 5_000, longest_ms: 300_000 },
            },
            node_breaker: BreakerSettings {
                of_last: 16,
                least_bad: 8,
                probes: 2,
                open: BackOffSettings { first_ms: 5_000, longest_ms: 300_000 },
            },
            load: LoadSettings { smoothing_ms: 30_000, idle_below: 8, centre_ms: 120_000 },
            bounds: Bounds::default(),
        }
    }
}

impl Default for Rates {
    /// A burst of balance carries 10,000 leaders, wherever they all are.
    fn default() -> Self {
        Self {
            violations: Rate { burst: 16_384, per_second: 4_096 },
            wishes: Rate { burst: 10_000, per_second: 1_024 },
            balance: Rate { burst: 10_000, per_second: 256 },
        }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            ledger: 65_536,
            back_offs: 65_536,
            queue: 1 << 20,
            cool_down: 1 << 20,
            records: 16,
            recorded_groups: 100_000,
        }
    }
}
