//! [`Host`]: the groups of this process together with their log, their transport and their listeners.
//!
//! The host puts things together and takes them apart in the right order. What a message, a write
//! or a leadership means is the business of the parts.

mod answers;
mod builder;
mod config;
pub mod founding;
mod joining;
mod leadership;
mod listener;
mod memory;
mod replicas;
mod versions;
mod web;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use shardhost_groups::nodes::Advertisement;
use shardhost_groups::runtime::{AdditionGuard, GroupsStats};
use shardhost_groups::{Group, Groups, HostFault};
use shardhost_proto::methods::Audience;
use shardhost_security::channel::Security;
use shardhost_storage::{GroupId, LogStore, NodeId};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use self::builder::{HostBuilder, StartError};
pub use self::config::HostConfig;
use self::founding::{Founding, Foundings, Scope};
pub use self::joining::ReplicaFactory;
use self::listener::{Apart, Listener};
use self::memory::HostMemory;
pub use self::versions::PrepareError;
use crate::data_dir::DataDir;
use crate::transport::{
    ConnectionStats, Connections, FoundedBy, GrpcTransport, KnownTokens, PeerDirectory, Rollback,
    TransportStats, admit_clients, authorize, incoming_within, only, server,
};

#[derive(Debug)]
struct HostInner {
    config: HostConfig,
    groups: Groups,
    transport: GrpcTransport,
    directory: PeerDirectory,
    /// The node's advertisement. Held while groups and peers are notified, so that all see changes
    /// in the same order.
    advertisement: parking_lot::Mutex<Advertisement>,
    address: SocketAddr,
    /// Who does not share the listener there.
    apart: BTreeMap<Audience, Apart>,
    incarnation: u64,
    /// The groups keep it open, and close it when they end: a handle of a host that stopped holds no log.
    store: Weak<dyn LogStore>,
    store_id: u64,
    memory: Arc<HostMemory>,
    foundings: Foundings,
    /// The host begins to stop; work in progress continues for a while.
    stopping: CancellationToken,
    stop: CancellationToken,
    /// Of each listener.
    connections: Vec<Arc<Connections>>,
    tokens: KnownTokens,
    _additions: AdditionGuard,
}

#[derive(Debug, Default)]
struct Serving {
    /// Those that do not answer yet.
    listeners: Vec<Listener>,
    tasks: Vec<JoinHandle<Result<(), tonic::transport::Error>>>,
    data_dir: Option<DataDir>,
}

/// How a host stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shutdown {
    /// Hands leadership of its groups to others first, for at most this long.
    Graceful { deadline: Duration },
    /// At once. Nothing that was acknowledged is lost.
    Immediate,
}

/// One process of a cluster: replicas of many groups, one log, one listener to three. Cheap to clone; all
/// clones are the same host. It runs until [`Host::shutdown`].
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<HostInner>,
    serving: Arc<parking_lot::Mutex<Serving>>,
    /// Held by the one call that takes the host apart; the others wait for it.
    ending: Arc<tokio::sync::Mutex<()>>,
}

impl Host {
    /// Begins to put a host together.
    pub const fn builder(config: HostConfig) -> HostBuilder {
        HostBuilder::new(config)
    }

