//! A network between several [`Groups`](shardhost_groups::Groups) of one process, with trouble on command:
//! links that are cut one way or both, messages that are lost, late or held back, hosts that
//! fall silent, snapshots that do not arrive.
//!
//! It keeps the promises of [`Transport`](shardhost_groups::transport::Transport): no call blocks,
//! what does not fit is dropped and reported, messages of one lane to one node keep their order,
//! every shipment of a snapshot is answered. Liveness and loss of peers are reported as by
//! heartbeats between nodes: a node is lost to those that receive nothing from it for
//! [`Network::lost_after`].
//!
//! Two threads carry everything, one of them snapshots only. They end with the last handle.
//!
//! Three hosts with one group, one of which is cut off:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use shardhost_groups::storage::{MemorySnapshots, MemoryStore};
//! use shardhost_testing::conformance::Journal;
//! use shardhost_testing::network::Network;
//! use shardhost_groups::{GroupId, GroupSpec, GroupsBuilder, GroupsConfig, NodeId};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let network = Network::new(7);
//! let nodes = [1, 2, 3].map(NodeId::must);
//! let mut hosts = Vec::new();
//! for node in nodes {
//!     let mut config = GroupsConfig::new(node);
//!     config.tick = Duration::from_millis(10);
//!     let snapshots = Arc::new(MemorySnapshots::new());
//!     let port = network.port(node);
//!     let groups = GroupsBuilder::new(config)
//!         .start(Arc::new(MemoryStore::new()), snapshots.clone(), port.clone())
//!         .unwrap();
//!     port.attach(groups.inbound(), snapshots, 1);
//!     hosts.push(groups);
//! }
//! let spec = GroupSpec::new(GroupId::new(1), nodes);
//! let create = |groups: &shardhost_groups::Groups| {
//!     groups.create(spec.clone(), Box::new(Journal::default())).unwrap()
//! };
//! let replicas: Vec<_> = hosts.iter().map(create).collect();
//!
//! network.isolate(nodes[2]);
//! let limit = Duration::from_secs(20);
//! let waits = replicas.iter().map(|group| Box::pin(group.wait_for(|s| s.serving, limit)));
//! let leads = futures::future::select_all(waits).await.0.expect("two of three elect a leader");
//! assert_ne!(leads.replica.get(), 3);
//! network.heal();
//! # hosts.iter().for_each(shardhost_groups::Groups::shutdown);
//! # });
//! ```

mod port;
mod shipping;
mod state;
mod tap;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use shardhost_storage::NodeId;

pub use port::Port;
pub use state::NetworkStats;
pub use tap::{Envelope, Fate, Tap};

use shipping::{ShipmentQueue, Shipments};
use state::State;

/// What happens to messages by chance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trouble {
    /// Messages that are lost, of a thousand.
    pub lost_of_1000: u32,
    /// Messages are late by up to this long. Those of one lane keep their order.
    pub late_by: Duration,
    /// Bytes per second that the bulk lane of each link carries; `None`: any number.
    pub bulk_bytes_per_second: Option<u64>,
}

impl Trouble {
    /// No trouble.
    #[must_use]
    pub const fn none() -> Self {
        Self { lost_of_1000: 0, late_by: Duration::ZERO, bulk_bytes_per_second: None }
    }
    /// Loses so many messages of a thousand.
    #[must_use]
    pub const fn lose(mut self, of_1000: u32) -> Self {
        self.lost_of_1000 = of_1000;
        self
    }
    /// Delivers messages late by up to this long.
    #[must_use]
    pub const fn late_by(mut self, late_by: Duration) -> Self {
        self.late_by = late_by;
        self
    }
    /// Carries no more than this on the bulk lane of each link.
    #[must_use]
    pub const fn bulk_bytes_per_second(mut self, bytes: u64) -> Self {
        self.bulk_bytes_per_second = Some(bytes);
        self
    }
}

/// The network. Clones are handles of the same one.
#[derive(Clone)]
pub struct Network {
    wire: Arc<Wire>,
    _threads: Arc<Threads>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network {:?}", self.stats())
    }
}

