//! The longest times without an acknowledged write, around events and in calm before them.

use serde_json::{Value, json};

use super::events::Happened;
use super::offer::Ack;
use super::{Measured, StallArguments};
use crate::report::{self, Latencies};
use crate::tally::Counted;

/// A span of time on the clock of this machine, in nanoseconds.
type Span = (u64, u64);

/// The columns for each kind of event, and their digits behind the point.
const COLUMNS: [(&str, usize); 11] = [
    ("count", 0),
    ("failed", 0),
    ("took_p50_ms", 1),
    ("took_p99_ms", 1),
    ("stall_p50_ms", 1),
    ("stall_p99_ms", 1),
    ("stall_max_ms", 1),
    ("calm_p50_ms", 1),
    ("calm_p99_ms", 1),
    ("calm_max_ms", 1),
    ("aim_ms", 1),
];

/// The aim for transfers is at least this, in milliseconds.
const TRANSFER_AIM_MS: f64 = 10.0;

/// Prints what was measured with a number of groups.
pub fn print(arguments: &StallArguments, measured: &Measured) {
    let figures = figures(arguments, measured);
    if arguments.output.json {
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
    let transfer_aim = log_writes.as_ref().map(|writes| {
        figures["log_write_p50_ms"] = json!(of(writes, 0.5));
        figures["log_write_p99_ms"] = json!(of(writes, 0.99));
        (4.0 * of(round_trips, 0.5) + 4.0 * of(writes, 0.99)).max(TRANSFER_AIM_MS)
    });
    let looked_at = windows(events, window, calm.1);
    let rows = by_kind(&looked_at).into_iter().map(|some| row(&some, acks, transfer_aim));
    figures["events"] = json!(rows.collect::<Vec<_>>());
    figures
}

/// An event, with the span that is looked at, and one of the same length before it.
#[derive(Clone, Copy, Debug)]
struct Windows<'a> {
    happened: &'a Happened,
    around: Option<Span>,
    calm: Option<Span>,
}

/// The window of each event. Before the first one it was calm since `calm_from`.
fn windows(events: &[Happened], window: u64, calm_from: u64) -> Vec<Windows<'_>> {
    let mut free_from = calm_from;
    let mut all = Vec::new();
    for happened in events {
        let mut windows = Windows { happened, around: None, calm: None };
        if let Ok((began, ended)) = happened.span {
            let end = ended.max(began + window);
            windows.calm = Some((free_from.max(began.saturating_sub(end - began)), began));
            windows.around = Some((began, end));
            free_from = end;
        }
        all.push(windows);
    }
    all
}

/// The events, by what they are called by, in the order in which they first came.
fn by_kind<'a>(events: &[Windows<'a>]) -> Vec<Vec<Windows<'a>>> {
    let mut kinds: Vec<Vec<Windows<'a>>> = Vec::new();
    for one in events {
        let name = one.happened.event.name();
        match kinds.iter_mut().find(|some| some[0].happened.event.name() == name) {
            Some(some) => some.push(*one),
            None => kinds.push(vec![*one]),
        }
    }
    kinds
}

fn row(events: &[Windows<'_>], acks: &[Ack], transfer_aim: Option<f64>) -> Value {
    let event = events[0].happened.event;
    let spans = events.iter().filter_map(|one| one.happened.span.as_ref().ok());
    let took = Latencies::of(spans.map(|(began, ended)| (ended - began, 1)));
    let gaps = |spans: Vec<Span>| {
        Latencies::of(spans.into_iter().map(|span| (longest_gap(acks, span), 1)))
    };
    let around: Vec<Span> = events.iter().filter_map(|one| one.around).collect();
    let count = around.len();
    let stalls = gaps(around);
    let calm = gaps(events.iter().filter_map(|one| one.calm).collect());
    let ms = |latencies: &Latencies, part| latencies.quantile(part) as f64 / 1e6;
    let aim = if event.changes_members() { Some(2.0 * ms(&calm, 0.99)) } else { transfer_aim };
    json!({
        "event": event.name(),
        "count": count,
        "failed": events.len() - count,
        "took_p50_ms": ms(&took, 0.5),
        "took_p99_ms": ms(&took, 0.99),
        "stall_p50_ms": ms(&stalls, 0.5),
        "stall_p99_ms": ms(&stalls, 0.99),
        "stall_max_ms": ms(&stalls, 1.0),
        "calm_p50_ms": ms(&calm, 0.5),
        "calm_p99_ms": ms(&calm, 0.99),
        "calm_max_ms": ms(&calm, 1.0),
        "aim_ms": aim,
    })
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
    fn calm_is_looked_at_for_as_long_as_an_event_but_not_over_the_event_before() {
        let event = crate::stall::Event::Transfer { to: 1 };
        let happened = |span| Happened { event, span };
        let events = [
            happened(Ok((1_000, 1_010))),
            happened(Err("refused".to_owned())),
            happened(Ok((1_250, 1_500))),
        ];
        let windows = windows(&events, 100, 0);
        let spans: Vec<_> = windows.iter().map(|one| (one.around, one.calm)).collect();
        assert_eq!(spans[0], (Some((1_000, 1_100)), Some((900, 1_000))));
        assert_eq!(spans[1], (None, None));
        assert_eq!(spans[2], (Some((1_250, 1_500)), Some((1_100, 1_250))), "calm from 1,100 on");
    }

    #[test]
    fn a_stall_that_does_not_end_is_as_long_as_what_was_looked_at() {
        assert_eq!(longest_gap(&acks(&[10, 20]), (15, 500)), 480);
        assert_eq!(longest_gap(&[], (15, 500)), 485);
    }
}
