//! A circuit breaker: when half of the last moves went badly, nothing starts for a while; then a
//! few are tried, and all is well again when they are. Knows nothing of what it guards.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};
use shardhost_storage::NodeId;

use super::settings::BreakerSettings;
use crate::utc::Utc;

/// What a breaker looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All moves. Where one end can be blamed for most failures, that end has a separate breaker,
    /// and the rest should continue.
    All,
    /// The moves from, or to, one node.
    OneEnd,
}

/// A move that went badly, with the ends that may be blamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) giver: Option<NodeId>,
    pub(super) receiver: Option<NodeId>,
}

/// What a breaker allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BreakerState {
    Closed,
    Open {
        /// Until this time, in milliseconds of the planner's clock.
        until_ms: u64,
        /// How many of the last moves went badly when it opened.
        bad: u32,
        /// The number of these last moves.
        of: u32,
    },
    /// A few moves, to see whether they go well.
    Probing {
        good: u32,
        wanted: u32,
    },
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed: moves start"),
            Self::Open { until_ms, bad, of } => write!(
                f,
                "open until {}: {bad} of the last {of} moves failed or stopped their group for too \
                 long; nothing starts",
                Utc(*until_ms)
            ),
            Self::Probing { good, wanted } => {
                write!(f, "trying a few moves: {good} of {wanted} went well")
            }
        }
    }
}

/// Opens for a growing time.
#[derive(Clone, Debug)]
pub(super) struct Breaker {
    settings: BreakerSettings,
    scope: Scope,
    last: VecDeque<Option<Bad>>,
    phase: Phase,
    /// How long it was open last; 0: never.
    open_ms: u64,
    closed_at_ms: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed,
    Open {
        until_ms: u64,
        bad: u32,
        of: u32,
    },
    /// Moves from the number `first` on are probes.
    Probing {
        first: u64,
        in_flight: u32,
        good: u32,
    },
}

impl Breaker {
    pub(super) const fn new(settings: BreakerSettings, scope: Scope) -> Self {
        Self {
            settings,
            scope,
            last: VecDeque::new(),
            phase: Phase::Closed,
            open_ms: 0,
            closed_at_ms: 0,
        }
    }

    pub(super) fn state(&self, now_ms: u64) -> BreakerState {
        let wanted = self.settings.probes;
        match self.phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { until_ms, bad, of } if now_ms < until_ms => {
                BreakerState::Open { until_ms, bad, of }
            }
            Phase::Open { .. } => BreakerState::Probing { good: 0, wanted },
            Phase::Probing { good, .. } => BreakerState::Probing { good, wanted },
        }
    }

    pub(super) fn is_open(&self, now_ms: u64) -> bool {
        matches!(self.state(now_ms), BreakerState::Open { .. })
    }

    /// Whether what it remembers no longer matters for a node that is gone.
    pub(super) const fn is_idle(&self, now_ms: u64) -> bool {
        let since = match self.phase {
            Phase::Closed => self.closed_at_ms,
            Phase::Open { until_ms, .. } => until_ms,
            Phase::Probing { in_flight, .. } => return in_flight == 0,
        };
        now_ms.saturating_sub(since) >= self.open_ms
    }

    /// Whether one more move may start.
    pub(super) fn admits(&self, now_ms: u64) -> bool {
        match self.phase {
            Phase::Closed => true,
            Phase::Open { until_ms, .. } => now_ms >= until_ms,
            Phase::Probing { in_flight, good, .. } => in_flight + good < self.settings.probes,
        }
    }

    /// The move of this number starts.
    pub(super) fn start(&mut self, number: u64) {
        match &mut self.phase {
            Phase::Closed => {}
            Phase::Open { .. } => {
                self.phase = Phase::Probing { first: number, in_flight: 1, good: 0 };
            }
            Phase::Probing { in_flight, .. } => *in_flight += 1,
        }
    }

    /// The move of this number ended without information about the pace.
    pub(super) const fn forget(&mut self, number: u64) {
        if let Phase::Probing { first, in_flight, .. } = &mut self.phase
            && number >= *first
        {
            *in_flight = in_flight.saturating_sub(1);
        }
    }

    /// The move of this number ended; `bad` is the end that may be at fault.
    pub(super) fn learn(&mut self, number: u64, bad: Option<Bad>, now_ms: u64) {
        self.forget(number);
        match (&mut self.phase, bad) {
            (Phase::Closed, _) => {
                self.note(bad);
                self.trip(now_ms);
            }
            (Phase::Probing { first, good, .. }, None) if number >= *first => {
                *good += 1;
                if *good >= self.settings.probes {
                    self.close(now_ms);
                }
            }
            (Phase::Probing { first, .. }, Some(_)) if number >= *first => {
                self.open(1, 1, now_ms);
            }
            // It began before the breaker opened.
            _ => {}
        }
    }

    fn note(&mut self, bad: Option<Bad>) {
        if self.last.len() >= self.settings.of_last {
            self.last.pop_front();
        }
        self.last.push_back(bad);
    }

    fn trip(&mut self, now_ms: u64) {
        let count = self.last.iter().flatten().count();
        if count < self.settings.least_bad || count * 2 < self.last.len() {
            return;
        }
        if self.scope == Scope::All && self.worst_end() * 2 > count {
            return;
        }
        self.open(count as u32, self.last.len() as u32, now_ms);
    }

    /// The bad moves that one end, the one with the most of them, may be blamed for.
    fn worst_end(&self) -> usize {
        let mut blamed: BTreeMap<(bool, NodeId), usize> = BTreeMap::new();
        for bad in self.last.iter().flatten() {
            let ends = [(true, bad.giver), (false, bad.receiver)];
            for (gives, node) in ends.into_iter().filter_map(|(gives, node)| Some((gives, node?))) {
                *blamed.entry((gives, node)).or_default() += 1;
            }
        }
        blamed.into_values().max().unwrap_or(0)
    }

    /// Opens for twice as long as the last time, if that is not long ago.
    fn open(&mut self, bad: u32, of: u32, now_ms: u64) {
        let rested = matches!(self.phase, Phase::Closed)
            && now_ms.saturating_sub(self.closed_at_ms) >= self.open_ms;
        self.open_ms = self.settings.open.after(if rested { 0 } else { self.open_ms });
        self.phase = Phase::Open { until_ms: now_ms.saturating_add(self.open_ms), bad, of };
    }

    fn close(&mut self, now_ms: u64) {
        self.phase = Phase::Closed;
        self.closed_at_ms = now_ms;
        self.last.clear();
    }
}
