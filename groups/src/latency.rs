//! How long proposals take, counted without a lock.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets per power of two: an error of about 6 %.
const STEPS: u64 = 16;
const BUCKETS: usize = 16 * 40;

/// A histogram of durations, in microseconds.
#[derive(Debug)]
pub struct Latency {
    buckets: Box<[AtomicU64]>,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }
}

/// Counts of a histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LatencySnapshot {
    buckets: Vec<u64>,
}

/// How many durations took so many whole microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub micros: Range<u64>,
    pub count: u64,
}

impl Latency {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(micros)].fetch_add(1, Ordering::Relaxed);
    }

    /// Durations counted since the start.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// The counts as they are.
    #[must_use]
    pub fn snapshot(&self) -> LatencySnapshot {
        let load = |bucket: &AtomicU64| bucket.load(Ordering::Relaxed);
        LatencySnapshot { buckets: self.buckets.iter().map(load).collect() }
    }
}

impl LatencySnapshot {
    /// What was counted between `earlier` and this snapshot.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = earlier.buckets.iter().copied().chain(std::iter::repeat(0));
        let difference = |(now, before): (&u64, u64)| now.saturating_sub(before);
        Self { buckets: self.buckets.iter().zip(before).map(difference).collect() }
    }

    /// Durations counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All buckets, of rising durations.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> + '_ {
        let mut start = 0;
        self.buckets.iter().enumerate().map(move |(bucket, count)| {
            let micros = start..upper_bound(bucket) + 1;
            start = micros.end;
            Bucket { micros, count: *count }
        })
    }

    /// The longest duration, in microseconds, as the bound of its bucket: at most 7 % above it. Zero
    /// when nothing was counted.
    #[must_use]
    pub fn max_us(&self) -> u64 {
        self.buckets.iter().rposition(|count| *count > 0).map_or(0, upper_bound)
    }

    /// The duration in microseconds that `per_mille` of a thousand durations do not exceed.
    #[must_use]
    pub fn quantile_us(&self, per_mille: u64) -> u64 {
        let target = (self.count() * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= target {
                return upper_bound(bucket);
            }
        }
        0
    }
}

fn bucket_of(micros: u64) -> usize {
    let bucket = if micros < STEPS {
        micros
    } else {
        let power = u64::from(micros.ilog2()) - 4;
        power * STEPS + STEPS + ((micros >> power) - STEPS)
    };
    usize::try_from(bucket).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let power = (bucket - STEPS) / STEPS;
    let step = (bucket - STEPS) % STEPS;
    ((STEPS + step + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_lies_at_most_seven_percent_below_the_bound_of_its_bucket() {
        for micros in (0..100_000).chain([1 << 20, (1 << 30) + 12_345]) {
            let bound = upper_bound(bucket_of(micros));
            assert!(bound >= micros, "{micros} is above its bucket's bound {bound}");
            assert!(bound - micros <= micros / 14 + 1, "{micros} is far below {bound}");
        }
    }

    #[test]
    fn quantiles_of_what_was_counted_since_a_snapshot_ignore_what_came_before() {
        let latency = Latency::default();
        (0..100).for_each(|_| latency.record(Duration::from_secs(5)));
        let before = latency.snapshot();
        (1..=100).for_each(|ms| latency.record(Duration::from_millis(ms)));
        let since = latency.snapshot().since(&before);
        assert_eq!(since.count(), 100);
        let median = since.quantile_us(500);
        assert!((50_000..54_000).contains(&median), "{median}");
        assert!((100_000..108_000).contains(&since.max_us()), "{}", since.max_us());
        assert_eq!(LatencySnapshot::default().max_us(), 0);
    }
}
