//! The settings of the transport: its identity, and the bound of everything it holds.
//!
//! Every queue, frame, wait and retry of the transport is bounded by a value of this module.

use std::time::Duration;

use shardhost_groups::nodes::Advertisement;
use shardhost_proto::version::ClusterVersion;
use shardhost_security::Credentials;
use shardhost_storage::NodeId;

use super::advertisement::ADVERTISEMENT_MAX_BYTES;
use super::map_tag::MapTag;

/// Most bytes of a heartbeat in a frame, which may join any message: its tag, its length, its
/// sequence, its bootstrap, its time, and the node's advertisement.
pub(super) const HEARTBEAT_MAX_BYTES: usize = 48 + ADVERTISEMENT_MAX_BYTES;

/// How much a lane may hold. Whatever is reached first is the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// Encoded bytes of the messages that wait.
    pub bytes: usize,
    pub messages: usize,
}

/// Bounds of the snapshot streams of a host, over all its groups and peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotLimits {
    /// Bytes of a chunk. At least 1 KiB, at most 4 MiB.
    pub chunk_bytes: usize,
    /// Snapshots sent at the same time. At least 1.
    pub sending: usize,
    /// Shipments that wait for their turn; those above it fail at once and Raft tries again.
    pub waiting: usize,
    /// Snapshots received at the same time; a sender above it is asked to try later.
    pub receiving: usize,
    /// Bytes per second that all snapshots being sent share, chunk by chunk in turn; 0: no bound.
    /// What they may take of a disk is bounded where they are kept.
    /// Enough that every one of them gets a chunk sent within half the stall timeout.
    pub bytes_per_second: u64,
    /// How long a stream may make no progress, on either side. It covers what the receiver does
    /// before the first chunk, which is reading a snapshot that it has already, and its sync
    /// after the last.
    pub stall_timeout: Duration,
    /// How long a failed shipment is kept back from the groups, and therefore the pause before they
    /// try again: its cause seldom passes at once.
    pub retry_wait: Duration,
}

/// Settings of a [`GrpcTransport`](super::GrpcTransport). Construct with
/// [`TransportConfig::new`] and change what should differ.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransportConfig {
    /// Name of the cluster. Peers of another one are refused.
    pub cluster: String,
    /// The node this process is.
    pub node: NodeId,
    /// Grows with every start of the node; peers refuse a smaller one than they have seen.
    pub incarnation: u64,
    /// The starts that the data directory knew before this one, the newest first. A peer that knows
    /// another one shows that the directory is an older copy.
    pub earlier_starts: Vec<u64>,
    /// Where peers reach this node, `host:port`. Sent to them in the handshake.
    pub address: String,
    /// Where clients reach this node, if not there. Sent with it.
    pub client_address: Option<String>,
    /// The same for operators.
    pub admin_address: Option<String>,
    /// The first advertisement of this node; see
    /// [`set_advertisement`](super::GrpcTransport::set_advertisement).
    pub advertisement: Advertisement,
    /// The map of shards, where the cluster has no catalog. Peers that have another one are
    /// refused.
    pub shard_map: Option<MapTag>,
    /// The latest version of a cluster that this node takes part in.
    pub newest_version: ClusterVersion,
    /// With them peers are connected to over TLS, and a greeting counts if the certificate of the connection
    /// names the same node. `None`: without TLS, whatever a greeting says is believed.
    pub credentials: Option<Credentials>,

    /// Bound of the lane of appends and their responses, per peer.
    pub bulk: LaneLimits,
    /// Bound of the lane of heartbeats, votes and TimeoutNow, per peer.
    pub urgent: LaneLimits,
    /// What a lane still takes while its connection is being made again.
    pub reconnecting: LaneLimits,
    /// How long a lane without a connection keeps messages. After it they are dropped: Raft has
    /// better ones by then.
    pub reconnect_grace: Duration,

    /// A frame is closed when its messages reach this many encoded bytes. A larger message
    /// travels alone.
    pub frame_target_bytes: usize,
    /// Largest frame that is sent or accepted, in bytes; the same on every host of a cluster. A
    /// message above it is dropped and counted, so it must exceed the largest append.
    pub frame_max_bytes: usize,
    /// Most messages in a frame that is sent or accepted; with
    /// [`frame_max_entries`](Self::frame_max_entries) it bounds the memory that a hostile frame
    /// can make the decoder take.
    pub frame_max_messages: usize,
    /// Most log entries in a frame that is accepted, over all its messages. A message with more
    /// of them is not sent.
    pub frame_max_entries: usize,

    /// Time between two heartbeats to a peer node, and between two looks at who is silent.
    pub heartbeat_interval: Duration,
    /// A peer is lost when nothing came from it for this long. At least three intervals.
    pub liveness_timeout: Duration,

    /// How long a connection attempt may take.
    pub connect_timeout: Duration,
    /// How long either side waits for its part of the handshake.
    pub handshake_timeout: Duration,
    /// Wait after the first failed attempt; doubles with each further one. Each wait is
    /// shortened by a random part of up to one half.
    pub backoff_min: Duration,
    /// Longest wait between two attempts.
    pub backoff_max: Duration,
    /// How long a lane that goes to an address from a greeting waits before the configured one of
    /// its peer is probed. Longer after each vain probe, up to 32 times.
    pub configured_look_after: Duration,
    /// How long [`shutdown`](super::GrpcTransport::shutdown) lets lanes run empty.
    pub drain_timeout: Duration,

    pub snapshot: SnapshotLimits,
}

