//! Which greetings are accepted, which are refused, and that a refusal has its cause.

use std::time::Duration;

use shardhost_groups::transport::Lane;
use shardhost_proto::peer::{Frame, GroupMessage, Hello, NodeHeartbeat, Welcome};
use tonic::Code;

use crate::fixture::{CLUSTER, Cluster, Edge, Host, Impostor, Stranger, hello, message, node};

/// Host 2, which knows node 1 by an address without a listener.
fn host_that_knows_node_1() -> Host {
    let cluster = Cluster::new();
    cluster.directory.set(node(1), "127.0.0.1:1");
    cluster.host(2)
}

#[test]
fn a_greeting_in_order_is_answered_with_who_is_here() {
    let two = host_that_knows_node_1();
    let welcome = Stranger::at(&two).greet(hello()).unwrap();
    assert_eq!((welcome.cluster.as_str(), welcome.node, welcome.incarnation), (CLUSTER, 2, 1));
    two.recorder.wait_edge(Edge::Live(node(1), 1));
}

#[test]
fn every_mismatch_is_refused_and_names_both_sides() {
    type Spoil = fn(&mut Hello);
    let cases: [(Spoil, &str); 6] = [
        (|h| h.cluster = "red".into(), "cluster \"red\", this host to \"blue\""),
        (|h| h.to_node = 3, "node 3 was meant, but node 2 was reached"),
        (|h| h.cluster_version = 99, "the peer's cluster is at version 99"),
        (|h| h.protocol = 2, "protocol 2, this host speaks 1"),
        (|h| h.node = 9, "node 9 is not in the directory of node 2"),
        (|h| h.node = 2, "node 2 is not in the directory of node 2"),
    ];
    let two = host_that_knows_node_1();
    for (spoil, told) in cases {
        let mut hello = hello();
        spoil(&mut hello);
        let status = Stranger::at(&two).greet(hello).unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains(told), "{status}");
    }
    assert_eq!(two.transport.stats().refused_greetings, 6);
    assert!(two.recorder.read(|told| told.edges.is_empty() && told.delivered.is_empty()));
}

#[test]
fn an_older_incarnation_is_refused_once_a_newer_one_was_seen() {
    let two = host_that_knows_node_1();
    Stranger::at(&two).greet(Hello { incarnation: 5, ..hello() }).unwrap();
    let status = Stranger::at(&two).greet(Hello { incarnation: 4, ..hello() }).unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("incarnation 4, but 5 was already seen"), "{status}");
}

