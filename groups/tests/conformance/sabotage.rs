//! Hosts in memory that break a promise, to show that the suite notices.

use futures::future::BoxFuture;
use shardhost_groups::Groups;
use shardhost_groups::config::KnownBugs;
use shardhost_groups::storage::NodeId;
use shardhost_groups::testing::conformance::{
    Cluster, DiskFault, Disks, Factory, InMemory, Links, Start,
};
use shardhost_groups::testing::network::{Fate, Network, Tap};
use shardhost_proto::peer::MessageKind;

/// What is broken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sabotage {
    pub bugs: KnownBugs,
    pub syncs_lie: bool,
    /// Orders to campaign never arrive.
    pub no_orders: bool,
    /// The last node never hears that it was invited.
    pub deaf_learners: bool,
}

struct SabotagedCluster {
    inner: Box<dyn Cluster>,
    sabotage: Sabotage,
    _taps: Vec<Tap>,
}

impl Factory for Sabotage {
    fn cluster(&self, nodes: Vec<NodeId>) -> BoxFuture<'_, Box<dyn Cluster>> {
        let sabotage = *self;
        Box::pin(async move {
            let inner = InMemory::new().cluster(nodes).await;
            let network = inner.network().expect("hosts in memory have one");
            let lost =
                |kind: MessageKind, active: bool| {
                    active.then(|| {
                        network.tap(move |envelope| {
                            if envelope.kind() == kind { Fate::Lose } else { Fate::Deliver }
                        })
                    })
                };
            let orders = lost(MessageKind::TimeoutNow, sabotage.no_orders);
            let invitations = lost(MessageKind::Invite, sabotage.deaf_learners);
            let taps = orders.into_iter().chain(invitations).collect();
            Box::new(SabotagedCluster { inner, sabotage, _taps: taps }) as Box<dyn Cluster>
        })
    }
}

impl Cluster for SabotagedCluster {
    fn start(&self, mut start: Start) -> BoxFuture<'_, Result<Groups, String>> {
        start.config.bugs = self.sabotage.bugs;
        let node = start.node;
        Box::pin(async move {
            let groups = self.inner.start(start).await;
            if self.sabotage.syncs_lie
                && let Some(disks) = self.inner.disks()
            {
                disks.inject(node, DiskFault::LyingSyncs);
            }
            groups
        })
    }
    fn stop(&self, node: NodeId) -> BoxFuture<'_, ()> {
        self.inner.stop(node)
    }
    fn kill(&self, node: NodeId) -> Option<BoxFuture<'_, ()>> {
        self.inner.kill(node)
    }
    fn links(&self) -> Option<&dyn Links> {
        self.inner.links()
    }
    fn network(&self) -> Option<&Network> {
        self.inner.network()
    }
    fn disks(&self) -> Option<&dyn Disks> {
        self.inner.disks()
    }
}
