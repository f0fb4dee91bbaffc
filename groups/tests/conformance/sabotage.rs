//! Hosts in memory that break a promise, to show that the suite notices.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use shardhost_groups::Groups;
use shardhost_groups::known_bugs::KnownBugs;
use shardhost_groups::storage::NodeId;
use shardhost_proto::peer::MessageKind;
use shardhost_testing::conformance::{Cluster, DiskFault, Disks, Factory, InMemory, Links, Start};
use shardhost_testing::network::{Envelope, Fate, Network, Tap};

/// What is broken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sabotage {
    pub bugs: KnownBugs,
    /// Syncs do nothing, from when a group is led.
    pub syncs_lie: bool,
    /// Orders to campaign never arrive.
    pub no_orders: bool,
}

struct SabotagedCluster {
    inner: Arc<dyn Cluster>,
    sabotage: Sabotage,
    _tap: Option<Tap>,
}

impl Factory for Sabotage {
    fn cluster(&self, nodes: Vec<NodeId>) -> BoxFuture<'_, Box<dyn Cluster>> {
        let sabotage = *self;
        Box::pin(async move {
            let inner: Arc<dyn Cluster> = InMemory::new().cluster(nodes).await.into();
            let network = inner.network().expect("hosts in memory have one");
            let lose = |envelope: &Envelope<'_>| match envelope.kind() {
                MessageKind::TimeoutNow => Fate::Lose,
                _ => Fate::Deliver,
            };
            let tap = sabotage.no_orders.then(|| network.tap(lose));
            Box::new(SabotagedCluster { inner, sabotage, _tap: tap }) as Box<dyn Cluster>
        })
    }
}

/// Lets the syncs of a node lie from when its first group is led: what came before is there.
async fn lie(cluster: Arc<dyn Cluster>, groups: Groups, node: NodeId) {
    while !groups.groups().iter().any(|group| group.status().leader.is_some()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if let Some(disks) = cluster.disks() {
        disks.inject(node, DiskFault::LyingSyncs);
    }
}

impl Cluster for SabotagedCluster {
    fn start(&self, mut start: Start) -> BoxFuture<'_, Result<Groups, String>> {
        start.config.bugs = self.sabotage.bugs;
        let node = start.node;
        Box::pin(async move {
            let groups = self.inner.start(start).await?;
            if self.sabotage.syncs_lie {
                tokio::spawn(lie(Arc::clone(&self.inner), groups.clone(), node));
            }
            Ok(groups)
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
