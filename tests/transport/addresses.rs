//! Nodes that are not where the directory says: their greetings name where they are.

use std::sync::Arc;
use std::time::Duration;

use shardhost_groups::transport::Lane;
use shardhost_proto::methods::Audience;
use shardhost_proto::peer::{Hello, Welcome};

use crate::fixture::{CLUSTER, Cluster, Found, Host, Impostor, Stranger, hello, message, node};

/// A host with a directory of its own.
fn host(cluster: &Cluster, id: u64, incarnation: u64) -> Host {
    Host::start(cluster, id, incarnation, |config| {
        config.configured_look_after = Duration::from_millis(100);
        config.backoff_max = Duration::from_millis(100);
    })
}

/// Sends until one message arrives.
fn reaches(from: &Host, to: &Host) {
    from.wait_connected(to.id.get());
    let already = to.recorder.read(|told| told.delivered.len());
    from.wait("a message that arrives", |host| {
        host.send(vec![message(to.id.get(), Lane::Bulk, 1, 10)]);
        to.recorder.read(|told| told.delivered.len() > already)
    });
}

#[test]
fn a_node_that_was_restarted_elsewhere_is_found_by_its_greeting() {
    let (ones, twos) = (Cluster::new(), Cluster::new());
    let one = host(&ones, 1, 1);
    twos.directory.set(node(1), &one.address);
    let two = host(&twos, 2, 1);
    ones.directory.set(node(2), &two.address);
    reaches(&one, &two);
    reaches(&two, &one);
    let before = two.address.clone();
    two.kill();
    let two = host(&twos, 2, 2);
    assert_ne!(two.address, before);
    reaches(&one, &two);
    assert_eq!(ones.directory.address(node(2)), Some(two.address.clone()), "for clients, too");
}

#[test]
fn a_node_that_moved_is_found_by_one_that_was_restarted_afterwards() {
    let (ones, twos) = (Cluster::new(), Cluster::new());
    let one = host(&ones, 1, 1);
    twos.directory.set(node(1), &one.address);
    // Where node 2 was when its peers were configured.
    ones.directory.set(node(2), "127.0.0.1:1");
    let two = host(&twos, 2, 2);
    reaches(&two, &one);
    reaches(&one, &two);
    assert_eq!(ones.directory.address(node(2)), Some(two.address.clone()), "for clients, too");
}

#[test]
fn two_nodes_that_move_one_after_the_other_find_each_other() {
    let (ones, twos) = (Cluster::new(), Cluster::new());
    let memory = Arc::<Found>::default();
    let start_one = |incarnation| {
        Host::start_remembering(
            &ones,
            1,
            incarnation,
            "127.0.0.1:0",
            Arc::clone(&memory),
            |config| {
                config.configured_look_after = Duration::from_millis(100);
                config.backoff_max = Duration::from_millis(100);
            },
        )
    };
    let one = start_one(1);
    twos.directory.set(node(1), &one.address);
    ones.directory.set(node(2), "127.0.0.1:1");
    let two = host(&twos, 2, 2);
    reaches(&one, &two);
    one.kill();
    // A process begins with what its configuration says, as node 2 has it of node 1.
    ones.directory.set(node(2), "127.0.0.1:1");
    let one = start_one(2);
    reaches(&one, &two);
    reaches(&two, &one);
}

/// Host 1, which is connected to a host 2 that ended then, and where that was.
fn host_that_lost_node_2(ones: &Cluster, twos: &Cluster) -> (Host, String) {
    let one = host(ones, 1, 1);
    twos.directory.set(node(1), &one.address);
    let two = host(twos, 2, 1);
    ones.directory.set(node(2), &two.address);
    reaches(&one, &two);
    reaches(&two, &one);
    (one, two.kill())
}

#[test]
fn a_forged_greeting_does_not_redirect_for_good() {
    let (ones, twos) = (Cluster::new(), Cluster::new());
    let (one, configured) = host_that_lost_node_2(&ones, &twos);
    let impostor = Impostor::start(Welcome {
        protocol: 1,
        cluster: CLUSTER.to_owned(),
        node: 2,
        incarnation: 5,
        ..Welcome::default()
    });
    let address = impostor.address.clone();
    let forged = Hello { node: 2, to_node: 1, incarnation: 5, address, ..hello() };
    Stranger::at(&one).greet(forged).unwrap();
    one.wait("a connection to the impostor", |_| {
        impostor.greetings() > 0
            && ones.directory.address(node(2)).as_ref() == Some(&impostor.address)
    });
    // It reaches no other node: that its address leads to it is enough.
    let alone = Cluster::new();
    alone.directory.set(node(1), "127.0.0.1:1");
    let two = Host::start_at(&alone, 2, 6, &configured, |_| ());
    one.wait("the configured address", |_| {
        ones.directory.address(node(2)).as_ref() == Some(&configured)
    });
    reaches(&one, &two);
}

#[test]
fn addresses_that_nobody_can_connect_to_are_not_taken_over() {
    let (ones, twos) = (Cluster::new(), Cluster::new());
    let (one, configured) = host_that_lost_node_2(&ones, &twos);
    for (incarnation, address) in (2..).zip(["0.0.0.0:1", "http://x", "", "[::]:9", "x:0"]) {
        let address = address.to_owned();
        let greeting = Hello { node: 2, to_node: 1, incarnation, address, ..hello() };
        Stranger::at(&one).greet(greeting).unwrap();
        assert_eq!(ones.directory.address(node(2)).as_ref(), Some(&configured));
    }
}

#[test]
fn a_greeting_says_where_clients_and_operators_reach_its_node_until_the_next_one_says_otherwise() {
    let cluster = Cluster::new();
    cluster.directory.set(node(1), "127.0.0.1:1");
    let two = cluster.host(2);
    let known = || Audience::ALL.map(|audience| two.transport.address_for(audience, node(1)));
    assert_eq!(known(), [None, None, None]);
    let all = [
        ("shop.example:7500", Some("shop.example:7500")),
        ("", None),
        ("10.0.0.1:7500", Some("10.0.0.1:7500")),
        ("0.0.0.0:7500", None),
        ("10.0.0.1:7501", Some("10.0.0.1:7501")),
        ("no address", None),
    ];
    for ((client, for_clients), (admin, for_operators)) in
        all.into_iter().zip(all.into_iter().rev())
    {
        let greeting =
            Hello { client_address: client.into(), admin_address: admin.into(), ..hello() };
        Stranger::at(&two).greet(greeting).unwrap();
        let expected = [None, for_operators, for_clients];
        assert_eq!(known(), expected.map(|at| at.map(str::to_owned)), "{client} {admin}");
    }
    Stranger::at(&two).greet(hello()).unwrap();
    let at = || "10.0.0.9:1".to_owned();
    let late =
        Hello { client_address: at(), admin_address: at(), cluster: "other".into(), ..hello() };
    Stranger::at(&two).greet(late).unwrap_err();
    assert_eq!(known(), [None, None, None], "it was refused");
}
