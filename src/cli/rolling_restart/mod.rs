//! `shardhost rolling-restart`: every host of a cluster restarted, one after the other, without
//! client-visible errors.
//!
//! [`cluster`] does it to a real cluster: the operator knows how a host is restarted. [`check`]
//! shows on hosts that it starts, under load, that no client notices.

mod check;
mod cluster;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args};

use super::target::Target;

/// Which hosts are restarted, and how.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("how").args(["check", "with"]).required(true)))]
pub struct RollingRestartArguments {
    /// Start three hosts, write to them all the while, restart each, and verify every write.
    #[arg(long)]
    check: bool,
    /// Restart the hosts of a running cluster with this command of the shell, which finds the number
    /// of the host in SHARDHOST_NODE. It is run when the host is drained.
    #[arg(long, value_name = "COMMAND", value_parser = NonEmptyStringValueParser::new())]
    with: Option<String>,
    /// How long each host may take to come back, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(..=86_400))]
    deadline: u64,
    #[command(flatten)]
    check_arguments: CheckArguments,
    #[command(flatten)]
    target: Target,
}

/// How the check runs.
#[derive(Clone, Debug, Args)]
struct CheckArguments {
    /// Of a check: the file whose lines are written; Debian's word list by default.
    #[arg(long, value_name = "FILE", requires = "check")]
    load: Option<PathBuf>,
    /// Of a check: lines to write; all by default.
    #[arg(long, value_name = "COUNT", requires = "check",
          value_parser = clap::value_parser!(u32).range(1..))]
    lines: Option<u32>,
    /// Of a check: writes that begin per second.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Of a check: shards of the table, and as many of the queue.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    shards: u64,
    /// Of a check: where the temporary directory with the data is made.
    #[arg(long, value_name = "DIRECTORY", requires = "check")]
    directory: Option<PathBuf>,
}

/// Restarts, or shows how.
pub async fn run(arguments: &RollingRestartArguments) -> anyhow::Result<ExitCode> {
    match &arguments.with {
        Some(command) => {
            let deadline = std::time::Duration::from_secs(arguments.deadline);
            cluster::run(command, deadline, &arguments.target).await
        }
        None => check::run(&arguments.check_arguments, arguments.target.json).await,
    }
}
