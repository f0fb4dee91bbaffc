//! The automatic planner.

use serde_json::Value;
use shardhost::NodeId;
use shardhost::driver::SYSTEM_GROUP;
use shardhost_policy::catalog::{Operation, Placement};
use shardhost_policy::executor::Recorded;
use shardhost_proto::shard_map::TABLE_KIND;
use shardhost_server::config::Planner;
use shardhost_server::group_of_shard;

use crate::cluster::{Cluster, Shape};

const TABLES: u64 = 12;

fn planned() -> Shape {
    // Groups at rest would stay where they are for longer than this test waits.
    Shape { planner: Planner::On, rest_seconds: 0, ..Shape::new(3, TABLES) }
}

fn is_even(cluster: &Cluster) -> bool {
    cluster.led().values().all(|count| *count == TABLES / 3)
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_spread_by_themselves_and_return_to_a_node_that_comes_back() {
    let mut cluster = Cluster::start(planned()).await;
    cluster.until("everybody leads a third", is_even).await;
    cluster.answer(&["drain", "begin", "1"]).await;
    cluster.until("the others lead", |cluster| cluster.led()[&1] == 0).await;
    cluster.answer(&["drain", "end", "1"]).await;
    cluster.until("everybody leads a third again", is_even).await;
    // The planner's node dies: another one continues.
    let planner = cluster.server_of(SYSTEM_GROUP).unwrap();
    cluster.stop_node(planner).await;
    let rest = |cluster: &Cluster| cluster.led().values().sum::<u64>() == TABLES;
    cluster.until("the others lead everything", rest).await;
    cluster.start_node(planner).await;
    cluster.until("everybody leads a third at last", is_even).await;
    let status = cluster.answer(&["balance", "status"]).await;
    assert_eq!(status["planner"]["mode"], "on", "{status}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_moves_when_it_must_not_and_what_would_is_shown() {
    let cluster = Cluster::start(Shape { planner: Planner::Shadow, ..planned() }).await;
    for shard in 0..TABLES {
        let table = group_of_shard(TABLE_KIND, shard).unwrap();
        cluster.until("it is served", |cluster| cluster.server_of(table).is_some()).await;
    }
    // Everything to one node, by hand.
    cluster.answer(&["drain", "begin", "2"]).await;
    cluster.answer(&["drain", "begin", "3"]).await;
    cluster.until("one leads everything", |cluster| cluster.led()[&1] == TABLES).await;
    cluster.answer(&["drain", "end", "2"]).await;
    cluster.answer(&["drain", "end", "3"]).await;
    let would = would_move(&cluster, 8).await;
    assert_eq!(would["planner"]["mode"], "shadow", "{would}");
    assert_eq!(cluster.led()[&1], TABLES, "shadow mode moves nothing");

    cluster.answer(&["balance", "stop", "--reason", "the test"]).await;
    cluster.answer(&["balance", "mode", "on"]).await;
    let stopped = |status: &Value| status["planner"]["hold"].to_string().contains("the test");
    let status = await_status(&cluster, stopped).await;
    assert_eq!(cluster.led()[&1], TABLES, "the kill switch is set: {status}");
    let why = status["why"].as_str().unwrap_or_default();
    assert!(why.contains("the test"), "{why}");
    cluster.answer(&["balance", "resume"]).await;
    cluster.until("everybody leads a third", is_even).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_is_obeyed_and_what_contradicts_is_refused() {
    let cluster = Cluster::start(Shape { rest_seconds: 0, ..planned() }).await;
    cluster.until("everybody leads a third", is_even).await;
    let table = group_of_shard(TABLE_KIND, 0).unwrap();
    for node in ["1", "2", "3"] {
        let pinned = cluster.run(&["group", "place", "1000000", "--pin", node]).await;
        assert!(pinned.status.success(), "{pinned:?}");
        let there = |cluster: &Cluster| cluster.server_of(table).map(|at| at.to_string());
        cluster
            .until("it follows its pin", |cluster| there(cluster).as_deref() == Some(node))
            .await;
    }
    let stranger = cluster.refusal(&["group", "place", "1000000", "--pin", "9"]).await;
    assert!(stranger.contains("no member of group 1000000"), "{stranger}");
    let both = ["group", "place", "1000000", "--pin", "1", "--prefer", "2"];
    let both = cluster.refusal(&both).await;
    assert!(both.contains("say one thing"), "{both}");
    let twice = cluster.refusal(&["group", "place", "1000000", "--prefer", "2,2"]).await;
    assert!(twice.contains("named twice"), "{twice}");
    let zone = cluster.refusal(&["group", "place", "1000000", "--prefer", "zone/mars"]).await;
    assert!(zone.contains("no node is in zone mars"), "{zone}");
    cluster.stop().await;
}

/// Every group has an answer, and rounds that were recorded are planned again byte for byte.
#[tokio::test(flavor = "multi_thread")]
async fn every_round_can_be_planned_again_and_every_group_has_an_answer() {
    let cluster = Cluster::start(planned()).await;
    cluster.until("everybody leads a third", is_even).await;
    for group in ["1000000", "1000011"] {
        let status = cluster.run(&["balance", "status", "--why", group]).await;
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        assert!(status["why"].as_str().is_some_and(|why| !why.is_empty()), "{status}");
    }
    let nobody = cluster.refusal(&["balance", "status", "--why", "4711"]).await;
    assert!(nobody.contains("no group 4711"), "{nobody}");
    let round = cluster.answer(&["balance", "recorded"]).await;
    let recorded: Recorded = serde_json::from_value(round).unwrap();
    shardhost_policy::executor::replay(&recorded).unwrap();
    cluster.stop().await;
}

async fn would_move(cluster: &Cluster, count: u64) -> Value {
    await_status(cluster, |status| status["planner"]["plan"]["moves"] == count).await
}

async fn await_status(cluster: &Cluster, reached: impl Fn(&Value) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + crate::cluster::TIMEOUT;
    loop {
        let status = cluster.answer(&["balance", "status", "--why", "1000000"]).await;
        if reached(&status) {
            return status;
        }
        assert!(tokio::time::Instant::now() < deadline, "never came to be: {status}");
    }
}

/// Without a planner, `balance now` and drains decide as it would: by weights and pins.
#[tokio::test(flavor = "multi_thread")]
async fn balance_now_and_drains_keep_to_weights_and_pins() {
    let mut shape = Shape::new(3, TABLES);
    shape.weights = [(2, 0)].into();
    let cluster = Cluster::start(shape).await;
    for shard in 0..8 {
        let placement = Placement { pin: Some(NodeId::must(3)), ..Placement::default() };
        let group = group_of_shard(TABLE_KIND, shard).unwrap();
        let operation = Operation::SetPlacement { group, placement };
        cluster.system(1).catalog().apply(operation).await.unwrap();
    }
    for node in 1..=3 {
        cluster.system(node).fresh_view().await.unwrap();
    }
    cluster.until("all are led", |cluster| cluster.led().values().sum::<u64>() == TABLES).await;
    cluster.answer(&["balance", "now"]).await;
    let as_wished = |cluster: &Cluster| cluster.led() == [(1, 4), (2, 0), (3, 8)].into();
    cluster.until("everything is where it is wanted", as_wished).await;
    let plan = cluster.answer(&["balance", "plan"]).await;
    assert!(plan["plan"]["moves"].as_array().unwrap().is_empty(), "{}", plan["plan"]["moves"]);
    // The one node that takes leaders gets them all; the other one has no weight.
    let drained = cluster.answer(&["drain", "begin", "1"]).await;
    assert_eq!(drained["left"], 0, "{drained}");
    let all_at_one = |cluster: &Cluster| cluster.led() == [(1, 0), (2, 0), (3, 12)].into();
    cluster.until("one leads everything", all_at_one).await;
    let last = cluster.refusal(&["drain", "begin", "3"]).await;
    assert!(last.contains("STRANDED") && last.contains("are being drained"), "{last}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_explained_of_a_group_that_does_not_exist() {
    let cluster = Cluster::start(planned()).await;
    cluster.answer(&["balance", "status", "--why", "1000000"]).await;
    let unknown = cluster.refusal(&["balance", "status", "--why", "99"]).await;
    assert!(unknown.contains("no group 99"), "{unknown}");
    let system = cluster.refusal(&["balance", "status", "--why", "0"]).await;
    assert!(system.contains("group 0"), "{system}");
    cluster.stop().await;
}
