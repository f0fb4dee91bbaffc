//! A host whose wall clock is wrong while it leads a queue.

use std::time::{Duration, Instant};

use shardhost_client::Client;

use crate::cluster::Cluster;

const YEAR: i64 = 365 * 86_400;
const VISIBILITY: Duration = Duration::from_secs(2);
/// Visibilities after which what was not acked must be there again.
const SOON: Duration = Duration::from_secs(20);
/// The first shard of a queue.
const SHARD: usize = 0;

/// When the clock goes wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// While the host runs.
    Jumps,
    /// Before the host starts.
    FromTheStart,
}

/// Node 1 leads the queue with a clock that is wrong by so much, for one send. Then its clock is right again.
async fn led_with_a_wrong_clock(test: &str, shift: i64, wrong: Wrong) -> Option<(Cluster, Client)> {
    let mut cluster = Cluster::new(test, 3, 0, 1).await?;
    if wrong == Wrong::FromTheStart {
        cluster.faults(1).shift_clock(shift);
    }
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
    // They may be hidden since they were received before.
    let (hidden, mut first) = (Instant::now(), receive(client).await);
    while first.is_empty() {
        assert!(hidden.elapsed() < SOON, "they do not come back");
        first = receive(client).await;
    }
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

/// A clock that is ahead for one send by node 1 does no harm, then and when node 1 is gone.
async fn ahead_for_one_send(test: &str, shift: i64, wrong: Wrong) {
    let Some((mut cluster, client)) = led_with_a_wrong_clock(test, shift, wrong).await else {
        return;
    };
    // Sent a moment ago.
    assert!(send(&client, "before", "before").await, "the id was forgotten");
    assert!(send(&client, "wrong", "wrong").await, "the id was forgotten");
    messages_come_back(&client).await;
    // Nor when another host leads, which never had such a clock.
    cluster.servers.kill(1).await;
    assert!(send(&client, "wrong", "wrong").await, "the id was forgotten");
    messages_come_back(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_ahead_by_years_for_one_send_harms_nobody() {
    let test = "a_clock_that_jumps_ahead_by_years_for_one_send_harms_nobody";
    ahead_for_one_send(test, 10 * YEAR, Wrong::Jumps).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_ahead_by_minutes_for_one_send_harms_nobody() {
    let test = "a_clock_that_jumps_ahead_by_minutes_for_one_send_harms_nobody";
    ahead_for_one_send(test, 50 * 60, Wrong::Jumps).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_starts_with_a_clock_that_is_ahead_harms_nobody() {
    let test = "a_host_that_starts_with_a_clock_that_is_ahead_harms_nobody";
    ahead_for_one_send(test, 50 * 60, Wrong::FromTheStart).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_goes_back_hides_no_messages() {
    let test = "a_clock_that_goes_back_hides_no_messages";
    let made = led_with_a_wrong_clock(test, 0, Wrong::Jumps).await;
    let Some((cluster, client)) = made else { return };
    for shift in [-50 * 60, -YEAR] {
        cluster.faults(1).shift_clock(shift);
        messages_come_back(&client).await;
        assert!(send(&client, "before", "before").await, "the id was forgotten");
    }
}
