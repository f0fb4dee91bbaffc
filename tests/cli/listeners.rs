//! Clients and operators on listeners of their own: what is served there and what is not, and who is given their
//! addresses.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::Value;
use shardhost::{LogIndex, NodeId};
use shardhost_client::{Client, ClientError, ClientOptions};
use shardhost_proto::methods::{Audience, METHODS, audiences_of};
use tempfile::TempDir;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::process::{Ended, Node, run};
use super::servers::Servers;

const TABLES: u64 = 3;
/// Longer than any answer takes.
const LONG: Duration = Duration::from_secs(60);
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A free address of the machine, and another name of it.
fn free_by_name() -> (String, String) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    (free.to_string(), format!("localhost:{}", free.port()))
}

/// Three nodes, of which clients reach two at addresses of their own, the second one by another name.
async fn three() -> (Servers, Vec<String>) {
    let mut servers =
        Servers::new(3, "planner = \"off\"", &format!("tables = {TABLES}\nqueues = 1\n"));
    let (first, (second, named)) = (servers.free_beside(1), free_by_name());
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
    known_at(servers.address(node), node, "client_address").await
}

/// What a node says that is asked there: where they reach each node.
async fn known_at(address: &str, node: u64, who: &str) -> Vec<String> {
    let shown = at(&["status", "--json"], address).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
    let all = shown["nodes"].as_array().cloned().unwrap_or_default();
    let own = all.into_iter().find(|one| one["node"] == node).unwrap_or_default();
    let peers = own["peers"].as_array().cloned().unwrap_or_default();
    let mut nodes: Vec<&Value> = peers.iter().chain([&own]).collect();
    nodes.sort_by_key(|node| node["node"].as_u64());
    nodes.iter().map(|node| node[who].as_str().unwrap_or("").to_owned()).collect()
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
        let for_clients = audiences_of(path).has(Audience::Clients);
        let (wrong, right) = if for_clients { (&main, &of_clients) } else { (&of_clients, &main) };
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
    let client = Client::connect([of_clients.clone()], ClientOptions::default()).await.unwrap();
    let waits = client.wait_applied(NodeId::must(1), 1_000_000.into(), LogIndex::new(1), LONG);
    let refused = waits.await.unwrap_err();
    assert!(matches!(refused, ClientError::Unavailable { .. }), "{refused}");
    assert!(refused.to_string().contains(&main), "{refused}");
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

/// Three nodes: the first with a listener for each, the second with one for operators, which has another
/// name, the third with one for all. Returns where operators reach them.
async fn three_apart() -> (Servers, Vec<String>) {
    let shards = format!("tables = {TABLES}\nqueues = 1\n");
    let mut servers = Servers::new(3, "planner = \"off\"", &shards);
    let (clients, first) = (servers.free_beside(1), servers.free_beside(1));
    let (second, named) = free_by_name();
    servers.start(1, &["--client-listen", &clients, "--admin-listen", &first]);
    servers.start(2, &["--admin-listen", &second, "--admin-advertise", &named]);
    servers.start(3, &[]);
    let operators = vec![first, named, servers.address(3).to_owned()];
    for (node, address) in (1..).zip(&operators) {
        let knows = || async { known_at(address, node, "admin_address").await == operators };
        servers.until("each node knows where operators reach the others", knows).await;
    }
    let well = || async { at(&["status"], &operators[0]).await.code == 0 };
    servers.until("a cluster without problems", well).await;
    (servers, operators)
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_go_from_node_to_node_where_each_serves_them() {
    let (servers, operators) = three_apart().await;
    for (number, address) in operators.iter().enumerate() {
        let status = at(&["status"], address).await.ok();
        let nodes = at(&["node", "list"], address).await.ok();
        for node in 1..=3 {
            let shown = match &operators[node as usize - 1] {
                same if same == servers.address(node) => servers.address(node).to_owned(),
                other => format!("{}, operators {other}", servers.address(node)),
            };
            assert!(status.contains(&shown) && nodes.contains(&shown), "{shown}: {status}{nodes}");
        }
        assert!(!nodes.contains("no answer"), "{nodes}");
        for to in 1..=3 {
            let transfer = ["leader", "transfer", "1000000", "--to", &to.to_string()];
            let moved = || async { at(&transfer, address).await.code == 0 };
            servers.until(&format!("node {to} leads, asked at {address}"), moved).await;
            let why = at(&["leader", "why", "1000000"], address).await.ok();
            assert!(why.contains(&format!("led by node {to}")), "{why}");
        }
        at(&["group", "list"], address).await.ok();
        at(&["member", "list", "1000000"], address).await.ok();
        let other = ((number + 1) % 3 + 1).to_string();
        let drain = |what| ["drain", what, other.as_str()];
        let drained = || async { at(&drain("begin"), address).await.code == 0 };
        servers.until(&format!("node {other} is drained, asked at {address}"), drained).await;
        at(&drain("status"), address).await.ok();
        at(&drain("end"), address).await.ok();
        for command in [
            &["replicas", "rule", "set", "all", "--all", "--voters", "3"][..],
            &["replicas", "rule", "list"],
            &["replicas", "status"],
            &["balance", "status"],
            &["balance", "plan"],
            &["cluster", "version"],
        ] {
            at(command, address).await.ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_is_not_for_operators_says_where_they_are_in_the_first_words() {
    let (mut servers, operators) = three_apart().await;
    let [main, second] = [1, 2].map(|node| servers.address(node).to_owned());
    for path in METHODS {
        let asked = audiences_of(path);
        if asked.has(Audience::Operators) && !asked.has(Audience::Nodes) {
            let refused = call(&main, path).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{path}: {refused}");
            let operators = format!("operators are served at {}", operators[0]);
            assert!(refused.message().contains(&operators), "{path}: {refused}");
        }
        if !asked.has(Audience::Operators) {
            let refused = call(&operators[0], path).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{path}: {refused}");
        }
    }
    for address in [&main, &operators[0]] {
        call(address, HEALTH).await.unwrap();
    }
    let says = |ended: &Ended, first: &str| {
        assert_ne!(ended.code, 0, "{ended:?}");
        assert!(ended.stderr.starts_with(first), "{ended:?}");
    };
    let at_main = format!("error: {main}: this address is for nodes; ");
    says(&at(&["status"], &main).await, &at_main);
    let at_second =
        format!("error: {second}: this address is for nodes and clients of tables and queues; ");
    says(&at(&["status"], &second).await, &at_second);
    // Whatever is named beside it.
    let dead = servers.address(3).to_owned();
    servers.kill(3).await;
    for both in [format!("{main},{dead}"), format!("{dead},{main}")] {
        says(&at(&["status"], &both).await, &at_main);
    }
    says(&at(&["status"], &dead).await, "error: no node answers at ");
    let put = at(&["table", "put", "a", "b"], &format!("{main},{dead}")).await;
    assert!(
        put.code != 0 && put.stderr.contains("clients of tables and queues are served at"),
        "{put:?}"
    );
    // Beside one that operators are served at, it leads to its own.
    let both = format!("{},{main}", operators[1]);
    let shown = at(&["status"], &both).await.stdout;
    let silent: Vec<&str> = shown.lines().filter(|line| line.contains("(no answer)")).collect();
    assert!(matches!(silent[..], [one] if one.contains(&dead)), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_where_nodes_are_served_and_where_operators_are() {
    let (servers, operators) = three_apart().await;
    let directory = TempDir::new().unwrap();
    for (number, seed) in [(4, servers.address(1)), (5, &*operators[0])] {
        let data = directory.path().join(number.to_string()).display().to_string();
        let joined = Node::joining(&data, &["--join", seed]).await;
        assert_eq!(joined.number(), number, "{seed}");
        joined.stop().await;
    }
}
