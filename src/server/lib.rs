//! A host of tables and queues: what the program `shardhost serve` runs.
//!
//! | where | what |
//! |---|---|
//! | [`shards`] | the state machines of tables and queues, and their state on disk |
//! | [`service`] | requests of clients, over gRPC |
//! | [`config`] | the configuration file |
//! | [`admin`] | requests of operators, over gRPC |
//! | [`health`] | `grpc.health.v1` |
//!
//! Which shards there are follows from the map of shards of the cluster; which nodes have a replica of one,
//! from `voters` in the configuration of the node that founds the cluster, and later from its catalog.

#![forbid(unsafe_code)]
#![warn(clippy::await_holding_lock, clippy::let_underscore_must_use, clippy::unwrap_used)]

pub mod admin;
mod balance;
mod catalog;
mod certificates;
pub mod config;
mod disk_space;
mod founding;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzz;
pub mod health;
mod http;
mod lookup;
mod nodes;
mod refusals;
mod reopening;
mod repair;
mod replicas;
pub mod service;
mod shard_map;
mod shard_time;
pub mod shards;
mod skip;
mod space;
mod state_health;
mod tokens;
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shardhost_groups::{GroupSpec, OpenGroupError};
use shardhost_security::{CredentialError, Credentials};
use shardhost_storage::{GroupId, GroupMeta, LogError, Membership, NodeId};
use tonic::service::Routes;

use crate::service::{ClientBudget, directory_server, queue_server, table_server};
use crate::shards::{StateDb, StateDbError, StateDbOptions};
use shardhost::Descriptors;
use shardhost::data_dir::DataDir;
use shardhost::driver::drains::Drains;
use shardhost::driver::{Drain, DrainOptions};
use shardhost::driver::{GroupMachines, SYSTEM_GROUP, System};
use shardhost::host::{Host, HostConfig, Shutdown, StartError};
use shardhost_proto::limits::wait_of;
use shardhost_proto::shard_map::MapMismatch;

pub use config::{ConfigError, ServerConfig};
use http::Pages;
use lookup::HostLookup;
pub use replicas::check_kind;
use replicas::{Replicas, machine_of};
use shard_map::CurrentMap;
pub use shard_map::OpenMapError;
use tokens::KnownHere;

use shardhost_proto::shard_map::{QUEUE_KIND as QUEUE, TABLE_KIND as TABLE};

/// Groups of a kind start at these ids, so that the number of shards of one kind can grow.
const FIRST_TABLE: u64 = 1_000_000;
const FIRST_QUEUE: u64 = 2_000_000;

/// The group of a shard of a kind.
#[must_use]
pub fn group_of_shard(kind: &str, shard: u64) -> Option<GroupId> {
    match kind {
        TABLE => Some(GroupId::new(FIRST_TABLE + shard)),
        QUEUE => Some(GroupId::new(FIRST_QUEUE + shard)),
        _ => None,
    }
}

/// Why a server does not start. Nothing runs afterwards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The host does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The state of the shards cannot be opened.
    #[error(transparent)]
    State(#[from] StateDbError),
    /// The configuration differs from the map of shards of the cluster, or that cannot be read.
    #[error(transparent)]
    Map(#[from] OpenMapError),
    /// What a founder remembers cannot be written.
    #[error("the record of the founding cannot be written: {0}")]
    Founding(std::io::Error),
    /// The listener for HTTP cannot be used.
    #[error("cannot listen for HTTP: {0}")]
    Pages(std::io::Error),
    /// Nothing can listen for HTTP there.
    #[error("cannot listen for HTTP on {address}: {error}")]
    HttpListen { address: SocketAddr, error: std::io::Error },
    /// A group cannot be created or opened.
    #[error(transparent)]
    Group(#[from] OpenGroupError),
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory holds groups that the configuration does not name. Put the number of
    /// shards back, or give the node another data directory.
    #[error(
        "the data directory holds {count} groups that the configuration does not name, the first \
         is group {first} of kind `{kind}`; put the number of shards back"
    )]
    UnknownGroups { count: usize, first: GroupId, kind: String },
}

/// A running host of tables and queues.
#[derive(Clone, Debug)]
pub struct Server {
    host: Host,
    state: Arc<StateDb>,
    /// `None`: the cluster has no catalog.
    system: Option<System>,
    drains: Arc<Drains>,
    /// The shards of the configuration that this node founds.
    founded: Arc<[GroupId]>,
    map: Arc<CurrentMap>,
    /// Where it listens for requests over HTTP.
    pages: Option<SocketAddr>,
}

