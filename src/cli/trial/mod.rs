//! A cluster of real processes under a load of real lines, and the verification of every write
//! that was acknowledged: what the demo and the check of a rolling restart share.
//!
//! | where | what |
//! |---|---|
//! | [`input`] | the lines that are loaded |
//! | [`nodes`] | the host processes |
//! | [`load`], [`pace`] | the writes, each until it is acknowledged, at a rate |
//! | [`book`] | what was acknowledged |
//! | [`verify`], [`findings`] | the present content, compared with the ledger |
//! | [`shares`] | whether each host has a fair part |
//! | [`under_load`] | an event under load |
//! | [`balance`] | leaderships moved until it is fair |
//! | [`restart`], [`drain`] | one host drained, stopped, started, and caught up |
//! | [`screen`] | events as they happen |

pub mod balance;
pub mod book;
pub mod certificates;
pub mod drain;
pub mod findings;
pub mod input;
pub mod load;
pub mod nodes;
pub mod pace;
pub mod restart;
pub mod screen;
pub mod shares;
pub mod under_load;
pub mod verify;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// How long an operation may take before it is given up.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A directory that is removed at the end, below another one or where the system has them.
pub fn temporary_directory(name: &str, within: Option<&Path>) -> anyhow::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(name);
    match within {
        None => builder.tempdir().context("cannot make a temporary directory"),
        Some(path) => {
            std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
            builder.tempdir_in(path).with_context(|| path.display().to_string())
        }
    }
}

/// An error once this process is asked to end.
pub async fn interruption() -> anyhow::Error {
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
