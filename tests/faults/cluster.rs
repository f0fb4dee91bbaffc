//! A cluster of real processes whose machines lie on command.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use shardhost_client::{Client, ClientOptions};
use shardhost_proto::client::Consistency;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::machine;
use crate::power::{self, Cut, Disk};
use crate::servers::Servers;
use crate::shim::{Faults, Shim};

/// Numbers of the first group of each kind.
const FIRST_TABLE: u64 = 1_000_000;
const FIRST_QUEUE: u64 = 2_000_000;

/// Compiled once for all tests of the process.
fn shim() -> Result<&'static Shim, &'static str> {
    static SHIM: OnceLock<Result<Shim, String>> = OnceLock::new();
    SHIM.get_or_init(Shim::compile).as_ref().map_err(String::as_str)
}

/// These tests have deadlines, and load the machine: one after the other.
async fn turn() -> OwnedMutexGuard<()> {
    static TURN: OnceLock<Arc<Mutex<()>>> = OnceLock::new();
    Arc::clone(TURN.get_or_init(Arc::default)).lock_owned().await
}

/// Servers, and what is wrong with the machine of each.
pub struct Cluster {
    /// Of hosts that may lose power. Detached before the directory of the servers is removed.
    disks: BTreeMap<u64, Disk>,
    pub servers: Servers,
    faults: BTreeMap<u64, Faults>,
    pub tables: u64,
    pub queues: u64,
    _turn: OwnedMutexGuard<()>,
}

impl Cluster {
    /// Makes servers that are yet to be started. `None`: this machine cannot, which is noted.
    pub async fn new(test: &str, nodes: u64, tables: u64, queues: u64) -> Option<Self> {
        let shim = match shim() {
            Ok(shim) => shim,
            Err(why) => {
                machine::skipped(test, why);
                return None;
            }
        };
        machine::ran(test);
        let turn = turn().await;
        let shards = format!("tables = {tables}\nqueues = {queues}\n");
        let mut servers = Servers::new(nodes, "planner = \"off\"", &shards);
        let faults: BTreeMap<u64, Faults> =
            (1..=nodes).map(|node| (node, shim.faults(&format!("{test}-{node}")))).collect();
        for (node, faults) in &faults {
            servers.set_environment(*node, faults.environment());
        }
        Some(Self { disks: BTreeMap::new(), servers, faults, tables, queues, _turn: turn })
    }

    pub fn nodes(&self) -> impl Iterator<Item = u64> + use<> {
        let nodes: Vec<u64> = self.faults.keys().copied().collect();
        nodes.into_iter()
    }

    pub fn start_all(&mut self) {
        self.nodes().for_each(|node| self.servers.start(node, &[]));
    }

    /// Gives each node a disk of its own that can lose power, before it is started first. The error
    /// says why this machine cannot.
    pub fn put_on_disks(&mut self) -> Result<(), String> {
        for node in self.nodes() {
            let image = self.servers.directory().join(format!("image-{node}"));
            let disk = Disk::make(&image, &self.servers.data_dir(node))?;
            self.disks.insert(node, disk);
        }
        Ok(())
    }

    /// Nodes lose power, all at one moment. They are down afterwards, and their disks are there again.
    pub async fn lose_power(&mut self, nodes: &[u64]) {
        for node in nodes {
            self.servers.signal(*node, Signal::STOP);
        }
        for process in nodes.iter().filter_map(|node| self.servers.process(*node)) {
            power::stopped(process).await;
        }
        let cuts: Vec<Cut> = nodes.iter().map(|node| self.disks[node].cut()).collect();
        for node in nodes {
            self.servers.kill(*node).await;
            self.faults[node].forget();
            self.faults[node].boot_anew();
        }
        cuts.into_iter().for_each(Cut::restart);
    }

    /// What is wrong with the machine of a node.
    pub fn faults(&self, node: u64) -> &Faults {
        &self.faults[&node]
    }

    /// Where a node has its log.
    pub fn log(&self, node: u64) -> PathBuf {
        self.servers.data_dir(node).join("log")
    }

    /// Where it has the state of its shards.
    pub fn state(&self, node: u64) -> PathBuf {
        self.servers.data_dir(node).join("state")
    }

    /// All shards.
    pub fn groups(&self) -> impl Iterator<Item = u64> {
        let queues = FIRST_QUEUE..FIRST_QUEUE + self.queues;
        (FIRST_TABLE..FIRST_TABLE + self.tables).chain(queues)
    }

