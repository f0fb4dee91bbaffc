//! What drives the policy on a host: it follows the catalog and carries it out, runs the planner
//! where the system group is led, and empties nodes of their leaderships.
//!
//! | where | what |
//! |---|---|
//! | [`CatalogClient`] | requests to the catalog from any host |
//! | `follower` | a view of the catalog on every host |
//! | `addresses` | where nodes are reached that joined later |
//! | `founding` | this host's replica of the system group: opened, or created by the initial members |
//! | `reconciler`, `dirty_set` | what the catalog intends is done on this host; for which groups |
//! | `registration`, `drain_clocks` | this node, its first settings and the passing of time are reported to the catalog |
//! | `leading` | what runs while this host leads the system group |
//! | `planning`, `moves`, `reporter` | the planner's passes, its orders on a host, the reports to it |
//! | `allocation`, `replacing` | the allocator of replicas, and its orders on a host |
//! | `shard_map` | which shards there are, as the catalog has it |
//! | [`drain`], [`drains`] | a node is emptied of its leaderships, and kept empty |
//! | [`drain_doubts`] | drains that the catalog may have recorded or not |
//! | [`versions`] | which versions of the cluster its nodes know, and when it is raised |
//! | [`view`] | what one host knows of the cluster, as the planner wants it |
//! | `service` | all of it over gRPC |
//!
//! Without a quorum of the system group nothing is created, destroyed or planned. Everything else
//! continues: nothing here is asked before a write, a read, an election, a refusal or a drain.

mod addresses;
mod allocation;
mod client;
mod dirty_set;
pub mod drain;
mod drain_clocks;
pub mod drain_doubts;
pub mod drains;
mod follower;
mod founding;
mod leading;
mod moves;
mod planning;
mod reconciler;
mod registration;
mod replacing;
mod reporter;
mod service;
mod shard_map;
pub mod versions;
pub mod view;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_groups::machine::StateMachine;
use shardhost_groups::{GroupId, NodeId, OpenGroupError};
use shardhost_proto::limits::wait_of;
use shardhost_proto::system as wire;
use shardhost_proto::system::system_server::SystemServer;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

pub use self::client::{ANSWERS_WITHIN, CatalogClient, CatalogError};
pub use self::drain::{Drain, DrainOptions, DrainProgress, DrainState, Fallback};
use self::drains::Drains;
pub use self::follower::with_each_view;
use self::leading::{WhileLed, lead_when_elected};
pub use self::reconciler::life_of;
use self::reporter::Reporter;
pub use self::service::SystemService;
use crate::host::Host;
pub use shardhost_policy::catalog::SYSTEM_GROUP;
use shardhost_policy::catalog::{NewGroup, PlannerMode, ReplicaSettings, Revision, View};
use shardhost_policy::executor::{ExecutorSettings, Fence};
use shardhost_proto::shard_map::ShardMap;

/// The kind of its state machine.
pub const SYSTEM_KIND: &str = "catalog";
/// Initial members of the system group at most, unless configured: more voters make it slower and
/// not safer.
pub const MAX_FOUNDERS: usize = 5;

/// How long a host may take to learn of a change of the catalog.
const FRESH_WITHIN: Duration = Duration::from_secs(5);

/// The catalog as a host knows it; `None`: it was not read since the host started.
pub type CatalogView = Option<Arc<View>>;

/// Makes the state machines of groups that the catalog has created. Called while nothing else is
/// done with the group on this host.
pub trait GroupMachines: fmt::Debug + Send + Sync + 'static {
    /// An empty state machine; whatever an earlier replica of the group left behind here is gone.
    ///
    /// # Errors
    /// Why this host cannot hold such a group. It is tried again.
    fn create(&self, group: GroupId, kind: &str) -> Result<Box<dyn StateMachine>, String>;

    /// Removes what the state machine of a replica that was destroyed kept. Blocks.
    ///
    /// # Errors
    /// Why it is still there.
    fn destroy(&self, group: GroupId) -> Result<(), String>;
}

/// Properties of a node beside its advertisement, for a catalog that does not know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub(crate) zone: Option<String>,
    pub(crate) weight: u32,
}