impl Server {
    /// Starts a server: opens what the log holds, creates what the configuration names beyond
    /// that, and answers peers, clients and operators on one listener, or clients on another one. A listener that
    /// is given takes the place of the first. Pages have a listener of their own.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(
        config: ServerConfig,
        listener: Option<std::net::TcpListener>,
    ) -> Result<Self, ServerError> {
        config.validate()?;
        let pages = config.http_listen.map(bind).transpose()?;
        let map = Arc::new(CurrentMap::open(&config.data_dir, config.shard_map())?);
        let descriptors = Descriptors::raise();
        let mut host_config: HostConfig = config.host();
        let credentials =
            config.tls.as_ref().map(|tls| Credentials::load(tls.files())).transpose()?;
        host_config.credentials.clone_from(&credentials);
        host_config.connections = descriptors.connections;
        let replicas = Arc::new(Replicas::default());
        make_room_for_log(&config.data_dir).await;
        let mut builder = Host::builder(host_config).replica_factory(Arc::clone(&replicas) as _);
        if let Some(listener) = listener {
            builder = builder.listener(listener);
        }
        let host = builder.start().await?;
        if let Some(credentials) = credentials {
            tokio::spawn(certificates::follow(host.clone(), credentials, host.stopping()));
        }
        match Self::open(&host, &config, &replicas, map, descriptors, pages).await {
            Ok(server) => Ok(server),
            Err(error) => {
                host.shutdown(Shutdown::Immediate).await;
                Err(error)
            }
        }
    }

    async fn open(
        host: &Host,
        config: &ServerConfig,
        replicas: &Arc<Replicas>,
        map: Arc<CurrentMap>,
        descriptors: Descriptors,
        pages: Option<TcpListener>,
    ) -> Result<Self, ServerError> {
        let directory = config.data_dir.join(STATE);
        let mut options = StateDbOptions::default();
        options.max_open_files = options.max_open_files.min(descriptors.state_files);
        let state = StateDb::open(&directory, options)?;
        open_shards(host, &state, config).await?;
        if !config.catalog {
            map.use_configured();
            founding::found_shards(host, &state, config, &map).await?;
        }
        replicas.open(&state);
        let system = match config.catalog {
            true => {
                let machines = Arc::clone(replicas) as Arc<dyn GroupMachines>;
                Some(System::start(host, config.system(), machines).await?)
            }
            false => None,
        };
        if let Some(system) = &system {
            let follow = Arc::clone(&map).follow(system.views(), host.stopping());
            tokio::spawn(follow);
            let tokens = Arc::new(KnownHere::default());
            host.tokens().set(Arc::clone(&tokens) as _);
            tokio::spawn(tokens.follow(system.views(), host.stopping()));
        }
        let room = state_health::Room { directory, bytes: state.resumes_with() };
        tokio::spawn(state_health::follow(host.clone(), state.health(), room));
        tokio::spawn(space::watch(host.clone(), config.data_dir.clone()));
        tokio::spawn(reopening::follow(host.clone(), Arc::downgrade(&state)));
        tokio::spawn(repair::follow(host.clone(), Arc::downgrade(&state), config.repair));
        let own = || Arc::new(Drains::new(host));
        let drains = system.as_ref().map_or_else(own, |system| Arc::clone(system.drains()));
        let own = |spec: &GroupSpec| spec.membership.replica_on(host.node_id()).is_some();
        let founded = config.group_specs().into_iter().filter(own).map(|spec| spec.id).collect();
        let mut server =
            Self { host: host.clone(), state, system, drains, founded, map, pages: None };
        let budget = ClientBudget::new(config.client_memory_mib.saturating_mul(1024 * 1024));
        server.answer(&budget);
        if let Some(listener) = pages {
            let pages = Pages::new(host, server.system.as_ref(), &server.state, &budget);
            let served = host.serve_pages(listener, pages.router().into());
            server.pages = Some(served.map_err(ServerError::Pages)?);
        }
        Ok(server)
    }

    fn answer(&self, budget: &Arc<ClientBudget>) {
        let lookup: Arc<HostLookup> =
            Arc::new(HostLookup::new(&self.host, &self.map, self.state.times()));
        let admin = {
            let map = Arc::clone(&self.map);
            admin::admin_server(self.host.clone(), &self.state, self.system.as_ref(), map)
        };
        let balance = balance::balance_server(&self.host, &self.drains, self.system.as_ref());
        let mut routes = Routes::new(table_server(Arc::clone(&lookup) as _, budget))
            .add_service(queue_server(Arc::clone(&lookup) as _, budget))
            .add_service(directory_server(lookup))
            .add_service(health::health_server(self.host.clone()))
            .add_service(balance)
            .add_service(admin);
        if let Some(system) = &self.system {
            routes = routes.add_service(system.service());
        }
        self.host.serve(routes);
    }

    /// The host.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// Where it listens for requests over HTTP; `None`: nowhere.
    #[must_use]
    pub const fn pages(&self) -> Option<SocketAddr> {
        self.pages
    }

    /// The part of this host in the system group; `None`: the cluster has no catalog.
    #[must_use]
    pub const fn system(&self) -> Option<&System> {
        self.system.as_ref()
    }

    /// Until it is known that the catalog has another map of shards than the configuration: then this
    /// server is to be stopped. Cancel-safe.
    pub async fn contradicted(&self) -> MapMismatch {
        let mut mismatch = self.map.mismatch();
        match mismatch.wait_for(Option::is_some).await.map(|found| found.clone()) {
            Ok(Some(mismatch)) => mismatch,
            _ => std::future::pending().await,
        }
    }

    /// Until it is known that this node was removed from the cluster: then this server is to be stopped.
    /// Cancel-safe.
    pub async fn removed(&self) {
        match &self.system {
            Some(system) => system.removed().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until this node holds the shards that it founds, or held them before; false: that takes
    /// longer. Those of a new cluster are created once every founder has said that its disk is new.
    pub async fn await_shards(&self, within: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + wait_of(within);
        for group in self.founded.iter() {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if self.host.tombstone(*group).is_ok_and(|left| left.is_some()) {
                // Moved away.
                continue;
            }
            let held = match &self.system {
                Some(system) => system.await_replica(*group, true, left).await,
                None => founding::await_replica(&self.host, *group, left).await,
            };
            if !held {
                return false;
            }
        }
        true
    }

    /// Stops the server; the data directory may be opened again afterwards. A graceful stop drains
    /// the node first.
    pub async fn shutdown(self, mode: Shutdown) {
        if let Shutdown::Graceful { deadline } = mode {
            let drain = Drain::begin(&self.host, DrainOptions::default().deadline(deadline));
            let end = drain.finished().await;
            if end.left > 0 {
                tracing::warn!(left = end.left, "stopping before every leadership was handed over");
            }
        }
        self.host.shutdown(Shutdown::Immediate).await;
        drop(self.system);
        let state = self.state;
        // Not left to the last handle: a task that ends may hold it when the process is gone.
        let flushed = tokio::task::spawn_blocking(move || {
            let flushed = state.flush_now();
            drop(state);
            flushed
        });
        match flushed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the state of the shards is not flushed"),
            Err(error) => {
                tracing::error!(%error, "the state of the shards was not closed in order");
            }
        }
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).map_err(|error| ServerError::HttpListen { address, error })
}

