//! The longest times without an acknowledged write, around events and in calm.

use serde_json::{Value, json};

use super::events::Happened;
use super::offer::Ack;
use super::{Measured, StallArguments};
use crate::cli::bench::report::{self, Latencies};
use crate::cli::bench::tally::Counted;

/// A span of time on the clock of this machine, in nanoseconds.
type Span = (u64, u64);

/// What people see of each kind of event, and how many digits of it stand behind the point.
const COLUMNS: [(&str, usize); 9] = [
    ("count", 0),
    ("failed", 0),
    ("took_p50_ms", 1),
    ("took_p99_ms", 1),
    ("stall_p50_ms", 1),
    ("stall_p99_ms", 1),
    ("stall_max_ms", 1),
    ("write_p99_ms", 1),
    ("aim_ms", 1),
];

/// The aim for transfers is at least this, in milliseconds.
const TRANSFER_AIM_MS: f64 = 10.0;

/// Prints what was measured with a number of groups.
pub fn print(arguments: &StallArguments, measured: &Measured) {
    let figures = figures(arguments, measured);
    if arguments.json {
        println!("{figures}");
        return;
    }
    let rows = figures["events"].as_array().cloned().unwrap_or_default();
    let mut head = figures;
    if let Some(head) = head.as_object_mut() {
        head.remove("events");
    }
    report::print(&head, false);
    println!("{}", report::table("event", &COLUMNS, &rows));
}

fn figures(arguments: &StallArguments, measured: &Measured) -> Value {
    let Measured { groups, acks, calm, events, round_trips, log_writes } = measured;
    let window = arguments.window * 1_000_000;
    let calm_acks = acks_in(acks, *calm);
    let writes_ms = |part| Latencies::of(latencies_us(calm_acks)).quantile(part) as f64 / 1e3;
    let of = |counted: &Counted, part| quantile_ms(counted, part);
    let seconds = (calm.1 - calm.0) as f64 / 1e9;
    let mut figures = json!({
        "mode": arguments.mode,
        "machine": arguments.machine,
        "groups": groups,
        "offered_per_second": arguments.rate,
        "offered_to_others_per_second": if *groups > 1 { arguments.others } else { 0 },
        "window_ms": arguments.window,
        "writes_per_second_in_calm": calm_acks.len() as f64 / seconds,
        "write_p50_ms_in_calm": writes_ms(0.5),
        "write_p99_ms_in_calm": writes_ms(0.99),
        "round_trip_p50_ms": of(round_trips, 0.5),
        "round_trip_p99_ms": of(round_trips, 0.99),
    });
    let calm_windows = calm_windows(events, window);
    let calm_row = row("calm", acks, &calm_windows, 0);
    let change_aim = calm_row["stall_p99_ms"].as_f64().map(|usual| 2.0 * usual);
    let transfer_aim = log_writes.as_ref().map(|writes| {
        figures["log_write_p50_ms"] = json!(of(writes, 0.5));
        figures["log_write_p99_ms"] = json!(of(writes, 0.99));
        (4.0 * of(round_trips, 0.5) + 4.0 * of(writes, 0.99)).max(TRANSFER_AIM_MS)
    });
    let mut rows = vec![calm_row];
    for some in by_kind(events) {
        let aim = if some[0].event.changes_members() { change_aim } else { transfer_aim };
        let mut row = event_row(&some, acks, window);
        row["aim_ms"] = json!(aim);
        rows.push(row);
    }
    figures["events"] = json!(rows);
    figures
}

/// The events, by what they are called by, in the order in which they first came.
fn by_kind(events: &[Happened]) -> Vec<Vec<&Happened>> {
    let mut kinds: Vec<Vec<&Happened>> = Vec::new();
    for one in events {
        let name = one.event.name();
        match kinds.iter_mut().find(|some| some[0].event.name() == name) {
            Some(some) => some.push(one),
            None => kinds.push(vec![one]),
        }
    }
    kinds
}

