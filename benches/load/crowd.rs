//! Three nodes of which the first leads everything.

use std::time::Duration;

use clap::Args;

use super::arguments::{Data, MachineKind, Output, Threads};
use super::draining::DrainTask;
use super::nodes::{Layout, Nodes, Order, Setup};

/// How long anything may take.
pub const TIMEOUT: Duration = Duration::from_secs(300);
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
    #[command(flatten)]
    pub threads: Threads,
    #[command(flatten)]
    pub output: Output,
}

impl CrowdArguments {
    /// Starts the nodes. The others are draining, so that they are not elected while the first can
    /// be, and may lead afterwards. The data goes with the directory that is given beside them.
    pub async fn gather(&self) -> anyhow::Result<(Nodes, Data)> {
        let data = self.output.data()?;
        let machine = MachineKind::Trivial;
        let layout =
            Layout { nodes: 3, groups: self.groups, machine, threads: self.threads, tls: false };
        let lead = |setup: &mut Setup| setup.leader = Some(LEADER);
        let mut nodes = Nodes::start_as(&layout, data.path(), lead).await?;
        nodes.all(&Order::AwaitLeaders, TIMEOUT).await?;
        // Here and there one of them was elected all the same.
        for task in [DrainTask::Drain, DrainTask::Undrain] {
            for node in OTHERS {
                nodes.one_does(node, &task, TIMEOUT).await?;
            }
        }
        Ok((nodes, data))
    }
}
