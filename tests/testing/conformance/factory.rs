//! What the suite needs of a maker of hosts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use shardhost_storage::{GroupId, LogPosition, NodeId};

use crate::network::{Network, Trouble};
use shardhost_groups::config::GroupsConfig;
use shardhost_groups::machine::StateMachine;
use shardhost_groups::runtime::Groups;

/// Makes the state machine of a group on the host that is being started.
pub type MachineMaker = Arc<dyn Fn(GroupId) -> Box<dyn StateMachine> + Send + Sync>;

/// Makes clusters of hosts for the suite.
///
/// What a factory cannot do it leaves out: lines that need it are reported as skipped.
pub trait Factory: Send + Sync + 'static {
    /// Length of a Raft tick. Short enough for a suite of many elections, long enough for the
    /// machine that it runs on. Default 20 ms.
    fn tick(&self) -> Duration {
        Duration::from_millis(20)
    }

    /// A cluster of these nodes, none of which runs yet.
    fn cluster(&self, nodes: Vec<NodeId>) -> BoxFuture<'_, Box<dyn Cluster>>;
}

impl<F: Factory + ?Sized> Factory for Arc<F> {
    fn tick(&self) -> Duration {
        (**self).tick()
    }
    fn cluster(&self, nodes: Vec<NodeId>) -> BoxFuture<'_, Box<dyn Cluster>> {
        (**self).cluster(nodes)
    }
}

/// How a node is started.
#[derive(Clone)]
#[non_exhaustive]
pub struct Start {
    pub node: NodeId,
    /// Settings of its groups. Seed and incarnation are the factory's.
    pub config: GroupsConfig,
    /// Makes the state machine of a group that the node is asked to hold a replica of: the host
    /// must accept create requests.
    pub machines: MachineMaker,
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start of {:?}", self.node)
    }
}

/// A cluster. Dropping it ends everything that still runs.
pub trait Cluster: Send + Sync + 'static {
    /// Starts a node that does not run, on the data that it left. Its groups are not opened.
    ///
    /// # Errors
    /// Why it does not start.
    fn start(&self, start: Start) -> BoxFuture<'_, Result<Groups, String>>;

    /// Stops a node in order.
    fn stop(&self, node: NodeId) -> BoxFuture<'_, ()>;

    /// Ends a node as the death of its process does: unsynced data is lost, and nothing that it
    /// does afterwards is visible. `None`: it cannot be done.
    fn kill(&self, node: NodeId) -> Option<BoxFuture<'_, ()>> {
        let _ = node;
        None
    }

    /// Trouble between the nodes; `None`: it cannot be made.
    fn links(&self) -> Option<&dyn Links> {
        None
    }

    /// The network of this module, if the hosts are connected by it: messages of one kind can be
    /// held back and counted.
    fn network(&self) -> Option<&Network> {
        None
    }

    /// Faults of the nodes' disks; `None`: they cannot be made.
    fn disks(&self) -> Option<&dyn Disks> {
        None
    }

    /// Tries to start `start.node` on the data of another node that does not run, and returns the
    /// refusal. `None`: there is no data to be taken by the wrong one.
    fn start_on_data_of(
        &self,
        start: Start,
        owner: NodeId,
    ) -> Option<BoxFuture<'_, Result<(), String>>> {
        let _ = (start, owner);
        None
    }

    /// Starts a node that does not run at another address than before. `None`: there are no
    /// addresses.
    fn start_elsewhere(&self, start: Start) -> Option<BoxFuture<'_, Result<Groups, String>>> {
        let _ = start;
        None
    }
}

/// Trouble between nodes.
pub trait Links: Send + Sync {
    /// Nothing gets from the first to the second any more.
    fn cut_one_way(&self, from: NodeId, to: NodeId);
    fn heal(&self);
    /// What happens to messages by chance. `false`: not all of it can be done, and nothing is.
    fn trouble(&self, trouble: Trouble) -> bool;
}

impl Links for Network {
    fn cut_one_way(&self, from: NodeId, to: NodeId) {
        Self::cut_one_way(self, from, to);
    }
    fn heal(&self) {
        Self::heal(self);
    }
    fn trouble(&self, trouble: Trouble) -> bool {
        Self::trouble(self, trouble);
        true
    }
}

/// Something that goes wrong with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskFault {
    /// The next write of the log fails.
    LogWrite,
    /// Snapshots find no space, until healed.
    NoSpaceForSnapshots,
    /// Syncs of the log do nothing and say that all is well, until healed. No host survives this:
    /// it shows that a test would notice a loss.
    LyingSyncs,
    /// A snapshot that is kept is damaged, for good.
    DamagedSnapshot(GroupId, LogPosition),
}

/// Faults of disks.
pub trait Disks: Send + Sync {
    /// Lets something go wrong. `false`: there is nothing that could.
    fn inject(&self, node: NodeId, fault: DiskFault) -> bool;
    /// Takes back what can be taken back.
    fn heal(&self, node: NodeId);
    /// The snapshots that a node keeps of a group.
    fn snapshots(&self, node: NodeId, group: GroupId) -> Vec<LogPosition>;
}