impl TransportConfig {
    /// Default settings for a node.
    #[must_use]
    pub fn new(
        cluster: impl Into<String>,
        node: NodeId,
        incarnation: u64,
        address: impl Into<String>,
    ) -> Self {
        Self {
            cluster: cluster.into(),
            node,
            incarnation,
            earlier_starts: Vec::new(),
            address: address.into(),
            client_address: None,
            admin_address: None,
            advertisement: Advertisement::default(),
            shard_map: None,
            newest_version: ClusterVersion::NEWEST,
            credentials: None,
            bulk: LaneLimits { bytes: 64 << 20, messages: 1 << 17 },
            urgent: LaneLimits { bytes: 16 << 20, messages: 1 << 17 },
            reconnecting: LaneLimits { bytes: 1 << 20, messages: 4096 },
            reconnect_grace: Duration::from_secs(1),
            frame_target_bytes: 64 << 10,
            frame_max_bytes: 16 << 20,
            frame_max_messages: 1 << 14,
            frame_max_entries: 1 << 17,
            heartbeat_interval: Duration::from_millis(100),
            liveness_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(2),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            configured_look_after: Duration::from_secs(10),
            drain_timeout: Duration::from_millis(500),
            snapshot: SnapshotLimits::default(),
        }
    }

    /// Checks that the settings make sense together.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting and its bound.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let bounds = [
            ("cluster", !self.cluster.is_empty(), "must not be empty"),
            ("incarnation", self.incarnation > 0, "must be at least 1"),
            ("frame_target_bytes", self.frame_target_bytes > 0, "must be at least 1"),
            (
                "frame_max_bytes",
                self.frame_max_bytes >= self.frame_target_bytes,
                "must be at least frame_target_bytes",
            ),
            (
                "frame_max_bytes",
                self.frame_max_bytes > HEARTBEAT_MAX_BYTES,
                "must exceed what a heartbeat takes, 4,278 bytes",
            ),
            ("frame_max_bytes", self.frame_max_bytes <= 1 << 30, "must be at most 1 GiB"),
            ("frame_max_messages", self.frame_max_messages > 0, "must be at least 1"),
            ("frame_max_entries", self.frame_max_entries > 0, "must be at least 1"),
            ("heartbeat_interval", !self.heartbeat_interval.is_zero(), "must be above zero"),
            (
                "liveness_timeout",
                self.liveness_timeout >= self.heartbeat_interval * 3,
                "must be at least three heartbeat intervals",
            ),
            ("connect_timeout", !self.connect_timeout.is_zero(), "must be above zero"),
            ("handshake_timeout", !self.handshake_timeout.is_zero(), "must be above zero"),
            ("backoff_min", !self.backoff_min.is_zero(), "must be above zero"),
            ("configured_look_after", !self.configured_look_after.is_zero(), "must be above zero"),
            ("backoff_max", self.backoff_max >= self.backoff_min, "must be at least backoff_min"),
        ];
        let failed = bounds.into_iter().find(|(_, holds, _)| !holds);
        match failed {
            Some((setting, _, bound)) => Err(ConfigError { setting, bound }),
            None => self.snapshot.validate(),
        }
    }
}

