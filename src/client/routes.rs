//! Where the shards of one kind are led, as far as the client knows.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use shardhost_proto::client::directory_client::DirectoryClient;
use shardhost_proto::client::{MapTag, Shard, ShardsReply, ShardsRequest};
use shardhost_proto::ids::NodeId;
use tokio::sync::Mutex;
use tokio::time::{Duration, Instant, sleep, timeout};
use tracing::warn;

use super::channel;
use super::error::ClientError;
use super::options::ClientOptions;
use super::wire::{Place, Wire};
use shardhost_proto::limits::{MAP_UNKNOWN, wait_of};
use shardhost_proto::routing::shard_of;
use shardhost_proto::shard_map::HASH;

/// The directory is not asked more often than this, however many operations want to know.
const REFRESH_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) group: u64,
    pub(super) leader: u64,
    /// Term in which it led.
    term: u64,
}

/// What an operation is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A key: the map of shards has its shard.
    Key(Bytes),
    /// A shard by its number.
    Shard(usize),
}

/// Where an operation goes, by one map of shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) shard: usize,
    pub(super) place: Place,
}

#[derive(Debug, Default)]
struct Known {
    /// The map that the shards follow from.
    map: MapTag,
    shards: Vec<Route>,
    /// The node that was asked last understands sessions.
    sessions: bool,
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
        let reply = routes.ask_first().await?;
        *routes.known.write() = Known::from(reply);
        Ok(routes)
    }

    /// How many shards there are.
    pub(super) fn len(&self) -> usize {
        self.known.read().shards.len()
    }

    /// Where an operation goes; `None`: there is no such shard.
    pub(super) fn locate(&self, target: &Target) -> Option<Located> {
        let known = self.known.read();
        let shard = match target {
            Target::Key(key) => shard_of(key, NonZeroUsize::new(known.shards.len())?),
            Target::Shard(shard) => *shard,
        };
        let group = known.shards.get(shard)?.group;
        Some(Located { shard, place: Place { group, map: known.map.fingerprint } })
    }

    /// Whether the shards understand sessions, as far as is known.
    pub(super) fn understands_sessions(&self) -> bool {
        self.known.read().sessions
    }

    pub(super) fn nodes(&self) -> BTreeMap<NodeId, String> {
        let known = self.known.read();
        let nodes = known.nodes.iter();
        nodes.filter_map(|(node, address)| Some((NodeId::new(*node)?, address.clone()))).collect()
    }

    pub(super) fn address(&self, node: u64) -> Option<String> {
        self.known.read().nodes.get(&node).cloned()
    }

    /// The node to ask for a shard: its leader, or without one each node in turn.
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
            Ok(reply) => self.known.write().merge(reply, self.kind),
            Err(AskError { message: error, .. }) => {
                warn!(error, kind = self.kind, "the directory cannot be asked");
            }
        }
        *asked = Some(Instant::now());
    }

    /// Asks until a node knows the map of shards: one that just started may have to read it first.
    async fn ask_first(&self) -> Result<ShardsReply, ClientError> {
        let deadline = Instant::now() + wait_of(self.options.deadline);
        loop {
            match self.ask_any().await {
                Err(AskError { is_starting: true, .. }) if Instant::now() < deadline => {
                    sleep(REFRESH_INTERVAL).await;
                }
                answered => return answered.map_err(ClientError::from),
            }
        }
    }

    async fn ask_any(&self) -> Result<ShardsReply, AskError> {
        let mut addresses: Vec<String> = self.known.read().nodes.values().cloned().collect();
        addresses.extend(self.seeds.iter().cloned());
        // Not always the same node first: it may be the one that knows least.
        let turn = rand::random_range(0..addresses.len().max(1));
        let turn = turn.min(addresses.len());
        addresses.rotate_left(turn);
        let mut last = AskError::new("no address was given");
        for address in addresses {
            match self.ask(&address).await {
                Ok(reply) => return Ok(reply),
                Err(error) => last = last.or(&address, error),
            }
        }
        Err(last)
    }

    async fn ask(&self, address: &str) -> Result<ShardsReply, AskError> {
        let channel = channel::open(address, &self.options).map_err(AskError::new)?;
        let mut client = DirectoryClient::new(channel);
        let request = ShardsRequest { kind: self.kind.to_owned() };
        let reply = match timeout(self.options.connect_timeout, client.shards(request)).await {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => {
                let is_starting = status.metadata().contains_key(MAP_UNKNOWN);
                let answers = status.code() != tonic::Code::Unavailable;
                return Err(AskError { message: channel::words_of(&status), is_starting, answers });
            }
            Err(_) => {
                let within = self.options.connect_timeout;
                return Err(AskError::new(format!("no answer within {within:?}")));
            }
        };
        match reply.map.as_ref().map(|map| map.hash.as_str()) {
            None | Some(HASH) => Ok(reply),
            Some(hash) => Err(AskError::new(format!(
                "the cluster hashes keys with {hash:?}, this client knows {HASH:?}; update it"
            ))),
        }
    }
}

