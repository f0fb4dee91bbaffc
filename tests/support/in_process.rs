//! Servers of one cluster in this process, each with a directory of its own, on loopback.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use shardhost::{Host, Shutdown};
use shardhost_server::{Server, ServerConfig};
use tempfile::TempDir;

/// How long something may take on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

type Configure = Box<dyn Fn(u64, &mut ServerConfig) + Send + Sync>;

/// The servers that run, and where all of them are.
pub struct InProcess {
    pub running: BTreeMap<u64, Server>,
    pub addresses: BTreeMap<u64, String>,
    configure: Configure,
    directory: TempDir,
}

#[allow(dead_code, reason = "each suite needs its part")]
impl InProcess {
    /// Starts nodes 1 to `nodes`. `configure` says how each differs from a server with all addresses and
    /// without shards.
    pub async fn start(
        nodes: u64,
        configure: impl Fn(u64, &mut ServerConfig) + Send + Sync + 'static,
    ) -> Self {
        let mut cluster = Self {
            running: BTreeMap::new(),
            addresses: BTreeMap::new(),
            configure: Box::new(configure),
            directory: TempDir::new().unwrap(),
        };
        let listeners: Vec<TcpListener> = (1..=nodes).map(listener).collect();
        for (node, listener) in (1..).zip(&listeners) {
            cluster.addresses.insert(node, listener.local_addr().unwrap().to_string());
        }
        for (node, listener) in (1..).zip(listeners) {
            cluster.launch(node, listener).await;
        }
        cluster
    }

    async fn launch(&mut self, node: u64, listener: TcpListener) {
        let mut config = ServerConfig::alone(self.data_dir(node));
        config.cluster = "test".into();
        config.node = node;
        config.listen = self.addresses[&node].parse::<SocketAddr>().unwrap();
        config.alone = false;
        config.nodes = self.addresses.iter().map(|(id, at)| (id.to_string(), at.clone())).collect();
        (self.configure)(node, &mut config);
        self.running.insert(node, Server::start(config, Some(listener)).await.unwrap());
    }

    /// Waits until the running nodes hold the shards that they found.
    pub async fn await_shards(&self) {
        for server in self.running.values() {
            assert!(server.await_shards(TIMEOUT).await, "the shards are never there");
        }
    }

    /// Stops a node.
    pub async fn stop_node(&mut self, node: u64) {
        self.running.remove(&node).unwrap().shutdown(Shutdown::Immediate).await;
    }

    /// Starts a node where it was.
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

    /// Stops all that run.
    pub async fn stop(mut self) {
        for (_, server) in std::mem::take(&mut self.running) {
            server.shutdown(Shutdown::Immediate).await;
        }
    }

    pub fn host(&self, node: u64) -> &Host {
        self.running[&node].host()
    }

    pub fn data_dir(&self, node: u64) -> PathBuf {
        self.directory.path().join(node.to_string())
    }
}

/// A free port at an address of the node and of this process: nothing else takes it while the node is down.
fn listener(node: u64) -> TcpListener {
    let own = format!("127.0.{}.{node}:0", std::process::id() % 200 + 1);
    TcpListener::bind(own).unwrap()
}
