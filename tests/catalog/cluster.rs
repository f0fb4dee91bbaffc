//! Servers of one cluster in this process, each with a separate directory, and the program beside
//! them.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use shardhost::driver::{SYSTEM_GROUP, System};
use shardhost::{GroupId, Host, Shutdown};
use shardhost_policy::catalog::View;
use shardhost_server::config::{Planner, ShardCounts};
use shardhost_server::{Server, ServerConfig};
use tempfile::TempDir;
use tokio::time::Instant;

pub const TIMEOUT: Duration = Duration::from_secs(60);

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

pub struct Cluster {
    pub servers: BTreeMap<u64, Server>,
    pub addresses: BTreeMap<u64, String>,
    shape: Shape,
    directory: TempDir,
}

impl Cluster {
    pub async fn start(shape: Shape) -> Self {
        let listeners: BTreeMap<u64, TcpListener> = (1..=shape.nodes)
            .map(|node| {
                // No other connection takes the port while the node is down.
                let own = format!("127.0.{}.{node}:0", std::process::id() % 200 + 1);
                (node, TcpListener::bind(own).unwrap())
            })
            .collect();
        let addresses = listeners
            .iter()
            .map(|(node, listener)| (*node, listener.local_addr().unwrap().to_string()))
            .collect();
        let directory = TempDir::new().unwrap();
        let mut cluster = Self { servers: BTreeMap::new(), addresses, shape, directory };
        for (node, listener) in listeners {
            cluster.launch(node, listener).await;
        }
        cluster.settle().await;
        cluster
    }

    /// Waits until the founders hold their tables and every node follows the catalog.
    async fn settle(&self) {
        for server in self.servers.values() {
            assert!(server.await_shards(TIMEOUT).await, "the tables are never there");
        }
        self.until("everybody knows everybody", |cluster| {
            cluster.views().all(|view| view.nodes().len() as u64 == cluster.shape.nodes)
        })
        .await;
    }

    async fn launch(&mut self, node: u64, listener: TcpListener) {
        let mut config = ServerConfig::alone(self.data_dir(node));
        config.cluster = "catalog-test".into();
        config.node = node;
        config.listen = self.addresses[&node].parse::<SocketAddr>().unwrap();
        config.alone = false;
        config.nodes = self.addresses.iter().map(|(id, at)| (id.to_string(), at.clone())).collect();
        config.planner = self.shape.planner;
        config.weight = self.shape.weights.get(&node).copied().unwrap_or(1);
        config.planner_warm_up = 0;
        config.planner_rest = self.shape.rest_seconds;
        config.capabilities = self
            .shape
            .has
            .get(&node)
            .iter()
            .flat_map(|has| has.iter())
            .map(|name| (*name).into())
            .collect();
        config.shards = ShardCounts {
            tables: self.shape.tables,
            voters: self.shape.voters.clone(),
            tables_require: self.shape.require.iter().map(|name| (*name).into()).collect(),
            ..ShardCounts::default()
        };
        self.servers.insert(node, Server::start(config, Some(listener)).await.unwrap());
    }

    pub fn data_dir(&self, node: u64) -> PathBuf {
        self.directory.path().join(node.to_string())
    }

    pub async fn stop_node(&mut self, node: u64) {
        self.servers.remove(&node).unwrap().shutdown(Shutdown::Immediate).await;
    }

    pub async fn start_node(&mut self, node: u64) {
        let deadline = Instant::now() + TIMEOUT;
        let listener = loop {
            match TcpListener::bind(&self.addresses[&node]) {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await;
        };
        self.launch(node, listener).await;
    }

    pub async fn stop(mut self) {
        for (_, server) in std::mem::take(&mut self.servers) {
            server.shutdown(Shutdown::Immediate).await;
        }
    }

    pub fn host(&self, node: u64) -> &Host {
        self.servers[&node].host()
    }

    pub fn system(&self, node: u64) -> &System {
        self.servers[&node].system().unwrap()
    }

    fn views(&self) -> impl Iterator<Item = View> + '_ {
        self.servers.values().map(|server| {
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
        self.servers.iter().map(|(node, server)| (*node, serving(server))).collect()
    }

    /// The node that serves a group.
    pub fn server_of(&self, group: GroupId) -> Option<u64> {
        let serves = |server: &Server| {
            server.host().group(group).is_some_and(|group| group.status().serving)
        };
        self.servers.iter().find(|(_, server)| serves(server)).map(|(node, _)| *node)
    }

    pub fn holders(&self, group: GroupId) -> Vec<u64> {
        let holds = |server: &&Server| server.host().group(group).is_some();
        self.servers.iter().filter(|(_, server)| holds(server)).map(|(node, _)| *node).collect()
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
        let at = self.servers.keys().map(|node| self.addresses[node].clone());
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