impl SnapshotLimits {
    fn validate(&self) -> Result<(), ConfigError> {
        let chunk = (1 << 10..=4 << 20).contains(&self.chunk_bytes);
        let enough = self.bytes_per_second == 0 || self.slowest_chunk() <= self.stall_timeout / 2;
        let bounds = [
            ("snapshot.chunk_bytes", chunk, "must be between 1 KiB and 4 MiB"),
            ("snapshot.sending", self.sending > 0, "must be at least 1"),
            ("snapshot.receiving", self.receiving > 0, "must be at least 1"),
            ("snapshot.stall_timeout", !self.stall_timeout.is_zero(), "must be above zero"),
            (
                "snapshot.bytes_per_second",
                enough,
                "must be 0 or let a chunk of each snapshot through within half the stall timeout",
            ),
        ];
        let failed = bounds.into_iter().find(|(_, holds, _)| !holds);
        failed.map_or(Ok(()), |(setting, _, bound)| Err(ConfigError { setting, bound }))
    }

    /// How long a chunk takes while as many snapshots as may are being sent.
    fn slowest_chunk(&self) -> Duration {
        let bytes = self.chunk_bytes as f64 * self.sending as f64;
        Duration::try_from_secs_f64(bytes / self.bytes_per_second as f64).unwrap_or(Duration::MAX)
    }
}

impl Default for SnapshotLimits {
    fn default() -> Self {
        Self {
            chunk_bytes: 256 << 10,
            sending: 2,
            waiting: 1024,
            receiving: 2,
            bytes_per_second: 128 << 20,
            stall_timeout: Duration::from_secs(30),
            retry_wait: Duration::from_secs(1),
        }
    }
}

/// A setting is out of its bounds. Correct it and start again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("transport setting {setting} {bound}")]
pub struct ConfigError {
    pub setting: &'static str,
    pub bound: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> TransportConfig {
        TransportConfig::new("test", NodeId::must(1), 1, "127.0.0.1:1")
    }

    #[test]
    fn the_default_settings_are_within_their_bounds() {
        assert_eq!(config().validate(), Ok(()));
    }

    #[test]
    fn a_liveness_timeout_below_three_intervals_is_refused_by_name() {
        let mut config = config();
        config.liveness_timeout = config.heartbeat_interval * 2;
        assert_eq!(config.validate().unwrap_err().setting, "liveness_timeout");
    }

    #[test]
    fn a_frame_has_room_for_the_largest_heartbeat() {
        let mut config = config();
        config.frame_target_bytes = 1;
        for (bytes, holds) in [(HEARTBEAT_MAX_BYTES, false), (HEARTBEAT_MAX_BYTES + 1, true)] {
            config.frame_max_bytes = bytes;
            let refused = config.validate().map_err(|error| error.to_string());
            assert_eq!(refused.is_ok(), holds, "{refused:?}");
        }
        config.frame_max_bytes = 1;
        let refused = config.validate().unwrap_err().to_string();
        let bound = HEARTBEAT_MAX_BYTES.to_string();
        assert!(refused.replace(',', "").contains(&bound), "{refused}");
    }

    #[test]
    fn snapshot_bounds_are_checked_too() {
        let mut config = config();
        config.snapshot.chunk_bytes = 0;
        assert_eq!(config.validate().unwrap_err().setting, "snapshot.chunk_bytes");
    }

    #[test]
    fn a_rate_that_would_look_like_a_stall_is_refused() {
        let mut config = config();
        let slowest = 2 * config.snapshot.chunk_bytes as u64 / 15;
        for (bytes_per_second, holds) in [(0, true), (slowest + 1, true), (slowest - 1, false)] {
            config.snapshot.bytes_per_second = bytes_per_second;
            assert_eq!(config.validate().is_ok(), holds, "{bytes_per_second} bytes per second");
        }
    }
}
