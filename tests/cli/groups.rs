//! Groups from the command line: who leads them, and their members.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::process::{Node, Supervised, run};

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_the_nodes_and_their_groups() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(&directory.path().display().to_string(), &[]).await;
    node.run(&["table", "put", "apple", "red"]).await.ok();
    let listed = node.run(&["group", "list", "--json"]).await.json();
    let groups: BTreeSet<u64> =
        listed["groups"].as_array().unwrap().iter().map(|g| g["group"].as_u64().unwrap()).collect();
    assert_eq!(groups, BTreeSet::from([0, 1_000_000, 1_000_001, 2_000_000]));
    let shown = node.await_leading("1000000").await;
    assert_eq!((&shown["kind"], &shown["leader_node"]), (&"table".into(), &1.into()), "{shown}");
    let status = node.run(&["status", "--json"]).await.json();
    assert_eq!(status["nodes"][0]["groups"], 4, "three shards and the catalog: {status}");
    let healthy = |status: &Value| status["healthy"] == true;
    node.await_json(&["status", "--json"], healthy).await;
    for shown in [&["group", "list"][..], &["group", "show", "2000000"], &["status"]] {
        assert!(node.run(shown).await.ok().contains("| "), "{shown:?}");
    }
    let unknown = node.run(&["group", "show", "7"]).await;
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("`shardhost group list`"), "{unknown:?}");
    node.stop().await;
    let nobody = run(&["status", "--at", "127.0.0.1:1"]).await;
    assert_eq!(nobody.code, 1);
    assert!(nobody.stderr.contains("shardhost serve") && nobody.stderr.contains("--at"));
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_to_the_node_that_is_named_wherever_one_asks() {
    let directory = TempDir::new().unwrap();
    let cluster = Supervised::start(directory.path(), 1, 1).await;
    // The shards are created a moment after the nodes are ready.
    cluster.run(&["table", "put", "a", "b", "--timeout", "60"]).await.ok();
    let at: Vec<&String> = cluster.addresses().values().collect();
    for to in ["2", "3", "1"] {
        for asked in &at {
            let transfer = ["leader", "transfer", "1000000", "--to", to, "--at", asked];
            let moved = run(&[&transfer[..], &["--timeout", "30", "--json"]].concat()).await;
            let moved = moved.json();
            assert_eq!(moved["to_node"].to_string(), to, "{moved}");
        }
    }
    let stranger = run(&["leader", "transfer", "1000000", "--to", "9", "--at", at[0]]).await;
    assert_eq!(stranger.code, 1);
    assert!(stranger.stderr.contains('9'), "{stranger:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_cannot_hand_its_leadership_over() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(&directory.path().display().to_string(), &[]).await;
    node.await_leading("1000000").await;
    let refused = node.run(&["leader", "transfer", "1000000"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    let already = node.run(&["leader", "transfer", "1000000", "--to", "1"]).await.ok();
    assert!(already.contains("already"), "{already}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_added_replaced_and_removed_from_the_command_line() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::with_spares(directory.path(), 1, 0, 2).await;
    let group = "1000000";
    cluster.run(&["table", "put", "color", "blue"]).await.ok();
    // The node that is asked may get its replica a moment later than the others.
    let deadline = Instant::now() + Duration::from_secs(60);
    let listed = loop {
        let listed = cluster.run(&["member", "list", group, "--json"]).await;
        if listed.code == 0 {
            break listed.json();
        }
        assert!(Instant::now() < deadline, "{listed:?}");
    };
    assert_eq!(listed["config_index"], 0, "{listed}");

    let added = cluster.run(&["member", "add", group, "4", "--expect", "0", "--json"]).await.json();
    let roles: Vec<&str> =
        added["members"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["voter"; 4], "{added}");

    let stale = cluster.run(&["member", "remove", group, "1", "--expect", "0"]).await;
    assert_eq!(stale.code, 1);
    let index = added["config_index"].to_string();
    assert!(stale.stderr.contains(&index) && stale.stderr.contains("that of 0"), "{stale:?}");

    // A node that dies is replaced, also when it led.
    let leader = added["leader_node"].as_u64().unwrap();
    cluster.kill(leader).await;
    let replaced = cluster.run(&["member", "replace", group, &leader.to_string(), "5"]).await.ok();
    assert!(replaced.contains("recorded") && replaced.contains("voter"), "{replaced}");
    let again = cluster.run(&["member", "replace", group, &leader.to_string(), "5"]).await.ok();
    assert!(!again.contains("recorded"), "what is done is not begun again: {again}");
    let color = cluster.run(&["table", "get", "color"]).await.ok();
    assert_eq!(color.trim(), "blue");

    let nothing = cluster.run(&["member", "replace", group, "1", "2", "--cancel"]).await;
    assert!(nothing.stderr.contains("no voter is being added"), "{nothing:?}");
    let unknown = cluster.run(&["member", "add", group, "9"]).await;
    assert!(unknown.stderr.contains("directory"), "{unknown:?}");
    cluster.kill_all().await;
}