fn event_row(events: &[&Happened], acks: &[Ack], window: u64) -> Value {
    let spans: Vec<Span> = events.iter().filter_map(|one| one.span.clone().ok()).collect();
    let windows: Vec<Span> =
        spans.iter().map(|(began, ended)| (*began, (*ended).max(began + window))).collect();
    let mut row = row(events[0].event.name(), acks, &windows, events.len() - spans.len());
    let took = Latencies::of(spans.iter().map(|(began, ended)| (ended - began, 1)));
    row["took_p50_ms"] = json!(took.quantile(0.5) as f64 / 1e6);
    row["took_p99_ms"] = json!(took.quantile(0.99) as f64 / 1e6);
    row
}

fn row(name: &str, acks: &[Ack], windows: &[Span], failed: usize) -> Value {
    let stalls = Latencies::of(windows.iter().map(|window| (longest_gap(acks, *window), 1)));
    let stall = |part| stalls.quantile(part) as f64 / 1e6;
    let writes = windows.iter().flat_map(|window| latencies_us(acks_in(acks, *window)));
    json!({
        "event": name,
        "count": windows.len(),
        "failed": failed,
        "stall_p50_ms": stall(0.5),
        "stall_p99_ms": stall(0.99),
        "stall_max_ms": stall(1.0),
        "write_p99_ms": Latencies::of(writes).quantile(0.99) as f64 / 1e3,
    })
}

/// Just before each event, a window of the same length.
fn calm_windows(events: &[Happened], window: u64) -> Vec<Span> {
    let begins = events.iter().filter_map(|one| one.span.as_ref().ok());
    begins.map(|(began, _)| (began.saturating_sub(window), *began)).collect()
}

fn quantile_ms(counted: &Counted, part: f64) -> f64 {
    Latencies::of(counted.latencies_ns.iter().copied()).quantile(part) as f64 / 1e6
}

fn latencies_us(acks: &[Ack]) -> impl Iterator<Item = (u64, u64)> + '_ {
    acks.iter().map(|ack| (ack.took_us, 1))
}

/// What was acknowledged in a span.
fn acks_in(acks: &[Ack], (from, to): Span) -> &[Ack] {
    let begin = acks.partition_point(|ack| ack.at_ns < from);
    let end = acks.partition_point(|ack| ack.at_ns < to);
    &acks[begin..end]
}

/// The longest time between two acknowledgements that lies in a span, or reaches into it. `acks`
/// are in the order of time.
fn longest_gap(acks: &[Ack], (from, to): Span) -> u64 {
    let first_inside = acks.partition_point(|ack| ack.at_ns <= from);
    let first_behind = acks.partition_point(|ack| ack.at_ns < to);
    let begin = first_inside.saturating_sub(1);
    let end = (first_behind + 1).min(acks.len());
    let gaps = acks[begin..end].windows(2).map(|pair| pair[1].at_ns - pair[0].at_ns);
    // Without a write behind it, the span itself is as much as is known.
    let open = if first_behind == acks.len() {
        to.saturating_sub(acks.last().map_or(from, |ack| ack.at_ns))
    } else {
        0
    };
    gaps.max().unwrap_or(0).max(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(at: &[u64]) -> Vec<Ack> {
        at.iter().map(|at_ns| Ack { at_ns: *at_ns, took_us: 1 }).collect()
    }

    #[test]
    fn the_longest_gap_of_a_span_may_begin_before_it_and_end_behind_it() {
        let acks = acks(&[10, 20, 30, 70, 80, 90, 190, 200]);
        assert_eq!(longest_gap(&acks, (10, 30)), 10);
        assert_eq!(longest_gap(&acks, (25, 28)), 10, "between 20 and 30");
        assert_eq!(longest_gap(&acks, (35, 60)), 40, "from 30 to 70");
        assert_eq!(longest_gap(&acks, (65, 85)), 40, "begins before");
        assert_eq!(longest_gap(&acks, (75, 95)), 100, "ends behind");
        assert_eq!(longest_gap(&acks, (0, 200)), 100);
    }

    #[test]
    fn a_stall_that_does_not_end_is_as_long_as_what_was_looked_at() {
        assert_eq!(longest_gap(&acks(&[10, 20]), (15, 500)), 480);
        assert_eq!(longest_gap(&[], (15, 500)), 485);
    }
}
