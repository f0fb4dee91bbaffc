//! How many reads a cluster answers, by how fresh they are, alone and beside writes.
//!
//! | kind | what it costs |
//! |---|---|
//! | lease | nothing but the answer, while a quorum has promised not to elect another leader |
//! | quorum | a round of heartbeats, shared by the reads that wait |
//! | follower | a question to the leader, which asks its quorum |
//! | stale | nothing but the answer |
//!
//! Every run keeps the same number of operations under way. Writes alone are the measure.

mod client;
mod embedded;
mod mix;

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shardhost::ReadMode;

use embedded::ReadTask;
pub use embedded::{ReadMeasured, ReadNode};

use super::arguments::{MachineKind, Mode, Output, Threads, WriteArguments};
use super::nodes::{Layout, Nodes};
use super::report::{self, Latencies};
use embedded::Reads;
use mix::Mix;

/// How the read benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct ReadArguments {
    /// Who reads and writes.
    #[arg(long, value_enum, default_value_t = Mode::Embedded)]
    pub mode: Mode,
    /// Number of groups.
    #[arg(long, default_value_t = 48)]
    pub groups: u64,
    /// Operations under way at any moment, over all nodes.
    #[arg(long, default_value_t = 64)]
    pub outstanding: usize,
    /// Seconds to measure each run, after at most two to warm up.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Percent of the operations that are writes, where reads and writes are mixed.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub writes: u64,
    /// The kinds of reads. By default all that the mode knows: clients ask no followers.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub kinds: Vec<ReadKind>,
    /// What the groups do. Clients always read tables.
    #[arg(long, value_enum, default_value_t = MachineKind::Trivial)]
    pub machine: MachineKind,
    #[command(flatten)]
    pub threads: Threads,
    #[command(flatten)]
    pub output: Output,
}

/// How fresh the reads are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadKind {
    /// Linearizable, under the lease of the leader.
    Lease,
    /// Linearizable, by a round of a quorum.
    Quorum,
    /// Linearizable, from a follower that asks its leader.
    Follower,
    /// Whatever a replica has.
    Stale,
}

impl ReadKind {
    const fn mode(self) -> ReadMode {
        match self {
            Self::Lease => ReadMode::Lease,
            Self::Quorum => ReadMode::Linearizable,
            Self::Follower => ReadMode::Follower,
            Self::Stale => ReadMode::Stale,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Quorum => "quorum",
            Self::Follower => "follower",
            Self::Stale => "stale",
        }
    }
}

/// One run of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RunKind {
    /// The kind of reads; `None`: none.
    reads: Option<ReadKind>,
    percent_writes: u64,
}

/// A run and its measurements.
struct Run {
    kind: RunKind,
    measured: Vec<ReadMeasured>,
    client_cpu_seconds: Option<f64>,
}

/// How long anything may take that has no other bound.
const TIMEOUT: Duration = Duration::from_secs(120);
const NODES: u64 = 3;

impl ReadArguments {
    fn layout(&self) -> Layout {
        Layout {
            nodes: NODES,
            groups: self.groups,
            machine: self.machine,
            threads: self.threads,
            tls: false,
        }
    }

    const fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn warm_up(&self) -> Duration {
        (self.duration() / 4).min(super::write::WARM_UP)
    }

    /// Writes alone, then each kind of read alone and mixed with writes.
    fn runs(&self) -> Vec<RunKind> {
        let all: &[ReadKind] = match self.mode {
            Mode::Embedded => {
                &[ReadKind::Lease, ReadKind::Quorum, ReadKind::Follower, ReadKind::Stale]
            }
            Mode::Client => &[ReadKind::Lease, ReadKind::Quorum, ReadKind::Stale],
        };
        let kinds = if self.kinds.is_empty() { all } else { &self.kinds };
        let mut runs = vec![RunKind { reads: None, percent_writes: 100 }];
        for kind in kinds {
            for percent_writes in [0, self.writes] {
                runs.push(RunKind { reads: Some(*kind), percent_writes });
            }
        }
        runs.dedup();
        runs
    }
}

/// Runs the benchmark and reports.
pub async fn run(arguments: &ReadArguments) -> anyhow::Result<()> {
    if arguments.mode == Mode::Client && arguments.kinds.contains(&ReadKind::Follower) {
        bail!("clients do not ask followers; leave `follower` out of --kinds");
    }
    let data = arguments.output.data()?;
    let runs = match arguments.mode {
        Mode::Embedded => embedded_runs(arguments, data.path()).await?,
        Mode::Client => client::runs(arguments, data.path()).await?,
    };
    report(arguments, &runs);
    Ok(())
}

async fn embedded_runs(arguments: &ReadArguments, directory: &Path) -> anyhow::Result<Vec<Run>> {
    let mut nodes = Nodes::start(&arguments.layout(), directory).await?;
    nodes.spread(TIMEOUT).await?;
    let machine = arguments.machine;
    if machine == MachineKind::Table {
        nodes.all_do(&ReadTask::Fill { machine }, TIMEOUT).await?;
    }
    let mut runs = Vec::new();
    for kind in arguments.runs() {
        let within = TIMEOUT + arguments.duration();
        let measured = nodes.each(tasks(arguments, kind), within).await?;
        runs.push(Run { kind, measured, client_cpu_seconds: None });
    }
    nodes.end().await?;
    Ok(runs)
}

