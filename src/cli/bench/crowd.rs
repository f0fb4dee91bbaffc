//! Three nodes of which the first leads everything.

use std::path::Path;
use std::time::Duration;

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

/// Starts them. The others are draining, so that they are not elected while the first can be, and may
/// lead afterwards.
pub async fn gather(groups: u64, workers: usize, directory: &Path) -> anyhow::Result<Nodes> {
    let machine = MachineKind::Trivial;
    let layout = Layout { nodes: 3, groups, machine, workers, apply_threads: 1 };
    let lead = |setup: &mut Setup| setup.leader = Some(LEADER);
    let mut nodes = Nodes::start_as(&layout, directory, lead).await?;
    nodes.all(&Order::AwaitLeaders, PATIENCE).await?;
    // Here and there one of them was elected all the same.
    for order in [DrainOrder::Drain, DrainOrder::Undrain] {
        for node in OTHERS {
            drained(&mut nodes, node, order).await?;
        }
    }
    Ok(nodes)
}