/// What ports, taps and threads share.
struct Wire {
    state: Mutex<State>,
    /// Something is due earlier than before, or everything ends.
    wake: Condvar,
    /// A tap holds one more.
    caught: Condvar,
    shipments: ShipmentQueue,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// Ends the threads with the last handle.
struct Threads {
    wire: Arc<Wire>,
    running: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Hosts hold their ports and the state holds the hosts: what is attached goes here.
        let attached = self.wire.lock().stop();
        self.wire.wake.notify_all();
        self.wire.shipments.stop();
        for thread in self.running.get_mut().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the network panicked");
            }
        }
        drop(attached);
    }
}

impl Network {
    /// A network without nodes. What happens by chance follows from the seed, as far as the
    /// messages do.
    ///
    /// # Panics
    /// When the system refuses a thread.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let (shipments, outlet) = ShipmentQueue::new();
        let wire = Arc::new(Wire {
            state: Mutex::new(State::new(seed)),
            wake: Condvar::new(),
            caught: Condvar::new(),
            shipments,
        });
        let (carrier, shipper) = (Arc::clone(&wire), Arc::clone(&wire));
        let carry = spawn("network", move || carry(&carrier));
        let ship = spawn("network-snapshots", move || Shipments { wire: shipper }.run(&outlet));
        let running = Mutex::new(vec![carry, ship]);
        Self { _threads: Arc::new(Threads { wire: Arc::clone(&wire), running }), wire }
    }

    /// The place of `node` in the network, for a new life of it: a port that it had before is
    /// dead from here on. Messages pass once it is [attached](Port::attach).
    #[must_use]
    pub fn port(&self, node: NodeId) -> Arc<Port> {
        let life = self.wire.lock().begin_life(node);
        self.wire.wake.notify_all();
        Arc::new(Port::new(Arc::clone(&self.wire), node, life))
    }

    /// How long a node is silent before it is reported lost. Default 60 ms.
    pub fn lost_after(&self, silence: Duration) {
        self.wire.lock().lost_after = silence;
    }

    /// Nothing gets from `from` to `to` any more; what is on its way is lost.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.change(|state| {
            state.cuts.insert((from, to));
        });
    }

    /// Nothing gets between the two any more.
    pub fn cut(&self, one: NodeId, other: NodeId) {
        self.change(|state| state.cuts.extend([(one, other), (other, one)]));
    }

    /// Nothing gets to or from `node` any more.
    pub fn isolate(&self, node: NodeId) {
        self.change(|state| {
            let others: Vec<_> = state.known_nodes().filter(|other| *other != node).collect();
            state.cuts.extend(others.into_iter().flat_map(|other| [(node, other), (other, node)]));
        });
    }

    /// Mends the way from `from` to `to`.
    pub fn heal_one_way(&self, from: NodeId, to: NodeId) {
        self.change(|state| {
            state.cuts.remove(&(from, to));
        });
    }

    /// Mends every link.
    pub fn heal(&self) {
        self.change(|state| state.cuts.clear());
    }

    /// What happens to messages by chance from here on.
    pub fn trouble(&self, trouble: Trouble) {
        self.wire.lock().trouble = trouble;
    }

    /// Lets `judge` decide about every message and shipment that is sent from here on, until the
    /// tap is dropped or released. It is called with a lock held and must not call the network.
    /// The first tap that does not say [`Fate::Deliver`] decides.
    pub fn tap(&self, judge: impl FnMut(&Envelope<'_>) -> Fate + Send + 'static) -> Tap {
        let id = self.wire.lock().taps.add(Box::new(judge));
        Tap::new(Arc::clone(&self.wire), id)
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> NetworkStats {
        self.wire.lock().stats
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.wire.lock();
        change(&mut state);
        state.judge_soon(Instant::now());
        drop(state);
        self.wire.wake.notify_all();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.expect("the system refuses a thread")
}

/// Delivers what is due, until everything ends.
fn carry(wire: &Wire) {
    let mut state = wire.lock();
    while !state.stopped {
        let due = state.take_due(Instant::now());
        if due.is_empty() {
            match state.next_due() {
                Some(at) => {
                    let _timed_out = wire.wake.wait_until(&mut state, at).timed_out();
                }
                None => wire.wake.wait(&mut state),
            }
            continue;
        }
        // Receivers take messages under no lock of the network.
        MutexGuard::unlocked(&mut state, || due.into_iter().for_each(state::Due::carry_out));
    }
}
