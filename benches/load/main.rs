//! The program `shardhost-bench`: measurements with real processes on this machine.
//!
//! The parent starts one child per node. Children and parent talk in lines of JSON over standard
//! input and output: the children bind free ports and say which, the parent tells all of them,
//! and at the end collects what they measured.

mod balance;
mod child;
mod client;
mod crowd;
mod drain;
mod flow;
mod found;
mod hosting;
mod idle;
mod kill;
mod machine;
mod matrix;
mod nodes;
mod process;
mod read;
mod report;
mod restart;
mod snapshot;
mod stall;
mod tally;
mod write;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use balance::BalanceArguments;
use drain::DrainArguments;
use found::FoundArguments;
use kill::KillArguments;
use read::ReadArguments;
use restart::RestartArguments;
use snapshot::SnapshotArguments;
use stall::StallArguments;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures what this machine can do, with real host processes.
#[derive(Debug, Parser)]
#[command(name = "shardhost-bench", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// What to measure.
#[derive(Debug, Subcommand)]
enum Command {
    /// Writes per second and their latency, on three host processes with fsync on.
    Write(WriteArguments),
    /// Writes in many shapes, as one table; takes five minutes.
    Matrix(MatrixArguments),
    /// Reads per second by how fresh they are, alone and mixed with writes.
    Read(ReadArguments),
    /// How long writes stand still when leadership is handed over or members change.
    Stall(StallArguments),
    /// How soon groups with state are back after all hosts were killed.
    Restart(RestartArguments),
    /// What idle groups cost, and how soon all are led after all hosts were killed.
    Idle(IdleArguments),
    /// How soon the shards of a fresh cluster are led, and one more that is created by hand.
    Found(FoundArguments),
    /// How long a node takes to hand on everything that it leads.
    Drain(DrainArguments),
    /// How soon groups serve again when the node that leads all of them is killed.
    Kill(KillArguments),
    /// How long it takes from all leaders on one node to the best placement.
    Balance(BalanceArguments),
    /// How a node that is far behind catches up by snapshot, and what that does to writers.
    Snapshot(SnapshotArguments),
    /// One node of a benchmark; started by the others.
    #[command(hide = true)]
    Node,
}

/// How a write benchmark runs.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub struct WriteArguments {
    /// Who writes.
    #[arg(long, value_enum, default_value_t = Mode::Embedded)]
    pub mode: Mode,
    /// Number of groups.
    #[arg(long, default_value_t = 48)]
    pub groups: u64,
    /// Bytes of a write.
    #[arg(long, default_value_t = 16)]
    pub size: usize,
    /// Writes under way at any moment, over all nodes.
    #[arg(long, default_value_t = 4096)]
    pub outstanding: usize,
    /// Seconds to measure, after two to warm up.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Writes per second to offer, whatever the answers; 0: as fast as answers come.
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
    /// What the groups do with a write. Clients always write to tables.
    #[arg(long, value_enum, default_value_t = MachineKind::Trivial)]
    pub machine: MachineKind,
    /// Number of host processes.
    #[arg(long, default_value_t = 3)]
    pub nodes: u64,
    /// Threads for Raft in each process.
    #[arg(long, default_value_t = 1)]
    pub workers: usize,
    /// Threads for state machines in each process.
    #[arg(long, default_value_t = 1)]
    pub apply_threads: usize,
    /// Where the data stands; a temporary directory unless set. Decides which disk is measured.
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Draw the distribution of latencies into this file (SVG).
    #[arg(long)]
    pub chart: Option<PathBuf>,
}

/// How a row of write benchmarks runs.
#[derive(Clone, Debug, Args)]
pub struct MatrixArguments {
    /// Seconds to measure each shape, after two to warm up.
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// Where the data stands; a temporary directory unless set.
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// Print a line of JSON for each shape instead of a table.
    #[arg(long)]
    pub json: bool,
}

impl Default for WriteArguments {
    fn default() -> Self {
        Self {
            mode: Mode::Embedded,
            groups: 48,
            size: 16,
            outstanding: 4096,
            seconds: 10,
            rate: 0,
            machine: MachineKind::Trivial,
            nodes: 3,
            workers: 1,
            apply_threads: 1,
            directory: None,
            json: false,
            chart: None,
        }
    }
}

/// How an idle benchmark runs.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub struct IdleArguments {
    /// Number of groups, each on every node.
    #[arg(long, default_value_t = 10_000)]
    pub groups: u64,
    /// Seconds to measure once all groups sleep.
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    /// Where the data stands; a temporary directory unless set.
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The host processes themselves, each to the groups that it leads, as a user of the library
    /// does.
    Embedded,
    /// A process of its own, over gRPC, to the tables of `shardhost serve`.
    Client,
}

/// What groups do with a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineKind {
    /// Count it: measures the host itself.
    Trivial,
    /// Put it into a table on disk.
    Table,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("SHARDHOST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(arguments.command))
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Write(mut arguments) if arguments.mode == Mode::Client => {
            arguments.machine = MachineKind::Table;
            client::run(&arguments).await?;
        }
        Command::Write(arguments) => write::run(&arguments).await?,
        Command::Matrix(arguments) => matrix::run(&arguments).await?,
        Command::Read(mut arguments) => {
            if arguments.mode == Mode::Client {
                arguments.machine = MachineKind::Table;
            }
            read::run(&arguments).await?;
        }
        Command::Stall(mut arguments) => {
            if arguments.mode == Mode::Client {
                arguments.machine = MachineKind::Table;
            }
            stall::run(&arguments).await?;
        }
        Command::Restart(arguments) => restart::run(&arguments).await?,
        Command::Idle(arguments) => idle::run(&arguments).await?,
        Command::Found(arguments) => found::run(&arguments).await?,
        Command::Drain(arguments) => drain::run(&arguments).await?,
        Command::Kill(arguments) => kill::run(&arguments).await?,
        Command::Balance(arguments) => balance::run(&arguments).await?,
        Command::Snapshot(arguments) => snapshot::run(&arguments).await?,
        Command::Node => child::run().await?,
    }
    Ok(())
}
