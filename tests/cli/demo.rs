//! The demo: its verdict, and what it leaves behind.

use std::path::Path;

use tempfile::TempDir;

use super::process::{await_gone, run, signal, start};

/// Writes lines to load, so that no word list is needed.
pub(super) fn input(directory: &Path, lines: usize) -> String {
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
        signal(*id, rustix::process::Signal::TERM);
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
