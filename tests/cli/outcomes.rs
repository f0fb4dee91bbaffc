//! What commands end with that were done in part, or whose outcome is not known, and what they name.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::{Node, Supervised, TIMEOUT, run};

const SHARD: &str = "1000000";

/// Node 4 is expected and does not run.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_node_that_is_down_is_named_and_ends_with_3() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::with_spares(directory.path(), 1, 1, 1).await;
    cluster.run(&["table", "put", "color", "red"]).await.ok();
    what_was_recorded_is_shown_wherever_one_asks(&mut cluster).await;
    cluster.kill(4).await;
    let alone = ["group", "create", "78", "--kind", "table", "--voters", "4"];
    let nowhere = cluster.run(&alone).await;
    assert_eq!(nowhere.code, 1, "{nowhere:?}");
    assert!(nowhere.stderr.contains("nothing was created or recorded"), "{nowhere:?}");
    let nobody = cluster.run(&["member", "replace", SHARD, "9", "1"]).await;
    assert!(nobody.code == 1 && nobody.stderr.contains("has no node 9"), "{nobody:?}");
    a_group_is_created_without_a_voter_that_is_down(&cluster).await;
    a_replacement_goes_on_and_another_one_is_told_of_it(&cluster).await;
    cluster.restart(4).await;
    cluster.run(&CREATE).await.ok();
    cluster.kill_all().await;
}

/// A node may not have applied yet what another one recorded.
async fn what_was_recorded_is_shown_wherever_one_asks(cluster: &mut Supervised) {
    for (pin, at) in [("2", 1), ("3", 2), ("1", 3), ("2", 1), ("3", 3)] {
        let at = &cluster.addresses()[&at];
        let placed = run(&["group", "place", SHARD, "--pin", pin, "--at", at]).await.ok();
        assert!(placed.contains(&format!("on node {pin}")), "{placed}");
    }
    run(&["group", "place", SHARD, "--at", &cluster.addresses()[&1]]).await.ok();
    // Node 1 does not know that drain when it is back.
    let (one, three) = (cluster.addresses()[&1].clone(), cluster.addresses()[&3].clone());
    cluster.kill(1).await;
    let drain = ["drain", "begin", "2", "--even-if-ineligible", "--at", &three, "--timeout", "60"];
    // A group of which node 1 led may have no leader yet.
    let begun = run(&drain).await;
    assert!(begun.code == 0 || begun.code == 3, "{begun:?}");
    cluster.kill(2).await;
    cluster.restart(1).await;
    run(&["drain", "end", "2", "--at", &one, "--timeout", "60"]).await.ok();
    let drained = run(&["drain", "status", "2", "--at", &three, "--json"]).await.json();
    assert_eq!(drained["draining"], false, "{drained}");
    cluster.restart(2).await;
}

const CREATE: [&str; 7] = ["group", "create", "77", "--kind", "table", "--voters", "1,2,4"];

async fn a_group_is_created_without_a_voter_that_is_down(cluster: &Supervised) {
    let created = cluster.run(&CREATE).await;
    assert_eq!(created.code, 3, "{created:?}");
    assert!(created.stdout.contains("group 77 is created"), "{created:?}");
    assert!(created.stderr.contains("no replica was confirmed by node 4"), "{created:?}");
    let shown = cluster.run(&["group", "show", "77", "--json"]).await.json();
    assert!(shown["leader_node"].as_u64().is_some_and(|leader| leader != 0), "{shown}");
}

async fn a_replacement_goes_on_and_another_one_is_told_of_it(cluster: &Supervised) {
    let begun = cluster.run(&["member", "replace", SHARD, "3", "4", "--timeout", "5"]).await;
    assert_eq!(begun.code, 3, "{begun:?}");
    assert!(begun.stderr.contains("is recorded and continues"), "{begun:?}");
    for other in [&["member", "replace", SHARD, "1", "4"][..], &["member", "add", SHARD, "4"]] {
        let refused = cluster.run(other).await;
        assert_eq!(refused.code, 1, "{refused:?}");
        let way_out = "shardhost member replace 1000000 3 4 --cancel";
        assert!(refused.stderr.contains(way_out), "{refused:?}");
    }
    cluster.run(&["member", "replace", SHARD, "3", "4", "--cancel"]).await.ok();
}

