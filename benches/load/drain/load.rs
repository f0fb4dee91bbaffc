//! Writes while a node drains: a part of what the node can write at most, some of it to probes.

use std::time::Duration;

use anyhow::bail;
use serde_json::{Map, Value, json};

use crate::arguments::WriteArguments;
use crate::crowd::{LEADER, TIMEOUT};
use crate::flow::{Flow, FlowTask, Flowed};
use crate::nodes::Nodes;
use crate::process::now_ns;
use crate::report::Latencies;
use crate::stall::{StallAnswer, StallTask};
use crate::tally::Counted;
use crate::write::WriteTask;

/// Seconds for which it is measured how much can be written.
const MEASURED_S: u64 = 4;
/// Writes under way meanwhile, at the node that leads everything: its part of three times as many.
const OUTSTANDING: usize = 3 * 4_096;
/// How long the writes flow before the node drains: half of it is a measure of calm.
const CALM: Duration = Duration::from_secs(4);
/// How long they flow on.
const AFTERWARDS: Duration = Duration::from_millis(500);
/// Between two writes to a probe: two acknowledgements are so far apart at least.
const PROBE_EVERY: Duration = Duration::from_millis(5);
const PROBES: u64 = 100;
/// For how long rounds of a quorum are timed.
const ROUNDS: Duration = Duration::from_secs(1);

/// Writes that flow, and what the setup is capable of.
pub struct Load {
    sustained: f64,
    offered: u64,
    probes: u64,
    /// How long a round of a quorum took, and a write of a log.
    rounds: Latencies,
    /// When the node began to drain.
    from_ns: u64,
}

impl Load {
    /// Measures how much can be written, and begins to write that part of it.
    pub async fn begin(nodes: &mut Nodes, groups: u64, fraction: f64) -> anyhow::Result<Self> {
        let sustained = sustained(nodes, groups).await?;
        let rounds = took(nodes, StallTask::RoundTrips { group: 1, lasting: ROUNDS }).await?;
        let offered = (sustained * fraction) as u64;
        let per_probe = 1_000_000_000 / PROBE_EVERY.as_nanos() as u64;
        let probes = (offered / 2 / per_probe).clamp(1, PROBES.min(groups));
        let flow = Flow {
            rate: offered.saturating_sub(probes * per_probe),
            probes,
            probe_every_ns: PROBE_EVERY.as_nanos() as u64,
            ..Flow::to_counters(groups, now_ns()?)
        };
        nodes.all_do(&FlowTask::Begin(flow), TIMEOUT).await?;
        took(nodes, StallTask::LogWrites).await?;
        tokio::time::sleep(CALM).await;
        let rounds = latencies(&rounds);
        Ok(Self { sustained, offered, probes, rounds, from_ns: now_ns()? })
    }

    /// Ends it after a drain that took so long, and returns the writers' figures.
    pub async fn end(
        self,
        nodes: &mut Nodes,
        took_by: Duration,
    ) -> anyhow::Result<Map<String, Value>> {
        let to_ns = self.from_ns + took_by.as_nanos() as u64;
        tokio::time::sleep(AFTERWARDS).await;
        let syncs = latencies(&took(nodes, StallTask::LogWrites).await?);
        let mut flowed = Flowed::default();
        for some in nodes.all_do(&FlowTask::End, TIMEOUT).await? {
            flowed.add(some);
        }
        let until = to_ns + AFTERWARDS.as_nanos() as u64 / 2;
        let window = (until - self.from_ns).min(CALM.as_nanos() as u64 / 2);
        let stalls =
            Latencies::of(flowed.stalls(self.from_ns, until).into_iter().map(|ns| (ns, 1)));
        let calm = flowed.stalls(self.from_ns - window, self.from_ns);
        let calm = Latencies::of(calm.into_iter().map(|ns| (ns, 1)));
        let writes = latencies(&flowed.counted);
        let aim = (4 * self.rounds.quantile(0.5) + 4 * syncs.quantile(0.99)).max(10_000_000);
        let figures = json!({
            "sustained_writes_per_second": self.sustained,
            "offered_writes_per_second": self.offered,
            "acknowledged": flowed.counted.succeeded,
            "told_who_leads": flowed.refused,
            "unknown_outcomes": flowed.unknown,
            "write_p50_ms": ms(writes.quantile(0.5)),
            "write_p99_ms": ms(writes.quantile(0.99)),
            "write_max_ms": ms(writes.quantile(1.0)),
            "probes": self.probes,
            "stall_p50_ms": ms(stalls.quantile(0.5)),
            "stall_p99_ms": ms(stalls.quantile(0.99)),
            "stall_max_ms": ms(stalls.quantile(1.0)),
            "calm_p50_ms": ms(calm.quantile(0.5)),
            "calm_p99_ms": ms(calm.quantile(0.99)),
            "calm_max_ms": ms(calm.quantile(1.0)),
            "round_trip_p50_ms": ms(self.rounds.quantile(0.5)),
            "log_write_p99_ms": ms(syncs.quantile(0.99)),
            "stall_aim_ms": ms(aim),
        });
        match figures {
            Value::Object(figures) => Ok(figures),
            _ => bail!("figures have names"),
        }
    }
}

fn ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

fn latencies(counted: &Counted) -> Latencies {
    Latencies::of(counted.latencies_ns.iter().copied())
}

/// Writes per second that the node that leads everything makes, as fast as answers come.
async fn sustained(nodes: &mut Nodes, groups: u64) -> anyhow::Result<f64> {
    let arguments = WriteArguments {
        groups,
        outstanding: OUTSTANDING,
        seconds: MEASURED_S,
        ..WriteArguments::default()
    };
    let measured = nodes.one_does(LEADER, &WriteTask(arguments), TIMEOUT).await?;
    Ok(measured.acknowledged as f64 / measured.usage.seconds)
}

/// How long something took at the node that leads.
async fn took(nodes: &mut Nodes, task: StallTask) -> anyhow::Result<Counted> {
    match nodes.one_does(LEADER, &task, TIMEOUT).await? {
        StallAnswer::Took(counted) => Ok(counted),
        other => bail!("node {LEADER} answers {other:?}"),
    }
}
