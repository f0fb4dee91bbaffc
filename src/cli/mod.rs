//! The command line. Each subcommand has a file; what they print goes to standard output, what
//! goes wrong to standard error, with the thing to do.
//!
//! The program ends with 0 when all went well, 1 when something went wrong, and 2 when the
//! arguments make no sense.

mod balance;
mod bench;
mod catalog;
mod demo;
mod drain;
mod fill;
mod group;
mod leader;
mod member;
mod observe;
mod output;
mod place;
mod planner;
mod policy_metrics;
mod queue;
mod reached;
mod rebuild;
mod requirement;
mod rolling_restart;
mod serve;
mod snapshot;
mod status;
mod supervised;
mod table;
mod target;
mod trial;
mod why;

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// A Multi-Raft shard host: thousands of Raft groups in one process.
#[derive(Debug, Parser)]
#[command(name = "shardhost", bin_name = "shardhost", version, about, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a host of tables and queues until it is told to stop.
    Serve(Box<serve::ServeArguments>),
    /// Load a real input into three hosts, kill one, let a fourth join, and verify every write.
    Demo(demo::DemoArguments),
    /// Measure how much this machine can do.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Show the nodes of a cluster.
    Status(status::StatusArguments),
    /// Show the groups of a node, create and destroy groups, change what they require.
    #[command(subcommand)]
    Group(group::Command),
    /// Move leadership, and explain it.
    #[command(subcommand)]
    Leader(leader::Command),
    /// Hand on every leadership of a node, and take it back.
    #[command(subcommand)]
    Drain(drain::Command),
    /// Restart every host of a cluster, one after the other, without anybody's noticing.
    RollingRestart(rolling_restart::RollingRestartArguments),
    /// Show which leaderships would better be elsewhere, and move them.
    #[command(subcommand)]
    Balance(balance::Command),
    /// Show and change who belongs to a group.
    #[command(subcommand)]
    Member(member::Command),
    /// Take and show snapshots.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Read and write the table.
    #[command(subcommand)]
    Table(table::Command),
    /// Send to and receive from the queue.
    #[command(subcommand)]
    Queue(queue::Command),
}

impl Command {
    /// What is logged unless the environment says otherwise.
    const fn log_level(&self) -> &'static str {
        match self {
            Self::Serve(_) => "info",
            Self::Bench(_) => "warn",
            // They say themselves what went wrong.
            _ => "error",
        }
    }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let level = arguments.command.log_level();
    let filter = match log_filter(std::env::var_os("SHARDHOST_LOG").as_deref(), level) {
        Ok(filter) => filter,
        Err(why) => {
            eprintln!("error: SHARDHOST_LOG is wrong: {why}");
            return ExitCode::from(2);
        }
    };
    // https://no-color.org
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && !no_color)
        .init();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is logged: as the environment says, if it says something.
fn log_filter(given: Option<&OsStr>, level: &str) -> Result<EnvFilter, String> {
    let Some(given) = given.filter(|given| !given.is_empty()) else {
        return Ok(EnvFilter::new(level));
    };
    let given = given.to_str().ok_or("it is not UTF-8")?;
    for directive in given.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let is_level = directive.parse::<LevelFilter>().is_ok();
        let names_level = directive.contains(['=', '[']);
        // A module alone silences all others, a misspelt level would too.
        if !is_level && !names_level && !directive.starts_with("shardhost") {
            return Err(format!(
                "`{directive}` is no level: those are off, error, warn, info, debug and trace; \
                 a module is written `module=level`"
            ));
        }
    }
    EnvFilter::builder().parse(given).map_err(|error| format!("`{given}`: {error}"))
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(std::thread::available_parallelism().map_or(2, |cores| cores.get().min(8)))
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Serve(arguments) => serve::run(*arguments).await,
            Command::Demo(arguments) => demo::run(&arguments).await,
            Command::Bench(command) => bench::run(command).await,
            Command::Status(arguments) => status::run(&arguments).await,
            Command::Group(command) => group::run(&command).await,
            Command::Leader(command) => leader::run(&command).await,
            Command::Drain(command) => drain::run(&command).await,
            Command::RollingRestart(arguments) => rolling_restart::run(&arguments).await,
            Command::Balance(command) => balance::run(&command).await,
            Command::Member(command) => member::run(&command).await,
            Command::Snapshot(command) => snapshot::run(&command).await,
            Command::Table(command) => table::run(command).await,
            Command::Queue(command) => queue::run(command).await,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_is_what_was_meant_or_it_is_refused() {
        let filter = |given: &str| log_filter(Some(OsStr::new(given)), "info");
        for good in
            ["", "debug", "WARN", "off", "shardhost=trace,warn", "h2=info", "shardhost::client"]
        {
            filter(good).unwrap();
        }
        for bad in ["debgu", "foo=bar=baz", "warn,verbose", "shardhost=loud"] {
            let refused = filter(bad).unwrap_err();
            assert!(refused.contains('`'), "{bad}: {refused}");
        }
        assert_eq!(log_filter(None, "warn").unwrap().to_string(), "warn");
    }
}
