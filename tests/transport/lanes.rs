//! Delivery, order, bounds.

use std::time::{Duration, Instant};

use shardhost::transport::LaneLimits;
use shardhost_groups::transport::Lane;

use crate::fixture::{Cluster, Edge, GROUP, Host, Proxy, REPLICA, message, node};

#[test]
fn messages_of_both_lanes_arrive_in_the_order_they_were_sent() {
    let (one, two) = Cluster::new().pair();
    for start in (0..10_000).step_by(100) {
        let batch = (start..start + 100).flat_map(|index| {
            [Lane::Bulk, Lane::Urgent].map(|lane| message(2, lane, index, (index % 200) as usize))
        });
        one.send(batch.collect());
    }
    two.recorder.wait("all messages", |told| told.delivered.len() == 20_000);
    let in_order: Vec<u64> = (0..10_000).collect();
    assert_eq!(two.recorder.read(|told| told.indexes(Lane::Bulk)), in_order);
    assert_eq!(two.recorder.read(|told| told.indexes(Lane::Urgent)), in_order);
    assert!(two.recorder.read(|told| told.delivered.iter().all(|(from, _)| *from == one.id)));
}

#[test]
fn what_waits_shares_frames_and_a_lone_message_goes_at_once() {
    let (one, two) = Cluster::new().pair();
    one.send((0..10_000).map(|index| message(2, Lane::Bulk, index, 16)).collect());
    two.recorder.wait("all messages", |told| told.delivered.len() == 10_000);
    let bulk = one.peer(2).unwrap().bulk;
    assert_eq!((bulk.messages, bulk.waiting_messages, bulk.dropped), (10_000, 0, 0));
    assert!(bulk.frames < 20, "{bulk:?}");
    one.send(vec![message(2, Lane::Bulk, 10_000, 16)]);
    two.recorder.wait("the lone message", |told| told.delivered.len() == 10_001);
}

#[test]
fn a_full_lane_drops_counts_and_reports_and_never_blocks() {
    let cluster = Cluster::new();
    let bound = LaneLimits { bytes: 1 << 20, messages: 1 << 20 };
    let one = Host::start(&cluster, 1, 1, |config| config.bulk = bound);
    let two = cluster.host(2);
    one.wait_connected(2);

    // The receiver is blocked, so the stream's window fills, then the lane.
    two.recorder.stall();
    let began = Instant::now();
    for index in 0..1024 {
        one.send(vec![message(2, Lane::Bulk, index, 64 << 10)]);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "sending waited for the receiver");
    one.recorder.wait("a report of the drops", |told| {
        told.unreachable.contains(&(node(2), GROUP, REPLICA))
    });
    let bulk = one.peer(2).unwrap().bulk;
    assert!(bulk.dropped > 0 && bulk.waiting_bytes <= 1 << 20, "{bulk:?}");

    // It continues: messages that were not dropped arrive in order, and so do later ones.
    two.recorder.resume();
    one.wait("an empty lane", |host| host.peer(2).unwrap().bulk.waiting_messages == 0);
    one.send(vec![message(2, Lane::Bulk, 5000, 10)]);
    two.recorder.wait("the late message", |told| told.indexes(Lane::Bulk).last() == Some(&5000));
    let indexes = two.recorder.read(|told| told.indexes(Lane::Bulk));
    assert!(indexes.is_sorted());
    let dropped = one.peer(2).unwrap().bulk.dropped;
    assert_eq!(indexes.len() as u64 + dropped, 1025);
}

#[test]
fn the_urgent_lane_flows_while_the_bulk_lane_is_full() {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| config.bulk.messages = 1);
    let two = cluster.host(2);
    one.wait_connected(2);
    one.send((0..100).map(|index| message(2, Lane::Bulk, index, 10)).collect());
    one.send((0..100).map(|index| message(2, Lane::Urgent, index, 10)).collect());
    two.recorder.wait("the urgent messages", |told| told.indexes(Lane::Urgent).len() == 100);
    assert_eq!(one.peer(2).unwrap().bulk.dropped, 99);
}

#[test]
fn a_message_larger_than_a_frame_is_dropped_counted_and_reported_and_others_pass() {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| config.frame_max_bytes = 1 << 20);
    let two = cluster.host(2);
    one.wait_connected(2);
    one.send([10, 2 << 20, 10].map(|size| message(2, Lane::Bulk, size as u64, size)).into());
    two.recorder.wait("the small messages", |told| told.delivered.len() == 2);
    assert_eq!(one.transport.stats().oversized_drops, 1);
    assert_eq!(one.peer(2).unwrap().bulk.connects, 1);
    one.recorder
        .wait("a report of the drop", |told| told.unreachable.contains(&(node(2), GROUP, REPLICA)));
}

