//! What is asked of a hibernating replica, through its handle.

#![expect(clippy::unwrap_used, reason = "a test that broke ends with a panic")]

use std::sync::Arc;
use std::time::Duration;

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::{Group, GroupSpec, Groups, GroupsBuilder, GroupsConfig};
use shardhost_storage::{GroupId, MemorySnapshots, MemoryStore, NodeId};
use shardhost_testing::conformance::Journal;
use shardhost_testing::network::Network;

const SOON: Duration = Duration::from_secs(20);
const ID: GroupId = GroupId::new(7);

fn host(network: &Network, node: NodeId) -> Groups {
    let mut config = GroupsConfig::new(node);
    config.tick = Duration::from_millis(10);
    config.hibernate_after_ticks = 5;
    // The followers get no notice that their leader ended: as when every such message is lost.
    config.bugs = KnownBugs::from([KnownBug::HibernateThroughAnEnd]);
    let incarnation = config.incarnation;
    let (snapshots, port) = (Arc::new(MemorySnapshots::new()), network.port(node));
    let groups = GroupsBuilder::new(config)
        .start(Arc::new(MemoryStore::new()), snapshots.clone(), port.clone())
        .unwrap();
    port.attach(groups.inbound(), snapshots, incarnation);
    groups
}

async fn all(replicas: &[Group], hibernating: bool) {
    for replica in replicas {
        replica.wait_for(|status| status.hibernating == hibernating, SOON).await.expect("in time");
    }
}

/// The group hibernates, and its leader is gone without a word. A write is refused at a follower,
/// and because of it the group is led again.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_at_a_hibernating_follower_wakes_the_group() {
    let network = Network::new(7);
    let nodes = [1, 2, 3].map(NodeId::must);
    let hosts: Vec<Groups> = nodes.iter().map(|node| host(&network, *node)).collect();
    let spec = GroupSpec::new(ID, nodes);
    let create = |host: &Groups| host.create(spec.clone(), Box::new(Journal::default())).unwrap();
    let mut replicas: Vec<Group> = hosts.iter().map(create).collect();
    let waits = replicas.iter().map(|one| Box::pin(one.wait_for(|status| status.serving, SOON)));
    let (_, leader, _) = futures::future::select_all(waits).await;
    all(&replicas, true).await;
    assert!(replicas[leader].status().is_leader(), "it hibernates under the first leader");

    assert!(hosts[leader].close(ID).await);
    replicas.remove(leader);
    all(&replicas, true).await;
    replicas[0].propose("add 1").await.expect_err("it follows");
    all(&replicas[..1], false).await;
    let waits = replicas.iter().map(|one| Box::pin(one.wait_for(|status| status.serving, SOON)));
    let (led, ..) = futures::future::select_all(waits).await;
    led.expect("another one leads");
}
