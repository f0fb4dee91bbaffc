//! The program `shardhost-bench`: measurements with real processes on this machine.
//!
//! The parent starts one child per node. Children and parent talk in lines of JSON over standard
//! input and output: the children bind free ports and report them, the parent sends all addresses
//! to all of them, and at the end collects what they measured.

mod arguments;
mod balance;
mod bootstrap;
mod certificates;
mod client;
mod crowd;
mod drain;
mod draining;
mod flow;
mod handshakes;
mod hosting;
mod idle;
mod join;
mod kill;
mod machine;
mod matrix;
mod member;
mod nodes;
mod part;
mod process;
mod read;
mod replace;
mod replicas;
mod report;
mod restart;
mod snapshot;
mod stall;
mod tally;
mod task;
mod write;

use clap::{Parser, Subcommand};

use arguments::{MachineKind, Mode, WriteArguments};
use balance::BalanceArguments;
use bootstrap::BootstrapArguments;
use drain::DrainArguments;
use handshakes::HandshakesArguments;
use idle::IdleArguments;
use join::JoinArguments;
use kill::KillArguments;
use matrix::MatrixArguments;
use part::Parts;
use read::ReadArguments;
use replace::ReplaceArguments;
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
    /// How long writes are paused when leadership is transferred or members change.
    Stall(StallArguments),
    /// How soon groups with state are back after all hosts were killed.
    Restart(RestartArguments),
    /// What idle groups cost, and how soon all are led after all hosts were killed.
    Idle(IdleArguments),
    /// How soon the shards of a fresh cluster are led, and one more that is created by hand.
    Bootstrap(BootstrapArguments),
    /// How long a node takes to hand on everything that it leads.
    Drain(DrainArguments),
    /// How soon groups serve again when the node that leads all of them is killed.
    Kill(KillArguments),
    /// How long it takes from all leaders on one node to the best placement.
    Balance(BalanceArguments),
    /// How long it takes until every replica of a node that is lost for good is replaced.
    Replace(ReplaceArguments),
    /// How long it takes until a node that joins holds its part of the replicas.
    Join(JoinArguments),
    /// What TLS connections that are refused cost those who write meanwhile.
    Handshakes(HandshakesArguments),
    /// How a node that is far behind catches up by snapshot, and what that does to writers.
    Snapshot(SnapshotArguments),
    /// One node of a benchmark; started by the others.
    #[command(hide = true)]
    Node,
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
        Command::Bootstrap(arguments) => bootstrap::run(&arguments).await?,
        Command::Drain(arguments) => drain::run(&arguments).await?,
        Command::Kill(arguments) => kill::run(&arguments).await?,
        Command::Balance(arguments) => balance::run(&arguments).await?,
        Command::Replace(arguments) => replace::run(&arguments).await?,
        Command::Join(arguments) => join::run(&arguments).await?,
        Command::Handshakes(arguments) => handshakes::run(&arguments).await?,
        Command::Snapshot(arguments) => snapshot::run(&arguments).await?,
        Command::Node => member::run(parts()).await?,
    }
    Ok(())
}

/// The parts of all benchmarks: a new one is named here, and as a command.
fn parts() -> Parts {
    Parts::default()
        .with::<balance::BalanceNode>()
        .with::<draining::DrainNode>()
        .with::<flow::FlowNode>()
        .with::<bootstrap::FoundNode>()
        .with::<handshakes::HandshakesNode>()
        .with::<kill::KillNode>()
        .with::<read::ReadNode>()
        .with::<replicas::ReplicasNode>()
        .with::<restart::RestartNode>()
        .with::<snapshot::SnapshotNode>()
        .with::<stall::StallNode>()
        .with::<write::WriteNode>()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    /// An argument that two structs of one command define is refused whatever is given.
    #[test]
    fn no_argument_of_a_command_is_there_twice() {
        super::Arguments::command().debug_assert();
    }
}
