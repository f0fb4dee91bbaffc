//! Arguments that several benchmarks share.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// Where the data is kept, and how figures are printed.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
pub struct Output {
    /// Where the data is kept; a temporary directory unless set. Decides which disk is measured.
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// A directory for the data; a temporary one is removed with this value.
pub struct Data {
    path: PathBuf,
    _temporary: Option<TempDir>,
}

impl Output {
    pub fn data(&self) -> anyhow::Result<Data> {
        if let Some(path) = &self.directory {
            return Ok(Data { path: path.clone(), _temporary: None });
        }
        let temporary = tempfile::tempdir()?;
        Ok(Data { path: temporary.path().to_path_buf(), _temporary: Some(temporary) })
    }
}

impl Data {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Threads of each host process.
#[derive(Clone, Copy, Debug, Args, Serialize, Deserialize)]
pub struct Threads {
    /// Threads for Raft in each process.
    #[arg(long, default_value_t = 1)]
    pub workers: usize,
    /// Threads for state machines in each process.
    #[arg(long, default_value_t = 1)]
    pub apply_threads: usize,
}

impl Default for Threads {
    fn default() -> Self {
        Self { workers: 1, apply_threads: 1 }
    }
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
    #[command(flatten)]
    pub threads: Threads,
    #[command(flatten)]
    pub output: Output,
    /// Send everything over TLS.
    #[arg(long)]
    pub tls: bool,
    /// Draw the distribution of latencies into this file (SVG).
    #[arg(long)]
    pub chart: Option<PathBuf>,
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
            threads: Threads::default(),
            output: Output::default(),
            tls: false,
            chart: None,
        }
    }
}

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The host processes themselves, each to the groups that it leads, as a user of the library
    /// does.
    Embedded,
    /// A separate process, over gRPC, to the tables of `shardhost serve`.
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
