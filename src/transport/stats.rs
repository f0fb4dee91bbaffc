//! What the transport counts, for operators and benches.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use shardhost_groups::nodes::Advertisement;
use shardhost_storage::NodeId;

use super::clocks::ClockAlarm;

/// One lane to one peer since the transport started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneStats {
    /// Whether the peer has sent its welcome on the present connection.
    pub connected: bool,
    /// How often a connection was made.
    pub connects: u64,
    /// Connections given up because the peer took nothing of them for the liveness timeout, while
    /// it lived.
    pub stalls: u64,
    /// Messages handed to a connection.
    pub messages: u64,
    /// Frames handed to a connection, heartbeats included.
    pub frames: u64,
    /// Encoded bytes of those messages.
    pub bytes: u64,
    /// Messages dropped: lane full, no connection, or too large for a frame.
    pub dropped: u64,
    pub waiting_messages: u64,
    pub waiting_bytes: u64,
}

/// One peer since the transport started.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStats {
    pub node: NodeId,
    pub address: String,
    /// Whether heartbeats of it are received.
    pub live: bool,
    /// How long ago something came from it; `None`: nothing did since this host started.
    pub silent_for: Option<Duration>,
    /// The newest incarnation seen of it.
    pub incarnation: Option<u64>,
    /// The last advertisement of that incarnation; `None`: none, it may be of an older version.
    pub advertisement: Option<Advertisement>,
    /// Connections made after the first, both lanes together.
    pub reconnects: u64,
    pub bulk: LaneStats,
    /// The lane of heartbeats and votes.
    pub urgent: LaneStats,
    /// Messages that came from it.
    pub received_messages: u64,
    /// Frames that came from it.
    pub received_frames: u64,
    /// Messages from it that found a full inbox.
    pub inbox_drops: u64,
    /// Why this node refused, in the last 15 s, a process that greets or answers as this peer. It
    /// need not be the one that is `live`.
    pub refused: Option<String>,
    /// Why the peer refuses this node, which it did when it was last greeted.
    pub refused_by: Option<String>,
    /// By how many milliseconds its wall clock is ahead of this node's; `None`: no heartbeat for
    /// some seconds, or an older version.
    pub clock_ahead_ms: Option<i64>,
}

impl TransportStats {
    /// Whether the wall clocks of the live nodes agree with this node's.
    #[must_use]
    pub fn clock_alarm(&self) -> Option<ClockAlarm> {
        let ahead = |peer: &PeerStats| Some((peer.node, peer.clock_ahead_ms?));
        ClockAlarm::judge(&self.peers.iter().filter_map(ahead).collect::<Vec<_>>())
    }
}

/// The transport since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransportStats {
    /// Every peer of the directory, ascending.
    pub peers: Vec<PeerStats>,
    /// Messages to nodes that are not in the directory.
    pub unknown_node_drops: u64,
    /// Messages larger than a frame may be. They can never be sent: raise the bound on every
    /// host, or lower what an append may hold.
    pub oversized_drops: u64,
    pub refused_greetings: u64,
    /// Advertisements of the peer that could not be read. The one before is kept.
    pub refused_advertisements: u64,
    /// Streams from peers that ended because of what they carried, or broke.
    pub broken_streams: u64,
    pub snapshots_sent: u64,
    pub snapshots_failed: u64,
    pub shipment_failures: BTreeMap<ShipmentFailure, u64>,
    /// Streams that did not begin at the first byte, because the receiver had some from before.
    pub snapshots_resumed: u64,
    /// Bytes of snapshots handed to connections.
    pub snapshot_bytes_sent: u64,
    pub snapshots_sending: usize,
    /// Shipments that wait for their turn.
    pub snapshots_waiting: usize,
    pub snapshots_received: u64,
    /// Snapshots refused, damaged or broken off while they were received.
    pub snapshots_refused: u64,
    pub snapshot_refusals: BTreeMap<SnapshotRefusal, u64>,
    /// Bytes of snapshots that came.
    pub snapshot_bytes_received: u64,
    pub snapshots_receiving: usize,
}

