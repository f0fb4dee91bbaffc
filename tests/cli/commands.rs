//! What single commands do, print and end with.

use std::path::Path;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::{Node, Supervised, TIMEOUT, run};

const SHARD: &str = "1000000";

/// One node serves for all of it: starting one takes longer than what is asked of it.
#[tokio::test(flavor = "multi_thread")]
async fn every_receipt_is_taken_and_every_write_has_a_command() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(&directory.path().display().to_string(), &["--queues", "6"]).await;
    values_are_removed_and_compared(&node).await;
    receipts_that_are_printed_are_taken(&node).await;
    no_shard_waits_behind_the_others(&node).await;
    tables_in_a_pipe_are_ascii(&node).await;
    what_clients_write_controls_no_terminal(&node).await;
    node.stop().await;
}

async fn values_are_removed_and_compared(node: &Node) {
    let empty = node.run(&["table", "put", "", "x"]).await;
    assert!(empty.code == 2 && empty.stderr.contains("a value is required"), "{empty:?}");
    let key = "color";
    let cas = |more: &[&'static str]| [&["table", "cas", key][..], more].concat();
    node.run(&cas(&["--expect-absent", "--value", "red"])).await.ok();
    let taken = node.run(&cas(&["--expect-absent", "--value", "blue"])).await;
    assert!(taken.code == 4 && taken.stderr.contains("is red"), "{taken:?}");
    node.run(&cas(&["--expect", "red", "--value", "blue"])).await.ok();
    let other = node.run(&cas(&["--expect", "red", "--remove", "--json"])).await;
    assert_eq!(other.code, 4, "{other:?}");
    assert_eq!((&other.json()["done"], &other.json()["actual"]), (&json!(false), &json!("blue")));
    assert_eq!(node.run(&["table", "get", key]).await.ok().trim(), "blue");
    node.run(&cas(&["--expect", "blue", "--remove"])).await.ok();
    let gone = node.run(&cas(&["--expect", "blue", "--remove"])).await;
    assert!(gone.code == 4 && gone.stderr.contains("there is no key"), "{gone:?}");
    node.run(&["table", "put", key, "green"]).await.ok();
    assert!(node.run(&["table", "delete", key]).await.ok().contains("removed"));
    let again = node.run(&["table", "delete", key, "--json"]).await;
    assert_eq!(again.json()["existed"], false, "{again:?}");
    assert_eq!(node.run(&["table", "get", key]).await.code, 1);
    for senseless in [&["table", "cas", key][..], &["table", "cas", key, "--remove"]] {
        assert_eq!(node.run(senseless).await.code, 2, "{senseless:?}");
    }
}

async fn receipts_that_are_printed_are_taken(node: &Node) {
    for body in ["one", "two", "three"] {
        node.run(&["queue", "send", body, body]).await.ok();
    }
    let peeked = node.run(&["queue", "peek", "--json"]).await.json();
    let messages = |shown: &Value| shown["messages"].as_array().unwrap().clone();
    assert_eq!(messages(&peeked).len(), 3, "{peeked}");
    assert!(messages(&peeked).iter().all(|message| message["ack"].is_null()), "{peeked}");
    let received = node.run(&["queue", "receive", "--json"]).await.json();
    let receipts: Vec<String> = messages(&received)
        .iter()
        .map(|message| message["ack"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(receipts.len(), 3, "a peek takes nothing: {received}");
    let first = receipts[0].as_str();
    let acked = node.run(&["queue", "ack", first]).await.ok();
    assert!(acked.contains("1 message removed"), "{acked}");
    let all: Vec<&str> = receipts.iter().map(String::as_str).collect();
    let rest = node.run(&[&["queue", "ack", "--json"][..], &all].concat()).await;
    assert_eq!((rest.code, &rest.json()["acked"]), (3, &json!(2)), "{rest:?}");
    assert!(rest.json()["stale"] == 1 && rest.stderr.contains("stale"), "{rest:?}");
    assert_eq!(messages(&node.run(&["queue", "peek", "--json"]).await.json()).len(), 0);
    let nowhere = node.run(&["queue", "ack", "77:1"]).await;
    assert!(nowhere.code == 1 && nowhere.stderr.contains("of no shard"), "{nowhere:?}");
    for wrong in [&["queue", "ack"][..], &["queue", "ack", "7"], &["queue", "peek", "--limit", "0"]]
    {
        assert_eq!(node.run(wrong).await.code, 2, "{wrong:?}");
    }
    let brief = node.run(&["queue", "receive", "--visibility", "0"]).await;
    assert!(brief.code == 2 && brief.stderr.contains("1..=43200"), "{brief:?}");
}

async fn no_shard_waits_behind_the_others(node: &Node) {
    for key in 0..60 {
        node.run(&["queue", "send", &format!("key {key}"), "body"]).await.ok();
    }
    let mut shards = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let received = node.run(&["queue", "receive", "--max", "1", "--json"]).await.json();
        shards.insert(received["messages"][0]["shard"].as_u64().unwrap());
    }
    assert!(shards.len() > 1, "always the same shard is asked first: {shards:?}");
}

async fn what_clients_write_controls_no_terminal(node: &Node) {
    let evil = "a\u{1b}[2J\u{1b}]0;title\u{7}\nb\u{9b}1m\r\u{7f}";
    node.run(&["table", "put", evil, evil]).await.ok();
    node.run(&["queue", "send", evil, evil]).await.ok();
    let begin = ["drain", "begin", "1", "--even-if-ineligible", "--no-wait", "--owner", evil];
    for command in [
        &["table", "scan", "--from", "a\u{1b}"][..],
        &["table", "cas", evil, "--expect", "x", "--value", "y"],
        &["table", "get", &format!("{evil}?")],
        &["table", "delete", &format!("{evil}?")],
        &["queue", "peek", "--limit", "1000"],
        &["queue", "receive", "--max", "1", "--partition-key", evil],
        &begin,
        &begin,
        &["drain", "status", "1"],
        &["drain", "end", "1"],
        &["balance", "stop", "--reason", evil],
        &["balance", "status"],
        &["status"],
        &["balance", "resume"],
        &["group", "show", evil],
    ] {
        for more in [&[][..], &["--json"]] {
            let ended = node.run(&[command, more].concat()).await;
            for output in [&ended.stdout, &ended.stderr] {
                let controls = |c: char| c.is_control() && c != '\n';
                assert!(!output.contains(controls), "{command:?}: {ended:?}");
            }
        }
    }
    let unreachable = run(&["status", "--at", &format!("{evil}:1")]).await;
    assert!(!unreachable.stderr.contains('\u{1b}'), "{unreachable:?}");
    // A program gets what was put there.
    let raw = node.run(&["table", "get", evil]).await.ok();
    assert_eq!(raw.strip_suffix('\n'), Some(evil));
    assert_eq!(node.run(&["table", "get", evil, "--json"]).await.json()["value"], evil);
}

async fn tables_in_a_pipe_are_ascii(node: &Node) {
    for shown in
        [&["status"][..], &["group", "list"], &["queue", "peek"], &["drain", "status", "1"]]
    {
        let text = node.run(shown).await.ok();
        assert!(text.is_ascii() && text.contains("+--"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_listens_on_localhost_and_says_what_else_it_takes() {
    let directory = TempDir::new().unwrap();
    let data = directory.path().display().to_string();
    let node = Node::start(&data, &["--listen", "localhost:0"]).await;
    node.await_json(&["status", "--json"], |status| status["healthy"] == true).await;
    node.stop().await;
    let config = write(directory.path(), "listen = \"db1:7400\"\nalone = true\nnode = 1\n");
    let refused = run(&["serve", "--config", &config, "--data-dir", &data]).await;
    assert!(refused.code == 1 && refused.stderr.contains("localhost:7400"), "{refused:?}");
}

/// A mistyped name of the cluster can be corrected while nothing was kept under it.
#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_cluster_is_corrected_on_a_disk_that_holds_nothing() {
    let directory = TempDir::new().unwrap();
    let data = directory.path().join("data").display().to_string();
    let of = |cluster: &'static str| {
        let peers = ["--peer", "1=127.0.0.1:1", "--peer", "2=127.0.0.1:2"];
        [&["--cluster", cluster, "--node", "2"][..], &peers].concat()
    };
    for cluster in ["shp", "shop", "shop"] {
        let node = Node::start(&data, &of(cluster)).await;
        node.stop().await;
    }
}

fn write(directory: &Path, text: &str) -> String {
    let path = directory.join("a.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Two of three hosts hang, and every request is reported as done in part; then they come back.
#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_happen_is_told_and_a_parked_replica_gives_way() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::start(directory.path(), 2, 1).await;
    cluster.run(&["table", "put", "color", "red"]).await.ok();
    a_parked_replica_that_was_removed_gives_way(&mut cluster).await;
    a_host_that_moved_is_found(&mut cluster).await;
    commands_without_a_quorum_end_partly(&cluster).await;
}

async fn a_parked_replica_that_was_removed_gives_way(cluster: &mut Supervised) {
    cluster.kill(3).await;
    cluster.restart_with(3, &["--park", SHARD]).await;
    let at = cluster.addresses()[&3].clone();
    let parked = run(&["group", "show", SHARD, "--at", &at, "--json"]).await.json();
    assert!(parked["fault"].as_str().is_some_and(|fault| fault.contains("parked")), "{parked}");
    cluster.change_member("remove", SHARD, 3).await;
    cluster.change_member("add", SHARD, 3).await;
    let joined = run(&["group", "show", SHARD, "--at", &at, "--json"]).await.json();
    assert!(joined["fault"].is_null() || joined["fault"] == "", "{joined}");
    assert_ne!(joined["replica"], parked["replica"], "{joined}");
}

async fn a_host_that_moved_is_found(cluster: &mut Supervised) {
    let before = cluster.addresses().clone();
    cluster.kill(2).await;
    cluster.restart_elsewhere(2).await;
    // The others lead to it: their clients, and their messages.
    let one = cluster.addresses()[&1].clone();
    let transfer = ["leader", "transfer", SHARD, "--to", "2", "--at", &one, "--timeout", "60"];
    let began = Instant::now();
    loop {
        let moved = run(&transfer).await;
        if moved.code == 0 {
            break;
        }
        // On a busy machine users would have waited too long: it may be tried again.
        assert!(moved.stderr.contains("[ABORTED]"), "{moved:?}");
        assert!(began.elapsed() < TIMEOUT, "{moved:?}");
    }
    let read = run(&["table", "get", "color", "--at", &one]).await;
    assert_eq!(read.ok().trim(), "red");
    // One that is restarted afterwards, with the old configuration, makes a quorum with it.
    for node in [1, 3] {
        cluster.kill(node).await;
    }
    cluster.restart_configured(1, &before).await;
    let write = ["table", "put", "color", "red", "--at", &one, "--timeout", "60"];
    run(&write).await.ok();
    cluster.restart(3).await;
}

/// Waits until the host at this address leads no group.
async fn leads_nothing(at: &str) {
    let began = Instant::now();
    loop {
        let list = run(&["group", "list", "--at", at, "--json"]).await.json();
        let groups = list["groups"].as_array().cloned().unwrap_or_default();
        if !groups.is_empty() && groups.iter().all(|group| group["role"] != "leader") {
            return;
        }
        assert!(began.elapsed() < TIMEOUT, "it leads on without a quorum: {list}");
    }
}

async fn commands_without_a_quorum_end_partly(cluster: &Supervised) {
    let one = cluster.addresses()[&1].clone();
    for node in [2, 3] {
        cluster.signal(node, Signal::STOP);
    }
    let at = &["--at", &one, "--json"];
    // Until it has noticed, it leads on, and a drain is blocked.
    leads_nothing(&one).await;
    let drained = run(&[&["drain", "begin", "1", "--even-if-ineligible"][..], at].concat()).await;
    assert_eq!(drained.code, 3, "{drained:?}");
    assert!(drained.stderr.contains("do not answer: 2, 3"), "{drained:?}");
    assert_eq!(drained.json()["state"], "partly done", "{drained:?}");
    assert_eq!(drained.json()["silent_nodes"], json!([2, 3]), "{drained:?}");
    let looked = run(&[&["drain", "status", "1"][..], at].concat()).await.json();
    assert_eq!(looked["state"], "partly done", "{looked}");
    let balanced = run(&[&["balance", "now"][..], at].concat()).await;
    assert_eq!(balanced.code, 3, "{balanced:?}");
    assert_eq!(balanced.json()["silent_nodes"], json!([2, 3]), "{balanced:?}");
    assert!(balanced.json()["groups_without_leader"].as_u64().is_some_and(|groups| groups > 0));
    for node in [2, 3] {
        cluster.signal(node, Signal::CONT);
    }
}