/// Why the directory was not read.
#[derive(Debug)]
struct AskError {
    message: String,
    /// A node answered that does not know the map of shards yet.
    is_starting: bool,
    /// A node answered, with a refusal.
    answers: bool,
}

impl AskError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_starting: false, answers: false }
    }

    /// Of what several addresses gave, the last; what a node says that answers is more helpful than that another
    /// one does not.
    fn or(self, address: &str, next: Self) -> Self {
        let is_starting = self.is_starting || next.is_starting;
        if self.answers && !next.answers {
            return Self { is_starting, ..self };
        }
        Self { message: format!("{address}: {}", next.message), is_starting, ..next }
    }
}

impl From<AskError> for ClientError {
    fn from(error: AskError) -> Self {
        Self::Unavailable { message: error.message }
    }
}

impl Known {
    /// Takes over a node's information about the shards: all of it when its map is later.
    fn merge(&mut self, reply: ShardsReply, kind: &str) {
        let map = reply.map.clone().unwrap_or_default();
        if map.version > self.map.version {
            *self = Self::from(reply);
            return;
        }
        let same = map.fingerprint == self.map.fingerprint;
        if !same || reply.shards.len() != self.shards.len() {
            // A node that does not know a later map; or nodes that contradict each other.
            let (known, named) = (self.shards.len(), reply.shards.len());
            warn!(known, named, version = map.version, kind, "a node names other shards");
            return;
        }
        self.sessions = reply.sessions;
        self.nodes.extend(reply.nodes);
        for (route, shard) in self.shards.iter_mut().zip(&reply.shards) {
            let told = Route::from(shard);
            if told.leader != 0 && (told.term >= route.term || route.leader == 0) {
                *route = told;
            }
        }
    }
}

impl From<ShardsReply> for Known {
    fn from(reply: ShardsReply) -> Self {
        let shards = reply.shards.iter().map(Route::from).collect();
        let map = reply.map.unwrap_or_default();
        Self { map, shards, sessions: reply.sessions, nodes: reply.nodes.into_iter().collect() }
    }
}

impl From<&Shard> for Route {
    fn from(shard: &Shard) -> Self {
        Self { group: shard.group, leader: shard.leader_node, term: shard.term }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(version: u64, shards: u64) -> ShardsReply {
        let map = MapTag { fingerprint: 100 * version + shards, version, hash: HASH.to_owned() };
        let shard = |group| Shard { group, leader_node: 1, term: 3, ..Shard::default() };
        let shards = (0..shards).map(shard).collect();
        let nodes = [(1, "one".to_owned())].into();
        ShardsReply { shards, nodes, map: Some(map), sessions: true }
    }

    #[test]
    fn a_later_map_replaces_what_is_known_and_no_other_one_does() {
        let mut known = Known::from(reply(2, 8));
        known.merge(reply(1, 16), "table");
        known.merge(reply(2, 16), "table");
        assert_eq!((known.shards.len(), known.map.version), (8, 2));
        known.merge(reply(3, 16), "table");
        assert_eq!((known.shards.len(), known.map.version), (16, 3));
    }

    #[test]
    fn what_a_node_refuses_is_not_lost_behind_one_that_does_not_answer() {
        let refused = || AskError { answers: true, ..AskError::new("ask elsewhere") };
        let silent = || AskError::new("no answer");
        let none = || AskError::new("no address was given");
        let shown = |one: AskError, other: AskError| none().or("a", one).or("b", other).message;
        assert_eq!(shown(refused(), silent()), "a: ask elsewhere");
        assert_eq!(shown(silent(), refused()), "b: ask elsewhere");
        assert_eq!(shown(refused(), refused()), "b: ask elsewhere");
        assert_eq!(shown(silent(), silent()), "b: no answer");
        let starting = AskError { is_starting: true, ..silent() };
        assert!(none().or("a", refused()).or("b", starting).is_starting);
    }

    #[test]
    fn a_node_of_an_earlier_version_tells_of_leaders() {
        let plain = |leader_node| ShardsReply {
            shards: vec![Shard { group: 7, leader_node, term: 3, ..Shard::default() }],
            ..ShardsReply::default()
        };
        let mut known = Known::from(plain(1));
        known.merge(plain(2), "table");
        assert_eq!((known.shards[0].leader, known.map.fingerprint), (2, 0));
    }
}
