//! Servers that are drained and balanced, as operators do it over gRPC and with the program.

#[path = "support/in_process.rs"]
mod in_process;

use std::collections::BTreeMap;
use std::process::Output;
use std::time::{Duration, Instant};

use in_process::{InProcess, TIMEOUT};

use serde_json::Value;
use shardhost::driver::SYSTEM_GROUP;
use shardhost::driver::{Drain, DrainOptions, DrainState, Fallback};
use shardhost::{Host, NodeId, Shutdown};
use shardhost_client::{Client, ClientOptions};
use shardhost_server::Server;
use shardhost_server::config::{Planner, ShardCounts};

const TABLES: u64 = 30;

/// Three servers that hold thirty tables.
struct Cluster(InProcess);

impl Cluster {
    async fn start() -> Self {
        let servers = InProcess::start(3, |_, config| {
            // Leaders stay where the tests put them.
            config.planner = Planner::Off;
            config.shards = ShardCounts { tables: TABLES, queues: 0, ..ShardCounts::default() };
        });
        let cluster = Self(servers.await);
        cluster.until("every table is served", |led| led.values().sum::<u64>() == TABLES).await;
        cluster
    }

    fn host(&self, node: u64) -> &Host {
        self.0.host(node)
    }

    /// How many groups each running node serves, the system group among them.
    fn led_with_the_catalog(&self) -> BTreeMap<u64, u64> {
        let serving = |server: &Server| {
            let groups = server.host().groups();
            groups.iter().filter(|group| group.status().serving).count() as u64
        };
        self.0.running.iter().map(|(node, server)| (*node, serving(server))).collect()
    }

    /// How many tables each running node serves.
    fn led(&self) -> BTreeMap<u64, u64> {
        let serving = |server: &Server| {
            let groups = server.host().groups();
            let tables = groups.iter().filter(|group| group.id() != SYSTEM_GROUP);
            tables.filter(|group| group.status().serving).count() as u64
        };
        self.0.running.iter().map(|(node, server)| (*node, serving(server))).collect()
    }

    async fn until(&self, what: &str, reached: impl Fn(&BTreeMap<u64, u64>) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !reached(&self.led()) {
            assert!(Instant::now() < deadline, "never came to be: {what}: {:?}", self.led());
            tokio::task::yield_now().await;
        }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_shardhost"));
        command.args(arguments).args(["--at", &self.0.addresses[&2], "--json"]);
        command.output().await.unwrap()
    }

