//! A host whose wall clock is wrong while it leads a queue.

use std::time::{Duration, Instant};

use shardhost::client::Client;

use crate::cluster::Cluster;

const YEAR: i64 = 365 * 86_400;
const VISIBILITY: Duration = Duration::from_secs(2);
/// Visibilities after which what was not acked must be there again.
const SOON: Duration = Duration::from_secs(20);
/// The first shard of a queue.
const SHARD: usize = 0;

/// Node 1 leads the queue with a clock that is wrong by so much, for one send. Then its clock is right again.
async fn led_with_a_wrong_clock(test: &str, shift: i64) -> Option<(Cluster, Client)> {
    let mut cluster = Cluster::new(test, 3, 0, 1)?;
    cluster.start_all();
    let client = cluster.client(&[1, 2, 3], Duration::from_secs(10)).await;
    cluster.lead_all(1).await;
    send(&client, "before", "before").await;
    cluster.faults(1).shift_clock(shift);
    send(&client, "wrong", "wrong").await;
    cluster.faults(1).shift_clock(0);
    Some((cluster, client))
}

/// Says whether it was a duplicate.
async fn send(client: &Client, body: &str, id: &str) -> bool {
    let (body, id) = (body.to_owned(), id.to_owned());
    client.queue().send("key", body, id).await.unwrap().duplicate
}

async fn receive(client: &Client) -> Vec<Vec<u8>> {
    let received = client.queue().receive(SHARD, 100, VISIBILITY).await.unwrap();
    received.messages.iter().map(|message| message.body.to_vec()).collect()
}

/// What was received and not acked comes back when its visibility ends.
async fn messages_come_back(client: &Client) {
    let first = receive(client).await;
    assert_eq!(first.len(), 2, "{first:?}");
    let began = Instant::now();
    let mut back = Vec::new();
    while back.len() < first.len() {
        assert!(began.elapsed() < SOON, "they do not come back: {back:?} of {first:?}");
        back.extend(receive(client).await);
    }
    let took = began.elapsed();
    assert!(took >= VISIBILITY.mul_f64(0.8), "they were hidden for {took:?} only");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_ahead_for_one_send_hides_no_messages_and_forgets_no_ids() {
    let test = "a_clock_that_is_ahead_for_one_send_hides_no_messages_and_forgets_no_ids";
    let Some((mut cluster, client)) = led_with_a_wrong_clock(test, 10 * YEAR).await else { return };
    // Sent a moment ago by a right clock.
    assert!(send(&client, "before", "before").await, "the id was forgotten");
    assert!(send(&client, "wrong", "wrong").await, "the id was forgotten");
    messages_come_back(&client).await;
    // Nor when another host leads, which never had such a clock.
    cluster.servers.kill(1).await;
    assert!(send(&client, "wrong", "wrong").await, "the id was forgotten");
    tokio::time::sleep(VISIBILITY * 2).await;
    messages_come_back(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_goes_back_hides_no_messages() {
    let test = "a_clock_that_goes_back_hides_no_messages";
    let Some((cluster, client)) = led_with_a_wrong_clock(test, 0).await else { return };
    cluster.faults(1).shift_clock(-YEAR);
    messages_come_back(&client).await;
    assert!(send(&client, "before", "before").await, "the id was forgotten");
}
