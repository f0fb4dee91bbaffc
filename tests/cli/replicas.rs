//! Replicas that the cluster moves automatically: off nodes that are gone, and onto nodes that hold few.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use shardhost_proto::version::ClusterVersion;

use super::servers::Servers;

const NEWEST: u32 = ClusterVersion::NEWEST.get();
const SHARDS: &str = "tables = 4\nqueues = 2\nvoters = [1, 2, 3]";

/// So long nothing moves automatically.
async fn await_newest_version(servers: &Servers) {
    let is = || async {
        let shown = servers.run(1, &["cluster", "version", "--json"]).await;
        shown.code == 0 && shown.json()["version"] == NEWEST
    };
    servers.until("the latest version", is).await;
    servers.until("all is well", || async { servers.run(1, &["status"]).await.code == 0 }).await;
}

/// Four nodes, of which the fourth holds nothing at first.
async fn four(settings: &str) -> Servers {
    let mut servers = Servers::new(4, settings, SHARDS);
    for node in 1..=4 {
        servers.start(node, &[]);
    }
    await_newest_version(&servers).await;
    for key in 0..8 {
        servers.put(1, &format!("k{key}"), &format!("v{key}")).await;
    }
    servers
}

/// How many replicas each node has that answers.
async fn replicas(servers: &Servers, node: u64) -> BTreeMap<u64, u64> {
    let listed = servers.run(node, &["node", "list", "--json"]).await;
    if listed.stdout.is_empty() {
        return BTreeMap::new();
    }
    let listed = listed.json();
    let nodes = listed["nodes"].as_array().unwrap().iter();
    let answers = nodes.filter(|node| node["state"] == "serves");
    answers
        .map(|node| (node["node"].as_u64().unwrap(), node["replicas"].as_u64().unwrap()))
        .collect()
}

/// The nodes that vote in each group, as one node sees it that holds a replica of every group. `None`: it does
/// not say, or a group is changing its members.
async fn voters(servers: &Servers, node: u64) -> Option<Vec<BTreeSet<u64>>> {
    let listed = servers.run(node, &["group", "list", "--json"]).await;
    if listed.code != 0 {
        return None;
    }
    let listed = listed.json();
    let voters = |group: &Value| {
        let members = group["members"].as_array().unwrap().iter();
        let vote =
            |member: &Value| (member["role"] == "voter").then(|| member["node"].as_u64().unwrap());
        members.map(vote).collect()
    };
    listed["groups"].as_array().unwrap().iter().map(voters).collect()
}

/// Waits until node 4 has the votes of node 3 in the catalog and in six shards, and nodes 1 and 4 know it. A
/// replica has no vote yet when it comes into being: until then its group does not outlive a second loss.
async fn await_replaced(servers: &Servers) {
    let expected = Some(vec![BTreeSet::from([1, 2, 4]); 7]);
    let replaced =
        || async { voters(servers, 1).await == expected && voters(servers, 4).await == expected };
    servers.until("node 4 has the votes of node 3", replaced).await;
}

async fn state(servers: &Servers, node: u64) -> Value {
    servers.run(node, &["replicas", "status", "--json"]).await.json()["state"].clone()
}

