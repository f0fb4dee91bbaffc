//! Drains that the catalog knows of.

use shardhost::NodeId;
use shardhost::driver::CatalogError;
use shardhost::driver::DrainOptions;
use shardhost_client::{Client, ClientOptions};
use shardhost_policy::catalog::{DrainState, Operation};

use crate::cluster::{Cluster, Shape, TIMEOUT};

const TABLES: u64 = 12;

fn state(cluster: &Cluster, node: u64) -> Option<DrainState> {
    let view = cluster.servers.running.values().next()?.system()?.view()?;
    view.drains().get(&NodeId::must(node)).map(|drain| drain.state)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_outlives_the_process_until_it_is_ended() {
    let mut cluster = Cluster::start(Shape::new(3, TABLES)).await;
    let drained = cluster.answer(&["drain", "begin", "2", "--owner", "the test"]).await;
    assert_eq!((&drained["state"], &drained["left"]), (&"done".into(), &0.into()), "{drained}");
    assert_eq!(drained["durable"], true);
    cluster.until("the catalog knows", |one| state(one, 2) == Some(DrainState::Drained)).await;
    cluster.stop_node(2).await;
    cluster.start_node(2).await;
    cluster.until("it drains again", |cluster| cluster.host(2).advertisement().draining).await;
    let second = cluster.refusal(&["drain", "begin", "2", "--owner", "another"]).await;
    assert!(second.contains("the test"), "{second}");
    // It is ended by a process that has heard nothing of it yet, too.
    cluster.stop_node(2).await;
    cluster.start_node(2).await;
    let ended = cluster.answer(&["drain", "end", "2"]).await;
    assert_eq!(ended["draining"], false);
    cluster.until("the catalog knows nothing", |one| state(one, 2).is_none()).await;
    assert!(!cluster.host(2).advertisement().draining);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_do_not_leave_a_group_without_anybody_to_lead_it() {
    let cluster = Cluster::start(Shape::new(3, TABLES)).await;
    cluster.answer(&["drain", "begin", "1"]).await;
    cluster.answer(&["drain", "begin", "2"]).await;
    cluster.until("one leads everything", |cluster| cluster.led()[&3] == TABLES).await;
    let last = cluster.refusal(&["drain", "begin", "3"]).await;
    assert!(last.contains("no eligible voter is left") && last.contains("accept it"), "{last}");
    assert!(!cluster.host(3).advertisement().draining);
    let forced = cluster.run(&["drain", "begin", "3", "--even-if-ineligible"]).await;
    assert_eq!(forced.status.code(), Some(1), "the node is not empty: {forced:?}");
    let forced: serde_json::Value = serde_json::from_slice(&forced.stdout).unwrap();
    assert!(forced["left"].as_u64() >= Some(TABLES), "what cannot go stays: {forced}");
    assert_eq!(forced["state"], "blocked", "{forced}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_node_with_a_capability_is_not_drained_by_mistake() {
    let mut shape = Shape::new(3, TABLES);
    shape.has = [(1, &["fifo"][..])].into();
    shape.require = &["fifo"];
    let cluster = Cluster::start(shape).await;
    cluster.until("one leads everything", |cluster| cluster.led()[&1] == TABLES).await;
    let refused = cluster.refusal(&["drain", "begin", "1"]).await;
    assert!(refused.contains("no other is capable"), "{refused}");
    cluster.answer(&["drain", "begin", "2"]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_expires_when_its_owner_is_gone() {
    let cluster = Cluster::start(Shape::new(3, TABLES)).await;
    let begin = &["drain", "begin", "2", "--deadline", "1", "--expires", "1", "--no-wait"];
    cluster.answer(begin).await;
    cluster.until("it is over", |one| state(one, 2).is_none()).await;
    cluster.until("it takes leaders", |cluster| !cluster.host(2).advertisement().draining).await;
    cluster.stop().await;
}

/// A drained node is the last that has everything, so it is elected: it transfers what it acquired
/// when another has caught up, without any planner, and meanwhile it does not report that it leads
/// nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_leadership_that_falls_to_a_drained_node_is_handed_on() {
    let mut cluster = Cluster::start(Shape::new(3, TABLES)).await;
    let drained = cluster.answer(&["drain", "begin", "1"]).await;
    assert_eq!((&drained["state"], &drained["left"]), (&"done".into(), &0.into()), "{drained}");
    cluster.stop_node(3).await;
    let addresses: Vec<String> = cluster.servers.addresses.values().cloned().collect();
    let options = ClientOptions { deadline: TIMEOUT, ..ClientOptions::default() };
    let client = Client::connect(addresses, options).await.unwrap();
    for key in 0..200_u32 {
        client.table().put(key.to_be_bytes().to_vec(), vec![7; 8]).await.unwrap();
    }
    cluster.stop_node(2).await;
    // A lease that node 2 had may last a moment longer than its process.
    cluster.start_node(3).await;
    cluster
        .until("one of them leads", |cluster| cluster.led().values().sum::<u64>() == TABLES)
        .await;
    // The groups that it leads are counted at each request.
    let status = cluster.answer(&["drain", "status", "1"]).await;
    let led = cluster.led()[&1];
    assert!(led == 0 || status["left"] != 0, "{led} are led: {status}");
    cluster.until("the drained node leads nothing", |cluster| cluster.led()[&3] == TABLES).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_go_goes_when_another_can_take_it() {
    let mut shape = Shape::new(3, TABLES);
    shape.has = [(1, &["fifo"][..]), (3, &["fifo"][..])].into();
    shape.require = &["fifo"];
    let mut cluster = Cluster::start(shape).await;
    cluster.until("they are led", |cluster| cluster.led().values().sum::<u64>() == TABLES).await;
    cluster.stop_node(3).await;
    cluster.until("one leads everything", |cluster| cluster.led()[&1] == TABLES).await;
    let refused = cluster.refusal(&["drain", "begin", "1"]).await;
    assert!(refused.contains("do not answer") && refused.contains("STRANDED"), "{refused}");
    assert!(!cluster.host(1).advertisement().draining);

    let forced = ["drain", "begin", "1", "--even-if-ineligible", "--deadline", "600"];
    let begun = cluster.run(&forced).await;
    assert_eq!(begun.status.code(), Some(1), "{begun:?}");
    let words = String::from_utf8_lossy(&begun.stderr).into_owned();
    assert!(words.contains("still leads 12"), "{words}");
    cluster.start_node(3).await;
    cluster.until("the other leads everything", |cluster| cluster.led()[&3] == TABLES).await;
    cluster.until("the catalog knows", |one| state(one, 1) == Some(DrainState::Drained)).await;
    let status = cluster.answer(&["drain", "status", "1"]).await;
    assert_eq!((&status["state"], &status["left"]), (&"done".into(), &0.into()), "{status}");
    assert_eq!(status["undrainable"].as_array().unwrap().len(), 0, "{status}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_under_way_follows_a_later_deadline() {
    let mut shape = Shape::new(3, TABLES);
    shape.has = [(1, &["fifo"][..]), (3, &["fifo"][..])].into();
    shape.require = &["fifo"];
    let mut cluster = Cluster::start(shape).await;
    cluster.stop_node(3).await;
    cluster.until("one leads everything", |cluster| cluster.led()[&1] == TABLES).await;
    let begin = ["drain", "begin", "1", "--even-if-ineligible", "--deadline", "5", "--no-wait"];
    cluster.answer(&begin).await;
    let one = NodeId::must(1);
    let drain = cluster.system(1).fresh_view().await.unwrap().drains()[&one].clone();
    let operation = Operation::ExtendDrain {
        node: one,
        intent: drain.id,
        deadline_ms: drain.deadline_ms + 3_600_000,
        expires_ms: drain.expires_ms,
    };
    // The system group's leadership leaves the node, too, perhaps while this is under way.
    loop {
        match cluster.system(1).catalog().apply(operation.clone()).await {
            Err(CatalogError::Unknown { .. }) => {}
            extended => {
                extended.unwrap();
                break;
            }
        }
    }
    cluster
        .until("the first deadline passed", |cluster| {
            let report = cluster.system(1).drains().report().unwrap();
            report.progress.elapsed.as_secs() > 6
        })
        .await;
    let status = cluster.answer(&["drain", "status", "1"]).await;
    assert_eq!(status["state"], "blocked", "{status}");
    assert_eq!(state(&cluster, 1), Some(DrainState::Draining));
    cluster.stop().await;
}

/// The catalog did not answer when it began; when it does, what it intends counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_the_catalog_takes_the_place_of_one_that_only_the_process_knows() {
    let cluster = Cluster::start(Shape::new(3, TABLES)).await;
    let drains = cluster.system(1).drains();
    drains.begin(DrainOptions::default(), "nobody".to_owned(), None).unwrap();
    let begun = cluster.answer(&["drain", "begin", "1", "--owner", "ann"]).await;
    assert_eq!((&begun["owner"], &begun["durable"]), (&"ann".into(), &true.into()), "{begun}");
    assert!(drains.begin(DrainOptions::default(), "bob".to_owned(), None).is_err());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_given_up_says_so_and_makes_room() {
    let mut shape = Shape::new(3, TABLES);
    shape.has = [(1, &["fifo"][..])].into();
    shape.require = &["fifo"];
    let cluster = Cluster::start(shape).await;
    cluster.until("one leads everything", |cluster| cluster.led()[&1] == TABLES).await;
    let begin = ["drain", "begin", "1", "--even-if-ineligible", "--deadline", "1", "--or-undrain"];
    cluster.run(&begin).await;
    cluster.until("it is given up", |one| state(one, 1) == Some(DrainState::GivenUp)).await;
    cluster.until("it takes leaders", |cluster| !cluster.host(1).advertisement().draining).await;
    cluster.answer(&["drain", "begin", "1", "--even-if-ineligible", "--no-wait"]).await;
    assert!(cluster.host(1).advertisement().draining);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drain_of_a_stopped_node_is_shown_and_ended() {
    let mut cluster = Cluster::start(Shape::new(3, TABLES)).await;
    cluster.answer(&["drain", "begin", "2", "--owner", "ann"]).await;
    cluster.until("the catalog knows", |one| state(one, 2) == Some(DrainState::Drained)).await;
    cluster.stop_node(2).await;
    let status = cluster.answer(&["drain", "status", "2"]).await;
    assert_eq!((&status["answers"], &status["state"]), (&false.into(), &"drained".into()));
    assert_eq!(status["owner"], "ann", "{status}");
    let ended = cluster.answer(&["drain", "end", "2"]).await;
    assert_eq!((&ended["answers"], &ended["draining"]), (&false.into(), &false.into()));
    cluster.until("the catalog knows nothing", |one| state(one, 2).is_none()).await;
    cluster.start_node(2).await;
    assert!(!cluster.host(2).advertisement().draining);
    cluster.stop().await;
}