    /// A client of these nodes, which gives up in time.
    pub async fn client(&self, nodes: &[u64], deadline: Duration) -> Client {
        let addresses: Vec<String> =
            nodes.iter().map(|node| self.servers.address(*node).to_owned()).collect();
        let options = ClientOptions {
            deadline,
            attempt_timeout: Duration::from_secs(1),
            ..ClientOptions::default()
        };
        let client = std::sync::Mutex::new(None);
        self.servers
            .until("a node is there for clients", || async {
                let made = Client::connect(addresses.clone(), options.clone()).await.ok();
                let complete = made.filter(|made| {
                    made.table().shards() as u64 == self.tables
                        && made.queue().shards() as u64 == self.queues
                });
                let is_made = complete.is_some();
                *client.lock().unwrap() = complete;
                is_made
            })
            .await;
        client.into_inner().unwrap().unwrap()
    }

    /// Has a node lead every shard.
    pub async fn lead_all(&self, node: u64) {
        for group in self.groups() {
            let (group, to) = (group.to_string(), node.to_string());
            self.servers
                .until(&format!("node {node} leads {group}"), || async {
                    let transfer = ["leader", "transfer", group.as_str(), "--to", &to];
                    self.servers.run(node, &transfer).await.code == 0
                })
                .await;
        }
    }

    /// The shards that a node says it leads.
    pub async fn led_by(&self, node: u64) -> BTreeSet<u64> {
        let shown = self.servers.run(node, &["group", "list", "--json"]).await;
        if shown.code != 0 {
            return BTreeSet::new();
        }
        let shards: BTreeSet<u64> = self.groups().collect();
        let groups = shown.json()["groups"].as_array().cloned().unwrap_or_default();
        let led = groups.iter().filter(|group| group["role"] == "leader");
        led.filter_map(|group| group["group"].as_u64()).filter(|id| shards.contains(id)).collect()
    }

    /// Everything that a node finds wrong with the cluster.
    pub async fn findings(&self, node: u64) -> String {
        let shown = self.servers.run(node, &["status", "--json"]).await;
        let Ok(status) = serde_json::from_str::<Value>(&shown.stdout) else { return String::new() };
        status["findings"].to_string()
    }

    /// Waits until every shard takes a write, and says how long that took. Panics after `limit`.
    pub async fn serves_all(&self, client: &Client, limit: Duration) -> Duration {
        let began = Instant::now();
        if !self.serves_within(client, limit).await {
            let logs: Vec<String> = self.nodes().map(|node| self.servers.log(node)).collect();
            panic!("not every shard is served within {limit:?}: {logs:#?}");
        }
        began.elapsed()
    }

    /// Whether every shard takes a write within this time.
    pub async fn serves_within(&self, client: &Client, limit: Duration) -> bool {
        let tables = keys_of_tables(client);
        let queues = keys_of_queues(client);
        let puts = tables.iter().map(|key| async move {
            while client.table().put(key.clone(), "served").await.is_err() {}
        });
        let sends = queues.iter().map(|key| async move {
            while client.queue().send(key.clone(), SERVED, "").await.is_err() {}
        });
        let all = async {
            futures::join!(futures::future::join_all(puts), futures::future::join_all(sends))
        };
        tokio::time::timeout(limit, all).await.is_ok()
    }

    /// The value of a key as the leader of its shard has it.
    pub async fn get(client: &Client, key: &str) -> Option<String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let got = client.table().get_with(key.to_owned(), Consistency::Linearizable).await;
            match got {
                Ok(value) => {
                    return value.map(|value| String::from_utf8_lossy(&value).into_owned());
                }
                Err(error) => assert!(Instant::now() < deadline, "{key}: {error}"),
            }
        }
    }
}

/// The body of messages that only show that a queue is served.
pub const SERVED: &str = "served";

/// A key of each shard of the table.
fn keys_of_tables(client: &Client) -> Vec<String> {
    let mut keys = BTreeMap::new();
    for number in 0_u64.. {
        if keys.len() == client.table().shards() {
            break;
        }
        let key = format!("served {number}");
        if let Some(group) = client.table().group_of(key.as_bytes()) {
            keys.entry(group).or_insert(key);
        }
    }
    keys.into_values().collect()
}

/// A partition key of each shard of the queue.
fn keys_of_queues(client: &Client) -> Vec<String> {
    let mut keys = BTreeMap::new();
    for number in 0_u64.. {
        if keys.len() == client.queue().shards() {
            break;
        }
        let key = format!("served {number}");
        if let Ok(shard) = client.queue().shard_of(key.as_bytes()) {
            keys.entry(shard).or_insert(key);
        }
    }
    keys.into_values().collect()
}
