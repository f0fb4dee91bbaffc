//! The version of a cluster: what it uses, when that may be raised, and who is refused then. A node that is
//! bound to the first version stands for one of a program that knows no other.

use serde_json::Value;
use shardhost_proto::version::ClusterVersion;

use super::process::{Node, run};
use super::servers::Servers;

const NEWEST: u32 = ClusterVersion::NEWEST.get();
/// What the files of such a node say.
const FIRST: &str = "cluster-version-max = 1";

fn three() -> Servers {
    Servers::new(3, "", "tables = 2\nqueues = 1")
}

async fn version(servers: &Servers, node: u64) -> Value {
    servers.run(node, &["cluster", "version", "--json"]).await.json()
}

async fn await_version(servers: &Servers, wanted: u32) {
    let is = || async {
        let shown = servers.run(1, &["cluster", "version", "--json"]).await;
        shown.code == 0 && shown.json()["version"] == wanted
    };
    servers.until("the version", is).await;
}

async fn await_well(servers: &Servers) {
    let is = || async { servers.run(1, &["status"]).await.code == 0 };
    servers.until("a cluster without problems", is).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_uses_the_latest_version_from_the_start() {
    let mut servers = three();
    for node in 1..=3 {
        servers.start(node, &[]);
    }
    await_version(&servers, NEWEST).await;
    let shown = version(&servers, 1).await;
    let prepared = shown["nodes"].as_array().unwrap().iter().map(|node| &node["prepared"]);
    assert!(prepared.eq([NEWEST; 3].iter()), "{shown}");
    let nothing = servers.run(2, &["cluster", "upgrade"]).await;
    assert!(
        nothing.code == 0 && nothing.stdout.contains(&format!("at version {NEWEST} already")),
        "{nothing:?}"
    );
    // One that takes part up to the first version only has no place in it.
    servers.kill(3).await;
    servers.settings = FIRST.to_owned();
    let refused = servers.refused(3).await;
    assert!(
        refused.contains(&format!("at version {NEWEST}")) && refused.contains("up to version 1"),
        "{refused}"
    );
    servers.lose_disk(3);
    servers.start(3, &[]);
    servers
        .await_log(3, &[&format!("is at version {NEWEST}"), "up to version 1", "later program"])
        .await;
    servers.await_log(1, &["up to version 1", &format!("is at version {NEWEST}")]).await;
}

/// The nodes that the catalog knows.
async fn listed(servers: &Servers, node: u64) -> Vec<u64> {
    let listed = servers.run(node, &["node", "list", "--json"]).await.json();
    let nodes = listed["nodes"].as_array().unwrap().iter();
    nodes.map(|node| node["node"].as_u64().unwrap()).collect()
}

/// As in a rolling upgrade, and back.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_raised_when_every_node_knows_it_and_not_before_an_operator_says_so() {
    let bound = ["--cluster-version-max", "1"];
    let mut servers = three();
    for node in 1..=3 {
        servers.start(node, &bound);
    }
    await_well(&servers).await;
    servers.put(1, "key", "of the first").await;
    assert_eq!(version(&servers, 1).await["version"], 1);
    let early = servers.run(1, &["replicas", "mode", "on"]).await;
    assert!(early.code == 1 && early.stderr.contains("cluster upgrade"), "{early:?}");
    for node in 1..=2 {
        servers.kill(node).await;
        servers.start(node, &[]);
        await_well(&servers).await;
    }
    let behind = servers.run(1, &["cluster", "upgrade", "--to", "2"]).await;
    assert!(behind.code == 1 && behind.stderr.contains("node 3 up to 1"), "{behind:?}");
    servers.kill(3).await;
    let silent = servers.run(1, &["cluster", "upgrade"]).await;
    assert!(silent.code == 1 && silent.stderr.contains("node 3 does not answer"), "{silent:?}");
    servers.start(3, &[]);
    await_well(&servers).await;
    let outlook = servers.run(2, &["cluster", "upgrade", "--dry-run"]).await;
    assert!(
        outlook.code == 0 && outlook.stdout.contains(&format!("from version 1 to {NEWEST}")),
        "{outlook:?}"
    );

    // Nothing was used yet: an earlier program takes a place again.
    servers.kill(2).await;
    servers.start(2, &bound);
    await_well(&servers).await;
    assert_eq!(version(&servers, 1).await["version"], 1);
    servers.kill(2).await;
    servers.start(2, &[]);
    await_well(&servers).await;

    let raised = servers.run(3, &["cluster", "upgrade"]).await;
    assert!(
        raised.code == 0 && raised.stdout.contains(&format!("at version {NEWEST} now")),
        "{raised:?}"
    );
    let back = servers.run(3, &["cluster", "upgrade", "--to", "1"]).await;
    assert!(back.code == 1 && back.stderr.contains("never goes back"), "{back:?}");
    servers.kill(2).await;
    servers.settings = FIRST.to_owned();
    let refused = servers.refused(2).await;
    assert!(refused.contains(&format!("at version {NEWEST}")), "{refused}");
    servers.settings.clear();
    servers.start(2, &[]);
    await_well(&servers).await;
    let read = servers.run(2, &["table", "get", "key"]).await.ok();
    assert_eq!(read.trim(), "of the first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_gone_for_good_and_its_number_is_never_given_again() {
    let mut servers = three();
    for node in 1..=3 {
        servers.start(node, &[]);
    }
    await_version(&servers, NEWEST).await;
    await_well(&servers).await;
    let directory = servers.directory().to_owned();
    let data = |name: &str| directory.join(name).display().to_string();
    let seed = servers.address(1).to_owned();
    let fourth = Node::joining(&data("fourth"), &["--join", &seed]).await;
    assert_eq!(fourth.number(), 4);
    servers.until("four nodes", || async { listed(&servers, 1).await == [1, 2, 3, 4] }).await;

    let running = servers.run(1, &["node", "remove", "4"]).await;
    assert!(running.code == 1 && running.stderr.contains("node 4 runs"), "{running:?}");
    servers.run(1, &["node", "decommission", "3", "--timeout", "60"]).await.ok();
    servers.kill(3).await;
    servers
        .until("node 3 is seen to be gone", || async {
            let removed = servers.run(1, &["node", "remove", "3"]).await;
            assert!(removed.code == 0 || removed.stderr.contains("node 3 runs"), "{removed:?}");
            removed.code == 0
        })
        .await;
    assert_eq!(listed(&servers, 2).await, [1, 2, 4]);
    let again = servers.run(1, &["node", "remove", "3"]).await;
    assert!(again.code == 1 && again.stderr.contains("node 3 was removed before"), "{again:?}");
    // One that holds replicas is not removed.
    servers.kill(2).await;
    servers
        .until("a refusal to remove a member", || async {
            let stopped = servers.run(1, &["node", "remove", "2"]).await;
            assert_eq!(stopped.code, 1, "{stopped:?}");
            stopped.stderr.contains("is a member of")
        })
        .await;
    servers.start(2, &[]);
    await_well(&servers).await;

    // It does not come back, and no other node gets its number.
    servers.start(3, &[]);
    assert_eq!(servers.end(3).await.code(), Some(1));
    assert!(servers.log(3).contains("was removed from the cluster"), "{}", servers.log(3));
    let fifth = data("fifth");
    let serve = ["serve", "--data-dir", &fifth, "--listen", "127.0.0.1:0", "--join", &seed];
    let refused = run(&[&serve[..], &["--node", "3"]].concat()).await;
    assert!(refused.code == 1 && refused.stderr.contains("NODE_REMOVED"), "{refused:?}");
    let fifth = Node::joining(&fifth, &["--join", &seed]).await;
    assert_eq!(fifth.number(), 5);
    fifth.stop().await;
    fourth.stop().await;
}