/// How a host takes part.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SystemOptions {
    /// The nodes that found the system group, equal on all of them.
    pub founders: BTreeSet<NodeId>,
    /// Initial members whose confirmation is not waited for, by an operator's decision. If one of
    /// them holds the group after all, there are two catalogs.
    pub bootstrap_without: BTreeSet<NodeId>,
    /// What fails together with this node.
    pub zone: Option<String>,
    /// How many leaders this node takes, compared with others; 0: none.
    pub weight: u32,
    /// Whether leaderships are moved for balance, until the catalog's setting is changed.
    pub planner: PlannerMode,
    /// Whether replicas are moved automatically, until the catalog's setting is changed; `None`: that is
    /// not set, and nothing is moved.
    pub replicas: Option<ReplicaSettings>,
    /// The map of shards that a new catalog begins with; `None`: it gets none from here.
    pub shard_map: Option<ShardMap>,
    /// The groups that there are to be. One that was destroyed does not come back.
    pub groups: Vec<NewGroup>,
    /// The pace of planned moves, where this node plans.
    pub executor: ExecutorSettings,
}

impl SystemOptions {
    /// Founded by these nodes; nothing is planned.
    #[must_use]
    pub fn new(founders: impl IntoIterator<Item = NodeId>) -> Self {
        Self {
            founders: founders.into_iter().collect(),
            bootstrap_without: BTreeSet::new(),
            zone: None,
            weight: 1,
            planner: PlannerMode::Off,
            replicas: None,
            shard_map: None,
            groups: Vec::new(),
            executor: ExecutorSettings::default(),
        }
    }
}

/// This host's part in the system group. Its tasks end when the last clone goes.
#[derive(Clone, Debug)]
pub struct System {
    inner: Arc<Inner>,
    _stop: Arc<DropGuard>,
}

#[derive(Debug)]
struct Inner {
    host: Host,
    client: CatalogClient,
    view: watch::Sender<CatalogView>,
    drains: Arc<Drains>,
    reporter: Reporter,
    stopped: AtomicBool,
    /// Planners that this host knows of.
    fence: Mutex<Fence>,
    begun: Instant,
    planner: WhileLed<planning::Shared>,
    allocator: WhileLed<allocation::Shared>,
    /// Groups that the reconciler is to look at.
    news: Arc<reconciler::News>,
    /// The catalog answered that this node was removed.
    removed: watch::Sender<bool>,
}

impl System {
    /// Opens this host's replica of the system group, or founds the group with the others, and
    /// begins to follow the catalog. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`OpenGroupError`]; nothing runs then.
    pub async fn start(
        host: &Host,
        options: SystemOptions,
        machines: Arc<dyn GroupMachines>,
    ) -> Result<Self, OpenGroupError> {
        let client = CatalogClient::new(host, options.founders.iter().copied());
        // Work in progress when the host begins to stop is not finished here.
        let stop = host.stopping().child_token();
        let joined = addresses::Joined::open(host);
        founding::open_or_found(host, &options, &stop).await?;
        let view = watch::Sender::new(None);
        let drains = Arc::new(Drains::with_catalog(host, view.subscribe()));
        let inner = Arc::new(Inner {
            host: host.clone(),
            client: client.clone(),
            view,
            drains: Arc::clone(&drains),
            reporter: Reporter::new(host),
            stopped: AtomicBool::new(false),
            fence: Mutex::default(),
            begun: Instant::now(),
            planner: WhileLed::default(),
            allocator: WhileLed::default(),
            news: Arc::default(),
            removed: watch::Sender::new(false),
        });
        let executor = options.executor;
        let planner_inputs = NodeFacts { zone: options.zone, weight: options.weight };
        let beginning = registration::Beginning {
            planner: options.planner,
            replicas: options.replicas,
            shard_map: options.shard_map,
            groups: options.groups,
        };
        let watcher = || inner.view.subscribe();
        let take = async move |view: &View| joined.take(view);
        tokio::spawn(with_each_view(watcher(), stop.clone(), take));
        let versioned = host.clone();
        let take = async move |view: &View| {
            versions::take(&versioned, view.settings().cluster_version).await;
        };
        tokio::spawn(with_each_view(watcher(), stop.clone(), take));
        tokio::spawn(follower::follow(
            host.clone(),
            client.clone(),
            inner.view.clone(),
            stop.clone(),
        ));
        tokio::spawn(reconciler::keep(
            host.clone(),
            client.clone(),
            watcher(),
            machines,
            drains,
            Arc::clone(&inner.news),
            stop.clone(),
        ));
        tokio::spawn(registration::register(
            host.clone(),
            client.clone(),
            watcher(),
            planner_inputs,
            inner.removed.clone(),
            stop.clone(),
        ));
        lead_when_elected(&inner, beginning, executor, stop.clone());
        Ok(Self { inner, _stop: Arc::new(stop.drop_guard()) })
    }