/// One shard of the table has no leader: the others are filled, and it is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_a_leader_does_not_keep_a_node_empty() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::with_spares(directory.path(), 2, 2, 1).await;
    cluster.run(&["table", "put", "color", "red"]).await.ok();
    for node in [2, 3] {
        cluster.kill(node).await;
        cluster.restart_with(node, &["--park", SHARD]).await;
    }
    let began = Instant::now();
    let show = ["group", "show", SHARD, "--at", &cluster.addresses()[&1], "--json"];
    while run(&show).await.json()["role"] == "leader" {
        assert!(began.elapsed() < TIMEOUT, "it leads on without a quorum");
    }
    let unled = |shown: &Value| shown["groups_without_leader"] == json!([1_000_000]);
    let fill = ["member", "fill", "4", "--json", "--timeout", "15"];
    let filled = cluster.run(&fill).await;
    assert_eq!(filled.code, 3, "{filled:?}");
    let shown = filled.json();
    assert!(unled(&shown) && shown["gained"].as_u64().is_some_and(|gained| gained > 0), "{shown}");
    let plan = cluster.run(&["member", "fill", "4", "--dry-run", "--timeout", "1"]).await;
    let text = &plan.stdout;
    assert!(text.contains("1 group has no leader") && text.contains(SHARD), "{text}");
    assert_eq!(plan.code, 3, "{plan:?}");
    cluster.kill_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_with_what_is_wrong() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(&directory.path().display().to_string(), &[]).await;
    node.await_leading(SHARD).await;
    for senseless in [
        &["group", "create", "77", "--kind", "table", "--voters", "1,1"][..],
        &["queue", "receive", "--max", "0"],
        &["rolling-restart", "--with", ""],
        &["member", "replace", SHARD, "1", "1", "--expect", "0"],
    ] {
        let refused = node.run(senseless).await;
        assert_eq!(refused.code, 2, "{senseless:?}: {refused:?}");
    }
    for (arguments, words) in [
        (&["member", "rebuild", "1", "--group", "999"][..], "there is no group 999"),
        (&["table", "get", "color", "--stale", "9"], "the cluster has no node 9"),
        (&["group", "create", "77", "--kind", "table", "--voters", "1,9"], "knows no node 9"),
    ] {
        let refused = node.run(arguments).await;
        assert_eq!(refused.code, 1, "{arguments:?}: {refused:?}");
        assert!(refused.stderr.contains(words), "{arguments:?}: {refused:?}");
    }
    let stays = node.run(&["leader", "transfer", SHARD, "--first-fit", "1"]).await.ok();
    assert!(stays.contains("is led by node 1 already"), "{stays}");
    node.stop().await;
}

