//! One peer node: its two lanes, its liveness, and what must be reported about it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use shardhost_groups::transport::{Inbound, Lane};
use shardhost_proto::methods::Audience;
use shardhost_storage::NodeId;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::address::{Named, may_be_learnt};
use super::clocks::PeerClock;
use super::config::TransportConfig;
use super::lane::{Dropped, LaneQueue};
use super::liveness::Liveness;
use super::refusals::Refusals;
use super::stats::{Counter, PeerStats};

/// Replicas whose drops are remembered until they are reported. Drops beyond it are counted
/// only; the next one of the same replica is reported.
const MOST_UNREACHABLE: usize = 1 << 16;

/// What the transport holds for one node of the directory.
#[derive(Debug)]
pub(super) struct Peer {
    pub node: NodeId,
    pub address: watch::Sender<String>,
    /// What its greetings say of its address.
    named: Mutex<Named>,
    /// Where its last greeting says that others than nodes reach it, if not at its address.
    apart: Mutex<BTreeMap<Audience, String>>,
    pub bulk: Arc<LaneQueue>,
    pub urgent: Arc<LaneQueue>,
    pub liveness: Liveness,
    /// Notified when a stream from the peer was admitted: it is there, so trying again is
    /// worthwhile.
    pub greeted: Notify,
    /// Ends the peer's tasks and streams.
    pub stop: CancellationToken,
    pub received: Received,
    pub refusals: Refusals,
    pub clock: PeerClock,
    /// Which bootstrap the peer's cluster comes from, as last reported; 0: it does not know.
    founding: AtomicU64,
    /// The latest version of a cluster that its process takes part in, as its last greeting says.
    newest_version: AtomicU32,
    unreachable: Mutex<HashSet<Dropped>>,
}

/// What came from a peer.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub messages: Counter,
    pub frames: Counter,
    pub inbox_drops: Counter,
}

impl Peer {
    pub fn new(
        config: &TransportConfig,
        node: NodeId,
        address: String,
        stop: CancellationToken,
    ) -> Self {
        Self {
            node,
            address: watch::Sender::new(address),
            named: Mutex::default(),
            apart: Mutex::default(),
            bulk: Arc::new(LaneQueue::new(config, config.bulk)),
            urgent: Arc::new(LaneQueue::new(config, config.urgent)),
            liveness: Liveness::new(node, Instant::now(), stop.clone()),
            greeted: Notify::new(),
            stop,
            received: Received::default(),
            refusals: Refusals::default(),
            clock: PeerClock::default(),
            founding: AtomicU64::new(0),
            newest_version: AtomicU32::new(0),
            unreachable: Mutex::default(),
        }
    }

    /// An earlier process found it there.
    pub fn was_found_at(&self, address: &str) {
        self.named.lock().remembered(address, &self.address.borrow());
    }

    /// Others say that it is there. It is not heard of here; a greeting knows better.
    pub fn is_said_to_be_at(&self, address: &str) {
        if !self.stats().live {
            self.was_found_at(address);
            self.greeted.notify_one();
        }
    }

    /// A valid greeting has the address where the peer listens.
    pub fn greeted_from(&self, incarnation: u64, address: &str) {
        self.named.lock().greeted(incarnation, address, &self.address.borrow());
    }

    /// A valid greeting says where clients or operators reach the peer; empty: at its address.
    pub fn greeted_for(&self, audience: Audience, address: &str) {
        let mut apart = self.apart.lock();
        match may_be_learnt(address) {
            true => drop(apart.insert(audience, address.to_owned())),
            false => drop(apart.remove(&audience)),
        }
    }

    /// Where its last greeting says that they reach it, if not at its address.
    pub fn address_for(&self, audience: Audience) -> Option<String> {
        self.apart.lock().get(&audience).cloned()
    }

    /// The node answered at the configured address.
    pub fn is_where_it_should_be(&self, incarnation: u64) {
        self.named.lock().reached(incarnation);
    }

    /// The address that its last greeting named, if it moved.
    pub fn moved_to(&self) -> Option<String> {
        self.named.lock().moved_to().map(str::to_owned)
    }

    pub fn lane(&self, lane: Lane) -> &Arc<LaneQueue> {
        match lane {
            Lane::Bulk => &self.bulk,
            Lane::Urgent => &self.urgent,
        }
    }

    /// A valid greeting says which version its process takes part in.
    pub fn said_newest_version(&self, newest: u32) {
        self.newest_version.store(newest, Ordering::Release);
    }

    /// As its last greeting says.
    pub fn newest_version(&self) -> u32 {
        self.newest_version.load(Ordering::Acquire)
    }

    /// Which bootstrap the peer's cluster comes from, as last reported; 0: it does not know.
    pub fn founding(&self) -> u64 {
        self.founding.load(Ordering::Acquire)
    }

    /// The peer reports which bootstrap its cluster comes from.
    pub fn said_founding(&self, founding: u64) {
        self.founding.store(founding, Ordering::Release);
    }

    /// Remembers whose messages were dropped, to report each replica once per heartbeat.
    pub fn note_unreachable(&self, dropped: Vec<Dropped>) {
        if dropped.is_empty() {
            return;
        }
        let mut unreachable = self.unreachable.lock();
        let room = MOST_UNREACHABLE.saturating_sub(unreachable.len());
        unreachable.extend(dropped.into_iter().take(room));
    }

    pub fn report_unreachable(&self, inbound: &Arc<dyn Inbound>) {
        let unreachable = std::mem::take(&mut *self.unreachable.lock());
        if !unreachable.is_empty() {
            inbound.unreachable(self.node, unreachable.into_iter().collect());
        }
    }

    /// Ends everything about a peer that was removed, and reports it.
    pub fn retire(&self, inbound: &Arc<dyn Inbound>) {
        self.stop.cancel();
        let mut dropped = Vec::new();
        self.bulk.clear(&mut dropped);
        self.urgent.clear(&mut dropped);
        self.note_unreachable(dropped);
        self.report_unreachable(inbound);
        self.liveness.forget(inbound);
    }

    pub fn stats(&self) -> PeerStats {
        let (bulk, urgent) = (self.bulk.stats(), self.urgent.stats());
        let again = |connects: u64| connects.saturating_sub(1);
        PeerStats {
            node: self.node,
            address: self.address.borrow().clone(),
            live: self.liveness.is_live(),
            silent_for: self.liveness.silent_for(Instant::now()),
            incarnation: self.liveness.incarnation(),
            advertisement: self.liveness.advertisement(),
            reconnects: again(bulk.connects) + again(urgent.connects),
            bulk,
            urgent,
            received_messages: self.received.messages.get(),
            received_frames: self.received.frames.get(),
            inbox_drops: self.received.inbox_drops.get(),
            refused: self.refusals.ours(Instant::now()),
            refused_by: self.refusals.theirs(),
            clock_ahead_ms: self.clock.ahead_ms(Instant::now()),
        }
    }
}
