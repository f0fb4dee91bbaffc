//! Three nodes of which the first leads everything.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tempfile::TempDir;

use super::MachineKind;
use super::drain::{DrainOrder, drained};
use super::hosting::Setup;
use super::nodes::{Layout, Nodes, Order};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// The node that leads.
pub const LEADER: u64 = 1;
/// The others.
pub const OTHERS: [u64; 2] = [2, 3];

/// What every benchmark of them asks for.
#[derive(Clone, Debug, Args)]
pub struct CrowdArguments {
    /// Number of groups, each on every node; one of them leads all at first.
    #[arg(long, default_value_t = 10_000)]
    pub groups: u64,
    /// Threads for Raft in each process.
    #[arg(long, default_value_t = 1)]
    pub workers: usize,
    /// Where the data stands; a temporary directory unless set. Decides which disk is measured.
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

impl CrowdArguments {
    /// Starts the nodes. The others are draining, so that they are not elected while the first can
    /// be, and may lead afterwards. The data goes with the directory that is given beside them.
    pub async fn gather(&self) -> anyhow::Result<(Nodes, Option<TempDir>)> {
        let (directory, temporary) = match &self.directory {
            Some(given) => (given.clone(), None),
            None => {
                let temporary = tempfile::tempdir()?;
                (temporary.path().to_path_buf(), Some(temporary))
            }
        };
        let machine = MachineKind::Trivial;
        let (groups, workers) = (self.groups, self.workers);
        let layout = Layout { nodes: 3, groups, machine, workers, apply_threads: 1 };
        let lead = |setup: &mut Setup| setup.leader = Some(LEADER);
        let mut nodes = Nodes::start_as(&layout, &directory, lead).await?;
        nodes.all(&Order::AwaitLeaders, PATIENCE).await?;
        // Here and there one of them was elected all the same.
        for order in [DrainOrder::Drain, DrainOrder::Undrain] {
            for node in OTHERS {
                drained(&mut nodes, node, order).await?;
            }
        }
        Ok((nodes, temporary))
    }
}
