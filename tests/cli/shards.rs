//! Tables and queues from the command line.

use serde_json::Value;
use tempfile::TempDir;

use super::process::Node;

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_written_and_read_from_the_command_line() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(&directory.path().display().to_string(), &[]).await;
    let put = node.run(&["table", "put", "apple", "red", "--json"]).await.json();
    assert_eq!(put["existed"], false, "{put}");
    assert_eq!(node.run(&["table", "get", "apple"]).await.stdout, "red\n");
    assert_eq!(node.run(&["table", "get", "apple", "--stale", "1"]).await.stdout, "red\n");
    node.run(&["table", "put", "pear", "green"]).await.ok();
    let scanned = node.run(&["table", "scan", "--from", "b", "--json"]).await.json();
    assert_eq!(scanned["pairs"], serde_json::json!([{ "key": "pear", "value": "green" }]));
    let page = node.run(&["table", "scan", "--limit", "1"]).await.ok();
    assert!(page.contains("apple") && page.contains("continue with --from"), "{page}");
    let missing = node.run(&["table", "get", "plum"]).await;
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("no key `plum`"), "{missing:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_sent_received_and_acked_from_the_command_line() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(&directory.path().display().to_string(), &[]).await;
    for body in ["first", "second"] {
        node.run(&["queue", "send", "p", body, "--dedup-id", body]).await.ok();
    }
    let again = node.run(&["queue", "send", "p", "first", "--dedup-id", "first", "--json"]).await;
    assert_eq!(again.json()["duplicate"], true);
    let receive = ["queue", "receive", "--partition-key", "p", "--ack", "--json"];
    let received = node.run(&receive).await.json();
    let bodies: Vec<&Value> =
        received["messages"].as_array().unwrap().iter().map(|message| &message["body"]).collect();
    assert_eq!(bodies, ["first", "second"]);
    let empty = node.run(&["queue", "receive"]).await.ok();
    assert!(empty.contains("no message"), "{empty}");
    node.stop().await;
}

/// The keys share a shard, and still each has its own ids.
#[tokio::test(flavor = "multi_thread")]
async fn one_id_for_two_partition_keys_is_two_messages() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(&directory.path().display().to_string(), &[]).await;
    let send = |key| ["queue", "send", key, "a body", "--dedup-id", "order-1", "--json"];
    for key in ["x", "y", "z"] {
        assert_eq!(node.run(&send(key)).await.json()["duplicate"], false, "{key}");
        assert_eq!(node.run(&send(key)).await.json()["duplicate"], true, "{key}");
    }
    let received = node.run(&["queue", "receive", "--ack", "--json"]).await.json();
    let messages = received["messages"].as_array().unwrap();
    let keys: Vec<&Value> = messages.iter().map(|message| &message["partition_key"]).collect();
    assert_eq!(keys, ["x", "y", "z"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_partition_key_is_refused_and_takes_nothing() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(&directory.path().display().to_string(), &[]).await;
    node.run(&["queue", "send", "x", "a body"]).await.ok();
    for arguments in [
        &["queue", "receive", "--partition-key", "", "--ack"][..],
        &["queue", "send", "", "a body"],
    ] {
        let refused = node.run(arguments).await;
        assert_eq!(refused.code, 2, "{refused:?}");
    }
    let received = node.run(&["queue", "receive", "--ack", "--json"]).await.json();
    assert_eq!(received["messages"].as_array().unwrap().len(), 1, "{received}");
    node.stop().await;
}

/// One of four shards serves no users: the messages of the others are shown, and the missing one is
/// named.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_healthy_shards_are_shown_when_another_one_does_not_answer() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(&directory.path().display().to_string(), &["--queues", "4"]).await;
    for key in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        node.run(&["queue", "send", key, "a body"]).await.ok();
    }
    let stopped = ["group", "require", "2000003", "gpu", "--even-if-ineligible"];
    node.run(&stopped).await.ok();
    node.await_text(&["group", "show", "2000003"], &["serves no users"]).await;
    let received = node.run(&["queue", "receive", "--timeout", "2", "--ack", "--json"]).await;
    assert_eq!(received.code, 3, "{received:?}");
    let shown = received.json();
    assert!(!shown["messages"].as_array().unwrap().is_empty(), "{shown}");
    assert!(shown["failed"]["3"].is_string(), "{shown}");
    assert!(received.stderr.contains("shard 3: "), "{received:?}");
    node.stop().await;
}

/// The reader of the output is so slow that another consumer gets the message before it is removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_not_removed_any_more_is_told() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(&directory.path().display().to_string(), &[]).await;
    // More than a pipe and a buffer hold.
    let body = "m".repeat(120_000);
    node.run(&["queue", "send", "x", &body]).await.ok();
    let receive = ["queue", "receive", "--ack", "--visibility", "1", "--json"];
    let mut slow = node.begin(&receive);
    slow.await_output().await;
    let others = ["queue", "receive", "--visibility", "60", "--json"];
    let second = |shown: &Value| shown["messages"][0]["attempt"] == 2;
    node.await_json(&others, second).await;
    let ended = slow.end().await;
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.stderr.contains("1 of these messages were not removed"), "{}", ended.stderr);
    node.stop().await;
}
