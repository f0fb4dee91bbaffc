//! Orders that make no sense, orders that come late or twice, and replicas in the way.

use std::sync::{Arc, Condvar, Mutex};

use shardhost::driver::{GroupMachines, SYSTEM_GROUP, System, SystemOptions};
use shardhost::{GroupId, GroupSpec, Host, HostConfig, NodeId, Shutdown, StateMachine};
use shardhost_groups::testing::alone::Stateless;
use shardhost_policy::catalog::{Name, NewGroup, Operation, Subject};
use shardhost_proto::admin::admin_client::AdminClient;
use shardhost_proto::admin::{DestroyGroupRequest, ShowGroupRequest, StatusRequest};
use tempfile::TempDir;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::cluster::{Cluster, Shape, TIMEOUT};

const GROUP: GroupId = GroupId::new(70);

fn of_kind(group: GroupId, kind: &str, nodes: impl IntoIterator<Item = u64>) -> Operation {
    let kind = Name::new(Subject::Kind, kind).unwrap();
    Operation::CreateGroup(NewGroup::new(group, kind, nodes.into_iter().map(NodeId::must)))
}

fn destroy(group: GroupId) -> Operation {
    Operation::DestroyGroup { group, generation: None }
}

async fn admin(cluster: &Cluster, node: u64) -> AdminClient<Channel> {
    AdminClient::connect(format!("http://{}", cluster.servers.addresses[&node])).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_cannot_mean_is_refused_before_it_is_recorded() {
    let cluster = Cluster::start(Shape::new(3, 1)).await;
    let create = &["group", "create", "70", "--kind", "tabel", "--voters", "1,2,3"];
    let mistyped = cluster.refusal(create).await;
    assert!(mistyped.contains("`tabel`") && mistyped.contains("table and queue"), "{mistyped}");
    let known = cluster.system(1).fresh_view().await.unwrap();
    assert!(!known.groups().contains_key(&GROUP));

    let shown = cluster.answer(&["member", "list", "0"]).await;
    let index = shown["config_index"].as_u64().unwrap_or(0).to_string();
    let catalog = cluster.refusal(&["group", "destroy", "0", "--expect", &index]).await;
    assert!(catalog.contains("RESERVED_GROUP"), "{catalog}");
    assert_eq!(cluster.holders(SYSTEM_GROUP), [1, 2, 3]);

    // Its keys would be nowhere.
    let shown = cluster.answer(&["member", "list", "1000000"]).await;
    let index = shown["config_index"].as_u64().unwrap_or(0).to_string();
    let shard = cluster.refusal(&["group", "destroy", "1000000", "--expect", &index]).await;
    assert!(shard.contains("shard 0 of the table") && shard.contains("IS_A_SHARD"), "{shard}");
    assert_eq!(cluster.holders(GroupId::new(1_000_000)), [1, 2, 3]);

    let twice = ["group", "create", "70", "--kind", "table", "--voters", "1,1,2"];
    let twice = cluster.refusal(&twice).await;
    assert!(twice.contains("node 1 is named twice"), "{twice}");
    cluster.system(1).fresh_view().await.expect("the catalog answers");
    cluster.stop().await;
}

/// Recorded by an operator whose hosts know more kinds.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_a_kind_that_no_host_knows_is_destroyed_all_the_same() {
    let mut cluster = Cluster::start(Shape::new(3, 1)).await;
    let catalog = cluster.system(1).catalog().clone();
    catalog.apply(of_kind(GROUP, "tabel", [1, 2, 3])).await.unwrap();
    // It keeps no host from starting.
    cluster.stop_node(2).await;
    cluster.start_node(2).await;
    cluster.answer(&["group", "destroy", "70", "--expect", "0"]).await;
    let ended = |cluster: &Cluster| {
        cluster.system(1).view().is_some_and(|view| view.ended().contains_key(&GROUP))
    };
    cluster.until("it is gone", ended).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_created_again_once_the_last_one_is_gone() {
    let mut cluster = Cluster::start(Shape::new(3, 1)).await;
    let catalog = cluster.system(1).catalog().clone();
    catalog.apply(of_kind(GROUP, "table", [1, 2, 3])).await.unwrap();
    cluster.until("it is held", |cluster| cluster.holders(GROUP) == [1, 2, 3]).await;
    // One that is away may hold it: a command that creates it again gets the cause.
    cluster.stop_node(3).await;
    catalog.apply(destroy(GROUP)).await.unwrap();
    let create = ["group", "create", "70", "--kind", "table", "--voters", "1,2"];
    let refused = cluster.refusal(&create).await;
    assert!(refused.contains("being destroyed") && refused.contains("DESTROYING"), "{refused}");
    cluster.start_node(3).await;
    cluster.answer(&create).await;
    assert_eq!(cluster.holders(GROUP), [1, 2]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_repeated_ends_no_later_generation() {
    let cluster = Cluster::start(Shape::new(3, 1)).await;
    let create = ["group", "create", "70", "--kind", "table", "--voters", "1,2,3"];
    cluster.answer(&create).await;
    let order = |generation| DestroyGroupRequest { group: 70, expect: None, generation };
    admin(&cluster, 1).await.destroy_group(order(Some(0))).await.unwrap();
    let again = [&create[..], &["--timeout", "30"]].concat();
    cluster.answer(&again).await;
    for node in [1, 2] {
        let late = admin(&cluster, node).await.destroy_group(order(Some(0))).await.unwrap_err();
        assert!(late.message().contains("generation 0"), "{late}");
    }
    cluster.until("it is served", |cluster| cluster.server_of(GROUP).is_some()).await;
    assert_eq!(cluster.holders(GROUP), [1, 2, 3]);
    // Without one it is that which is there.
    admin(&cluster, 1).await.destroy_group(order(None)).await.unwrap();
    cluster.until("it is gone", |cluster| cluster.holders(GROUP).is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_cannot_be_opened_keeps_no_node_from_starting() {
    let mut cluster = Cluster::start(Shape::new(3, 1)).await;
    let spec = GroupSpec::new(GROUP, [NodeId::must(3)]).kind("odd");
    cluster.host(3).create_group(spec, Stateless).await.unwrap();
    cluster.stop_node(3).await;
    cluster.start_node(3).await;
    let table = shardhost_server::group_of_shard("table", 0).unwrap();
    cluster.until("the others run", |cluster| cluster.holders(table) == [1, 2, 3]).await;

    let mut third = admin(&cluster, 3).await;
    let shown = third.show_group(ShowGroupRequest { group: 70 }).await.unwrap().into_inner();
    assert_eq!((shown.role.as_str(), shown.kind.as_str()), ("failed", "odd"));
    assert!(shown.fault.contains("kind `odd`"), "{}", shown.fault);
    let status = third.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.failed, status.failed_replicas[0].group), (1, 70));
    assert!(status.failed_replicas[0].cause.contains("kind `odd`"));

    let order = DestroyGroupRequest { group: 70, expect: Some(0), generation: None };
    third.destroy_group(order).await.unwrap();
    let status = third.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.failed, 0);
    assert!(cluster.host(3).stored_group(GROUP).unwrap().is_none());
    cluster.stop().await;
}

/// Makes machines that keep nothing; removing the state of one group takes until it is let go.
#[derive(Debug, Default)]
struct Hanging {
    let_go: Mutex<bool>,
    changed: Condvar,
}

impl GroupMachines for Hanging {
    fn create(&self, _: GroupId, _: &str) -> Result<Box<dyn StateMachine>, String> {
        Ok(Box::new(Stateless))
    }
    fn destroy(&self, group: GroupId) -> Result<(), String> {
        if group == GROUP {
            let held = self.let_go.lock().unwrap();
            drop(self.changed.wait_while(held, |let_go| !*let_go).unwrap());
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_machine_that_hangs_stops_what_is_done_with_its_group_alone() {
    let directory = TempDir::new().unwrap();
    let node = NodeId::must(1);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut config = HostConfig::new(node, directory.path()).peers([(node, address.clone())]);
    config.listen = address.parse().unwrap();
    let host = Host::builder(config).listener(listener).start().await.unwrap();
    let machines = Arc::<Hanging>::default();
    let system = System::start(&host, SystemOptions::new([node]), machines.clone()).await.unwrap();
    host.serve(tonic::service::Routes::new(system.service()));
    let until = async |what: &str, reached: &dyn Fn() -> bool| {
        let deadline = Instant::now() + TIMEOUT;
        while !reached() {
            assert!(Instant::now() < deadline, "never came to be: {what}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let knows = || system.view().is_some_and(|view| view.nodes().contains_key(&node));
    until("the node is registered", &knows).await;
    let (second, third) = (GroupId::new(71), GroupId::new(72));
    for group in [GROUP, second] {
        system.catalog().apply(of_kind(group, "any", [1])).await.unwrap();
    }
    until("both are held", &|| [GROUP, second].iter().all(|id| host.group(*id).is_some())).await;

    for group in [GROUP, second] {
        system.catalog().apply(destroy(group)).await.unwrap();
    }
    system.catalog().apply(of_kind(third, "any", [1])).await.unwrap();
    let ended = |group| system.view().is_some_and(|view| view.ended().contains_key(&group));
    until("the other one is gone, and a third is there", &|| {
        ended(second) && host.group(third).is_some()
    })
    .await;
    assert!(!ended(GROUP), "its state is still being removed");
    *machines.let_go.lock().unwrap() = true;
    machines.changed.notify_all();
    until("it is gone", &|| ended(GROUP)).await;
    drop(system);
    host.shutdown(Shutdown::Immediate).await;
}
