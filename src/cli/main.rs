//! The program `shardhost`. Each subcommand has a file; what they print goes to standard output, what
//! goes wrong to standard error, with the thing to do.
//!
//! The program ends with 0 when all went well, 1 when something went wrong, 2 when the
//! arguments make no sense, and 3 when something remains undone or unknown that it names.

// Before all others, which print with its macros.
#[macro_use]
mod shown;

mod advance_time;
mod balance;
mod catalog;
mod cert;
mod change;
mod cluster;
mod create;
mod decommission;
mod demo;
mod drain;
mod ended;
mod fill;
mod group;
mod group_status;
mod join;
mod leader;
mod leader_of_catalog;
mod logging;
mod member;
mod node;
mod observe;
mod output;
mod place;
mod planner;
mod policy_metrics;
mod queue;
mod reached;
mod rebuild;
mod replacing;
mod replicas;
mod requirement;
mod rolling_restart;
mod rule;
mod ruled;
mod security;
mod serve;
mod skip;
mod snapshot;
mod status;
mod supervised;
mod table;
mod target;
mod token;
mod trial;
mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A Multi-Raft shard host: thousands of Raft groups in one process.
#[derive(Debug, Parser)]
#[command(name = "shardhost", bin_name = "shardhost", version, about, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    security: security::SecurityArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a host of tables and queues until it is stopped.
    Serve(Box<serve::ServeArguments>),
    /// Load a real input into three hosts, kill one, let a fourth join, lose one for good, and verify every
    /// write.
    Demo(demo::DemoArguments),
    /// Show the nodes of a cluster.
    Status(status::StatusArguments),
    /// Show the groups of a node, create and destroy groups, change what they require.
    #[command(subcommand)]
    Group(group::Command),
    /// Show the nodes of the cluster, empty one, remove one.
    #[command(subcommand)]
    Node(node::Command),
    /// Show the version that the cluster uses, and raise it after an upgrade.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Move leadership, and explain it.
    #[command(subcommand)]
    Leader(leader::Command),
    /// Hand on every leadership of a node, and take it back.
    #[command(subcommand)]
    Drain(drain::Command),
    /// Restart every host of a cluster, one after the other, without client-visible errors.
    RollingRestart(rolling_restart::RollingRestartArguments),
    /// Show which leaderships would better be elsewhere, and move them.
    #[command(subcommand)]
    Balance(balance::Command),
    /// Show which replicas are moved automatically, and switch that.
    #[command(subcommand)]
    Replicas(replicas::Command),
    /// Show and change who belongs to a group.
    #[command(subcommand)]
    Member(member::Command),
    /// Take and show snapshots.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Make certificates for a test or a small cluster, and show them.
    #[command(subcommand)]
    Cert(cert::Command),
    /// Make, show and remove tokens of users.
    #[command(subcommand)]
    Token(token::Command),
    /// Read and write the table.
    #[command(subcommand)]
    Table(table::Command),
    /// Send to and receive from the queue.
    #[command(subcommand)]
    Queue(queue::Command),
}

impl Command {
    /// The log level unless the environment sets another one.
    const fn log_level(&self) -> &'static str {
        match self {
            Self::Serve(_) => "info",
            // They say themselves what went wrong.
            _ => "error",
        }
    }
}

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Runs the command that the arguments name.
fn main() -> ExitCode {
    let mut given = std::env::args().skip(1);
    if given.next().as_deref() == Some(logging::EXIT) {
        let code = given.next().and_then(|code| code.parse().ok());
        return ExitCode::from(code.unwrap_or(1));
    }
    let arguments = Arguments::try_parse().unwrap_or_else(|error| refuse(&error));
    let ended = match logging::start(arguments.command.log_level()) {
        Ok(()) => run(arguments.command, &arguments.security)
            .unwrap_or_else(|error| logging::failed(&error)),
        Err(error) => {
            logging::failed(&error);
            ExitCode::from(2)
        }
    };
    logging::flush();
    ended
}

/// Ends the program with what is wrong with the arguments, or with the help that was asked for.
fn refuse(error: &clap::Error) -> ! {
    let plain = error.to_string();
    let safe = shown::lines(&plain);
    // It quotes arguments as they are.
    if safe != plain {
        std::eprintln!("{}", safe.trim_end());
        std::process::exit(error.exit_code());
    }
    error.exit()
}

fn run(command: Command, security: &security::SecurityArguments) -> anyhow::Result<ExitCode> {
    match &command {
        // It reads its own.
        Command::Serve(_) => {}
        Command::Cert(command) => return cert::run(command),
        _ => security.apply()?,
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // One more than one: what holds a thread up for a moment must not hide a signal.
        .worker_threads(
            std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8)),
        )
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Serve(arguments) => serve::run(*arguments, security).await,
            Command::Demo(arguments) => demo::run(&arguments).await,
            Command::Status(arguments) => status::run(&arguments).await,
            Command::Group(command) => group::run(&command).await,
            Command::Node(command) => node::run(&command).await,
            Command::Cluster(command) => cluster::run(&command).await,
            Command::Leader(command) => leader::run(&command).await,
            Command::Drain(command) => drain::run(&command).await,
            Command::RollingRestart(arguments) => rolling_restart::run(&arguments).await,
            Command::Balance(command) => balance::run(&command).await,
            Command::Replicas(command) => replicas::run(&command).await,
            Command::Member(command) => member::run(&command).await,
            Command::Snapshot(command) => snapshot::run(&command).await,
            // It needs no runtime, and returned above.
            Command::Cert(command) => cert::run(&command),
            Command::Token(command) => token::run(&command).await,
            Command::Table(command) => table::run(command).await,
            Command::Queue(command) => queue::run(command).await,
        }
    })
}
