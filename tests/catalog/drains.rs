//! Drains that the catalog knows of.

use shardhost::NodeId;
use shardhost::policy::catalog::DrainState;

use crate::cluster::{Cluster, Shape};

const TABLES: u64 = 12;

fn state(cluster: &Cluster, node: u64) -> Option<DrainState> {
    let view = cluster.servers.values().next()?.system()?.view()?;
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
    cluster.until("it drains again", |cluster| cluster.host(2).advert().draining).await;
    let second = cluster.refusal(&["drain", "begin", "2", "--owner", "another"]).await;
    assert!(second.contains("the test"), "{second}");
    // It is ended by a process that has heard nothing of it yet, too.
    cluster.stop_node(2).await;
    cluster.start_node(2).await;
    let ended = cluster.answer(&["drain", "end", "2"]).await;
    assert_eq!(ended["draining"], false);
    cluster.until("the catalog knows nothing", |one| state(one, 2).is_none()).await;
    assert!(!cluster.host(2).advert().draining);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_do_not_leave_a_group_without_anybody_to_lead_it() {
    let cluster = Cluster::start(Shape::new(3, TABLES)).await;
    cluster.answer(&["drain", "begin", "1"]).await;
    cluster.answer(&["drain", "begin", "2"]).await;
    cluster.until("one leads everything", |cluster| cluster.led()[&3] == TABLES).await;
    let last = cluster.refusal(&["drain", "begin", "3"]).await;
    assert!(last.contains("nobody could lead") && last.contains("accept it"), "{last}");
    assert!(!cluster.host(3).advert().draining);
    let forced = cluster.answer(&["drain", "begin", "3", "--even-if-nobody"]).await;
    assert!(forced["left"].as_u64() >= Some(TABLES), "what cannot go stays: {forced}");
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
    let begin = &["drain", "begin", "2", "--deadline", "1", "--expires", "1"];
    cluster.answer(begin).await;
    cluster.until("it is over", |one| state(one, 2).is_none()).await;
    cluster.until("it takes leaders", |cluster| !cluster.host(2).advert().draining).await;
    cluster.stop().await;
}