/// What each node does in a run.
fn tasks(arguments: &ReadArguments, kind: RunKind) -> impl Iterator<Item = ReadTask> {
    let (warm_up, duration) = (arguments.warm_up(), arguments.duration());
    let machine = arguments.machine;
    let writes = WriteArguments {
        groups: arguments.groups,
        outstanding: arguments.outstanding,
        seconds: arguments.seconds,
        machine,
        ..WriteArguments::default()
    };
    // Outstanding operations are shared as the groups are.
    let upto = |nodes: usize| arguments.outstanding * nodes / NODES as usize;
    let share = [0, 1, 2].map(|before| upto(before + 1) - upto(before));
    share.into_iter().map(move |outstanding| match kind.reads {
        None => ReadTask::Writes { arguments: writes.clone(), warm_up },
        Some(kind_of_read) => ReadTask::Reads(Reads {
            kind: kind_of_read,
            mix: Mix { percent_writes: kind.percent_writes },
            machine,
            outstanding,
            warm_up,
            duration,
        }),
    })
}

/// The columns for each run, and their digits behind the point.
const COLUMNS: [(&str, usize); 10] = [
    ("reads_per_second", 0),
    ("read_p50_us", 1),
    ("read_p99_us", 1),
    ("writes_per_second", 0),
    ("write_p50_us", 0),
    ("write_p99_us", 0),
    ("cpu_us_per_read", 2),
    ("cpu_us_per_operation", 2),
    ("failed", 0),
    ("to_writes_alone", 1),
];

fn report(arguments: &ReadArguments, runs: &[Run]) {
    let alone = runs.first().map_or(0.0, |run| run.per_second(|one| one.mixed.writes.succeeded));
    let rows: Vec<Value> = runs.iter().map(|run| run.figures(alone)).collect();
    if arguments.output.json {
        let figures = json!({
            "mode": arguments.mode,
            "machine": arguments.machine,
            "groups": arguments.groups,
            "outstanding": arguments.outstanding,
            "percent_writes": arguments.writes,
            "seconds": arguments.seconds,
            "runs": rows,
        });
        println!("{figures}");
    } else {
        println!("{}", report::table("run", &COLUMNS, &rows));
    }
}

impl Run {
    fn seconds(&self) -> f64 {
        self.measured.iter().map(|one| one.usage.seconds).fold(0.001, f64::max)
    }

    fn sum(&self, pick: impl Fn(&ReadMeasured) -> f64) -> f64 {
        self.measured.iter().map(pick).sum()
    }

    fn per_second(&self, pick: impl Fn(&ReadMeasured) -> u64) -> f64 {
        self.sum(|one| pick(one) as f64) / self.seconds()
    }

    fn name(&self) -> String {
        match self.kind {
            RunKind { reads: None, .. } => "writes".to_owned(),
            RunKind { reads: Some(kind), percent_writes: 0 } => kind.name().to_owned(),
            RunKind { reads: Some(kind), percent_writes } => {
                format!("{} and {percent_writes} % writes", kind.name())
            }
        }
    }

    /// `alone` is how many writes a second there are without reads.
    fn figures(&self, alone: f64) -> Value {
        let reads = self.per_second(|one| one.mixed.reads.succeeded);
        let writes = self.per_second(|one| one.mixed.writes.succeeded);
        let cpu = self.sum(|one| one.usage.cpu_seconds);
        let per_operation = cpu * 1e6 / ((reads + writes) * self.seconds()).max(1.0);
        let failed = |one: &ReadMeasured| (one.mixed.reads.failed + one.mixed.writes.failed) as f64;
        let mut figures = json!({
            "run": self.name(),
            "cpu_us_per_operation": per_operation,
            "cores": cpu / self.seconds(),
            "failed": self.sum(failed),
        });
        if let Some(used) = self.client_cpu_seconds {
            figures["client_cores"] = json!(used / self.seconds());
        }
        let pairs = |one: &ReadMeasured| one.mixed.reads.latencies_ns.clone();
        if self.kind.reads.is_some() {
            let latencies = Latencies::of(self.measured.iter().flat_map(pairs));
            figures["reads_per_second"] = json!(reads);
            figures["read_p50_us"] = json!(latencies.quantile(0.5) as f64 / 1e3);
            figures["read_p99_us"] = json!(latencies.quantile(0.99) as f64 / 1e3);
            figures["to_writes_alone"] = json!(reads / alone.max(1.0));
        }
        let pairs = |one: &ReadMeasured| one.mixed.writes.latencies_ns.clone();
        if self.kind.percent_writes > 0 {
            let latencies = Latencies::of(self.measured.iter().flat_map(pairs));
            figures["writes_per_second"] = json!(writes);
            figures["write_p50_us"] = json!(latencies.quantile(0.5) as f64 / 1e3);
            figures["write_p99_us"] = json!(latencies.quantile(0.99) as f64 / 1e3);
        } else {
            figures["cpu_us_per_read"] = json!(per_operation);
        }
        figures
    }
}
