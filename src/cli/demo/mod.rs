//! `shardhost demo`: three real hosts, of which one lacks what the queues require, a real input, a
//! SIGKILL and a drain in the middle, and a verification of every write that was acknowledged.
//!
//! | where | what |
//! |---|---|
//! | [`input`] | the lines that are loaded |
//! | [`nodes`] | the host processes |
//! | [`load`] | the writes, each until it is acknowledged |
//! | [`act`] | what happens meanwhile: the kill, the election, the restart, the drain |
//! | [`service`] | that the host without a capability never serves who requires it |
//! | [`book`] | what was acknowledged |
//! | [`verify`] | what is there, compared with the book |
//! | [`observe`], [`rates`] | what the hosts say of themselves |
//! | [`screen`], [`report`] | what people and programs are shown |

mod act;
mod book;
mod drain;
mod findings;
mod input;
mod load;
mod nodes;
mod observe;
mod rates;
mod report;
mod screen;
mod service;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use self::input::Input;
use self::nodes::{Layout, Nodes};
use self::screen::Screen;

/// How long anything that ends by itself may take before the demo gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How the demo runs.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// The file whose lines are loaded; Debian's word list by default.
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Lines to load; all by default.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    lines: Option<u32>,
    /// Host processes; with fewer than three the cluster would not survive the loss of one.
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

/// What is put wrong in the expectation.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sabotage {
    /// One value of the table is another.
    Value,
    /// One message is not expected.
    ForgottenMessage,
    /// One message is expected that nobody sent.
    InventedMessage,
}

/// Runs the demo. Whatever happens, no host process and no data stay behind, unless asked for.
pub async fn run(arguments: &DemoArguments) -> anyhow::Result<ExitCode> {
    let lines = arguments.lines.map(|lines| lines as usize);
    let input = Input::read(arguments.load.as_deref(), lines)?;
    let layout =
        Layout { nodes: arguments.nodes, tables: arguments.tables, queues: arguments.queues };
    let directory = temporary_directory(arguments.directory.as_deref())?;
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

fn temporary_directory(within: Option<&Path>) -> anyhow::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("shardhost-demo-");
    match within {
        None => builder.tempdir().context("cannot make a temporary directory"),
        Some(path) => {
            std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
            builder.tempdir_in(path).with_context(|| path.display().to_string())
        }
    }
}

/// An error once somebody asks this process to end.
async fn interruption() -> anyhow::Error {
    let listen =
        || anyhow::Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?));
    let (mut interrupt, mut terminate) = match listen() {
        Ok(signals) => signals,
        Err(error) => return error.context("cannot listen for signals"),
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    anyhow::anyhow!("interrupted; the hosts are ended and their data is removed")
}

async fn keep(nodes: Nodes, directory: tempfile::TempDir, json: bool) -> anyhow::Result<()> {
    let addresses: Vec<&String> = nodes.addresses().values().collect();
    let at = addresses.iter().map(|address| address.as_str()).collect::<Vec<_>>().join(",");
    let ids = nodes.process_ids().into_values().map(|id| id.to_string()).collect::<Vec<_>>();
    if ids.is_empty() {
        bail!("no host runs");
    }
    let (ids, path) = (ids.join(" "), directory.path().display().to_string());
    let text = format!(
        "\nthe cluster goes on\n  look at it:  shardhost status --at {at}\n  stop it:     kill \
         {ids}\n  its data:    {path}, to be removed afterwards"
    );
    if json {
        eprintln!("{text}")
    } else {
        println!("{text}")
    }
    nodes.release().await?;
    // From here on it belongs to the hosts that go on.
    drop(directory.keep());
    Ok(())
}
