//! Which peers live, and how streams follow nodes that restart, move, come and go.

use std::time::{Duration, Instant};

use shardhost_groups::transport::Lane;

use crate::fixture::{Cluster, Edge, Host, message, node};

#[test]
fn peers_are_live_with_their_incarnation() {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 5, |_| ());
    let two = Host::start(&cluster, 2, 8, |_| ());
    one.recorder.wait_edge(Edge::Live(node(2), 8));
    two.recorder.wait_edge(Edge::Live(node(1), 5));
    assert_eq!(one.peer(2).unwrap().incarnation, Some(8));
    assert!(one.peer(2).unwrap().live);
}

#[test]
fn an_idle_pair_stays_live() {
    let (one, two) = Cluster::new().pair();
    one.wait("forty heartbeats", |host| host.peer(2).unwrap().received_frames >= 40);
    two.wait("forty heartbeats", |host| host.peer(1).unwrap().received_frames >= 40);
    assert_eq!(one.recorder.read(|told| told.edges.clone()), [Edge::Live(node(2), 1)]);
    assert_eq!(two.recorder.read(|told| told.edges.clone()), [Edge::Live(node(1), 1)]);
}

#[test]
fn a_killed_peer_is_lost_before_the_timeout_and_live_again_when_it_restarts() {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| {
        config.liveness_timeout = Duration::from_secs(15);
    });
    let two = cluster.host(2);
    one.recorder.wait_edge(Edge::Live(node(2), 1));
    one.wait_connected(2);

    let began = Instant::now();
    let address = two.kill();
    one.recorder.wait_edge(Edge::Lost(node(2)));
    assert!(began.elapsed() < Duration::from_secs(10), "only the timeout noticed");

    let two = Host::start_at(&cluster, 2, 2, &address, |_| ());
    one.recorder.wait_edge(Edge::Live(node(2), 2));
    one.wait_connected(2);
    one.send(vec![message(2, Lane::Bulk, 1, 10)]);
    two.recorder.wait("the message", |told| told.indexes(Lane::Bulk) == [1]);
    assert!(one.peer(2).unwrap().reconnects >= 2);
    let edges = one.recorder.read(|told| told.edges.clone());
    assert_eq!(edges, [Edge::Live(node(2), 1), Edge::Lost(node(2)), Edge::Live(node(2), 2)]);
}

#[test]
fn a_frozen_peer_is_lost_by_its_silence_and_live_again_when_it_thaws() {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| {
        config.liveness_timeout = Duration::from_millis(500);
    });
    let two = cluster.host(2);
    one.wait_connected(2);
    one.recorder.wait_edge(Edge::Live(node(2), 1));

    // The only thread of the other host is blocked in a delivery, its sockets stay open.
    two.recorder.stall();
    let began = Instant::now();
    one.send(vec![message(2, Lane::Bulk, 1, 10)]);
    one.recorder.wait_edge(Edge::Lost(node(2)));
    assert!(began.elapsed() < Duration::from_secs(8), "only the keepalive of HTTP/2 noticed");

    two.recorder.resume();
    one.recorder.wait("life again", |told| told.edges.last() == Some(&Edge::Live(node(2), 1)));
}

#[test]
fn a_changed_address_is_followed() {
    let cluster = Cluster::new();
    let one = cluster.host(1);
    let old = cluster.host(2);
    one.wait_connected(2);
    let old_address = old.kill();

    let moved = Host::start(&cluster, 2, 2, |_| ());
    assert_ne!(moved.address, old_address);
    one.wait("the other address", |host| host.peer(2).unwrap().address == moved.address);
    one.wait_connected(2);
    one.send(vec![message(2, Lane::Urgent, 1, 10)]);
    moved.recorder.wait("the message", |told| told.indexes(Lane::Urgent) == [1]);
}

#[test]
fn an_added_peer_starts_and_a_removed_one_stops() {
    let cluster = Cluster::new();
    let (one, two) = cluster.pair();
    let three = cluster.host(3);
    one.wait_connected(3);
    two.wait_connected(3);
    one.recorder.wait_edge(Edge::Live(node(3), 1));

    cluster.directory.remove(node(3));
    one.recorder.wait_edge(Edge::Lost(node(3)));
    assert!(one.peer(3).is_none());
    one.send(vec![message(3, Lane::Bulk, 1, 1), message(2, Lane::Bulk, 2, 1)]);
    two.recorder.wait("the other message", |told| told.indexes(Lane::Bulk) == [2]);
    assert_eq!(one.transport.stats().unknown_node_drops, 1);
    assert!(three.recorder.read(|told| told.delivered.is_empty()));
}

#[test]
fn a_shut_down_transport_reports_its_peers_lost() {
    let (one, two) = Cluster::new().pair();
    one.recorder.wait_edge(Edge::Live(node(2), 1));
    one.shut_down();
    assert_eq!(one.recorder.read(|told| told.edges.last().copied()), Some(Edge::Lost(node(2))));
    two.recorder.wait_edge(Edge::Lost(node(1)));
}
