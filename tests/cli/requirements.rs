//! What an operator says and sees of requirements and capabilities.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::Node;

const TABLE: &str = "1000000";
const QUEUE: &str = "2000000";

/// A node alone that has `fifo` and `ssd`, and whose queue requires `fifo`.
async fn node(directory: &TempDir) -> Node {
    let path = directory.path().display().to_string();
    let has = ["--capability", "fifo", "--capability", "ssd", "--queues-require", "fifo"];
    let node = Node::start(&path, &has).await;
    for group in [TABLE, "1000001", QUEUE] {
        node.await_leading(group).await;
    }
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nodes_have_and_groups_require_is_on_every_screen() {
    let directory = TempDir::new().unwrap();
    let node = node(&directory).await;
    let healthy = |status: &Value| status["healthy"] == true;
    let status = node.await_json(&["status", "--json"], healthy).await;
    assert_eq!(status["nodes"][0]["capabilities"], json!(["fifo", "ssd"]), "{status}");
    assert_eq!(status["nodes"][0]["draining"], false, "{status}");
    node.await_text(&["status"], &["fifo, ssd"]).await;
    let required = json!({ "capabilities": ["fifo"], "soft": false });
    let meets = |shown: &Value| shown["requirement"] == required && shown["caretaker"].is_null();
    node.await_json(&["group", "show", QUEUE, "--json"], meets).await;
    node.await_text(&["group", "list"], &["fifo"]).await;
    node.await_text(&["group", "show", TABLE], &["nothing"]).await;
    let parts = ["is led by node 1", "and served", "it requires fifo", "fifo, ssd"];
    node.await_text(&["leader", "why", QUEUE], &parts).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requirement_that_nobody_meets_is_refused_meant_explained_and_taken_back() {
    let directory = TempDir::new().unwrap();
    let node = node(&directory).await;
    let bad = node.run(&["group", "require", TABLE, "Gpu!"]).await;
    assert!(bad.stderr.contains("\"Gpu!\" is no name of a capability"), "{bad:?}");
    let refused = node.run(&["group", "require", TABLE, "gpu", "tpu"]).await;
    assert_eq!(refused.code, 1);
    for told in ["no voter of group 1000000", "node 1 lacks gpu, tpu", "--even-if-ineligible"] {
        assert!(refused.stderr.contains(told), "{told}: {refused:?}");
    }
    let stale = node.run(&["group", "require", TABLE, "gpu", "--expect", "7"]).await;
    assert!(stale.stderr.contains("expects that of 7"), "{stale:?}");

    let meant = node.run(&["group", "require", TABLE, "gpu", "--even-if-ineligible"]).await.ok();
    assert!(meant.contains("group 1000000 requires gpu"), "{meant}");
    let parts = ["serves no users: node 1 lacks gpu", "no, lacks gpu", "group require 1000000"];
    node.await_text(&["leader", "why", TABLE], &parts).await;
    let closed = |why: &Value| why["leader_node"] == 1 && why["serving"] == false;
    let why = node.await_json(&["leader", "why", TABLE, "--json"], closed).await;
    assert_eq!(why["voters"][0]["lacking"], json!(["gpu"]), "{why}");
    let closed = ["leader that serves no users: node 1 lacks gpu"];
    node.await_text(&["group", "show", TABLE], &closed).await;
    let counted = |status: &Value| status["nodes"][0]["caretakers"] == 1;
    node.await_json(&["status", "--json"], counted).await;
    let moved = node.run(&["leader", "transfer", TABLE]).await;
    assert!(moved.stderr.contains("no healthy target"), "{moved:?}");

    let soft = node.run(&["group", "require", TABLE, "gpu", "--soft", "--json"]).await.json();
    assert_eq!(soft["requirement"], json!({ "capabilities": ["gpu"], "soft": true }), "{soft}");
    node.await_text(&["leader", "why", TABLE], &["and served"]).await;
    node.run(&["group", "require", TABLE, "--nothing"]).await.ok();
    node.run(&["table", "put", "color", "blue"]).await.ok();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capability_with_a_bad_name_keeps_a_node_from_starting_and_is_named() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().display().to_string();
    let refused = Node::refused(&path, &["--capability", "Gpu!"]).await;
    assert!(refused.contains("`capabilities` is wrong: \"Gpu!\""), "{refused}");
    assert!(refused.contains("1 to 64 of a-z"), "{refused}");
    let refused = Node::refused(&path, &["--queues-require", "fifo,"]).await;
    assert!(refused.contains("`queues-require` is wrong: \"\""), "{refused}");
}
