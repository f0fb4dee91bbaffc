//! `shardhost demo`: three real hosts, of which one lacks what the queues require, a real input, a
//! SIGKILL, a fourth host that joins, a host that is lost for good and a restart of the others without
//! any interruption while writes continue, and a verification of every acknowledged write.
//!
//! | where | what |
//! |---|---|
//! | [`act`] | what happens: the kill, the election, the host that joins, the loss, the restart |
//! | [`join`] | a host gets its part of the replicas and of the leaderships |
//! | [`loss`] | a host is lost, and the cluster replaces its replicas |
//! | [`service`] | that the host without a capability never serves who requires it |
//! | [`rates`] | what each host did meanwhile |
//! | [`report`] | what people and programs are shown |
//!
//! The hosts, the load and the verification are those of every [`trial`](super::trial).

mod act;
mod join;
mod loss;
mod rates;
mod report;
mod service;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use self::service::CAPABILITY;
use super::trial::input::Input;
use super::trial::nodes::{Layout, Nodes};
use super::trial::screen::Screen;
use super::trial::{interruption, temporary_directory};

/// How the demo runs.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// The file whose lines are loaded; Debian's word list by default.
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Lines to load; all by default.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    lines: Option<u32>,
    /// Writes that begin per second while things happen; the rest follows as fast as it goes.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Host processes, to which one more joins; with fewer than three the cluster would not survive
    /// the loss of one.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=9))]
    nodes: u64,
    /// Shards of the table.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    tables: u64,
    /// Shards of the queue.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    queues: u64,
    /// Where the temporary directory with the data is made; decides which disk is used.
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// Leave the hosts running at the end.
    #[arg(long)]
    keep: bool,
    /// Print JSON at the end, and events to standard error.
    #[arg(long)]
    json: bool,
    /// Put the expectation wrong on purpose, to show that the verification can fail.
    #[arg(long, hide = true, value_enum)]
    sabotage: Option<Sabotage>,
}

/// The error that is put into the expectation.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sabotage {
    /// One value of the table is another.
    Value,
    /// One message is not expected.
    ForgottenMessage,
    /// One message is expected that was never sent.
    InventedMessage,
    /// The host that joins is expected to have got nothing.
    EmptyHost,
    /// One replica of the host that is lost is expected to be missing.
    MissingReplica,
}

/// Runs the demo. Whatever happens, no host process and no data stay behind, unless asked for.
pub async fn run(arguments: &DemoArguments) -> anyhow::Result<ExitCode> {
    let lines = arguments.lines.map(|lines| lines as usize);
    let input = Input::read(arguments.load.as_deref(), lines)?;
    let layout = Layout {
        nodes: arguments.nodes,
        joining: 1,
        tables: arguments.tables,
        queues: arguments.queues,
        queues_require: Some(CAPABILITY),
    };
    let directory = temporary_directory("shardhost-demo-", arguments.directory.as_deref())?;
    let mut nodes = Nodes::new(layout, directory.path());
    let screen = Screen::new(arguments.json);
    let ended = tokio::select! {
        ended = act::run(arguments, layout, input, &mut nodes, &screen) => ended,
        interrupted = interruption() => Err(interrupted),
    };
    match ended {
        Ok(code) if arguments.keep => {
            keep(nodes, directory, arguments.json).await?;
            Ok(code)
        }
        ended => {
            nodes.end().await;
            directory.close().context("the data of the demo cannot be removed")?;
            ended
        }
    }
}

async fn keep(nodes: Nodes, directory: tempfile::TempDir, json: bool) -> anyhow::Result<()> {
    let running = nodes.running();
    let mut lost = nodes.addresses().keys().filter(|node| !running.contains_key(node));
    let at = running.values().cloned().collect::<Vec<_>>().join(",");
    let ids = nodes.process_ids().into_values().map(|id| id.to_string()).collect::<Vec<_>>();
    if ids.is_empty() {
        bail!("no host runs");
    }
    let environment = nodes.environment();
    let (ids, path) = (ids.join(" "), directory.path().display().to_string());
    let mut text = format!(
        "\nthe cluster continues\n  be its user: export {environment}\n  look at it:  shardhost status --at {at}\n  stop it:     kill \
         {ids}\n  its data:    {path}, to be removed afterwards"
    );
    if let Some(node) = lost.next() {
        text += &format!(
            "\n  node {node}:      lost; shardhost node remove {node} --at {at} forgets it"
        );
    }
    if json {
        eprintln!("{text}")
    } else {
        println!("{text}")
    }
    nodes.release().await?;
    // From here on it belongs to the hosts that continue.
    drop(directory.keep());
    Ok(())
}