/// The catalog's leader loses its quorum while it records a drain of its node: the entry may be committed
/// when the others are back.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_whose_record_is_in_doubt_is_ended_for_good() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::start(directory.path(), 1, 1).await;
    cluster.run(&["table", "put", "color", "red"]).await.ok();
    cluster.run(&["leader", "transfer", "0", "--first-fit", "1"]).await.ok();
    let one = cluster.addresses()[&1].clone();
    let at = ["--at", &one, "--json"];
    for node in [2, 3] {
        cluster.signal(node, Signal::STOP);
    }
    let begin = ["drain", "begin", "1", "--even-if-ineligible", "--no-wait", "--owner", "ann"];
    let begun = run(&[&begin[..], &at].concat()).await;
    assert_eq!(begun.code, 3, "{begun:?}");
    assert!(begun.stderr.contains("whether the catalog recorded that is unknown"), "{begun:?}");
    assert_eq!(begun.json()["in_doubt"], true, "{begun:?}");
    let ended = run(&[&["drain", "end", "1"][..], &at].concat()).await;
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.stderr.contains("run `shardhost drain end 1` again"), "{ended:?}");
    // What is only looked at has no outcome, and the node that was asked answers.
    let listed = run(&[&["node", "list"][..], &at].concat()).await;
    assert!(listed.code == 1 && listed.stderr.contains("CATALOG_UNREACHABLE"), "{listed:?}");
    let looked = run(&[&["drain", "status", "2"][..], &at].concat()).await;
    assert!(looked.code == 1 && !looked.stderr.contains("takes effect"), "{looked:?}");
    for node in [2, 3] {
        cluster.signal(node, Signal::CONT);
    }
    // The catalog answers again, and has applied everything that was under way.
    cluster.run(&["drain", "end", "1", "--timeout", "60"]).await.ok();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let status = run(&[&["drain", "status", "1"][..], &at].concat()).await.json();
        assert_eq!((&status["draining"], &status["in_doubt"]), (&json!(false), &json!(false)));
    }
    cluster.kill_all().await;
}

/// Half of the shards serve no users: they are waited for together, and hold up no message.
#[tokio::test(flavor = "multi_thread")]
async fn shards_of_a_queue_that_do_not_serve_are_waited_for_side_by_side() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(&directory.path().display().to_string(), &["--queues", "8"]).await;
    for key in 0..40 {
        node.run(&["queue", "send", &format!("key {key}"), "a body"]).await.ok();
    }
    for shard in [2_000_000, 2_000_002, 2_000_004, 2_000_006] {
        let group = shard.to_string();
        node.run(&["group", "require", &group, "gpu", "--even-if-ineligible"]).await.ok();
        node.await_text(&["group", "show", &group], &["serves no users"]).await;
    }
    for command in ["peek", "receive"] {
        let began = Instant::now();
        let limit = if command == "peek" { ["--limit", "1000"] } else { ["--max", "1000"] };
        let arguments = [&["queue", command, "--timeout", "3", "--json"][..], &limit].concat();
        let ended = node.run(&arguments).await;
        assert_eq!(ended.code, 3, "{ended:?}");
        assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
        let shown = ended.json();
        assert!(!shown["messages"].as_array().unwrap().is_empty(), "{shown}");
        let failed: Vec<&String> = shown["failed"].as_object().unwrap().keys().collect();
        assert_eq!(failed, ["0", "2", "4", "6"], "{shown}");
    }
    node.run(&["queue", "send", "key 1", "another"]).await;
    // A message is printed before the others have failed.
    let peek = ["queue", "peek", "--limit", "1000", "--timeout", "60"];
    let mut waiting = node.begin(&peek);
    let began = Instant::now();
    waiting.await_line("a body").await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    waiting.signal(Signal::KILL);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_lost_a_voter_is_a_finding() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::start(directory.path(), 1, 1).await;
    cluster.run(&["table", "put", "color", "red"]).await.ok();
    let found = async |words: &str| {
        let began = Instant::now();
        loop {
            let status = cluster.run(&["status", "--json"]).await;
            let shown = status.json();
            let findings = shown["findings"].as_array().unwrap();
            if findings.iter().any(|line| line.as_str().unwrap().contains(words)) {
                assert_eq!(status.code, 1, "{status:?}");
                return;
            }
            assert!(began.elapsed() < TIMEOUT, "{shown}");
        }
    };
    cluster.change_member("remove", SHARD, 3).await;
    found("group 1000000 has 2 voters, and was created with 3: `shardhost member add 1000000 3`")
        .await;
    cluster.change_member("add", SHARD, 3).await;
    cluster.run(&["member", "demote", SHARD, "3", "--timeout", "60"]).await;
    found("`shardhost member promote 1000000 3` gives its learner a vote").await;
    cluster.kill_all().await;
}
