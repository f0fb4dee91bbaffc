//! Replicas that move by order of the leader of the system group.

use std::collections::BTreeSet;
use std::time::Duration;

use shardhost::driver::SYSTEM_GROUP;
use shardhost::{GroupId, NodeId};
use shardhost_policy::catalog::{Name, NewGroup, Operation, Subject};
use shardhost_proto::system::system_client::SystemClient;
use shardhost_proto::system::{ReplaceRequest, ReplaceResult, Replacement};
use tokio::time::Instant;

use crate::cluster::{Cluster, Shape};

const GROUPS: [GroupId; 3] = [GroupId::new(70), GroupId::new(71), GroupId::new(72)];
/// A host compares everything with the catalog this often.
const EVERYTHING_EVERY: Duration = Duration::from_secs(5);

/// Has a follower of a group replaced by node 4; returns the one that goes, and the node that leads.
async fn replace(cluster: &Cluster, group: GroupId) -> (u64, u64) {
    let term = cluster.host(1).group(SYSTEM_GROUP).unwrap().status().term;
    let node = cluster.server_of(group).unwrap();
    let old = (1..=3).find(|old| *old != node).unwrap();
    let replacements =
        vec![Replacement { group: group.get(), old, new: 4, ..Replacement::default() }];
    let request = ReplaceRequest { planner_term: term.get(), planner_node: 1, replacements };
    let address = format!("http://{}", cluster.servers.addresses[&node]);
    let mut client = SystemClient::connect(address).await.unwrap();
    let reply = client.replace(request).await.unwrap().into_inner();
    assert_eq!(reply.outcomes[0].result(), ReplaceResult::Begun, "{reply:?}");
    (old, node)
}

/// What waits for the catalog to know it, as the next replicas that move do, waits for no comparison of
/// everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_ended_is_in_the_catalog_soon() {
    let cluster = Cluster::start(Shape::new(4, 1)).await;
    let catalog = cluster.system(1).catalog().clone();
    for group in GROUPS {
        let kind = Name::new(Subject::Kind, "table").unwrap();
        let new = NewGroup::new(group, kind, (1..=3).map(NodeId::must));
        catalog.apply(Operation::CreateGroup(new)).await.unwrap();
        cluster.until("it is served", |cluster| cluster.server_of(group).is_some()).await;
    }
    let mut late = Duration::ZERO;
    // Each begins when the last one is known: just after a comparison of everything, if that made it known.
    for group in GROUPS {
        let (old, leader) = replace(&cluster, group).await;
        let replaced = |members: BTreeSet<u64>| members.contains(&4) && !members.contains(&old);
        cluster
            .until("it is replaced", |cluster| {
                let Some(group) = cluster.host(leader).group(group) else { return false };
                let membership = group.membership();
                let nodes = membership.members.values().map(|member| member.node.get());
                membership.incoming.is_none() && !membership.is_joint() && replaced(nodes.collect())
            })
            .await;
        let ended = Instant::now();
        cluster
            .until("the catalog knows", |cluster| {
                let Some(view) = cluster.system(1).view() else { return false };
                replaced(view.groups()[&group].members().iter().map(|node| node.get()).collect())
            })
            .await;
        late += ended.elapsed();
    }
    assert!(late < EVERYTHING_EVERY, "{late:?} for {} groups", GROUPS.len());
    cluster.stop().await;
}
