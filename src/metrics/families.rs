//! How families of metrics are written.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, NativeHistogram, NativeHistogramBuckets, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use shardhost_groups::latency::LatencySnapshot;

/// Names and values of what distinguishes the series of a family.
pub type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Families, written one after the other. Names have neither the prefix `shardhost_` nor the ending `_total` of
/// counters: both are added.
#[derive(Debug)]
pub struct Families<'a> {
    encoder: DescriptorEncoder<'a>,
    prefix: &'static str,
}

impl<'a> Families<'a> {
    /// Families whose names begin with `shardhost_`.
    #[must_use]
    pub const fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self { encoder, prefix: "shardhost_" }
    }

    /// Families with the names that every program gives them, as `process_open_fds`.
    pub fn common(&mut self, write: impl FnOnce(&mut Self) -> fmt::Result) -> fmt::Result {
        let prefix = std::mem::take(&mut self.prefix);
        let written = write(self);
        self.prefix = prefix;
        written
    }

    /// A number that only grows.
    ///
    /// # Errors
    /// The sink failed, as with all of these.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, [(Labels::new(), value)])
    }

    /// The same, of several things.
    ///
    /// # Errors
    /// As [`Families::counter`].
    pub fn counters<'v>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<'v>, u64)>,
    ) -> fmt::Result {
        let series = series.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family(name, help, MetricType::Counter, series)
    }

    /// A number of seconds that only grows.
    ///
    /// # Errors
    /// As [`Families::counter`].
    pub fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let series = [(Labels::new(), ConstCounter::new(value))];
        self.family(name, help, MetricType::Counter, series)
    }

    /// A number as it is now.
    ///
    /// # Errors
    /// As [`Families::counter`].
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.gauges(name, help, [(Labels::new(), value as f64)])
    }

    /// The same, of several things.
    ///
    /// # Errors
    /// As [`Families::counter`].
    pub fn gauges<'v>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<'v>, f64)>,
    ) -> fmt::Result {
        let series = series.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family(name, help, MetricType::Gauge, series)
    }

    /// Durations.
    ///
    /// # Errors
    /// As [`Families::counter`].
    pub fn durations<'v>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<'v>, LatencySnapshot)>,
    ) -> fmt::Result {
        let series = series.into_iter().map(|(labels, counted)| (labels, Histogram::of(&counted)));
        self.family(name, help, MetricType::Histogram, series)
    }

    fn family<'v, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        series: impl IntoIterator<Item = (Labels<'v>, M)>,
    ) -> fmt::Result {
        let name = format!("{}{name}", self.prefix);
        let mut family = self.encoder.encode_descriptor(&name, help, None, kind)?;
        for (labels, metric) in series {
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The lowest bound of a histogram, in microseconds: 128, then 192, 256, 384, and so on. Lower ones are written in
/// two ways by the forms of text.
const LOWEST_US: u64 = 128;
/// The highest one: about a minute.
const HIGHEST_US: u64 = 1 << 26;
/// Native buckets: eight for each power of two.
const NATIVE_SCHEMA: i32 = 3;
const NATIVE_PER_POWER: f64 = 8.0;

/// Durations, as Prometheus reads them: in buckets with fixed bounds, and in native ones for who asks for those.
///
/// The host counts in buckets that are at most 7 % wide; the sum takes each duration for the middle of its bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    sum_seconds: f64,
    count: u64,
    /// Upper bounds in seconds, and how many durations are in the bucket below.
    buckets: Vec<(f64, u64)>,
    spans: Vec<(i32, u32)>,
    deltas: Vec<i64>,
}

impl Histogram {
    /// What was counted.
    #[must_use]
    pub fn of(counted: &LatencySnapshot) -> Self {
        let (spans, deltas) = native(counted);
        Self {
            sum_seconds: counted
                .buckets()
                .map(|bucket| middle(&bucket.micros) * bucket.count as f64)
                .sum(),
            count: counted.count(),
            buckets: classic(counted),
            spans,
            deltas,
        }
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn middle(micros: &std::ops::Range<u64>) -> f64 {
    f64::midpoint(seconds(micros.start), seconds(micros.end))
}

/// The bounds of each power of two and of one and a half of it, where buckets of the host end.
fn bounds() -> impl Iterator<Item = u64> {
    let powers = std::iter::successors(Some(LOWEST_US), |bound| Some(bound * 2));
    let both = powers.flat_map(|power| [power, power + power / 2]);
    both.take_while(|bound| *bound <= HIGHEST_US)
}

fn classic(counted: &LatencySnapshot) -> Vec<(f64, u64)> {
    let mut left = counted.buckets().peekable();
    let mut buckets: Vec<(f64, u64)> = Vec::new();
    for bound in bounds() {
        let mut count = 0;
        while let Some(bucket) = left.next_if(|bucket| bucket.micros.end <= bound) {
            count += bucket.count;
        }
        buckets.push((seconds(bound), count));
    }
    buckets.push((f64::INFINITY, left.map(|bucket| bucket.count).sum()));
    buckets
}

/// Spans of native buckets and the differences of their counts.
fn native(counted: &LatencySnapshot) -> (Vec<(i32, u32)>, Vec<i64>) {
    let mut buckets: Vec<(i32, i64)> = Vec::new();
    for bucket in counted.buckets().filter(|bucket| bucket.count > 0) {
        let (index, count) =
            (native_index(bucket.micros.end), i64::try_from(bucket.count).unwrap_or(i64::MAX));
        match buckets.last_mut() {
            Some(last) if last.0 == index => last.1 = last.1.saturating_add(count),
            _ => buckets.push((index, count)),
        }
    }
    let (mut spans, mut deltas) = (Vec::<(i32, u32)>::new(), Vec::new());
    let (mut next, mut before) = (0, 0);
    for (index, count) in buckets {
        match spans.last_mut() {
            Some(span) if index == next => span.1 += 1,
            _ => spans.push((index - next, 1)),
        }
        deltas.push(count - before);
        (next, before) = (index + 1, count);
    }
    (spans, deltas)
}

/// The native bucket whose upper bound is the first that is not below so many microseconds.
fn native_index(micros: u64) -> i32 {
    (seconds(micros).log2() * NATIVE_PER_POWER).ceil() as i32
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result {
        let none = NativeHistogramBuckets { spans: &[], deltas: &[] };
        let native = NativeHistogram {
            schema: NATIVE_SCHEMA,
            zero_threshold: 0.0,
            zero_count: 0,
            negative: none,
            positive: NativeHistogramBuckets { spans: &self.spans, deltas: &self.deltas },
            created: None,
        };
        let Self { sum_seconds, count, buckets, .. } = self;
        encoder.encode_histogram_with_native::<NoLabelSet>(
            *sum_seconds,
            *count,
            buckets,
            None,
            native,
        )
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shardhost_groups::latency::Latency;

    use super::*;

    fn of(micros: &[u64]) -> Histogram {
        let latency = Latency::default();
        micros.iter().for_each(|micros| latency.record(Duration::from_micros(*micros)));
        Histogram::of(&latency.snapshot())
    }

    #[test]
    fn each_duration_is_in_the_bucket_of_the_first_bound_that_it_does_not_exceed() {
        for micros in [
            0,
            1,
            63,
            64,
            95,
            96,
            127,
            128,
            191,
            192,
            1_000,
            49_151,
            67_000_000,
            80_000_000,
            u64::MAX,
        ] {
            let histogram = of(&[micros]);
            let found = histogram.buckets.iter().position(|(_, count)| *count == 1).unwrap();
            let bound = histogram.buckets[found].0;
            assert!(bound.is_infinite() || seconds(micros) <= bound, "{micros} in {bound}");
            // A duration of so many whole microseconds may last almost one more.
            assert!(found == 0 || seconds(micros) >= histogram.buckets[found - 1].0, "{micros}");
            assert_eq!((histogram.count, histogram.buckets.len()), (1, 40));
        }
    }

    #[test]
    fn the_sum_is_as_exact_as_the_buckets_of_the_host() {
        let micros: Vec<u64> = (1..2_000).map(|one| one * 37).collect();
        let exact = seconds(micros.iter().sum());
        let histogram = of(&micros);
        assert!((histogram.sum_seconds / exact - 1.0).abs() < 0.01, "{}", histogram.sum_seconds);
    }

    #[test]
    fn native_buckets_hold_each_duration_within_a_bucket_of_it() {
        let micros = [3, 70, 71, 1_000, 1_000, 250_000];
        let histogram = of(&micros);
        let mut found = Vec::new();
        let (mut index, mut count, mut deltas) = (0, 0, histogram.deltas.iter());
        for (gap, length) in &histogram.spans {
            index += gap;
            for _ in 0..*length {
                count += deltas.next().unwrap();
                let bound = (f64::from(index) / NATIVE_PER_POWER).exp2();
                found.extend(std::iter::repeat_n(bound, usize::try_from(count).unwrap()));
                index += 1;
            }
        }
        assert_eq!(found.len(), micros.len());
        for (micros, bound) in micros.iter().zip(found) {
            let at = seconds(*micros);
            assert!(at <= bound && bound <= at * 1.6, "{at} below {bound}");
        }
    }
}
