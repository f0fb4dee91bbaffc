//! The program itself, as real processes on loopback.

mod cli {
    mod commands;
    mod disks;
    mod founding;
    mod join;
    mod operations;
    mod outcomes;
    mod parked;
    pub mod process;
    mod recorded;
    mod replicas;
    mod requirements;
    mod security;
    mod servers;
    mod shard_map;
    mod versions;
}

#[path = "faults/machine.rs"]
mod machine;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cli::process::{Node, Supervised, await_gone, run, start};
use parking_lot::Mutex;
use serde_json::Value;
use shardhost_client::{Client, ClientOptions};
use tempfile::TempDir;

/// Writes lines to load, so that no word list is needed.
fn input(directory: &Path, lines: usize) -> String {
    let path = directory.join("input");
    let text: String = (0..lines).map(|number| format!("word {number}\n")).collect();
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// An empty directory for the data of a demo.
fn data(directory: &Path) -> String {
    let path = directory.join("data");
    std::fs::create_dir(&path).unwrap();
    path.display().to_string()
}

const SMALL: [&str; 7] = ["demo", "--tables", "4", "--queues", "4", "--rate", "500"];

#[tokio::test(flavor = "multi_thread")]
async fn a_short_demo_ends_with_its_verdict_and_leaves_nothing_behind() {
    let directory = TempDir::new().unwrap();
    let (load, data) = (input(directory.path(), 2_000), data(directory.path()));
    let ended = run(&[&SMALL[..], &["--load", &load, "--directory", &data]].concat()).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let verdict = ended.stdout.lines().last().unwrap_or_default();
    let parts = [
        "VERDICT: ",
        " acknowledged writes, 0 lost, 0 wrong, 0 out of order; 3 replicas of 8 shards equal; ",
        "node 3 never served a queue in ",
        "; node 4 joined, held 6 and led ",
        // The catalog's among them.
        " was lost for good, and its 7 replicas were replaced in ",
        "; 3 of 3 hosts were drained, restarted and lead again",
    ];
    for part in parts {
        assert!(verdict.contains(part), "{part}: {ended:?}");
    }
    let events = [
        "SIGKILL to node",
        "every shard is led again",
        "is back",
        "node 4 holds 6 of 8 shards",
        "leaderships are spread",
        "which never comes back",
        "group 0, the catalog, has all its voters again",
        "every group has all its voters again",
        "after SIGTERM",
    ];
    for event in events {
        assert!(ended.stdout.contains(event), "{event}: {ended:?}");
    }
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    for process in ended.processes() {
        await_gone(process).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_whose_expectation_is_wrong_fails_and_says_why() {
    let directory = TempDir::new().unwrap();
    let load = input(directory.path(), 400);
    let cases = [
        ("value", "wrong", "key"),
        ("forgotten-message", "wrong", "never acknowledged"),
        ("invented-message", "lost", "is not there"),
    ];
    for (sabotage, fault, words) in cases {
        let arguments = ["--load", &load, "--json", "--sabotage", sabotage];
        let ended = run(&[&SMALL[..], &arguments[..]].concat()).await;
        assert_eq!(ended.code, 1, "{sabotage}: {ended:?}");
        let report = ended.json();
        assert_eq!((&report["good"], &report[fault]), (&false.into(), &1.into()), "{report}");
        assert!(report["faults"][0].as_str().unwrap().contains(words), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_whose_hosts_got_no_replicas_fails_and_says_so() {
    let directory = TempDir::new().unwrap();
    let load = input(directory.path(), 400);
    let cases = [
        ("empty-host", ["joined", "is_fair"], "joined, held 0 and led 0, which is not its part"),
        ("missing-replica", ["loss", "is_healed"], "and 6 of its 7 replicas are elsewhere"),
    ];
    for (sabotage, [act, is_good], words) in cases {
        let arguments = ["--load", &load, "--json", "--sabotage", sabotage];
        let ended = run(&[&SMALL[..], &arguments[..]].concat()).await;
        assert_eq!(ended.code, 1, "{sabotage}: {ended:?}");
        let report = ended.json();
        assert_eq!((&report["good"], &report[act][is_good]), (&false.into(), &false.into()));
        assert!(report["verdict"].as_str().unwrap().contains(words), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_demo_ends_its_hosts_and_removes_their_data() {
    let directory = TempDir::new().unwrap();
    let (load, data) = (input(directory.path(), 2_000), data(directory.path()));
    let mut demo = start(&[&SMALL[..], &["--load", &load, "--directory", &data]].concat());
    demo.await_line("are led").await;
    demo.signal(rustix::process::Signal::INT);
    let ended = demo.end().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("interrupted"), "{ended:?}");
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    assert_eq!(ended.processes().len(), 3);
    for process in ended.processes() {
        await_gone(process).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_killed_leaves_no_host_running() {
    let directory = TempDir::new().unwrap();
    let (load, data) = (input(directory.path(), 2_000), data(directory.path()));
    let mut demo = start(&[&SMALL[..], &["--load", &load, "--directory", &data]].concat());
    demo.await_line("are led").await;
    demo.signal(rustix::process::Signal::KILL);
    for process in demo.end().await.processes() {
        await_gone(process).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_cluster_goes_on_and_says_how_to_stop_it() {
    let directory = TempDir::new().unwrap();
    let (load, data) = (input(directory.path(), 200), data(directory.path()));
    let arguments = ["--load", &load, "--directory", &data, "--keep"];
    let ended = run(&[&SMALL[..], &arguments[..]].concat()).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let after = |words: &str| {
        let line = ended.stdout.lines().find_map(|line| line.split_once(words));
        line.unwrap_or_else(|| panic!("{words}: {ended:?}")).1.trim().to_owned()
    };
    let (at, ids) = (after("shardhost status --at"), after("kill "));
    let ids: Vec<u32> = ids.split(' ').map(|id| id.parse().unwrap()).collect();
    let plain = run(&["status", "--at", &at]).await;
    assert!(plain.code == 1 && plain.stderr.contains("TLS"), "{plain:?}");
    // As flags, in place of the environment that it prints.
    let user = after("export ");
    let user: Vec<String> =
        user.split(' ').map(|pair| pair.replacen("SHARDHOST_TLS_", "--tls-", 1)).collect();
    let user: Vec<String> = user
        .iter()
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(flag, file)| format!("{}={file}", flag.to_lowercase()))
        .collect();
    let as_user = async |arguments: &[&str]| {
        let user: Vec<&str> = user.iter().map(String::as_str).collect();
        run(&[arguments, &["--at", &at], &user].concat()).await
    };
    let status = as_user(&["status", "--json"]).await.json();
    let found = as_user(&["table", "get", "word 7"]).await;
    let remove = after("node remove ");
    let lost = remove.split(' ').next().unwrap();
    let removed = as_user(&["node", "remove", lost]).await;
    for id in &ids {
        cli::process::signal(*id, rustix::process::Signal::TERM);
    }
    for id in ids {
        await_gone(id).await;
    }
    let (answer, lost) = (status["nodes"].as_array(), status["no_answer"].as_array());
    assert_eq!((answer.unwrap().len(), lost.unwrap().len()), (3, 1), "{status}");
    assert_eq!(removed.code, 0, "{removed:?}");
    assert!(found.stdout.starts_with("8:"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_without_an_input_says_where_to_get_one() {
    let ended = run(&["demo", "--load", "/nowhere/words"]).await;
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("apt-get install wamerican"), "{ended:?}");
    assert!(ended.stderr.contains("--load"), "{ended:?}");
}

/// Runs `serve` with a wrong configuration and returns its output.
async fn refusal(config: &str, arguments: &[&str]) -> String {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("config.toml");
    std::fs::write(&path, config).unwrap();
    let path = path.display().to_string();
    let ended = run(&[&["serve", "--config", &path], arguments].concat()).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    ended.stderr
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_refused_with_the_thing_to_do() {
    let missing = run(&["serve", "--config", "/nowhere/shardhost.toml"]).await;
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("/nowhere/shardhost.toml"), "{missing:?}");
    assert!(missing.stderr.contains("name a file that is there"), "{missing:?}");

    let unknown = refusal("node = 1\ndata-dir = \"x\"\nlissten = \"127.0.0.1:0\"\n", &[]).await;
    assert!(unknown.contains("lissten") && unknown.contains("line 3"), "{unknown}");
    assert!(unknown.contains("expected one of"), "{unknown}");

    let nodes = "node = 9\ndata-dir = \"x\"\n[nodes]\n1 = \"127.0.0.1:7401\"\n";
    let stranger = refusal(nodes, &[]).await;
    assert!(stranger.contains("9, is not among them; add its address"), "{stranger}");
    assert!(stranger.contains("line 3: `nodes`"), "{stranger}");
    let by_flag = refusal(nodes, &["--node", "4"]).await;
    assert!(by_flag.contains("4, is not among them"), "{by_flag}");
    assert!(!by_flag.contains("line "), "the flag is wrong, not the file: {by_flag}");
    let many = "node = 1\ndata-dir = \"x\"\nalone = true\nworkers = 65\n";
    let many = refusal(many, &[]).await;
    assert!(many.contains("line 4: `workers` is wrong: it must be 1 to 64"), "{many}");

    let nobody = refusal("data-dir = \"x\"\n", &[]).await;
    assert!(nobody.contains("`node`") && nobody.contains("from 1"), "{nobody}");
    let nowhere = refusal("node = 1\n", &[]).await;
    assert!(nowhere.contains("`data-dir`") && nowhere.contains("name the directory"), "{nowhere}");
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_that_make_no_sense_end_with_2() {
    for arguments in [&["serve", "--node", "one"][..], &["group"], &["demo", "--nodes", "2"]] {
        let ended = run(arguments).await;
        assert_eq!(ended.code, 2, "{arguments:?}: {ended:?}");
        assert!(!ended.stderr.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_another_node_or_cluster_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().display().to_string();
    let node = Node::start(&path, &[]).await;
    let running = Node::refused(&path, &[]).await;
    assert!(running.contains("another process"), "{running}");
    assert!(running.contains("a data directory of its own"), "{running}");
    node.stop().await;
    for other in [["--node", "2"], ["--cluster", "other"]] {
        let refused = Node::refused(&path, &other).await;
        assert!(refused.contains("a data directory of its own"), "{refused}");
        assert!(refused.contains(other[1]), "{refused}");
    }
    let fewer = Node::refused(&path, &["--tables", "1"]).await;
    assert!(fewer.contains("put the number of shards back"), "{fewer}");
    Node::start(&path, &[]).await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_refused() {
    let directory = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let path = directory.path().display().to_string();
    let refused = Node::refused(&path, &["--listen", &address]).await;
    assert!(refused.contains(&address) && refused.contains("choose another address"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_log_fails_stops_and_says_what_to_check() {
    let directory = TempDir::new().unwrap();
    // Files of at most 2 MiB: the log cannot grow further.
    let mut node = Node::with_file_limit(&directory.path().display().to_string(), 4096).await;
    let value = "x".repeat(100_000);
    let mut written = 0;
    while node.is_running() && written < 100 {
        node.run(&["table", "put", &format!("key-{written}"), &value, "--timeout", "2"]).await;
        written += 1;
    }
    let ended = node.end().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("the log failed and the host stopped"), "{ended:?}");
    assert!(ended.stderr.contains("check the disk"), "{ended:?}");
}

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
    let listed = cluster.run(&["member", "list", group, "--json"]).await.json();
    assert_eq!(listed["config_index"], 0, "{listed}");
    cluster.run(&["table", "put", "color", "blue"]).await.ok();

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

/// What the writers of a test saw acknowledged.
#[derive(Default)]
struct Acknowledged {
    puts: Mutex<BTreeMap<String, u64>>,
    /// Sequence and body of each message, by partition key, in the order they were sent.
    sends: Mutex<BTreeMap<String, Vec<(u64, String)>>>,
    count: AtomicU64,
    stop: AtomicBool,
}

const WRITERS: u64 = 64;

/// Writes one after the other until stopped. A write without an acknowledgement may or may not have
/// taken effect: the put has a separate key and the partition ends with the send.
async fn write(client: Client, seen: Arc<Acknowledged>, life: u64, writer: u64) {
    let (table, queue) = (client.table(), client.queue());
    let partition = format!("partition-{life}-{writer}");
    let mut in_order = true;
    for number in 0.. {
        if seen.stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("key-{life}-{writer}-{number}");
        if table.put(key.clone(), number.to_string()).await.is_ok() {
            seen.puts.lock().insert(key, number);
            seen.count.fetch_add(1, Ordering::Relaxed);
        }
        let body = format!("body-{number}");
        if in_order {
            match queue.send(partition.clone(), body.clone(), Bytes::new()).await {
                Ok(sent) => {
                    let mut sends = seen.sends.lock();
                    sends.entry(partition.clone()).or_default().push((sent.sequence, body));
                }
                Err(_) => in_order = false,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_all_nodes_are_killed_under_load() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::start(directory.path(), 6, 6).await;
    let seen = Arc::new(Acknowledged::default());
    for life in 1..=3 {
        seen.stop.store(false, Ordering::Relaxed);
        let options =
            ClientOptions { deadline: Duration::from_secs(20), ..ClientOptions::default() };
        let client = Client::connect(cluster.addresses().values().cloned(), options.clone());
        let client = client.await.unwrap();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write(client.clone(), Arc::clone(&seen), life, writer)))
            .collect();
        cli::process::until("enough is acknowledged", || {
            seen.count.load(Ordering::Relaxed) >= life * 1_500
        })
        .await;
        cluster.kill_all().await;
        seen.stop.store(true, Ordering::Relaxed);
        cluster.restart_all().await;
        for writer in writers {
            writer.await.unwrap();
        }
        let client = Client::connect(cluster.addresses().values().cloned(), options).await.unwrap();
        verify(&client, &seen).await;
    }
    cluster.kill_all().await;
}

async fn verify(client: &Client, seen: &Acknowledged) {
    let puts = seen.puts.lock().clone();
    let table = client.table();
    let reads = puts.iter().map(|(key, number)| {
        let table = &table;
        async move {
            let found = table.get(key.clone()).await.unwrap();
            assert_eq!(found, Some(number.to_string().into()), "{key}");
        }
    });
    futures::future::join_all(reads).await;
    let sends = seen.sends.lock().clone();
    let mut found: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
    for shard in 0..client.queue().shards() {
        let page = client.queue().peek(shard, 0, Some(10_000)).await.unwrap();
        assert!(!page.more, "the test sends more than it reads");
        for message in page.messages {
            let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
            let message_of = (message.sequence, text(message.body));
            found.entry(text(message.partition_key)).or_default().push(message_of);
        }
    }
    for (partition, sent) in sends {
        let there = found.remove(&partition).unwrap_or_default();
        assert!(there.starts_with(&sent), "{partition}: {sent:?} was sent, {there:?} is there");
        assert!(there.len() <= sent.len() + 1, "{partition}: one send may be in doubt: {there:?}");
    }
}
