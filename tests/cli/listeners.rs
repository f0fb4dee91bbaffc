//! Clients on a listener of their own: what is served there and what is not, and who is given its address.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::Value;
use shardhost_client::{Client, ClientOptions};
use shardhost_proto::methods::{METHODS, is_of_clients};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::process::{Ended, run};
use super::servers::Servers;

const TABLES: u64 = 3;
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A port that is free at this IP address.
fn free_at(address: IpAddr) -> SocketAddr {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap()
}

/// Three nodes, of which clients reach two at addresses of their own, the second one by another name.
async fn three() -> (Servers, Vec<String>) {
    let mut servers =
        Servers::new(3, "planner = \"off\"", &format!("tables = {TABLES}\nqueues = 1\n"));
    let own: SocketAddr = servers.address(1).parse().unwrap();
    let (first, second) = (free_at(own.ip()).to_string(), free_at([127, 0, 0, 1].into()));
    let (second, named) = (second.to_string(), format!("localhost:{}", second.port()));
    servers.start(1, &["--client-listen", &first]);
    servers.start(2, &["--client-listen", &second, "--client-advertise", &named]);
    servers.start(3, &[]);
    let all = vec![first, named, servers.address(3).to_owned()];
    for node in 1..=3 {
        let knows_all = || async { clients_of(&servers, node).await == all };
        servers.until("each node knows where clients reach the others", knows_all).await;
    }
    let well = || async { servers.run(1, &["status"]).await.code == 0 };
    servers.until("a cluster without problems", well).await;
    (servers, all)
}

/// Where clients reach the nodes, as one of them says; nothing while it does not answer.
async fn clients_of(servers: &Servers, node: u64) -> Vec<String> {
    let shown = servers.run(node, &["status", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
    let all = shown["nodes"].as_array().cloned().unwrap_or_default();
    let own = all.into_iter().find(|one| one["node"] == node).unwrap_or_default();
    let peers = own["peers"].as_array().cloned().unwrap_or_default();
    let mut nodes: Vec<&Value> = peers.iter().chain([&own]).collect();
    nodes.sort_by_key(|node| node["node"].as_u64());
    nodes.iter().map(|node| node["client_address"].as_str().unwrap_or("").to_owned()).collect()
}

/// Has each node lead one of the tables.
async fn lead_one_each(servers: &Servers) {
    for (group, to) in (1_000_000..1_000_000 + TABLES).zip(1_u64..) {
        let (group, to) = (group.to_string(), to.to_string());
        let transfer = ["leader", "transfer", &group, "--to", &to];
        let led = || async { servers.run(1, &transfer).await.code == 0 };
        servers.until(&format!("node {to} leads {group}"), led).await;
    }
}

async fn at(arguments: &[&str], address: &str) -> Ended {
    run(&[arguments, &["--at", address]].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_served_at_their_listener_and_given_those_of_the_other_nodes() {
    let (servers, clients) = three().await;
    lead_one_each(&servers).await;
    let options =
        || ClientOptions { deadline: Duration::from_secs(60), ..ClientOptions::default() };
    let client = Client::connect([clients[0].clone()], options()).await.unwrap();
    let known: Vec<String> = client.nodes().into_values().collect();
    assert_eq!(known, clients);
    let table = client.table();
    let mut groups = std::collections::BTreeSet::new();
    for key in 0..24 {
        let key = format!("key {key}");
        groups.extend(table.group_of(key.as_bytes()));
        table.put(key, "red").await.unwrap();
    }
    assert_eq!(groups.len() as u64, TABLES, "each node leads some of them");
    // The leaders change places: the one that a node names instead is named by its address for clients, too.
    for (group, to) in (1_000_000..1_000_000 + TABLES).zip([2, 3, 1]) {
        let (group, to) = (group.to_string(), to.to_string());
        let transfer = ["leader", "transfer", &group, "--to", &to];
        let led = || async { servers.run(1, &transfer).await.code == 0 };
        servers.until(&format!("node {to} leads {group}"), led).await;
    }
    for key in 0..24 {
        assert_eq!(table.get(format!("key {key}")).await.unwrap().as_deref(), Some(&b"red"[..]));
    }
    let known: Vec<String> = client.nodes().into_values().collect();
    assert_eq!(known, clients, "no leader was named by the address of nodes");
    for address in &clients {
        for key in 0..6 {
            let got = at(&["table", "get", &format!("key {key}")], address).await.ok();
            assert!(got.contains("red"), "{got}");
        }
        at(&["queue", "send", "orders", "one"], address).await.ok();
    }
    for command in [&["status"][..], &["node", "list"]] {
        let shows = || async {
            let shown = servers.run(3, command).await.stdout;
            let both = (1..=2).zip(&clients);
            both.map(|(node, at)| format!("{}, clients {at}", servers.address(node)))
                .all(|both| shown.contains(&both))
        };
        servers.until("both addresses are shown where they differ", shows).await;
    }
}

/// A call without content.
async fn call(address: &str, path: &'static str) -> Result<(), Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel: Channel = endpoint.connect().await.unwrap();
    let mut calls = tonic::client::Grpc::new(channel);
    calls.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = PathAndQuery::from_static(path);
    calls.server_streaming(tonic::Request::new(()), path, codec).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_listener_does_not_serve_is_refused_with_the_address_that_does() {
    let (mut servers, clients) = three().await;
    let (main, of_clients) = (servers.address(1).to_owned(), clients[0].clone());
    for path in METHODS {
        let (wrong, right) =
            if is_of_clients(path) { (&main, &of_clients) } else { (&of_clients, &main) };
        let refused = call(wrong, path).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{path}: {refused}");
        assert!(refused.message().ends_with(&format!("at {right}")), "{path}: {refused}");
    }
    for address in [&main, &of_clients] {
        call(address, HEALTH).await.unwrap();
    }
    let put = at(&["table", "put", "a", "b"], &main).await;
    assert!(put.code != 0 && put.stderr.contains(&of_clients), "{put:?}");
    let status = at(&["status"], &of_clients).await;
    assert!(status.code != 0 && status.stderr.contains(&main), "{status:?}");
    // A node that is given the address of clients for that of a peer says so. It finds the peer all the same,
    // by the greeting of that.
    servers.kill(3).await;
    servers.set_route(3, 1, of_clients);
    servers.start(3, &[]);
    servers.await_log(3, &["this address is for clients", &main]).await;
    let well = || async { servers.run(3, &["status"]).await.code == 0 };
    servers.until("a cluster without problems", well).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_no_longer_has_a_listener_for_clients_serves_them_where_nodes_reach_it() {
    let (mut servers, mut clients) = three().await;
    servers.kill(1).await;
    servers.start(1, &[]);
    clients[0] = servers.address(1).to_owned();
    for node in 1..=3 {
        let knows = || async { clients_of(&servers, node).await == clients };
        servers.until("each node knows that clients reach node 1 elsewhere", knows).await;
    }
    let put = ["table", "put", "a", "b"];
    let taken = || async { at(&put, &clients[0]).await.code == 0 };
    servers.until("node 1 serves clients", taken).await;
}
