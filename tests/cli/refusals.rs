//! Hosts that do not start, or stop: what they say.

use std::net::TcpListener;

use tempfile::TempDir;

use super::process::{Node, run};

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
    let rule = |more: &[&'static str]| [&["replicas", "rule", "set", "r", "--all"], more].concat();
    for arguments in [
        &["serve", "--node", "one"][..],
        &["group"],
        &["demo", "--nodes", "2"],
        &rule(&[]),
        &rule(&["--zone", "B!"]),
        &rule(&["--capability", "S D"]),
        &["replicas", "rule", "set", "r", "--kind", "tabel", "--voters", "3"],
        &["replicas", "rule", "remove", "R!"],
        &["group", "place", "7", "--prefer", "zone/R 7"],
    ] {
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