async fn all_keys_are_there(servers: &Servers, node: u64) {
    for key in 0..8 {
        servers.await_value(node, &format!("k{key}"), &format!("v{key}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_is_replaced_and_gets_its_part_when_it_comes_back() {
    let mut servers = four("replace-after = 3").await;
    servers.kill(3).await;
    await_replaced(&servers).await;
    assert_eq!(replicas(&servers, 1).await, [(1, 7), (2, 7), (4, 7)].into());
    all_keys_are_there(&servers, 4).await;
    // The second one goes, and nothing is lost with it.
    servers.kill(2).await;
    all_keys_are_there(&servers, 4).await;
    servers.start(2, &[]);
    servers.start(3, &[]);
    // 18 replicas of shards on four nodes; the catalog stays where it is.
    let even = || async {
        let replicas = replicas(&servers, 1).await;
        let shards = |(node, count): (&u64, &u64)| count - u64::from(*node != 3);
        let counts: Vec<u64> = replicas.iter().map(shards).collect();
        counts.len() == 4 && counts.iter().all(|count| (4..=5).contains(count))
    };
    servers.until("replicas are spread", even).await;
    servers.until("all is well", || async { servers.run(1, &["status"]).await.code == 0 }).await;
    all_keys_are_there(&servers, 3).await;
    let none = || async { state(&servers, 1).await["stuck_total"] == 0 };
    servers.until("nothing is stuck", none).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_move_is_shown_before_it_is_allowed_to() {
    let mut servers = four("replicas = \"shadow\"\nreplace-after = 1").await;
    let before = replicas(&servers, 1).await;
    servers.kill(3).await;
    let chosen = || async { state(&servers, 1).await["chosen_total"] == 7 };
    servers.until("seven replicas would move", chosen).await;
    let shown = servers.run(2, &["replicas", "status", "--why", "1000000"]).await.ok();
    for words in ["replicas", "shadow", "node 3 for", "would move: a replica from node 3 to node 4"]
    {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let catalog = servers.run(2, &["replicas", "status", "--why", "0"]).await.ok();
    assert!(catalog.contains("planned: a replica from node 3 to node 4"), "{catalog}");
    assert_eq!(replicas(&servers, 1).await.get(&4), before.get(&4));
    servers.run(2, &["replicas", "mode", "on", "--replace-after", "1"]).await.ok();
    let moved = || async { replicas(&servers, 1).await == [(1, 7), (2, 7), (4, 7)].into() };
    servers.until("node 4 has the replicas of node 3", moved).await;
    let off = servers.run(1, &["replicas", "mode", "off"]).await.ok();
    assert!(off.contains("off") && off.contains("1 s"), "{off}");
    let wrong = servers.run(1, &["replicas", "mode", "on", "--replace-after", "0"]).await;
    assert_eq!(wrong.code, 2, "{wrong:?}");
    let unknown = servers.run(1, &["replicas", "status", "--why", "99"]).await;
    assert!(unknown.code == 1 && unknown.stderr.contains("no group 99"), "{unknown:?}");
}

/// Three nodes hold everything: there is no place for what the third one had.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_a_place_is_named_and_healed_by_a_node_that_joins() {
    let mut servers = Servers::new(3, "replace-after = 1", "tables = 2\nqueues = 1");
    for node in 1..=3 {
        servers.start(node, &[]);
    }
    await_newest_version(&servers).await;
    servers.put(1, "key", "value").await;
    servers.kill(3).await;
    let stuck = || async { state(&servers, 1).await["stuck_total"] == 4 };
    servers.until("four groups have no place", stuck).await;
    let shown = servers.run(1, &["replicas", "status"]).await.ok();
    assert!(shown.contains("add a node"), "{shown}");
    let directory = servers.directory().join("fourth").display().to_string();
    let seed = servers.address(1).to_owned();
    let fourth = super::process::Node::joining(&directory, &["--join", &seed]).await;
    let moved = || async { replicas(&servers, 1).await == [(1, 4), (2, 4), (4, 4)].into() };
    servers.until("node 4 has the replicas of node 3", moved).await;
    servers.await_value(2, "key", "value").await;
    fourth.stop().await;
}

/// None of the members that the returned node knows is one any more, or has the replica that it had.
#[tokio::test(flavor = "multi_thread")]
async fn a_returned_replica_whose_group_has_moved_away_altogether_is_destroyed() {
    let mut servers =
        Servers::new(5, "replicas = \"off\"", "tables = 1\nqueues = 1\nvoters = [1, 2, 3]");
    for node in 1..=5 {
        servers.start(node, &[]);
    }
    await_newest_version(&servers).await;
    servers.put(1, "key", "value").await;
    servers.kill(3).await;
    for (old, new) in [("3", "4"), ("1", "5"), ("2", "1"), ("5", "2")] {
        let replaced = ["member", "replace", "1000000", old, new, "--timeout", "60"];
        servers
            .until("a replacement", || async { servers.run(4, &replaced).await.code == 0 })
            .await;
    }
    servers.start(3, &[]);
    servers
        .until("node 3 destroys its replica", || async {
            let listed = servers.run(3, &["group", "list", "--json"]).await;
            listed.code == 0 && !listed.stdout.contains("1000000")
        })
        .await;
    servers.until("all is well", || async { servers.run(1, &["status"]).await.code == 0 }).await;
    servers.await_value(3, "key", "value").await;
}
