//! What the snapshot benchmark prints.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::{Lap, Look, SnapshotArguments};
use crate::report::print as print_figures;
use crate::snapshot::node::Written;

const MEBIBYTE: f64 = 1_048_576.0;

/// The awaited events, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The leaders have made the snapshots.
    Made,
    FirstByte,
    Shipped,
    /// The late node applies what the others write.
    CaughtUp,
}

/// When it came to that, and what was written meanwhile.
pub struct Timeline {
    began: Instant,
    reached: Vec<Reached>,
}

struct Reached {
    event: Event,
    seconds: f64,
    laps: Vec<Lap>,
    late: Look,
}

impl Timeline {
    pub fn begin() -> Self {
        Self { began: Instant::now(), reached: Vec::new() }
    }

    pub fn reached(&mut self, event: Event, laps: Vec<Lap>, late: Look) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.reached.push(Reached { event, seconds, laps, late });
    }

    /// What was written in each phase, and how many cores the late node used.
    fn phases(&self) -> Vec<(&'static str, &[Lap], f64)> {
        let (mut phases, mut since) = (Vec::new(), (0.0, 0.0));
        for reached in &self.reached {
            let (seconds, cpu) = (reached.seconds - since.0, reached.late.cpu_seconds - since.1);
            since = (reached.seconds, reached.late.cpu_seconds);
            let phase = match reached.event {
                Event::Made => "while_made",
                Event::FirstByte => continue,
                Event::Shipped => "while_shipped",
                Event::CaughtUp => "while_restored",
            };
            phases.push((phase, reached.laps.as_slice(), cpu / seconds.max(0.001)));
        }
        phases
    }

    fn seconds(&self, event: Event) -> f64 {
        self.reached.iter().find(|reached| reached.event == event).map_or(0.0, |r| r.seconds)
    }
}

/// Prints the figures. Before, two nodes share the machine; afterwards three do, as while the third
/// catches up: so it is the writes afterwards that those of the phases are compared with.
pub fn print(
    arguments: &SnapshotArguments,
    before: &[Lap],
    timeline: &Timeline,
    after: &[Lap],
) -> anyhow::Result<()> {
    let mebibytes = (arguments.size * arguments.groups) as f64 / MEBIBYTE;
    let (made, shipped) = (timeline.seconds(Event::Made), timeline.seconds(Event::Shipped));
    let caught_up = timeline.seconds(Event::CaughtUp);
    let shipping = (shipped - timeline.seconds(Event::FirstByte)).max(0.001);
    let laps = || timeline.reached.iter().flat_map(|reached| &reached.laps);
    let peak = |laps: &mut dyn Iterator<Item = &Lap>| laps.map(|l| l.peak_bytes).max().unwrap_or(0);
    let late_peak = timeline.reached.iter().map(|r| r.late.peak_bytes).max().unwrap_or(0);
    let mut figures = json!({
        "size_mib": arguments.size as f64 / MEBIBYTE,
        "groups": arguments.groups,
        "rate_mib_per_second": arguments.rate as f64 / MEBIBYTE,
        "writes_offered_per_second": arguments.writes,
        "seconds_until_made": made,
        "seconds_until_shipped": shipped,
        "seconds_until_caught_up": caught_up,
        "shipping_mib_per_second": mebibytes / shipping,
        "catching_up_mib_per_second": mebibytes / caught_up.max(0.001),
        "sender_peak_mib_before": peak(&mut before.iter()) as f64 / MEBIBYTE,
        "sender_peak_mib_during": peak(&mut laps()) as f64 / MEBIBYTE,
        "receiver_peak_mib": late_peak as f64 / MEBIBYTE,
    });
    if let Some(figures) = figures.as_object_mut() {
        written(figures, "before", before);
        for (phase, laps, _) in timeline.phases() {
            written(figures, phase, laps);
        }
        written(figures, "after", after);
        for (phase, laps, receiver_cores) in timeline.phases() {
            figures.insert(format!("receiver_cores_{phase}"), json!(receiver_cores));
            let slower = 1.0 - rate_of(laps) / rate_of(after).max(1.0);
            figures.insert(format!("percent_slower_{phase}"), json!(slower * 100.0));
        }
    }
    print_figures(&figures, arguments.output.json);
    Ok(())
}

/// The writes of one kind of a lap.
type Pick = fn(&Lap) -> &Written;

/// Writes and their latency in a phase.
fn written(figures: &mut Map<String, Value>, phase: &str, laps: &[Lap]) {
    let seconds = laps.iter().map(|lap| lap.seconds).fold(0.001, f64::max);
    let cores = laps.iter().map(|lap| lap.cpu_seconds).sum::<f64>() / seconds;
    figures.insert(format!("sender_cores_{phase}"), json!(cores));
    let kinds: [(&str, Pick); 2] = [("large", |lap| &lap.large), ("small", |lap| &lap.small)];
    for (kind, pick) in kinds {
        let all: Vec<&Written> = laps.iter().map(pick).collect();
        let acknowledged: u64 = all.iter().map(|written| written.acknowledged).sum();
        let failed: u64 = all.iter().map(|written| written.failed).sum();
        let mut insert = |figure: &str, value: Value| {
            figures.insert(format!("{kind}_{figure}_{phase}"), value);
        };
        insert("writes_per_second", json!(acknowledged as f64 / seconds));
        insert("p50_us", json!(quantile(&all, 0.5)));
        insert("p99_us", json!(quantile(&all, 0.99)));
        if failed > 0 {
            insert("failed", json!(failed));
        }
    }
}

/// Acknowledged writes per second, to groups of both kinds.
fn rate_of(laps: &[Lap]) -> f64 {
    let seconds = laps.iter().map(|lap| lap.seconds).fold(0.001, f64::max);
    let written = laps.iter().map(|lap| lap.large.acknowledged + lap.small.acknowledged);
    written.sum::<u64>() as f64 / seconds
}

fn quantile(all: &[&Written], part: f64) -> u64 {
    let mut values: Vec<(u64, u64)> =
        all.iter().flat_map(|written| written.latencies.iter().copied()).collect();
    values.sort_unstable();
    let total: u64 = values.iter().map(|(_, count)| count).sum();
    let wanted = (total as f64 * part).ceil() as u64;
    let mut seen = 0;
    for (value, count) in values {
        seen += count;
        if seen >= wanted {
            return value;
        }
    }
    0
}
