//! What a group promises, line by line, as a suite for any way of making hosts.
//!
//! Each *line* is a function named after the promise that it shows; `docs/contract.md` lists them
//! by id. A [`Factory`] makes clusters: with which log store, which transport. [`run`] runs every
//! line on clusters of a [`Scale`], some at a time;
//! [`conformance_tests!`](crate::conformance_tests) makes a test of each line. Abilities that a
//! factory lacks (cut a link, kill a host) are left out of it; lines that need them are *skipped*,
//! by name, and count as failures unless they are expected to be.
//!
//! | where | what |
//! |---|---|
//! | [`Factory`], [`Cluster`], [`Links`], [`Disks`] | implemented by makers of hosts |
//! | [`InMemory`] | hosts in memory, with every kind of trouble |
//! | [`Journal`] | the state machine of the suite |
//! | [`World`] | a cluster as a line sees it |
//! | [`Report`] | what a run showed |
//!
//! Hosts with a log store of one's own, on the network of this crate, put through a part of the
//! suite:
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::{Arc, Mutex};
//!
//! use futures::future::BoxFuture;
//! use shardhost_groups::storage::{LogStore, MemorySnapshots, MemoryStore};
//! use shardhost_testing::conformance::{
//!     Accept, Cluster, Factory, Links, Scale, Start, lines, run,
//! };
//! use shardhost_testing::network::Network;
//! use shardhost_groups::{Groups, GroupsBuilder, NodeId};
//!
//! // Here stands the log store under test; what it wrote is there when it is opened again.
//! fn open(disks: &Mutex<BTreeMap<NodeId, MemoryStore>>, node: NodeId) -> Arc<dyn LogStore> {
//!     Arc::new(disks.lock().unwrap().entry(node).or_default().clone())
//! }
//!
//! struct Mine;
//!
//! struct MyCluster {
//!     network: Network,
//!     disks: Mutex<BTreeMap<NodeId, MemoryStore>>,
//!     snapshots: Mutex<BTreeMap<NodeId, MemorySnapshots>>,
//!     running: Mutex<BTreeMap<NodeId, (Groups, Accept)>>,
//!     starts: Mutex<u64>,
//! }
//!
//! impl Factory for Mine {
//!     fn cluster(&self, _nodes: Vec<NodeId>) -> BoxFuture<'_, Box<dyn Cluster>> {
//!         let cluster = MyCluster {
//!             network: Network::new(1),
//!             disks: Mutex::default(),
//!             snapshots: Mutex::default(),
//!             running: Mutex::default(),
//!             starts: Mutex::default(),
//!         };
//!         Box::pin(async move { Box::new(cluster) as Box<dyn Cluster> })
//!     }
//! }
//!
//! impl Cluster for MyCluster {
//!     fn start(&self, start: Start) -> BoxFuture<'_, Result<Groups, String>> {
//!         Box::pin(async move {
//!             let (node, mut config) = (start.node, start.config);
//!             let mut starts = self.starts.lock().unwrap();
//!             *starts += 1;
//!             config.incarnation = *starts;
//!             config.seed = *starts;
//!             let snapshots = self.snapshots.lock().unwrap().entry(node).or_default().clone();
//!             let snapshots = Arc::new(snapshots);
//!             let (port, accept) = (self.network.port(node), Accept::new(start.machines));
//!             let groups = GroupsBuilder::new(config)
//!                 .on_create_request(Arc::new(accept.clone()))
//!                 .start(open(&self.disks, node), snapshots.clone(), port.clone())
//!                 .map_err(|error| error.to_string())?;
//!             accept.bind(&groups);
//!             port.attach(groups.inbound(), snapshots, *starts);
//!             self.running.lock().unwrap().insert(node, (groups.clone(), accept));
//!             Ok(groups)
//!         })
//!     }
//!
//!     fn stop(&self, node: NodeId) -> BoxFuture<'_, ()> {
//!         Box::pin(async move {
//!             let running = self.running.lock().unwrap().remove(&node);
//!             if let Some((groups, accept)) = running {
//!                 accept.let_go();
//!                 tokio::task::spawn_blocking(move || groups.shutdown()).await.unwrap();
//!             }
//!         })
//!     }
//!
//!     fn links(&self) -> Option<&dyn Links> {
//!         Some(&self.network)
//!     }
//! }
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let some = lines().iter().filter(|line| line.name.starts_with("p1_"));
//! let report = run(Mine, Scale::one(), some).await;
//! report.demand(&[]);
//! # });
//! ```