    /// Starts a host from its configuration and lets it listen to its peers.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: HostConfig) -> Result<Self, StartError> {
        let host = Self::builder(config).start().await?;
        host.serve(Routes::default());
        Ok(host)
    }

    /// Begins to answer on the listeners: the peers' service, and `services` beside it, each call where it is
    /// served ([`Served`](crate::transport::Served)). Calls after the first do nothing.
    pub fn serve(&self, services: Routes) {
        let mut serving = self.serving.lock();
        let listeners = std::mem::take(&mut serving.listeners);
        if listeners.is_empty() {
            return;
        }
        let clients = admit_clients(services.add_service(self.inner.foundings.service()));
        let routes = clients.add_service(self.inner.transport.service());
        let answer = |listener| self.answer(listener, routes.clone());
        serving.tasks = listeners.into_iter().map(answer).collect();
    }

    fn answer(
        &self,
        listener: Listener,
        routes: Routes,
    ) -> JoinHandle<Result<(), tonic::transport::Error>> {
        let Listener { socket, served, connections } = listener;
        let stop = self.inner.stop.clone();
        let routes = authorize(only(routes, served), &self.inner.tokens);
        let credentials = self.inner.config.credentials.clone();
        let incoming = incoming_within(socket, &connections, credentials);
        tokio::spawn(async move {
            let stopped = async move { stop.cancelled().await };
            server().add_routes(routes).serve_with_incoming_shutdown(incoming, stopped).await
        })
    }

    /// This process.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.inner.config.node
    }
    /// Grows with every start of the node.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.inner.incarnation
    }
    /// Which log this is: another one after the disk was lost, the same after a restart.
    #[must_use]
    pub fn store_id(&self) -> u64 {
        self.inner.store_id
    }
    /// How this host reaches other nodes.
    pub(crate) fn security(&self) -> Security {
        Security::without_token(self.inner.config.credentials.clone())
    }
    /// Ends all connections, so that they are made anew with the certificates that are in use now.
    pub fn renew_connections(&self) {
        self.inner.connections.iter().for_each(|connections| connections.cut_all());
        self.inner.transport.reconnect();
    }
    /// Where the tokens of users are known to the listener.
    #[must_use]
    pub fn tokens(&self) -> &KnownTokens {
        &self.inner.tokens
    }
    /// Which founding this node's cluster comes from, as far as it knows.
    pub(crate) fn founded(&self) -> FoundedBy {
        self.inner.transport.founded()
    }
    /// Who may create the first replicas of a cluster.
    pub fn founding(&self, scope: Scope) -> &Founding {
        self.inner.foundings.of(scope)
    }
    /// The nodes that this node waits for before the cluster is created, and what an operator can
    /// do; `None`: it does not wait.
    #[must_use]
    pub fn founding_waits_for(&self) -> Option<String> {
        let foundings = &self.inner.foundings;
        foundings.system.waiting().or_else(|| foundings.shards.waiting())
    }
    /// The evidence that the data directory was put back from an older copy, if a peer has it.
    #[must_use]
    pub fn rollback(&self) -> Option<Rollback> {
        self.inner.memory.rollback()
    }
    /// Where this host listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }
    /// Where it listens for clients, if not there.
    #[must_use]
    pub fn client_listener(&self) -> Option<SocketAddr> {
        self.inner.apart.get(&Audience::Clients).map(|apart| apart.bound)
    }
    /// Where it listens for operators, if not there.
    #[must_use]
    pub fn admin_listener(&self) -> Option<SocketAddr> {
        self.inner.apart.get(&Audience::Operators).map(|apart| apart.bound)
    }
    /// Where clients reach a node: as its greeting says, and else where nodes reach it, as far as that is known.
    #[must_use]
    pub fn client_address(&self, node: NodeId) -> Option<String> {
        let address = self.directory().address(node)?;
        Some(self.own_client_address(node).unwrap_or(address))
    }
    /// Where clients reach a node, if it says that this is not where nodes do.
    #[must_use]
    pub fn own_client_address(&self, node: NodeId) -> Option<String> {
        self.own_address(Audience::Clients, node)
    }
    /// The same for operators.
    #[must_use]
    pub fn own_admin_address(&self, node: NodeId) -> Option<String> {
        self.own_address(Audience::Operators, node)
    }
    fn own_address(&self, audience: Audience, node: NodeId) -> Option<String> {
        if node == self.node_id() {
            return self.inner.apart.get(&audience).map(|apart| apart.reached.clone());
        }
        self.inner.transport.address_for(audience, node)
    }
    /// What it was started from.
    #[must_use]
    pub fn config(&self) -> &HostConfig {
        &self.inner.config
    }
    /// Where the nodes are reached; may be changed while the host runs.
    #[must_use]
    pub fn directory(&self) -> &PeerDirectory {
        &self.inner.directory
    }

    /// A group that is open here.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<Group> {
        self.inner.groups.group(id)
    }
    /// All groups that are open here, by id.
    #[must_use]
    pub fn groups(&self) -> Vec<Group> {
        self.inner.groups.groups()
    }
    /// The groups' runtime, for its counters.
    #[must_use]
    pub fn runtime(&self) -> &Groups {
        &self.inner.groups
    }
    /// Counters of the groups.
    #[must_use]
    pub fn stats(&self) -> GroupsStats {
        self.inner.groups.stats()
    }
    /// Counters of the transport.
    #[must_use]
    pub fn transport_stats(&self) -> TransportStats {
        self.inner.transport.stats()
    }
    /// Whether this host receives heartbeats of a node, or is that node.
    #[must_use]
    pub fn hears(&self, node: NodeId) -> bool {
        node == self.node_id() || self.inner.transport.is_live(node)
    }
    /// The nodes whose heartbeats this host receives, and its own.
    pub(crate) fn live_nodes(&self) -> BTreeSet<NodeId> {
        self.live_incarnations().into_keys().collect()
    }
    /// The processes whose heartbeats this host receives, and its own.
    pub(crate) fn live_incarnations(&self) -> BTreeMap<NodeId, u64> {
        let mut live = self.inner.transport.incarnations(true);
        live.insert(self.node_id(), self.incarnation());
        live
    }
    /// The newest incarnations that this host has seen of the others, also of those that it does not hear.
    pub(crate) fn peer_incarnations(&self) -> BTreeMap<NodeId, u64> {
        self.inner.transport.incarnations(false)
    }
    /// Nodes that say that something is wrong with them.
    pub(crate) fn impaired_nodes(&self) -> BTreeSet<NodeId> {
        let own = self.advertisement().impaired.map(|_| self.node_id());
        self.inner.transport.impaired().into_iter().chain(own).collect()
    }
    /// A node is said to be reached there: see [`GrpcTransport::is_said_to_be_at`].
    pub(crate) fn node_is_said_to_be_at(&self, node: NodeId, address: &str) {
        self.inner.transport.is_said_to_be_at(node, address);
    }
    /// How many connections the listeners hold open: the one that nodes reach, and those of operators and of
    /// clients, where they have their own.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionStats> {
        self.inner.connections.iter().map(|connections| connections.stats()).collect()
    }
    /// Whether the host runs and nothing keeps it from going on.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        !self.inner.stopping.is_cancelled() && self.inner.groups.health().borrow().is_none()
    }
    /// Cancelled when the host begins to stop.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.inner.stopping.clone()
    }
    /// Cancelled when the host has transferred its leaderships, and no longer answers.
    #[must_use]
    pub fn stopped(&self) -> CancellationToken {
        self.inner.stop.clone()
    }
    /// What keeps the host from going on, once something does: it must be stopped then.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Option<HostFault>> {
        self.inner.groups.health()
    }

    /// Stops the host. When it returns, the data directory may be opened again, whichever caller
    /// was first. A call that does not transfer leaderships ends the transfers of an earlier one.
    pub async fn shutdown(&self, mode: Shutdown) {
        self.inner.stopping.cancel();
        if let Shutdown::Graceful { deadline } = mode {
            self.hand_everything_over(deadline).await;
        }
        let _ending = self.ending.lock().await;
        // Peers and shipments first: they want the listener to be there.
        self.inner.transport.shutdown().await;
        self.inner.stop.cancel();
        let mut tasks = std::mem::take(&mut self.serving.lock().tasks);
        let ended = futures::future::join_all(&mut tasks);
        // Streams of clients and peers do not end otherwise.
        if tokio::time::timeout(Duration::from_millis(200), ended).await.is_err() {
            tasks.iter().for_each(JoinHandle::abort);
        }
        let groups = self.inner.groups.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || groups.shutdown()).await {
            tracing::error!(%error, "the groups did not stop in order");
        }
        drop(self.serving.lock().data_dir.take());
    }

    /// Transfers every leadership to the most advanced voter, a number at a time.
    async fn hand_everything_over(&self, deadline: Duration) {
        use futures::StreamExt;
        let led = self.groups().into_iter().filter(|group| {
            let status = group.status();
            status.is_leader() && status.membership.members.len() > 1
        });
        let transfers = futures::stream::iter(led).for_each_concurrent(256, |group| async move {
            if let Err(error) = group.transfer_leadership(None).await {
                tracing::debug!(group = %group.id(), %error, "leadership was not handed over");
            }
        });
        if tokio::time::timeout(deadline, transfers).await.is_err() {
            tracing::warn!(?deadline, "stopping before every leadership was handed over");
        }
    }
}