#[test]
fn the_largest_message_that_is_sent_is_also_taken() {
    let cluster = Cluster::new();
    let most = 1 << 20;
    let one = Host::start(&cluster, 1, 1, |config| config.frame_max_bytes = most);
    let two = Host::start(&cluster, 2, 1, |config| config.frame_max_bytes = most);
    one.wait_connected(2);
    let payloads = most - 4_330..most - 4_250;
    one.send(payloads.map(|size| message(2, Lane::Bulk, size as u64, size)).collect());
    one.wait("an empty lane", |host| {
        let bulk = host.peer(2).unwrap().bulk;
        bulk.messages > 0 && bulk.waiting_messages == 0
    });
    let sent = one.peer(2).unwrap().bulk.messages as usize;
    assert!(sent > 0 && one.transport.stats().oversized_drops > 0);
    two.recorder.wait("every message sent", |told| told.delivered.len() == sent);
    assert_eq!(two.transport.stats().broken_streams, 0);
}

#[test]
fn messages_to_strangers_and_to_oneself_are_dropped_and_counted() {
    let cluster = Cluster::new();
    let one = cluster.host(1);
    one.send(vec![message(1, Lane::Bulk, 1, 1), message(9, Lane::Urgent, 2, 1)]);
    assert_eq!(one.transport.stats().unknown_node_drops, 2);
}

#[test]
fn a_node_that_is_down_costs_a_bounded_memory_and_its_messages_are_reported() {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| {
        config.reconnecting.messages = 10;
        config.reconnect_grace = Duration::from_millis(100);
    });
    cluster.directory.set(node(2), cluster.host(2).kill());
    one.wait("the peer in the directory", |host| host.peer(2).is_some());
    one.send((0..100).map(|index| message(2, Lane::Bulk, index, 10)).collect());
    assert!(one.peer(2).unwrap().bulk.waiting_messages <= 10);
    one.recorder.wait("a report", |told| told.unreachable.contains(&(node(2), GROUP, REPLICA)));
    one.wait("the end of the grace", |host| host.peer(2).unwrap().bulk.waiting_messages == 0);
    assert_eq!(one.peer(2).unwrap().bulk.dropped, 100);
}

#[test]
fn shutting_down_sends_what_waits() {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| config.drain_timeout = Duration::from_secs(20));
    let two = cluster.host(2);
    one.wait_connected(2);
    one.send((0..30_000).map(|index| message(2, Lane::Bulk, index, 1000)).collect());
    one.shut_down();
    two.recorder.wait("all messages", |told| told.delivered.len() == 30_000);
    one.send(vec![message(2, Lane::Bulk, 30_000, 1)]);
    assert_eq!(one.transport.stats().unknown_node_drops, 1);
}

#[test]
fn a_bulk_connection_that_stalls_without_breaking_is_made_anew() {
    let cluster = Cluster::new();
    let proxy = Proxy::that_stalls(100 << 10);
    let two = Host::start(&cluster, 2, 1, |config| config.address.clone_from(&proxy.address));
    proxy.leads_to(&two.address);
    cluster.directory.set(node(2), &proxy.address);
    let one = cluster.host(1);
    one.wait_connected(2);
    one.recorder.wait_edge(Edge::Live(node(2), 1));
    let began = Instant::now();
    // The wire takes them all; what it had not carried is lost, as when a connection breaks.
    one.send((0..200).map(|index| message(2, Lane::Bulk, index, 1 << 10)).collect());
    one.wait("another connection", |host| {
        let bulk = host.peer(2).unwrap().bulk;
        bulk.stalls == 1 && bulk.connects == 2
    });
    one.send(vec![message(2, Lane::Bulk, 1_000, 1)]);
    two.recorder.wait("the message", |told| told.indexes(Lane::Bulk).contains(&1_000));
    assert!(began.elapsed() < Duration::from_secs(5), "only the keepalive of HTTP/2 noticed");
    assert_eq!(one.peer(2).unwrap().urgent.connects, 1, "the other lane was well");
    assert_eq!(one.recorder.read(|told| told.edges.clone()), [Edge::Live(node(2), 1)]);
}

#[test]
fn a_lane_that_is_slow_or_idle_is_not_given_up() {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| {
        config.liveness_timeout = Duration::from_millis(300);
    });
    let two = cluster.host(2);
    one.wait_connected(2);
    // Every frame is reported as taken, the last one too.
    for index in 0..3 {
        one.send(vec![message(2, Lane::Bulk, index, 1)]);
        let frames = one.peer(2).unwrap().received_frames;
        one.wait("ten heartbeats", |host| host.peer(2).unwrap().received_frames >= frames + 10);
    }
    two.recorder.wait("all", |told| told.indexes(Lane::Bulk) == [0, 1, 2]);
    let bulk = one.peer(2).unwrap().bulk;
    assert_eq!((bulk.stalls, bulk.connects), (0, 1));
}