#[test]
fn nothing_is_delivered_before_or_beside_a_greeting() {
    let two = host_that_knows_node_1();
    let messages = vec![GroupMessage { group: 1, ..GroupMessage::default() }];
    let without = Frame { messages: messages.clone(), ..Frame::default() };
    let beside = Frame { hello: Some(hello()), messages, ..Frame::default() };
    for first in [without, beside] {
        let status = Stranger::at(&two).exchange(vec![first]).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    assert!(two.recorder.read(|told| told.delivered.is_empty()));
}

#[test]
fn a_greeting_without_a_lane_is_refused() {
    let two = host_that_knows_node_1();
    let status = Stranger::at(&two).greet(Hello { lane: 0, ..hello() }).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[test]
fn a_silent_stranger_is_sent_away_at_the_deadline() {
    let two = Host::start(&Cluster::new(), 2, 1, |config| {
        config.handshake_timeout = Duration::from_millis(100);
    });
    let status = Stranger::at(&two).exchange(vec![]).unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
}

#[test]
fn a_peer_that_comes_before_the_groups_are_there_is_told_to_come_again() {
    let two = host_that_knows_node_1();
    two.shut_down();
    let status = Stranger::at(&two).greet(hello()).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}

#[test]
fn a_sender_whose_address_leads_to_another_node_sends_it_nothing() {
    let cluster = Cluster::new();
    let (one, two, three) = (cluster.host(1), cluster.host(2), cluster.host(3));
    one.wait_connected(2);
    cluster.directory.set(node(2), &three.address);
    one.wait("both lanes to leave", |host| {
        let peer = host.peer(2).unwrap();
        peer.address == three.address && !peer.bulk.connected && !peer.urgent.connected
    });
    one.send(vec![message(2, Lane::Bulk, 1, 1)]);
    three.wait("refusals", |host| host.transport.stats().refused_greetings >= 3);
    assert!(!one.peer(2).unwrap().bulk.connected);

    cluster.directory.set(node(2), &two.address);
    one.wait_connected(2);
    one.send(vec![message(2, Lane::Bulk, 2, 1)]);
    two.recorder.wait("a message", |told| told.indexes(Lane::Bulk).contains(&2));
    assert!(three.recorder.read(|told| told.indexes(Lane::Bulk).is_empty()));
}

#[test]
fn an_answer_from_another_node_or_cluster_opens_no_lane() {
    let answers = [
        Welcome { node: 3, ..welcome_of_node_2() },
        Welcome { cluster: "red".into(), ..welcome_of_node_2() },
        Welcome { protocol: 2, ..welcome_of_node_2() },
    ];
    for welcome in answers {
        let cluster = Cluster::new();
        let impostor = Impostor::start(welcome);
        cluster.directory.set(node(2), &impostor.address);
        let one = cluster.host(1);
        one.send(vec![message(2, Lane::Bulk, 1, 1)]);
        one.wait("two attempts per lane", |_| impostor.greetings() >= 4);
        assert_eq!(one.peer(2).unwrap().bulk.connects, 0);
        assert_eq!(impostor.messages(), 0);
    }
}

/// Both greeted before either knew which founding its cluster comes from.
#[test]
fn streams_end_when_it_turns_out_that_they_lead_to_a_cluster_of_another_founding() {
    let cluster = Cluster::new();
    let impostor = Impostor::start(Welcome { founding: 5, ..welcome_of_node_2() });
    cluster.directory.set(node(2), &impostor.address);
    let one = cluster.host(1);
    one.send(vec![message(2, Lane::Bulk, 1, 1)]);
    one.wait("the message", |_| impostor.messages() == 1);
    assert_eq!(one.transport.founding_of(node(2)), 5);
    one.transport.founded().set(7);
    one.wait("both lanes to end", |host| {
        let peer = host.peer(2).unwrap();
        !peer.bulk.connected && !peer.urgent.connected && peer.refused.is_some()
    });
    one.send(vec![message(2, Lane::Bulk, 2, 1)]);
    let greetings = impostor.greetings();
    one.wait("more attempts", |_| impostor.greetings() >= greetings + 4);
    assert_eq!(impostor.messages(), 1);

    let two = host_that_knows_node_1();
    let beat = |founding| {
        let heartbeat =
            Some(NodeHeartbeat { sequence: 1, advertisement: None, founding, wall_ms: 0 });
        let messages = vec![GroupMessage { group: 1, ..GroupMessage::default() }];
        prost::Message::encode_to_vec(&Frame { heartbeat, messages, ..Frame::default() })
    };
    two.transport.founded().set(7);
    let ended = Stranger::at(&two).exchange_bytes(hello(), vec![beat(0), beat(7), beat(5)]);
    assert_eq!(ended.code(), Code::FailedPrecondition, "{ended}");
    assert!(ended.message().contains("founded on other disks"), "{ended}");
    assert_eq!(two.peer(1).unwrap().received_messages, 2);
}

#[test]
fn an_answer_in_order_opens_the_lane() {
    let cluster = Cluster::new();
    let impostor = Impostor::start(welcome_of_node_2());
    cluster.directory.set(node(2), &impostor.address);
    let one = cluster.host(1);
    one.send(vec![message(2, Lane::Bulk, 1, 1)]);
    one.wait("the message", |_| impostor.messages() == 1);
}

fn welcome_of_node_2() -> Welcome {
    let cluster = CLUSTER.into();
    Welcome { protocol: 1, cluster, node: 2, incarnation: 1, ..Welcome::default() }
}

#[test]
fn an_older_process_of_a_node_stays_out_beside_the_newer_one() {
    let cluster = Cluster::new();
    let one = cluster.host(1);
    let newer = Host::start(&cluster, 2, 9, |_| ());
    one.recorder.wait_edge(Edge::Live(node(2), 9));
    let older = Host::start(&Cluster { directory: cluster.directory.clone() }, 2, 3, |_| ());
    cluster.directory.set(node(2), &newer.address);
    older.send(vec![message(1, Lane::Bulk, 1, 1)]);
    one.wait("refusals of both lanes", |host| host.transport.stats().refused_greetings >= 2);
    assert!(one.recorder.read(|told| told.delivered.is_empty()));
    assert_eq!(one.peer(2).unwrap().incarnation, Some(9));
}

/// Another process of node 2, at another address, which knows where node 1 is.
fn second_process(one: &Host, incarnation: u64, earlier_starts: &[u64]) -> Host {
    let elsewhere = Cluster::new();
    elsewhere.directory.set(node(1), &one.address);
    Host::start(&elsewhere, 2, incarnation, |config| {
        config.earlier_starts = earlier_starts.to_vec();
    })
}

/// Both lanes flow both ways between node 1 and the process that is node 2.
fn talk(one: &Host, two: &Host, index: u64) {
    one.wait_connected(2);
    two.wait_connected(1);
    one.send(vec![message(2, Lane::Bulk, index, 1), message(2, Lane::Urgent, index, 1)]);
    two.send(vec![message(1, Lane::Bulk, index, 1), message(1, Lane::Urgent, index, 1)]);
    for host in [one, two] {
        for lane in [Lane::Bulk, Lane::Urgent] {
            host.recorder.wait("a message", |told| told.indexes(lane).contains(&index));
        }
    }
}

#[test]
fn a_greeting_from_the_end_of_time_locks_nobody_out() {
    let (one, two) = Cluster::new().patient_pair();
    let known = Hello { known_incarnation: u64::MAX, ..greeting_of_node_2(1) };
    for forged in [greeting_of_node_2(u64::MAX), known] {
        let status = Stranger::at(&one).greet(forged).unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("than the clock of this host allows"), "{status}");
    }
    let peer = one.peer(2).unwrap();
    assert_eq!((peer.incarnation, peer.reconnects), (Some(1), 0));
    assert!(peer.refused.unwrap().contains("clock of this host"));
    talk(&one, &two, 1);
    assert_eq!(one.recorder.read(|told| told.edges.clone()), [Edge::Live(node(2), 1)]);
}

#[test]
fn a_forged_greeting_within_the_clock_locks_a_node_out_for_moments_only() {
    let (one, two) = Cluster::new().pair();
    let stranger = Stranger::at(&one);
    stranger.greet(Hello { starts: vec![5, 1], ..greeting_of_node_2(5) }).unwrap();
    one.recorder.wait_edge(Edge::Live(node(2), 5));
    // Its connection stays, and is silent.
    one.recorder.wait("the right one", |told| told.edges.last() == Some(&Edge::Live(node(2), 1)));
    talk(&one, &two, 1);
    assert_eq!(one.peer(2).unwrap().incarnation, Some(1));
    stranger.leave();
}

#[test]
fn a_node_is_let_in_again_when_its_clone_has_gone() {
    let (one, two) = Cluster::new().pair();
    let clone = second_process(&one, 9, &[1]);
    one.recorder.wait_edge(Edge::Live(node(2), 9));
    clone.wait("the clone's lanes", |host| host.peer(1).unwrap().urgent.connected);
    two.wait("the refusal", |host| host.peer(1).unwrap().refused_by.is_some());
    let told = two.peer(1).unwrap().refused_by.unwrap();
    assert!(told.contains("incarnation 1, but 9 was already seen"), "{told}");
    one.wait("the refusal of the process at the address", |host| {
        host.peer(2).unwrap().refused.is_some_and(|cause| cause.contains("incarnation 1, but 9"))
    });
    clone.kill();
    one.recorder.wait("the right one", |told| told.edges.last() == Some(&Edge::Live(node(2), 1)));
    talk(&one, &two, 1);
    assert_eq!(two.peer(1).unwrap().refused_by, None);
}

#[test]
fn a_process_with_another_data_directory_stays_out_while_the_node_lives() {
    let (one, two) = Cluster::new().patient_pair();
    talk(&one, &two, 1);
    let other = second_process(&one, 9, &[]);
    other.wait("the refusal", |host| host.peer(1).unwrap().refused_by.is_some());
    let told = other.peer(1).unwrap().refused_by.unwrap();
    assert!(told.contains("two processes have one node number"), "{told}");
    talk(&one, &two, 2);
    assert_eq!(one.recorder.read(|told| told.edges.clone()), [Edge::Live(node(2), 1)]);
    // A node that lost its disk comes back like this.
    two.kill();
    one.recorder.wait_edge(Edge::Live(node(2), 9));
}

fn greeting_of_node_2(incarnation: u64) -> Hello {
    Hello { node: 2, to_node: 1, incarnation, ..hello() }
}
