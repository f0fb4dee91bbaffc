//! Answers, counted while they come.

use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// No latency is longer, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// Counts answers and how long they took.
pub struct Tally {
    histogram: Histogram<u64>,
    succeeded: u64,
    failed: u64,
}

/// What was counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counted {
    pub succeeded: u64,
    pub failed: u64,
    /// Latencies in nanoseconds, with how often each was seen.
    pub latencies_ns: Vec<(u64, u64)>,
}

impl Tally {
    /// Nothing is counted yet.
    pub fn new() -> anyhow::Result<Self> {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, 3).context("a histogram")?;
        Ok(Self { histogram, succeeded: 0, failed: 0 })
    }

    /// Counts an answer.
    pub fn count(&mut self, succeeded: bool, latency: Duration) {
        if succeeded {
            self.succeeded += 1;
            let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            self.histogram.saturating_record(nanoseconds.max(1));
        } else {
            self.failed += 1;
        }
    }

    /// What was counted since the last time.
    pub fn take(&mut self) -> Counted {
        let recorded = self.histogram.iter_recorded();
        let latencies_ns = recorded.map(|v| (v.value_iterated_to(), v.count_at_value())).collect();
        let counted = Counted { succeeded: self.succeeded, failed: self.failed, latencies_ns };
        self.histogram.reset();
        (self.succeeded, self.failed) = (0, 0);
        counted
    }
}

impl Counted {
    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: Self) {
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.latencies_ns.extend(other.latencies_ns);
    }

    /// Latencies in whole microseconds, at least one.
    pub fn latencies_us(&self) -> Vec<(u64, u64)> {
        self.latencies_ns.iter().map(|(ns, count)| ((ns / 1_000).max(1), *count)).collect()
    }
}