/// Why a snapshot was not delivered. The groups try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ShipmentFailure {
    /// As many shipments wait as may. They take longer than they come: raise the rate or the
    /// number that is sent at once.
    TooMany,
    Stopping,
    /// The peer is not in the directory, or left it.
    UnknownNode,
    /// The snapshot is no longer here; a later one replaced it.
    Missing,
    /// The snapshot here is damaged. Look at the disk; the group makes another when its log grew.
    Damaged,
    /// The snapshot here cannot be read. Look at the disk.
    Disk,
    /// No connection to the peer.
    Unreachable,
    /// The receiver refused; its counters have the cause.
    Refused,
    Broken,
    /// Nothing moved for the stall timeout.
    Stalled,
    /// The receiver's answers make no sense.
    BadReceipt,
    /// A thread of this host panicked. Report it.
    Panicked,
}

/// Why a snapshot was not received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SnapshotRefusal {
    /// The stream is none of a snapshot: no header, two, one that makes no sense.
    Malformed,
    /// The sender's greeting was refused.
    Greeting,
    /// The groups do not want it: stale, or for a replica that is not here.
    Unwanted,
    /// As many as allowed are being received.
    Busy,
    /// One of the same group is being received from another node.
    Duplicate,
    /// A newer stream of the same sender replaced it; what had come was kept.
    Superseded,
    /// It does not fit on the disk, or the disk became full. Free space.
    NoSpace,
    /// More or fewer bytes came than were announced. The fewer were kept.
    WrongSize,
    /// The bytes do not have the announced checksum.
    WrongChecksum,
    /// Nothing came for the stall timeout; what had come was kept.
    Stalled,
    /// The stream broke; what had come was kept.
    Broken,
    Disk,
    /// This host takes no messages yet, or no longer.
    NotServing,
    /// A thread of this host panicked. Report it.
    Panicked,
}

/// A number that only grows, counted from any thread.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(super) struct Causes<T>(Mutex<BTreeMap<T, u64>>);

impl<T: Copy + Ord> Causes<T> {
    pub fn add(&self, cause: T) {
        *self.0.lock().entry(cause).or_default() += 1;
    }

    fn get(&self) -> BTreeMap<T, u64> {
        self.0.lock().clone()
    }
}

impl<T> Default for Causes<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Counters of the transport as a whole.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub unknown_node_drops: Counter,
    pub oversized_drops: Counter,
    pub refused_greetings: Counter,
    pub refused_advertisements: Counter,
    pub broken_streams: Counter,
    pub snapshots: SnapshotCounters,
}

/// Counters of snapshots.
#[derive(Debug, Default)]
pub(super) struct SnapshotCounters {
    pub sent: Counter,
    pub failures: Causes<ShipmentFailure>,
    pub resumed: Counter,
    pub bytes_sent: Counter,
    pub received: Counter,
    pub refusals: Causes<SnapshotRefusal>,
    pub bytes_received: Counter,
}

impl Counters {
    /// The counters; the caller fills in the present activity.
    pub fn stats(&self, peers: Vec<PeerStats>) -> TransportStats {
        let snapshots = &self.snapshots;
        let (failures, refusals) = (snapshots.failures.get(), snapshots.refusals.get());
        TransportStats {
            peers,
            unknown_node_drops: self.unknown_node_drops.get(),
            oversized_drops: self.oversized_drops.get(),
            refused_greetings: self.refused_greetings.get(),
            refused_advertisements: self.refused_advertisements.get(),
            broken_streams: self.broken_streams.get(),
            snapshots_sent: snapshots.sent.get(),
            snapshots_failed: failures.values().sum(),
            shipment_failures: failures,
            snapshots_resumed: snapshots.resumed.get(),
            snapshot_bytes_sent: snapshots.bytes_sent.get(),
            snapshots_received: snapshots.received.get(),
            snapshots_refused: refusals.values().sum(),
            snapshot_refusals: refusals,
            snapshot_bytes_received: snapshots.bytes_received.get(),
            ..TransportStats::default()
        }
    }
}
