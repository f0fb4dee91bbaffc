//! What nodes say of themselves: on connecting, on change, once per incarnation.

use std::time::Duration;

use shardhost_groups::nodes::Advertisement;
use shardhost_groups::transport::Lane;
use shardhost_proto::peer::{self, Frame, Hello, Lane as WireLane, NodeHeartbeat};
use shardhost_storage::requirement::MAX_CAPABILITIES;

use crate::fixture::{Cluster, Edge, Host, Stranger, hello, message, node};

fn advertisement(names: &[&str]) -> Advertisement {
    Advertisement {
        capabilities: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Advertisement::default()
    }
}

fn said(names: &[&str]) -> peer::Advertisement {
    let capabilities = names.iter().map(|name| (*name).to_owned()).collect();
    peer::Advertisement { capabilities, ..peer::Advertisement::default() }
}

/// The notices that a host got about another one, in order.
fn told(host: &Host, of: u64) -> Vec<Advertisement> {
    host.recorder.read(|told| {
        let advertisements = told.advertisements.iter().filter(|(_, from, ..)| *from == node(of));
        advertisements.map(|(.., advertisement)| advertisement.clone()).collect()
    })
}

fn wait_told(host: &Host, of: u64, advertisement: &Advertisement) {
    host.recorder.wait(&format!("{advertisement:?}"), |told| {
        told.advertisements
            .iter()
            .any(|(_, from, _, heard)| *from == node(of) && heard == advertisement)
    });
}

#[test]
fn what_a_node_says_at_first_is_told_once_and_right_after_its_life() {
    let cluster = Cluster::new();
    let one = cluster.host(1);
    let two = Host::start(&cluster, 2, 8, |config| {
        config.advertisement = advertisement(&["fifo", "ssd"])
    });
    one.recorder.wait("an advertisement", |told| !told.advertisements.is_empty());
    two.recorder.wait("an advertisement of node 1", |told| !told.advertisements.is_empty());
    one.wait_connected(2);
    let heard = (1, node(2), 8, advertisement(&["fifo", "ssd"]));
    assert_eq!(one.recorder.read(|told| told.advertisements.clone()), [heard]);
    assert_eq!(one.recorder.read(|told| told.edges.clone()), [Edge::Live(node(2), 8)]);
    assert_eq!(one.peer(2).unwrap().advertisement, Some(advertisement(&["fifo", "ssd"])));
    assert_eq!(told(&two, 1), [advertisement(&[])], "to have nothing is said too");
}

#[test]
fn a_change_reaches_every_peer_and_the_last_one_stands() {
    let cluster = Cluster::new();
    let (one, two) = cluster.pair();
    let three = cluster.host(3);
    three.wait_connected(1);
    one.wait_connected(3);
    for name in ["first", "second", "third"] {
        one.transport.set_advertisement(&advertisement(&[name]));
    }
    one.transport.set_advertisement(&Advertisement { draining: true, ..advertisement(&["last"]) });
    for other in [&two, &three] {
        wait_told(other, 1, &Advertisement { draining: true, ..advertisement(&["last"]) });
        assert!(told(other, 1).last().unwrap().draining);
    }
}

#[test]
fn a_peer_that_comes_later_is_told_the_present() {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| config.advertisement = advertisement(&["old"]));
    one.transport.set_advertisement(&advertisement(&["present"]));
    let two = cluster.host(2);
    wait_told(&two, 1, &advertisement(&["present"]));
    assert_eq!(told(&two, 1), [advertisement(&["present"])]);
}

#[test]
fn a_node_that_is_lost_and_heard_again_on_its_stream_is_told_of_again() {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| {
        config.liveness_timeout = Duration::from_millis(500);
    });
    let two = Host::start(&cluster, 2, 1, |config| config.advertisement = advertisement(&["fifo"]));
    one.wait_connected(2);
    wait_told(&one, 2, &advertisement(&["fifo"]));

    // The only thread of the other host is blocked in a delivery, its sockets stay open.
    two.recorder.stall();
    one.send(vec![message(2, Lane::Bulk, 1, 10)]);
    one.recorder.wait_edge(Edge::Lost(node(2)));
    two.recorder.resume();
    one.recorder.wait("the advertisement again", |told| {
        told.advertisements
            .last()
            .is_some_and(|(edges, ..)| *edges == told.edges.len() && *edges >= 3)
    });
    assert!(told(&one, 2).iter().all(|heard| *heard == advertisement(&["fifo"])));
}

#[test]
fn another_incarnation_says_for_itself() {
    let cluster = Cluster::new();
    let one = cluster.host(1);
    let two = Host::start(&cluster, 2, 1, |config| config.advertisement = advertisement(&["fifo"]));
    wait_told(&one, 2, &advertisement(&["fifo"]));
    let address = two.kill();
    let _two = Host::start_at(&cluster, 2, 2, &address, |config| {
        config.advertisement = advertisement(&["gpu"])
    });
    wait_told(&one, 2, &advertisement(&["gpu"]));
    let incarnations: Vec<u64> =
        one.recorder.read(|told| told.advertisements.iter().map(|heard| heard.2).collect());
    assert_eq!(incarnations, [1, 2]);
}

/// Host 2, which knows node 1 by an address without a listener.
fn host_that_knows_node_1() -> Host {
    let cluster = Cluster::new();
    cluster.directory.set(node(1), "127.0.0.1:1");
    cluster.host(2)
}

/// A greeting of node 1 with this advertisement.
fn greeting(advertisement: Option<peer::Advertisement>) -> Hello {
    Hello { lane: WireLane::Urgent.into(), advertisement, ..hello() }
}

#[test]
fn an_older_version_that_says_nothing_is_unknown() {
    let two = host_that_knows_node_1();
    Stranger::at(&two).greet(greeting(None)).unwrap();
    two.recorder.wait_edge(Edge::Live(node(1), 1));
    assert_eq!(told(&two, 1), []);
    assert_eq!(two.peer(1).unwrap().advertisement, None);
}

#[test]
fn what_cannot_be_read_is_counted_and_keeps_nobody_from_talking() {
    let two = host_that_knows_node_1();
    let names: Vec<String> = (0..=MAX_CAPABILITIES).map(|number| format!("c{number}")).collect();
    let too_many = peer::Advertisement { capabilities: names, ..peer::Advertisement::default() };
    for malformed in [said(&["Fifo"]), said(&[""]), said(&["a b"]), too_many] {
        Stranger::at(&two).greet(greeting(Some(malformed))).unwrap();
    }
    assert_eq!(two.transport.stats().refused_advertisements, 4);
    assert_eq!(told(&two, 1), []);

    // A valid advertisement is kept, and a stream continues after an invalid one.
    let beat = |advertisement| {
        let heartbeat = Some(NodeHeartbeat { sequence: 1, advertisement, founding: 0, wall_ms: 0 });
        let frame = Frame { heartbeat, ..Frame::default() };
        prost::Message::encode_to_vec(&frame)
    };
    let beats = vec![
        beat(Some(said(&["fifo"]))),
        beat(Some(said(&["FIFO"]))),
        beat(Some(said(&["fifo", "ssd"]))),
        vec![0xff; 9],
    ];
    Stranger::at(&two).exchange_bytes(greeting(None), beats);
    assert_eq!(two.transport.stats().refused_advertisements, 5);
    assert_eq!(told(&two, 1), [advertisement(&["fifo"]), advertisement(&["fifo", "ssd"])]);
}
