//! What the transport counts, for operators and benches.

use std::sync::atomic::{AtomicU64, Ordering};

use shardhost_storage::NodeId;

/// One lane to one peer since the transport started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneStats {
    /// Whether the peer has said welcome on the present connection.
    pub connected: bool,
    /// How often a connection was made.
    pub connects: u64,
    /// Messages handed to a connection.
    pub messages: u64,
    /// Frames handed to a connection, heartbeats included.
    pub frames: u64,
    /// Encoded bytes of those messages.
    pub bytes: u64,
    /// Messages dropped: lane full, no connection, or too large for a frame.
    pub dropped: u64,
    /// Messages that wait.
    pub waiting_messages: u64,
    /// Encoded bytes that wait.
    pub waiting_bytes: u64,
}

/// One peer since the transport started.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStats {
    /// The peer.
    pub node: NodeId,
    /// Where it is reached.
    pub address: String,
    /// Whether it is heard of.
    pub live: bool,
    /// The newest incarnation seen of it.
    pub incarnation: Option<u64>,
    /// Connections made after the first, both lanes together.
    pub reconnects: u64,
    /// The lane of appends.
    pub bulk: LaneStats,
    /// The lane of heartbeats and votes.
    pub urgent: LaneStats,
    /// Messages that came from it.
    pub received_messages: u64,
    /// Frames that came from it.
    pub received_frames: u64,
    /// Messages from it that found a full inbox.
    pub inbox_drops: u64,
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
    /// Greetings that were refused.
    pub refused_greetings: u64,
    /// Streams from peers that ended because of what they carried, or broke.
    pub broken_streams: u64,
    /// Snapshots delivered to peers.
    pub snapshots_sent: u64,
    /// Shipments that failed.
    pub snapshots_failed: u64,
    /// Snapshots received whole.
    pub snapshots_received: u64,
    /// Snapshots refused, damaged or broken off while they were received.
    pub snapshots_refused: u64,
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

/// What is counted for the transport as a whole.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub unknown_node_drops: Counter,
    pub oversized_drops: Counter,
    pub refused_greetings: Counter,
    pub broken_streams: Counter,
    pub snapshots_sent: Counter,
    pub snapshots_failed: Counter,
    pub snapshots_received: Counter,
    pub snapshots_refused: Counter,
}

impl Counters {
    pub fn stats(&self, peers: Vec<PeerStats>) -> TransportStats {
        TransportStats {
            peers,
            unknown_node_drops: self.unknown_node_drops.get(),
            oversized_drops: self.oversized_drops.get(),
            refused_greetings: self.refused_greetings.get(),
            broken_streams: self.broken_streams.get(),
            snapshots_sent: self.snapshots_sent.get(),
            snapshots_failed: self.snapshots_failed.get(),
            snapshots_received: self.snapshots_received.get(),
            snapshots_refused: self.snapshots_refused.get(),
        }
    }
}
