//! Rules for replicas: how many groups have, and where they may be.

use std::collections::BTreeSet;

use serde_json::Value;
use shardhost_proto::version::ClusterVersion;

use super::servers::Servers;

const SHARDS: &str = "tables = 2\nqueues = 1\nvoters = [1, 2, 3]";
const TABLES: [u64; 2] = [1_000_000, 1_000_001];
const QUEUE: u64 = 2_000_000;

/// The nodes of a group's members, with a vote and without.
async fn members(servers: &Servers, group: u64) -> Option<(BTreeSet<u64>, BTreeSet<u64>)> {
    let shown = servers.run(1, &["member", "list", &group.to_string(), "--json"]).await;
    if shown.code != 0 {
        return None;
    }
    let shown = shown.json();
    let members = shown["members"].as_array().unwrap();
    if members.iter().any(|member| member["role"] == "leaving") || !shown["under_way"].is_null() {
        return None;
    }
    let of = |role: &str| {
        let nodes = members.iter().filter(|member| member["role"] == role);
        nodes.map(|member| member["node"].as_u64().unwrap()).collect()
    };
    Some((of("voter"), of("learner")))
}

async fn await_numbers(servers: &Servers, group: u64, voters: usize, learners: usize) {
    let what = format!("group {group} has {voters} voters and {learners} learners");
    let are = || async {
        let seen = members(servers, group).await;
        seen.is_some_and(|(of, others)| (of.len(), others.len()) == (voters, learners))
    };
    servers.until(&what, are).await;
}

