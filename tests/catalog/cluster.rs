//! Servers of one cluster in this process, each with a separate directory, and the program beside
//! them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use shardhost::driver::{SYSTEM_GROUP, System};
use shardhost::{GroupId, Host};
use shardhost_policy::catalog::View;
use shardhost_server::config::{Planner, ShardCounts};
use shardhost_server::{Server, ServerConfig};
use tokio::time::Instant;

use super::in_process::InProcess;
pub use super::in_process::TIMEOUT;

/// How a cluster is.
#[derive(Clone, Debug)]
pub struct Shape {
    pub nodes: u64,
    /// The nodes that hold the system group and the tables at first.
    pub voters: Vec<u64>,
    pub tables: u64,
    pub planner: Planner,
    /// How long a group rests that was moved.
    pub rest_seconds: u64,
    /// What nodes have; those that are not named have nothing.
    pub has: BTreeMap<u64, &'static [&'static str]>,
    pub require: &'static [&'static str],
    /// How many leaders nodes take, compared with others; those that are not named take one.
    pub weights: BTreeMap<u64, u32>,
}

impl Shape {
    pub fn new(nodes: u64, tables: u64) -> Self {
        Self {
            nodes,
            voters: (1..=nodes.min(3)).collect(),
            tables,
            planner: Planner::Off,
            rest_seconds: 300,
            has: BTreeMap::new(),
            require: &[],
            weights: BTreeMap::new(),
        }
    }
}

impl Shape {
    fn configure(&self, node: u64, config: &mut ServerConfig) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        config.planner = self.planner;
        config.weight = self.weights.get(&node).copied().unwrap_or(1);
        config.planner_warm_up = 0;
        config.planner_rest = self.rest_seconds;
        config.capabilities = owned(self.has.get(&node).copied().unwrap_or_default());
        config.shards = ShardCounts {
            tables: self.tables,
            voters: self.voters.clone(),
            tables_require: owned(self.require),
            ..ShardCounts::default()
        };
    }
}

pub struct Cluster {
    pub servers: InProcess,
    nodes: u64,
}

impl Cluster {
    pub async fn start(shape: Shape) -> Self {
        let nodes = shape.nodes;
        let servers = InProcess::start(nodes, move |node, config| shape.configure(node, config));
        let cluster = Self { servers: servers.await, nodes };
        cluster.settle().await;
        cluster
    }

    /// Waits until the founders hold their tables and every node follows the catalog.
    async fn settle(&self) {
        self.servers.await_shards().await;
        self.until("everybody knows everybody", |cluster| {
            cluster.views().all(|view| view.nodes().len() as u64 == cluster.nodes)
        })
        .await;
    }

    pub fn data_dir(&self, node: u64) -> PathBuf {
        self.servers.data_dir(node)
    }

    pub async fn stop_node(&mut self, node: u64) {
        self.servers.stop_node(node).await;
    }

    pub async fn start_node(&mut self, node: u64) {
        self.servers.start_node(node).await;
    }

    pub async fn stop(self) {
        self.servers.stop().await;
    }

    pub fn host(&self, node: u64) -> &Host {
        self.servers.host(node)
    }

    pub fn system(&self, node: u64) -> &System {
        self.servers.running[&node].system().unwrap()
    }

    fn views(&self) -> impl Iterator<Item = View> + '_ {
        self.servers.running.values().map(|server| {
            let view = server.system().and_then(System::view);
            view.map(|view| View::clone(&view)).unwrap_or_default()
        })
    }

    /// How many tables each running node serves.
    pub fn led(&self) -> BTreeMap<u64, u64> {
        let serving = |server: &Server| {
            let groups = server.host().groups();
            let tables = groups.iter().filter(|group| group.id() != SYSTEM_GROUP);
            tables.filter(|group| group.status().serving).count() as u64
        };
        self.servers.running.iter().map(|(node, server)| (*node, serving(server))).collect()
    }

    /// The node that serves a group.
    pub fn server_of(&self, group: GroupId) -> Option<u64> {
        let serves = |server: &Server| {
            server.host().group(group).is_some_and(|group| group.status().serving)
        };
        self.servers.running.iter().find(|(_, server)| serves(server)).map(|(node, _)| *node)
    }

    pub fn holders(&self, group: GroupId) -> Vec<u64> {
        let holds = |server: &&Server| server.host().group(group).is_some();
        self.servers
            .running
            .iter()
            .filter(|(_, server)| holds(server))
            .map(|(node, _)| *node)
            .collect()
    }

    pub async fn until(&self, what: &str, mut reached: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        while !reached(self) {
            let led = self.led();
            assert!(Instant::now() < deadline, "never came to be: {what}; tables: {led:?}");
            looks.tick().await;
        }
    }

    pub async fn run(&self, arguments: &[&str]) -> Output {
        let at = self.servers.running.keys().map(|node| self.servers.addresses[node].clone());
        let at = at.collect::<Vec<_>>().join(",");
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_shardhost"));
        command.args(arguments).args(["--at", &at, "--json"]);
        command.output().await.unwrap()
    }

    /// What a command prints.
    pub async fn answer(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The text of a command that is refused.
    pub async fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(!output.status.success(), "{arguments:?} was taken: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}