/// Where the state of the shards is, in the data directory.
const STATE: &str = "state";

/// What a crash left of a recovery may hold all room of the disk, without which the log cannot be opened.
async fn make_room_for_log(data_dir: &Path) {
    let data_dir = data_dir.to_owned();
    let remove = move || {
        DataDir::while_free(&data_dir, || {
            if let Err(error) = StateDb::remove_unfinished(data_dir.join(STATE)) {
                tracing::error!(%error, "what an unfinished recovery left holds room");
            }
        });
    };
    if let Err(error) = tokio::task::spawn_blocking(remove).await {
        tracing::error!(%error, "what an unfinished recovery left was not looked for");
    }
}

/// Opens the shards that the log holds.
async fn open_shards(
    host: &Host,
    state: &Arc<StateDb>,
    config: &ServerConfig,
) -> Result<(), ServerError> {
    let wanted: Vec<GroupSpec> = config.group_specs();
    let named: BTreeSet<GroupId> = wanted.iter().map(|spec| spec.id).collect();
    let stored = host.stored_groups()?;
    let unknown = |meta: &&GroupMeta| is_shard(meta.group) && !named.contains(&meta.group);
    if let Some(first) = stored.iter().find(unknown) {
        return Err(ServerError::UnknownGroups {
            count: stored.iter().filter(unknown).count(),
            first: first.group,
            kind: first.kind.clone(),
        });
    }
    report_differences(&wanted, &stored);
    for meta in stored.iter().filter(|meta| meta.group != SYSTEM_GROUP) {
        let (state, group, kind) = (Arc::clone(state), meta.group, meta.kind.clone());
        if config.park.contains(&group.get()) {
            host.park_group(group, "an operator parked it with `serve --park`");
            continue;
        }
        let machine = move || machine_of(&state, group, &kind);
        match host.open_group_with(group, Box::new(machine)).await {
            // One replica that cannot be opened keeps no other from being served.
            Err(_) if host.parked_replica(group).is_some() => {}
            opened => drop(opened?),
        }
    }
    Ok(())
}

/// The numbers of the shards of the configuration, for people.
pub(crate) const RESERVED: &str = "1000000 to 1099999 and 2000000 to 2099999";

/// Whether a group is one of the numbered shards of the configuration.
fn is_shard(group: GroupId) -> bool {
    (FIRST_TABLE..FIRST_TABLE + config::MAX_SHARDS).contains(&group.get())
        || (FIRST_QUEUE..FIRST_QUEUE + config::MAX_SHARDS).contains(&group.get())
}

/// What is stored is followed; where the configuration names other members, it is said once.
fn report_differences(wanted: &[GroupSpec], stored: &[GroupMeta]) {
    let nodes = |membership: &Membership| -> BTreeSet<NodeId> {
        membership.members.values().map(|member| member.node).collect()
    };
    let members: BTreeMap<GroupId, _> =
        wanted.iter().map(|spec| (spec.id, nodes(&spec.membership))).collect();
    let differs = |meta: &&GroupMeta| {
        members.get(&meta.group).is_some_and(|named| *named != nodes(&meta.membership))
    };
    if let Some(first) = stored.iter().find(differs) {
        tracing::info!(
            groups = stored.iter().filter(differs).count(),
            first = %first.group,
            "groups have other members than the configuration names; what is stored is followed"
        );
    }
}