async fn five(settings: &str) -> Servers {
    let mut servers = Servers::new(5, settings, SHARDS);
    for node in 1..=5 {
        servers.start(node, &[]);
    }
    let is = || async {
        let shown = servers.run(1, &["cluster", "version", "--json"]).await;
        shown.code == 0 && shown.json()["version"] == ClusterVersion::NEWEST.get()
    };
    servers.until("the latest version", is).await;
    servers.until("all is well", || async { servers.run(1, &["status"]).await.code == 0 }).await;
    servers
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_get_the_replicas_that_their_rules_ask_for() {
    let servers = five("replace-after = 2").await;
    for key in 0..8 {
        servers.put(1, &format!("k{key}"), &format!("v{key}")).await;
    }
    let kind = ["replicas", "rule", "set", "tables", "--kind", "table", "--voters", "5"];
    let shown = servers.run(2, &kind).await.ok();
    assert!(shown.contains("groups of kind table: 5 voters"), "{shown}");
    assert!(shown.contains("2 groups now; 5 of 5 nodes"), "{shown}");
    let group = QUEUE.to_string();
    let one = ["replicas", "rule", "set", "reads", "--group", &group, "--learners", "2"];
    servers.run(3, &one).await.ok();
    for table in TABLES {
        await_numbers(&servers, table, 5, 0).await;
    }
    await_numbers(&servers, QUEUE, 3, 2).await;
    // The catalog and the queue have fewer voters than most, none of them there, and lack none.
    let rebuild = ["member", "rebuild", "4", "--json", "--timeout", "60"];
    let rebuilt = servers.run(1, &rebuild).await;
    assert_eq!((rebuilt.code, &rebuilt.json()["rebuilt"]), (0, &3.into()), "{rebuilt:?}");
    let catalog = ["replicas", "rule", "set", "catalog", "--group", "0", "--voters", "5"];
    servers.run(4, &catalog).await.ok();
    await_numbers(&servers, 0, 5, 0).await;
    let listed = servers.run(1, &["replicas", "rule", "list", "--json"]).await.ok();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let counts: Vec<u64> = listed["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["groups"].as_u64().unwrap())
        .collect();
    assert_eq!(counts, [1, 1, 2]);
    // Fewer again: by the same rules, once all nodes have answered for a while.
    servers.run(2, &[&kind[..7], &["3"]].concat()).await.ok();
    servers.run(2, &[&one[..7], &["0"]].concat()).await.ok();
    servers.run(2, &[&catalog[..7], &["3"]].concat()).await.ok();
    for group in TABLES.into_iter().chain([QUEUE, 0]) {
        await_numbers(&servers, group, 3, 0).await;
    }
    servers.until("all is well", || async { servers.run(1, &["status"]).await.code == 0 }).await;
    for key in 0..8 {
        servers.await_value(5, &format!("k{key}"), &format!("v{key}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_leave_nodes_that_a_rule_does_not_allow() {
    let mut servers = Servers::new(5, "replace-after = 2", SHARDS);
    for node in 1..=5 {
        let zone = if node % 2 == 1 { "near" } else { "far" };
        servers.start(node, &["--zone", zone]);
    }
    servers.until("all is well", || async { servers.run(1, &["status"]).await.code == 0 }).await;
    servers.put(1, "key", "value").await;
    let near = ["replicas", "rule", "set", "near", "--all", "--zone", "near"];
    let set = || async { servers.run(1, &near).await.code == 0 };
    servers.until("a version that knows rules", set).await;
    let moved = || async {
        let mut groups = TABLES.into_iter().chain([QUEUE]);
        loop {
            let Some(group) = groups.next() else { return true };
            if members(&servers, group).await.is_none_or(|(voters, _)| voters != [1, 3, 5].into()) {
                return false;
            }
        }
    };
    servers.until("all shards are near", moved).await;
    servers.await_value(2, "key", "value").await;
    // A node that is to hold none has no successor there, and says so.
    let shown = servers.run(1, &["node", "decommission", "5", "--dry-run"]).await;
    assert!(shown.stdout.contains("rule near allows no other node"), "{shown:?}");
    assert_eq!(shown.code, 3, "{shown:?}");
    servers.run(1, &["replicas", "rule", "remove", "near"]).await.ok();
    let again = servers.run(1, &["replicas", "rule", "remove", "near"]).await;
    assert!(again.code == 1 && again.stderr.contains("no rule near"), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_cannot_hold_are_refused() {
    let servers = five("").await;
    for (arguments, says) in [
        (&["r", "--all", "--zone", "nowhere"][..], "no node is in zone nowhere"),
        (&["r", "--group", "77", "--voters", "3"], "no group 77"),
    ] {
        let refused = servers.run(1, &[&["replicas", "rule", "set"], arguments].concat()).await;
        assert!(refused.code == 1 && refused.stderr.contains(says), "{refused:?}");
    }
    // A rule outlives its group, and one that is not carried out is not met.
    let create = ["group", "create", "77", "--kind", "table", "--voters", "1,2,3"];
    servers.run(1, &create).await.ok();
    servers.run(1, &["replicas", "mode", "off"]).await.ok();
    let one = ["replicas", "rule", "set", "one", "--group", "77", "--voters", "1"];
    let shown = servers.run(1, &one).await.ok();
    assert!(shown.contains("group 77: 1 voter\n") && shown.contains("1 group now"), "{shown}");
    let why = servers.run(1, &["replicas", "status", "--why", "77"]).await.ok();
    assert!(why.contains("voters: 1, and has 3") && why.contains("the mode is off"), "{why}");
    servers.run(1, &["replicas", "mode", "on"]).await.ok();
    let list = ["replicas", "rule", "list"];
    assert!(!servers.run(1, &list).await.ok().contains("not there"));
    let destroyed = || async {
        let listed = servers.run(1, &["member", "list", "77", "--json"]).await;
        if listed.code != 0 {
            return false;
        }
        let expect = listed.json()["config_index"].to_string();
        servers.run(1, &["group", "destroy", "77", "--expect", &expect]).await.code == 0
    };
    servers.until("group 77 is destroyed", destroyed).await;
    let gone =
        || async { servers.run(1, &list).await.stdout.contains("group 77, which is not there") };
    servers.until("the rule of no group is named", gone).await;
    servers.run(1, &["replicas", "rule", "remove", "one"]).await.ok();
    let set = ["replicas", "rule", "set", "r", "--all", "--voters", "7"];
    let shown = servers.run(1, &set).await.ok();
    assert!(shown.contains("groups have fewer"), "{shown}");
    let same = servers.run(1, &["replicas", "rule", "set", "s", "--all", "--learners", "1"]).await;
    assert!(same.code == 1 && same.stderr.contains("rule r is for the same groups"), "{same:?}");
}