    /// The gRPC service.
    #[must_use]
    pub fn service(&self) -> SystemServer<SystemService> {
        SystemServer::new(SystemService { inner: Arc::clone(&self.inner) })
    }
    /// Asks the catalog.
    #[must_use]
    pub fn catalog(&self) -> &CatalogClient {
        &self.inner.client
    }
    /// The catalog as this host knows it; `None`: it was not read since the host started.
    #[must_use]
    pub fn view(&self) -> Option<Arc<View>> {
        self.inner.view.borrow().clone()
    }
    /// The catalog as this host knows it, and its changes.
    pub fn views(&self) -> watch::Receiver<CatalogView> {
        self.inner.view.subscribe()
    }
    /// The catalog as it is at least when this is called.
    ///
    /// # Errors
    /// [`CatalogError`]: it does not answer, or this host does not learn of it in time.
    pub async fn fresh_view(&self) -> Result<Arc<View>, CatalogError> {
        fresh_view(&self.inner.client, &mut self.inner.view.subscribe()).await
    }
    /// The catalog as this host knows it, once it knows this revision.
    ///
    /// # Errors
    /// [`CatalogError::Unknown`]: this host does not learn of it in time.
    pub async fn view_at(&self, revision: Revision) -> Result<Arc<View>, CatalogError> {
        view_at(&self.inner.client, &mut self.inner.view.subscribe(), revision).await
    }
    /// Until it is known that this node was removed from the cluster. Its own replica of the catalog may
    /// never learn of it. Cancel-safe.
    pub async fn removed(&self) {
        let (mut views, node) = (self.views(), self.inner.host.node_id());
        let named = |view: &CatalogView| {
            view.as_ref().is_some_and(|view| view.settings().removed_nodes.contains(&node))
        };
        let mut answered = self.inner.removed.subscribe();
        let ended = tokio::select! {
            named = views.wait_for(named) => named.is_err(),
            answered = answered.wait_for(|removed| *removed) => answered.is_err(),
        };
        if ended {
            std::future::pending::<()>().await;
        }
    }
    /// The drains of this node.
    #[must_use]
    pub fn drains(&self) -> &Arc<Drains> {
        &self.inner.drains
    }
    /// Waits until a replica of a group is open on this host, or parked, or until nothing is left
    /// of one; false: that takes longer. One that the log holds may not be open yet.
    pub async fn await_replica(&self, group: GroupId, held: bool, within: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + wait_of(within);
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        loop {
            ticks.tick().await;
            let reached = match held {
                true => self.inner.is_here(group),
                false => matches!(self.inner.is_gone(group), Ok(true)),
            };
            if reached {
                return true;
            }
            if tokio::time::Instant::now() > deadline {
                return false;
            }
        }
    }
    /// The local switch: whether planned moves may leave this node. It lasts until the host stops,
    /// and concerns neither refusal nor drain.
    pub fn stop_planned_moves(&self, stopped: bool) {
        self.inner.stopped.store(stopped, Ordering::Relaxed);
    }
    /// Whether the local switch is set.
    #[must_use]
    pub fn planned_moves_are_stopped(&self) -> bool {
        self.inner.stopped.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn is_here(&self, group: GroupId) -> bool {
        self.host.group(group).is_some() || self.host.parked_replica(group).is_some()
    }

    /// Whether no replica of a group is here, or on its way out, and nothing remains of one.
    fn is_gone(&self, group: GroupId) -> Result<bool, OpenGroupError> {
        let held = self.host.group(group).is_some() || self.host.has_remains(group);
        Ok(!held && self.host.stored_group(group)?.is_none())
    }

    /// This host's report to a planner.
    fn report(&self, request: wire::ReportRequest) -> Result<wire::NodeReport, tonic::Status> {
        self.hear(request.planner_term)?;
        Ok(self.reporter.report(request.known_digest, self.is_stopped()))
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// The catalog as it is at least when this is called.
async fn fresh_view(
    client: &CatalogClient,
    view: &mut watch::Receiver<CatalogView>,
) -> Result<Arc<View>, CatalogError> {
    let revision = client.revision().await?;
    view_at(client, view, revision).await.map_err(|error| client.not_read(error))
}

/// The catalog as this host knows it, once it knows this revision.
async fn view_at(
    client: &CatalogClient,
    view: &mut watch::Receiver<CatalogView>,
    revision: Revision,
) -> Result<Arc<View>, CatalogError> {
    let fresh = |view: &CatalogView| view.as_ref().is_some_and(|view| view.revision() >= revision);
    if !fresh(&view.borrow()) {
        client.want(revision);
    }
    let waited = tokio::time::timeout(FRESH_WITHIN, view.wait_for(fresh)).await;
    let known = waited.ok().and_then(Result::ok).and_then(|view| view.clone());
    known.ok_or_else(|| CatalogError::Unknown {
        message: format!("revision {revision} is not heard of here"),
    })
}