    /// What a command prints.
    async fn answer(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn stop(self) {
        self.0.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_leads_nothing_and_gets_its_part_back() {
    let cluster = Cluster::start().await;
    let addresses: Vec<String> = cluster.0.addresses.values().cloned().collect();
    let client = Client::connect(addresses, ClientOptions::default()).await.unwrap();
    // Elections leave leaderships where they fall.
    cluster.answer(&["balance", "now"]).await;
    let thirds = |led: &BTreeMap<u64, u64>| led.values().all(|count| *count == TABLES / 3);
    cluster.until("everybody leads a third", thirds).await;
    let drained = cluster.answer(&["drain", "begin", "1", "--owner", "the test"]).await;
    assert_eq!((&drained["state"], &drained["left"]), (&"done".into(), &0.into()), "{drained}");
    assert_eq!(drained["owner"], "the test");
    cluster
        .until("the others lead everything", |led| led[&1] == 0 && led[&2] + led[&3] == TABLES)
        .await;
    let led = cluster.led_with_the_catalog();
    assert!(led[&2].abs_diff(led[&3]) <= 1, "not shared evenly: {led:?}");

    // Clients notice nothing.
    for key in 0..100_u32 {
        client.table().put(key.to_be_bytes().to_vec(), vec![7; 8]).await.unwrap();
    }
    let status = cluster.answer(&["drain", "status", "1"]).await;
    assert_eq!(status["draining"], true);
    let ended = cluster.answer(&["drain", "end", "1"]).await;
    assert_eq!((&ended["draining"], &ended["left"]), (&false.into(), &0.into()));

    let plan = cluster.answer(&["balance", "plan"]).await;
    assert_eq!(plan["plan"]["moves"].as_array().unwrap().len(), 10, "{}", plan["plan"]["summary"]);
    assert_eq!(cluster.led()[&1], 0, "a plan moves nothing");
    let moved = cluster.answer(&["balance", "now"]).await;
    assert_eq!(moved["moved"], 10, "{moved}");
    cluster.until("everybody leads a third again", thirds).await;
    let again = cluster.answer(&["balance", "plan"]).await;
    assert!(again["plan"]["moves"].as_array().unwrap().is_empty());
    cluster.stop().await;
}

/// All nodes lead as many tables, and all the work is at one node: its busy tables are shared out.
#[tokio::test(flavor = "multi_thread")]
async fn balance_now_weighs_load() {
    let cluster = Cluster::start().await;
    cluster.answer(&["balance", "now"]).await;
    let thirds = |led: &BTreeMap<u64, u64>| led.values().all(|count| *count == TABLES / 3);
    cluster.until("everybody leads a third", thirds).await;
    let busy: Vec<_> = cluster.host(1).groups();
    let busy: Vec<_> = busy
        .into_iter()
        .filter(|group| group.id() != SYSTEM_GROUP && group.status().serving)
        .map(|group| group.id())
        .collect();
    let addresses: Vec<String> = cluster.0.addresses.values().cloned().collect();
    let client = Client::connect(addresses, ClientOptions::default()).await.unwrap();
    let table = client.table();
    let keys: Vec<Vec<u8>> = (0..2_000_u32)
        .map(|key| key.to_be_bytes().to_vec())
        .filter(|key| table.group_of(key).is_some_and(|group| busy.contains(&group)))
        .collect();
    // Each key by its own: a write that takes long holds up no other.
    let load = tokio::spawn(async move {
        let writers = keys.iter().take(200).map(|key| async {
            loop {
                if table.put(key.clone(), vec![7; 8]).await.is_err() {
                    tokio::task::yield_now().await;
                }
            }
        });
        futures::future::join_all(writers).await;
    });
    // A plan shows the load of the second before it: the first may be older than the load.
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let planned = cluster.answer(&["balance", "plan"]).await;
        let moves = planned["plan"]["moves"].as_array().unwrap();
        let of = |step: &Value, field: &str| step[field].as_u64().unwrap();
        let is_away = |step: &Value| {
            of(step, "from") == 1 && busy.iter().any(|group| group.get() == of(step, "group"))
        };
        if moves.iter().any(is_away) {
            break;
        }
        assert!(Instant::now() < deadline, "{moves:?}: {}", planned["plan"]["summary"]);
    }
    load.abort();
    cluster.stop().await;
}

/// No node is left to take anything: the groups that cannot move are named, and are not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_go_is_named_and_is_not_waited_for() {
    let mut cluster = Cluster::start().await;
    for node in [2, 3] {
        let drained = Drain::begin(cluster.host(node), DrainOptions::default()).finished().await;
        assert_eq!((drained.state, drained.left), (DrainState::Done, 0), "{drained:?}");
    }
    // It asks those of which it does not know that they drain, and they decline in words of their own.
    let drains = |node| {
        let said = cluster.host(1).peer_advertisement(NodeId::must(node));
        said.is_some_and(|said| said.draining)
    };
    let alone = |led: &BTreeMap<u64, u64>| led[&1] == TABLES && [2, 3].into_iter().all(drains);
    cluster.until("one leads everything, and knows that the others drain", alone).await;
    let options = DrainOptions::default().fallback(Fallback::Undrain);
    let drain = Drain::begin(cluster.host(1), options);
    let end = drain.finished().await;
    let everything = TABLES + 1;
    assert_eq!((end.state, end.left as u64), (DrainState::Done, everything), "{end:?}");
    assert_eq!(end.undrainable.len() as u64, everything);
    for reason in end.undrainable.values() {
        assert!(reason.contains("is draining and takes no leadership"), "{reason}");
    }
    drain.undrain();
    assert!(!cluster.host(1).advertisement().draining);
    for node in [2, 3] {
        cluster.0.running.remove(&node).unwrap().shutdown(Shutdown::Immediate).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_takes_too_long_ends_as_it_was_told_to() {
    let cluster = Cluster::start().await;
    cluster.until("node 1 leads something", |led| led[&1] > 0).await;
    let at_once = DrainOptions::default().deadline(Duration::ZERO);
    let kept = Drain::begin(cluster.host(1), at_once).finished().await;
    assert_eq!(kept.state, DrainState::Overdue);
    assert!(cluster.host(1).advertisement().draining);
    let undrained = Drain::begin(cluster.host(1), at_once.fallback(Fallback::Undrain));
    assert_eq!(undrained.finished().await.state, DrainState::Overdue);
    assert!(!cluster.host(1).advertisement().draining);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_nobody_knows_are_refused_with_the_thing_to_do() {
    let cluster = Cluster::start().await;
    let refused = cluster.run(&["drain", "begin", "9"]).await;
    assert!(!refused.status.success());
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(error.contains("knows no node 9") && error.contains("shardhost status"), "{error}");
    cluster.stop().await;
}
