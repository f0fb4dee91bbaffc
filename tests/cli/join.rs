//! Nodes that join a running cluster by one command.

use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;
use shardhost_proto::admin::JoinRequest;
use shardhost_proto::admin::admin_client::AdminClient;
use shardhost_proto::version::ClusterVersion;
use tempfile::TempDir;

use super::process::{Node, Supervised, TIMEOUT, run, start};
use super::servers::Servers;

/// The numbers of the nodes that answer, as any node of the cluster says.
async fn that_serve(cluster: &Supervised) -> Vec<u64> {
    let listed = cluster.run(&["node", "list", "--json"]).await.json();
    let serves = |node: &&Value| node["state"] == "serves";
    let nodes = listed["nodes"].as_array().unwrap().iter().filter(serves);
    nodes.map(|node| node["node"].as_u64().unwrap()).collect()
}

async fn await_serving(cluster: &Supervised, numbers: &[u64]) {
    let began = Instant::now();
    loop {
        let serving = that_serve(cluster).await;
        if serving == numbers {
            return;
        }
        assert!(began.elapsed() < TIMEOUT, "{serving:?}, not {numbers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_by_one_command_and_is_the_same_one_ever_after() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::start(directory.path(), 4, 1).await;
    for key in 0..8 {
        cluster.run(&["table", "put", &format!("k{key}"), &format!("v{key}")]).await.ok();
    }
    let data = directory.path().join("fourth").display().to_string();
    let seeds = [&*cluster.addresses()[&2], &*cluster.addresses()[&1]].join(",");
    let fourth = Node::joining(&data, &["--join", &seeds, "--zone", "b"]).await;
    assert_eq!(fourth.number(), 4);
    await_serving(&cluster, &[1, 2, 3, 4]).await;
    let listed = fourth.run(&["node", "list", "--json"]).await.json();
    assert_eq!(listed["nodes"][3]["zone"], "b", "{listed}");
    // It is given its part, and the others reach it without a change of their configuration.
    cluster.run(&["member", "fill", "4", "--timeout", "60"]).await.ok();
    let listed = cluster.run(&["node", "list", "--json"]).await.json();
    assert!(listed["nodes"][3]["replicas"].as_u64().unwrap() > 0, "{listed}");

    // At another port, without a seed.
    fourth.stop().await;
    let silent = cluster.run(&["node", "list", "--json"]).await;
    assert_eq!((silent.code, &silent.json()["nodes"][3]["state"]), (3, &"no answer".into()));
    assert!(silent.json()["nodes"][3]["silent_ms"].as_u64().unwrap() > 0, "{silent:?}");
    let fourth = Node::joining(&data, &[]).await;
    assert_eq!(fourth.number(), 4);
    await_serving(&cluster, &[1, 2, 3, 4]).await;

    // A node whose configuration names three still finds the fourth after a restart.
    cluster.kill(1).await;
    cluster.restart(1).await;
    await_serving(&cluster, &[1, 2, 3, 4]).await;
    let began = Instant::now();
    while cluster.run(&["status"]).await.code != 0 {
        assert!(began.elapsed() < TIMEOUT, "{:?}", cluster.run(&["status"]).await);
    }
    for key in 0..8 {
        let read = ["table", "get", &format!("k{key}"), "--timeout", "60"];
        assert_eq!(cluster.run(&read).await.ok().trim(), format!("v{key}"));
    }
    fourth.stop().await;
}

/// Neither can greet the other one: the third one knows both, and so does the catalog, whichever node leads
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_move_at_the_same_time_find_each_other() {
    for leader in [1, 2] {
        find_each_other(leader).await;
    }
}

async fn find_each_other(leader: u64) {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::start(directory.path(), 2, 0).await;
    cluster.run(&["table", "put", "color", "red"]).await.ok();
    let before = cluster.addresses().clone();
    for node in [2, 3] {
        cluster.kill(node).await;
    }
    cluster.restart_elsewhere_configured(2, before.clone()).await;
    // The catalog is led before the third one comes: if that one cannot reach the leader, nor be reached by
    // it, it hears of it from the first one.
    let began = Instant::now();
    let (to, first) = (leader.to_string(), cluster.addresses()[&1].clone());
    let leads = async || {
        let transfer = ["leader", "transfer", "0", "--to", &to, "--timeout", "60"];
        cluster.run(&transfer).await;
        let shown = run(&["group", "show", "0", "--json", "--at", &first]).await.json();
        shown["leader_node"] == leader
    };
    while !leads().await {
        assert!(began.elapsed() < TIMEOUT, "node {leader} does not lead the catalog");
    }
    cluster.restart_elsewhere_configured(3, before).await;
    let began = Instant::now();
    let sees = async |node: u64, other: u64| {
        let at = cluster.addresses()[&node].clone();
        let shown = run(&["status", "--json", "--at", &at]).await.json();
        let nodes = shown["nodes"].as_array().cloned().unwrap_or_default();
        let asked = nodes.into_iter().find(|one| one["node"] == node).unwrap_or_default();
        let mut peers = asked["peers"].as_array().cloned().unwrap_or_default().into_iter();
        peers.any(|peer| peer["node"] == other && peer["live"] == true)
    };
    while !(sees(2, 3).await && sees(3, 2).await) {
        let led = "two nodes that moved do not find each other; the catalog was led by node";
        assert!(began.elapsed() < TIMEOUT, "{led} {leader}");
    }
    // They are a quorum without the one that knew both.
    cluster.kill(1).await;
    let put = ["table", "put", "color", "blue", "--timeout", "60"];
    cluster.run(&put).await.ok();
}

/// Every replica goes to the node that joined, the catalog's included, from a node that runs and from one
/// that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_gives_all_its_replicas_away_whether_it_runs_or_not() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::start(directory.path(), 4, 1).await;
    for key in 0..8 {
        cluster.run(&["table", "put", &format!("k{key}"), &format!("v{key}")]).await.ok();
    }
    // Nowhere to go.
    let stuck = cluster.run(&["node", "decommission", "3", "--dry-run", "--json"]).await;
    assert_eq!(stuck.code, 3, "{stuck:?}");
    let stuck = stuck.json();
    assert_eq!(stuck["left"].as_object().unwrap().len(), 6, "{stuck}");
    let seed = cluster.addresses()[&1].clone();
    let data = directory.path().join("fourth").display().to_string();
    let fourth = Node::joining(&data, &["--join", &seed]).await;
    await_serving(&cluster, &[1, 2, 3, 4]).await;
    let decommission = |node| ["node", "decommission", node, "--json", "--timeout", "60"];
    let done = cluster.run(&decommission("3")).await;
    assert_eq!((done.code, &done.json()["moved"]), (0, &6.into()), "{done:?}");
    // The catalog may not know yet that it is to hold nothing.
    let status = cluster.run(&["status"]).await;
    assert!(!status.stdout.contains("member rebuild"), "{status:?}");
    let listed = cluster.run(&["node", "list", "--json"]).await.json();
    assert_eq!(listed["nodes"][2]["state"], "draining", "{listed}");
    let again = cluster.run(&decommission("3")).await;
    assert_eq!((again.code, &again.json()["moved"]), (0, &0.into()), "{again:?}");

    // Taken back, so that another one can go, which is gone already.
    cluster.run(&["drain", "end", "3"]).await.ok();
    cluster.kill(2).await;
    let done = cluster.run(&decommission("2")).await;
    assert_eq!((done.code, &done.json()["moved"]), (0, &6.into()), "{done:?}");
    for key in 0..8 {
        let read = ["table", "get", &format!("k{key}"), "--timeout", "60"];
        assert_eq!(cluster.run(&read).await.ok().trim(), format!("v{key}"));
    }
    let unknown = cluster.run(&["node", "decommission", "9"]).await;
    assert!(unknown.code == 1 && unknown.stderr.contains("there is no node 9"), "{unknown:?}");
    fourth.stop().await;
}

/// Its leader cannot hand over: it is the only voter, or the only one that has what the group requires
/// beside the node that joined. One that was announced and never came keeps no command from its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_gives_away_what_only_it_can_lead() {
    let mut servers = Servers::new(3, "", "tables = 2\nqueues = 0");
    for node in 1..=3 {
        let has: &[&str] = if node == 1 { &["--capability", "fifo"] } else { &[] };
        servers.start(node, has);
    }
    servers.put(2, "color", "blue").await;
    for (group, voters) in [("78", "1"), ("79", "1,2,3"), ("80", "2,3")] {
        let create = ["group", "create", group, "--kind", "table", "--voters", voters];
        servers.run(2, &[&create[..], &["--timeout", "60"]].concat()).await.ok();
    }
    // What node 1 has is known to the leader a moment later.
    let require = ["group", "require", "79", "fifo", "--timeout", "60"];
    let is_required = || async { servers.run(2, &require).await.code == 0 };
    servers.until("group 79 requires fifo", is_required).await;
    let list = |group| ["member", "list", group, "--json", "--timeout", "60"];
    let is_led = || async {
        let listed = servers.run(2, &list("79")).await;
        listed.code == 0 && listed.json()["leader_node"] == 1
    };
    servers.until("node 1 leads group 79", is_led).await;
    let seed = servers.address(2).to_owned();
    let data = servers.directory().join("fourth").display().to_string();
    let fourth = Node::joining(&data, &["--join", &seed, "--capability", "fifo"]).await;
    let mut admin = AdminClient::connect(format!("http://{seed}")).await.unwrap();
    let address = "127.0.0.1:9".to_owned();
    let newest_version = ClusterVersion::NEWEST.get();
    let announced = JoinRequest { address, weight: 1, newest_version, ..JoinRequest::default() };
    assert_eq!(admin.join(announced).await.unwrap().into_inner().node, 5);
    let is_placed = || async {
        let planned = servers.run(2, &["node", "decommission", "1", "--dry-run", "--json"]).await;
        planned.code == 0 && planned.json()["left"] == serde_json::json!({})
    };
    servers.until("a place for every replica", is_placed).await;

    let decommission = ["node", "decommission", "1", "--json", "--timeout", "60"];
    let done = servers.run(2, &decommission).await;
    let shown = done.json();
    assert_eq!((done.code, &shown["left"]), (0, &serde_json::json!({})), "{done:?}");
    assert_eq!(shown["silent_nodes"], serde_json::json!([]), "{shown}");
    // Group 80 was created with two voters.
    assert_eq!(shown["short_groups"], serde_json::json!({}), "{shown}");
    let week = 7 * 24 * 60 * 60 * 1_000;
    let expires = shown["drain_expires_in_ms"].as_u64().unwrap();
    assert!(expires > week / 2 && expires <= week, "{shown}");
    for (group, count) in [("78", 1), ("79", 3), ("80", 2)] {
        let listed = servers.run(2, &list(group)).await.json();
        let members = listed["members"].as_array().unwrap();
        let votes = |member: &Value| member["node"] != 1 && member["role"] == "voter";
        assert!(members.len() == count && members.iter().all(votes), "{listed}");
    }
    servers.await_value(2, "color", "blue").await;
    // None of its voters but nodes 2 and 3 holds it any more, and nothing is created.
    let create = ["group", "create", "79", "--kind", "table", "--voters", "1,2,3"];
    let refused = servers.run(2, &create).await;
    assert!(refused.code == 1 && refused.stderr.contains("there is a group 79"), "{refused:?}");
    assert!(!refused.stderr.contains("have their replica"), "{refused:?}");
    // It is stopped for good, and named with what forgets it.
    servers.kill(1).await;
    let other = servers.run(2, &["node", "decommission", "3", "--timeout", "2"]).await;
    assert_eq!(other.code, 3, "{other:?}");
    assert!(other.stdout.contains("`shardhost node remove 1`"), "{other:?}");
    fourth.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_join_at_once_get_different_numbers_and_one_that_repeats_the_same() {
    let directory = TempDir::new().unwrap();
    let cluster = Supervised::start(directory.path(), 1, 0).await;
    let seed = cluster.addresses()[&1].clone();
    let data = |name: &str| directory.path().join(name).display().to_string();
    let (one, two) = (data("one"), data("two"));
    let flags = ["--join", &*seed];
    let (one, two) = tokio::join!(Node::joining(&one, &flags), Node::joining(&two, &flags));
    let mut numbers = [one.number(), two.number()];
    numbers.sort_unstable();
    assert_eq!(numbers, [4, 5]);

    // As after a crash before the answer was kept: the number is not lost.
    let mut admin = AdminClient::connect(format!("http://{seed}")).await.unwrap();
    let address = "127.0.0.1:9".to_owned();
    let newest_version = ClusterVersion::NEWEST.get();
    let request = JoinRequest { address, weight: 1, newest_version, ..JoinRequest::default() };
    for _ in 0..2 {
        let reply = admin.join(request.clone()).await.unwrap().into_inner();
        assert_eq!((reply.node, reply.tables, reply.nodes.len()), (6, 1, 6));
    }
    let listed = cluster.run(&["node", "list", "--json"]).await.json();
    assert_eq!(listed["nodes"][5]["state"], "never seen", "{listed}");
    let other = JoinRequest { node: 7, ..request };
    let refused = admin.join(other).await.unwrap_err();
    assert!(refused.message().contains("was given to node 6"), "{refused}");
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_join_is_told_why() {
    let directory = TempDir::new().unwrap();
    let cluster = Supervised::start(directory.path(), 1, 0).await;
    let seed = cluster.addresses()[&1].clone();
    let data = directory.path().join("new").display().to_string();
    let join = |more: &[&str]| {
        let serve = ["serve", "--data-dir", &data, "--listen", "127.0.0.1:0", "--join", &seed];
        let arguments: Vec<String> = serve.iter().chain(more).map(ToString::to_string).collect();
        async move { run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let refused = join(&["--cluster", "farm"]).await;
    let parts = ["shardhost", "farm", "OTHER_CLUSTER"];
    assert!(
        refused.code == 1 && parts.iter().all(|part| refused.stderr.contains(part)),
        "{refused:?}"
    );
    let file = directory.path().join("node.toml");
    std::fs::write(&file, "cluster = \"farm\"\n").unwrap();
    let refused = join(&["--config", &file.display().to_string()]).await;
    assert!(refused.code == 1 && refused.stderr.contains("OTHER_CLUSTER"), "{refused:?}");
    let refused = join(&["--node", "2"]).await;
    assert!(
        refused.code == 1 && refused.stderr.contains("there is a node 2 already"),
        "{refused:?}"
    );
    let refused = join(&["--zone", "no zone"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("BAD_NAME"), "{refused:?}");

    let own = ["serve", "--data-dir", &data, "--listen", "127.0.0.1:9", "--join", "127.0.0.1:9"];
    let refused = run(&own).await;
    assert!(refused.code == 2 && refused.stderr.contains("names this node itself"), "{refused:?}");
    let everywhere = ["serve", "--data-dir", &data, "--listen", "0.0.0.0:0", "--join", &seed];
    let refused = run(&everywhere).await;
    assert!(refused.code == 2 && refused.stderr.contains("--advertise"), "{refused:?}");
    // The disk of a node of the cluster.
    let disk = directory.path().join("alone").display().to_string();
    Node::start(&disk, &[]).await.stop().await;
    let refused =
        run(&["serve", "--data-dir", &disk, "--listen", "127.0.0.1:0", "--join", &seed]).await;
    assert!(refused.code == 1 && refused.stderr.contains("started without --join"), "{refused:?}");

    // It waits for a cluster that is not there yet, and can be stopped.
    let data = directory.path().join("waiting").display().to_string();
    let nowhere =
        ["serve", "--data-dir", &data, "--listen", "127.0.0.1:0", "--join", "127.0.0.1:9"];
    let waiting = start(&nowhere);
    let began = Instant::now();
    while !directory.path().join("waiting").join("lock").exists() {
        assert!(began.elapsed() < TIMEOUT, "it does not begin");
        tokio::task::yield_now().await;
    }
    waiting.signal(Signal::TERM);
    assert_eq!(waiting.end().await.code, 0);
}
