//! Where the shards of one kind are led, as far as the client knows.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use shardhost_proto::client::directory_client::DirectoryClient;
use shardhost_proto::client::{Shard, ShardsReply, ShardsRequest};
use shardhost_storage::NodeId;
use tokio::sync::Mutex;
use tokio::time::{Duration, Instant, timeout};
use tracing::warn;

use super::channel;
use super::error::ClientError;
use super::options::ClientOptions;
use super::wire::Wire;

/// The directory is not asked more often than this, however many operations want to know.
const REFRESH_INTERVAL: Duration = Duration::from_millis(50);

/// One shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) group: u64,
    /// 0: unknown.
    pub(super) leader: u64,
    /// Term in which it led.
    term: u64,
}

#[derive(Debug, Default)]
struct Known {
    shards: Vec<Route>,
    /// Addresses by node.
    nodes: BTreeMap<u64, String>,
}

/// The routes of one kind of shard.
pub(super) struct Routes {
    kind: &'static str,
    /// What the client was given: asked when no known node answers.
    seeds: Vec<String>,
    known: RwLock<Known>,
    /// When the directory was last asked. Held while asking.
    asked: Mutex<Option<Instant>>,
    options: Arc<ClientOptions>,
}

impl Routes {
    /// Asks for the shards of a kind.
    pub(super) async fn discover<W: Wire>(
        seeds: &[String],
        options: &Arc<ClientOptions>,
    ) -> Result<Self, ClientError> {
        let routes = Self {
            kind: W::KIND,
            seeds: seeds.to_vec(),
            known: RwLock::default(),
            asked: Mutex::default(),
            options: Arc::clone(options),
        };
        let reply = routes.ask_any().await?;
        let shards = reply.shards.iter().map(Route::from).collect();
        *routes.known.write() = Known { shards, nodes: reply.nodes.into_iter().collect() };
        Ok(routes)
    }

    /// How many shards there are.
    pub(super) fn len(&self) -> usize {
        self.known.read().shards.len()
    }

    pub(super) fn get(&self, shard: usize) -> Option<Route> {
        self.known.read().shards.get(shard).copied()
    }

    pub(super) fn nodes(&self) -> BTreeMap<NodeId, String> {
        let known = self.known.read();
        let nodes = known.nodes.iter();
        nodes.filter_map(|(node, address)| Some((NodeId::new(*node)?, address.clone()))).collect()
    }

    pub(super) fn address(&self, node: u64) -> Option<String> {
        self.known.read().nodes.get(&node).cloned()
    }

    /// Whom to ask for a shard: its leader, or without one each node in turn.
    pub(super) fn target(&self, shard: usize, attempt: usize) -> Option<u64> {
        let known = self.known.read();
        let leader = known.shards.get(shard)?.leader;
        if leader != 0 && known.nodes.contains_key(&leader) {
            return Some(leader);
        }
        let place = attempt.wrapping_add(shard).checked_rem(known.nodes.len())?;
        known.nodes.keys().nth(place).copied()
    }

    /// A node named the leader.
    pub(super) fn learn(&self, shard: usize, leader: u64, address: &str) {
        let mut known = self.known.write();
        if !address.is_empty() {
            known.nodes.insert(leader, address.to_owned());
        }
        if let Some(route) = known.shards.get_mut(shard) {
            route.leader = leader;
        }
    }

    /// The node does not lead it, or does not answer.
    pub(super) fn doubt(&self, shard: usize, node: u64) {
        if let Some(route) = self.known.write().shards.get_mut(shard)
            && route.leader == node
        {
            route.leader = 0;
        }
    }

    /// Asks the directory again, unless that was done just now.
    pub(super) async fn refresh(&self) {
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|at| at.elapsed() < REFRESH_INTERVAL) {
            return;
        }
        match self.ask_any().await {
            Ok(reply) => self.merge(reply),
            Err(error) => warn!(%error, kind = self.kind, "the directory cannot be asked"),
        }
        *asked = Some(Instant::now());
    }

    fn merge(&self, reply: ShardsReply) {
        let mut known = self.known.write();
        if reply.shards.len() != known.shards.len() {
            // Keys belong to shards by their number, which never changes in the life of a
            // cluster.
            let (before, after) = (known.shards.len(), reply.shards.len());
            warn!(before, after, kind = self.kind, "a node names another number of shards");
            return;
        }
        known.nodes.extend(reply.nodes);
        for (route, shard) in known.shards.iter_mut().zip(&reply.shards) {
            let told = Route::from(shard);
            if told.leader != 0 && (told.term >= route.term || route.leader == 0) {
                *route = told;
            }
        }
    }

    async fn ask_any(&self) -> Result<ShardsReply, ClientError> {
        let mut addresses: Vec<String> = self.known.read().nodes.values().cloned().collect();
        addresses.extend(self.seeds.iter().cloned());
        // Not always the same node first: it may be the one that knows least.
        let turn = rand::random_range(0..addresses.len().max(1));
        let turn = turn.min(addresses.len());
        addresses.rotate_left(turn);
        let mut last = "no address was given".to_owned();
        for address in addresses {
            match self.ask(&address).await {
                Ok(reply) => return Ok(reply),
                Err(message) => last = format!("{address}: {message}"),
            }
        }
        Err(ClientError::Unavailable { message: last })
    }

    async fn ask(&self, address: &str) -> Result<ShardsReply, String> {
        let channel = channel::open(address, &self.options)?;
        let mut client = DirectoryClient::new(channel);
        let request = ShardsRequest { kind: self.kind.to_owned() };
        match timeout(self.options.connect_timeout, client.shards(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(status.to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.options.connect_timeout)),
        }
    }
}

impl From<&Shard> for Route {
    fn from(shard: &Shard) -> Self {
        Self { group: shard.group, leader: shard.leader_node, term: shard.term }
    }
}