mod accept;
mod factory;
mod journal;
mod lines;
mod memory;
mod report;
mod scale;
mod trial;
mod world;

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};

pub use accept::Accept;
pub use factory::{Cluster, DiskFault, Disks, Factory, Links, MachineMaker, Start};
pub use journal::{Contents, Journal, JournalCounts, JournalDisk, Keeps, Noted};
pub use memory::InMemory;
pub use report::{Report, Shown};
pub use scale::{Place, Scale, Weather};
pub use trial::{Outcome, Trial, Unmet};
pub use world::{Leader, Plan, TIMEOUT, World};

/// One promise, and what shows it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Line {
    /// The name: the id of the promise, and the promise.
    pub name: &'static str,
    /// Where it can be shown.
    pub place: Place,
    pub run: fn(Trial) -> BoxFuture<'static, Outcome>,
}

/// Every line of the suite.
#[must_use]
pub const fn lines() -> &'static [Line] {
    lines::LINES
}

/// Lines that are shown at the same time.
const AT_ONCE: usize = 8;

/// Shows lines on clusters of one scale, some at a time. Call it on a multi-threaded runtime of
/// tokio.
pub async fn run(
    factory: impl Factory,
    scale: Scale,
    lines: impl IntoIterator<Item = &'static Line>,
) -> Report {
    let factory: Arc<dyn Factory> = Arc::new(factory);
    let shown = lines.into_iter().map(|line| {
        let factory = Arc::clone(&factory);
        async move { (line.name, trial::show(line, factory, scale).await) }
    });
    Report::new(scale, stream::iter(shown).buffer_unordered(AT_ONCE).collect().await)
}

/// Shows one line at the smallest scale that it can be shown at, on a separate runtime. Called by
/// [`conformance_tests!`](crate::conformance_tests).
///
/// # Panics
/// When the line does not hold, when it is skipped and not expected to be, or the other way round.
pub fn demand(name: &str, factory: impl Factory, skipped: &[&str]) {
    let line = lines().iter().find(|line| line.name == name);
    let line = line.unwrap_or_else(|| panic!("there is no line {name}"));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build();
    let runtime = runtime.expect("the system refuses a runtime");
    let scale = line.place.smallest();
    let report = runtime.block_on(run(factory, scale, [line]));
    // What hangs must not keep the report from being seen.
    runtime.shutdown_background();
    let expected: Vec<_> = skipped.iter().copied().filter(|skipped| *skipped == name).collect();
    report.demand(&expected);
}

/// Makes a test of each line of the suite, at the smallest scale that it can be shown at. The
/// expression makes a [`Factory`] for each. Lines that need what the factory cannot do must be
/// named, so that they are not taken for shown:
///
/// ```
/// mod conformance {
///     use shardhost_testing::conformance::InMemory;
///
///     shardhost_testing::conformance_tests!(
///         InMemory::new(),
///         skipped: [
///             g7_the_data_of_another_node_is_refused,
///             x4_a_node_is_followed_to_another_address,
///         ]
///     );
/// }
/// ```
#[macro_export]
macro_rules! conformance_tests {
    ($factory:expr) => {
        $crate::__conformance_lines!(tests ($factory) []);
    };
    ($factory:expr, skipped: [$($skipped:ident),* $(,)?]) => {
        $crate::__conformance_lines!(tests ($factory) [$(stringify!($skipped)),*]);
    };
}
