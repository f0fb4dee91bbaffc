//! Creating and destroying groups.

use std::collections::BTreeSet;

use shardhost::driver::{CatalogError, SYSTEM_GROUP};
use shardhost::{GroupId, NodeId};
use shardhost_policy::catalog::{Name, NewGroup, Operation, Refusal, Subject};
use shardhost_proto::admin::admin_client::AdminClient;
use shardhost_proto::admin::membership_step::Kind;
use shardhost_proto::admin::{ChangeMembershipRequest, MembershipStep};
use shardhost_proto::shard_map::TABLE_KIND;
use shardhost_server::group_of_shard;
use shardhost_server::shards::table::TableCommand;
use tokio::time::Instant;

use crate::cluster::{Cluster, Shape};

const GROUP: GroupId = GroupId::new(70);

fn new_group(nodes: impl IntoIterator<Item = u64>) -> Operation {
    let kind = Name::new(Subject::Kind, "table").unwrap();
    Operation::CreateGroup(NewGroup::new(GROUP, kind, nodes.into_iter().map(NodeId::must)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_created_and_destroyed_by_the_hosts_also_by_one_that_was_away() {
    let mut cluster = Cluster::start(Shape::new(3, 1)).await;
    cluster.stop_node(3).await;
    cluster.system(1).catalog().apply(new_group([1, 2, 3])).await.unwrap();
    cluster.until("two hosts hold it", |cluster| cluster.holders(GROUP) == [1, 2]).await;
    cluster.until("it is served", |cluster| cluster.server_of(GROUP).is_some()).await;
    cluster.start_node(3).await;
    cluster.until("the third holds it", |cluster| cluster.holders(GROUP) == [1, 2, 3]).await;

    cluster.stop_node(3).await;
    let catalog = cluster.system(2).catalog().clone();
    catalog.apply(Operation::DestroyGroup { group: GROUP, generation: None }).await.unwrap();
    cluster.until("two hosts hold it no more", |cluster| cluster.holders(GROUP).is_empty()).await;
    let again = catalog.apply(new_group([1, 2, 3])).await;
    let waits = matches!(&again, Err(CatalogError::Refused(Refusal::Destroying { .. })));
    assert!(waits, "the third may hold it: {again:?}");
    cluster.start_node(3).await;
    let ended = |cluster: &Cluster| {
        cluster.system(1).view().is_some_and(|view| view.ended().contains_key(&GROUP))
    };
    cluster.until("it is gone everywhere", ended).await;
    assert!(cluster.holders(GROUP).is_empty());

    let again = catalog.apply(new_group([1, 2, 3])).await.unwrap();
    assert_eq!(again.incarnation, Some(1), "the second life");
    cluster.until("it lives again", |cluster| cluster.holders(GROUP) == [1, 2, 3]).await;
    cluster.until("it is served again", |cluster| cluster.server_of(GROUP).is_some()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_create_and_destroy_groups_from_any_node() {
    let cluster = Cluster::start(Shape::new(4, 1)).await;
    let create = &["group", "create", "70", "--kind", "table", "--voters", "4,1"];
    cluster.answer(create).await;
    assert_eq!(cluster.holders(GROUP), [1, 4]);
    let unknown = cluster.refusal(&["group", "create", "71", "--kind", "table", "--voters", "9"]);
    assert!(unknown.await.contains("node 9"));
    let system = cluster.refusal(&["group", "create", "0", "--kind", "table", "--voters", "1"]);
    assert!(system.await.contains("belong to the cluster"));
    let shown = cluster.answer(&["member", "list", "70"]).await;
    let index = shown["config_index"].as_u64().unwrap_or(0).to_string();
    let destroyed = cluster.run(&["group", "destroy", "70", "--expect", &index]).await;
    assert!(destroyed.status.success(), "{destroyed:?}");
    cluster.until("nobody holds it", |cluster| cluster.holders(GROUP).is_empty()).await;
    cluster.stop().await;
}

/// What it voted for before is not known. It gets no second first replica, of no group.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_disk_founds_nothing_again() {
    let mut cluster = Cluster::start(Shape::new(3, 2)).await;
    let table = group_of_shard(TABLE_KIND, 0).unwrap();
    cluster.until("it is served", |cluster| cluster.server_of(table).is_some()).await;
    cluster.stop_node(3).await;
    std::fs::remove_dir_all(cluster.data_dir(3)).unwrap();
    cluster.start_node(3).await;
    let registered = |cluster: &Cluster| {
        let store = cluster.host(3).store_id();
        let view = cluster.system(3).view();
        view.is_some_and(|view| view.nodes()[&NodeId::must(3)].store == store)
    };
    cluster.until("the catalog knows the new disk", registered).await;
    // It follows what comes after.
    cluster.system(1).catalog().apply(new_group([1, 3])).await.unwrap();
    cluster.until("it holds what is new", |cluster| cluster.holders(GROUP) == [1, 3]).await;
    assert_eq!(cluster.holders(table), [1, 2]);
    assert_eq!(cluster.holders(SYSTEM_GROUP), [1, 2]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_of_the_system_group_only_creating_and_planning_stop() {
    let mut cluster = Cluster::start(Shape::new(3, 1)).await;
    cluster.system(1).catalog().apply(new_group([1])).await.unwrap();
    cluster.until("it is served", |cluster| cluster.server_of(GROUP) == Some(1)).await;
    cluster.stop_node(2).await;
    cluster.stop_node(3).await;
    cluster.until("no planner", |one| one.server_of(SYSTEM_GROUP).is_none()).await;
    let group = cluster.host(1).group(GROUP).unwrap();
    let put = TableCommand::Put { key: b"key", value: b"value" }.encode();
    group.propose(put.clone()).await.unwrap();
    let create = cluster.refusal(&["group", "create", "71", "--kind", "table", "--voters", "1"]);
    let create = create.await;
    assert!(create.contains("catalog does not answer") && create.contains("quorum"), "{create}");
    let status = cluster.refusal(&["balance", "status", "--timeout", "1"]).await;
    assert!(status.contains("no planner"), "{status}");
    // A drain is a node's own business, too.
    let drained =
        cluster.answer(&["drain", "begin", "1", "--even-if-ineligible", "--no-wait"]).await;
    assert_eq!((&drained["draining"], &drained["durable"]), (&true.into(), &false.into()));
    group.propose(put).await.unwrap();
    // No node is lost by starting without the others.
    cluster.stop_node(1).await;
    cluster.start_node(1).await;
    cluster.until("it is served again", |cluster| cluster.server_of(GROUP) == Some(1)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requirement_is_kept_as_the_catalog_has_it_and_operators_change_both() {
    let mut shape = Shape::new(3, 1);
    shape.has = [(1, &["fifo"][..]), (2, &["fifo"]), (3, &["fifo"])].into();
    let cluster = Cluster::start(shape).await;
    let table = group_of_shard(TABLE_KIND, 0).unwrap();
    cluster.until("it is served", |cluster| cluster.server_of(table).is_some()).await;
    cluster.answer(&["group", "require", "1000000", "fifo"]).await;
    let requires = |cluster: &Cluster, count: usize| {
        let node = cluster.server_of(table)?;
        let group = cluster.host(node).group(table)?;
        let view = cluster.system(node).view()?;
        let intended = view.groups()[&table].requirement();
        let asked = group.membership().requirement.clone();
        (intended == asked && asked.capabilities.len() == count).then_some(())
    };
    cluster.until("both know it", |cluster| requires(cluster, 1).is_some()).await;
    let refused = cluster.refusal(&["group", "require", "1000000", "gpu"]).await;
    assert!(refused.contains("gpu") && refused.contains("--even-if-ineligible"), "{refused}");
    cluster.until("nothing changed", |cluster| requires(cluster, 1).is_some()).await;
    // The group is changed without the catalog.
    let node = cluster.server_of(table).unwrap();
    let group = cluster.host(node).group(table).unwrap();
    group.require(shardhost::Requirement::default(), None).await.unwrap();
    cluster.until("the catalog wins", |cluster| requires(cluster, 1).is_some()).await;
    cluster.stop().await;
}

/// Each view is compared by every host, so a burst of changes must not make one view each.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_changes_makes_a_few_views_and_each_group_is_created() {
    const GROUPS: u64 = 200;
    let cluster = Cluster::start(Shape::new(3, 1)).await;
    let catalog = cluster.system(1).catalog().clone();
    let began = Instant::now();
    let burst = tokio::spawn(async move {
        for group in 100..100 + GROUPS {
            let kind = Name::new(Subject::Kind, "table").unwrap();
            let nodes = [1, 2, 3].map(NodeId::must);
            let new = NewGroup::new(GroupId::new(group), kind, nodes);
            catalog.apply(Operation::CreateGroup(new)).await.unwrap();
        }
    });
    let last = GroupId::new(100 + GROUPS - 1);
    let mut views = BTreeSet::new();
    cluster
        .until("the last one is heard of", |cluster| {
            let view = cluster.system(2).view().unwrap();
            views.insert(view.revision());
            view.groups().contains_key(&last)
        })
        .await;
    burst.await.unwrap();
    let at_most = began.elapsed().as_millis() / 30 + 2;
    let views = views.len() as u128;
    assert!(views <= at_most, "{views} views, and {at_most} are one each 30 ms");
    let held = |cluster: &Cluster| {
        (100..100 + GROUPS).all(|group| cluster.holders(GroupId::new(group)) == [1, 2, 3])
    };
    cluster.until("every host holds every group", held).await;
    cluster.stop().await;
}

/// At the address of a node that led the system group a process accepts connections and does not
/// answer, as one that hangs. Another node leads, and is found.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hangs_keeps_nobody_from_the_catalog() {
    let mut cluster = Cluster::start(Shape::new(4, 1)).await;
    let first = NodeId::must(1);
    let leads = |cluster: &Cluster| cluster.server_of(SYSTEM_GROUP);
    cluster.until("the catalog is led", |cluster| leads(cluster).is_some()).await;
    let leader = leads(&cluster).unwrap();
    if leader != 1 {
        let group = cluster.host(leader).group(SYSTEM_GROUP).unwrap();
        group.transfer_leadership(Some(first)).await.unwrap();
    }
    // The node without a replica of the catalog knows who leads.
    let catalog = cluster.system(4).catalog().clone();
    catalog.revision().await.unwrap();

    cluster.stop_node(1).await;
    let hangs = tokio::net::TcpListener::bind(&cluster.servers.addresses[&1]).await.unwrap();
    cluster.until("another leads it", |cluster| leads(cluster).is_some()).await;
    // The first question may be the one that shows that the node hangs.
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(catalog.revision().await);
    }
    assert!(answers[1..].iter().all(Result::is_ok), "{answers:?}");
    drop(hangs);
    cluster.start_node(1).await;
    cluster.stop().await;
}

/// Only one change of members can be under way; another one waits for it, and is not refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_right_after_a_change_waits_for_it() {
    let cluster = Cluster::start(Shape::new(3, 1)).await;
    let table = group_of_shard(TABLE_KIND, 0).unwrap();
    cluster.until("it is served", |cluster| cluster.server_of(table).is_some()).await;
    let leader = cluster.server_of(table).unwrap();
    let address = format!("http://{}", cluster.servers.addresses[&leader]);
    let admin = AdminClient::connect(address).await.unwrap();
    let change = |kind: Kind, node: u64| {
        let mut admin = admin.clone();
        let step = MembershipStep { kind: kind.into(), node, ..MembershipStep::default() };
        let request = ChangeMembershipRequest {
            group: table.get(),
            steps: vec![step],
            expect: None,
            timeout_ms: 30_000,
        };
        async move { admin.change_membership(request).await }
    };
    let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    for kind in [Kind::Demote, Kind::Promote] {
        let (one, other) = tokio::join!(change(kind, others[0]), change(kind, others[1]));
        one.unwrap();
        other.unwrap();
    }
    cluster.stop().await;
}
