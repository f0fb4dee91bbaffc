//! The numbers that bound and pace the groups of a host. Every field has a default that serves.

use std::collections::BTreeSet;
use std::time::Duration;

use shardhost_storage::NodeId;

use crate::known_bugs::{KnownBug, KnownBugs};

/// Settings of all groups of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupsConfig {
    pub node: NodeId,
    /// Seed of everything that is drawn by lot (election timeouts).
    pub seed: u64,
    /// Grows with every start of the process; makes read contexts unique across restarts.
    pub incarnation: u64,
    /// Length of one Raft tick. Default 100 ms.
    pub tick: Duration,
    /// Ticks without a leader before a follower campaigns; drawn from this to twice this.
    /// Default 10.
    pub election_ticks: u16,
    /// Ticks between two heartbeats of a leader. Default 2.
    pub heartbeat_ticks: u16,
    /// Ticks without any activity before a group may hibernate; 0: groups never hibernate. Default
    /// 20.
    pub hibernate_after_ticks: u16,
    /// Payload bytes of one append message. Default 256 KiB.
    pub max_append_bytes: u64,
    /// Append messages on their way to one peer of one group. Default 128.
    pub max_inflight_appends: usize,
    /// Bytes of one command. Default 4 MiB.
    pub max_command_bytes: usize,
    /// Command bytes of one group that are proposed and not yet answered, with
    /// [`PROPOSAL_OVERHEAD_BYTES`] each. Default 32 MiB.
    pub max_inflight_bytes_per_group: usize,
    /// The same for the whole host. Default 256 MiB.
    pub max_inflight_bytes: usize,
    /// Command bytes of one group that are committed here and not yet applied; beyond, they wait
    /// in the log. Default 8 MiB.
    pub max_apply_bytes_per_group: usize,
    /// Reads of one group that wait for their quorum round or for the state machine. Default
    /// 65,536.
    pub max_reads_per_group: usize,
    /// Ticks before a read, or the handing over of leadership, is given up. Default 20.
    pub give_up_ticks: u16,
    /// How long proposals and reads of a group are paused for a transfer; then the old leader
    /// continues. Checked eight times per tick. Default 100 ms.
    pub freeze_timeout: Duration,
    /// Ticks that policies may take to decide about a leadership that was acquired. Default 50.
    pub admission_ticks: u16,
    /// Election timeouts without a leader that a replica on an ineligible node skips before it
    /// campaigns; twice as many while a voter that is known to be eligible answers. Default 3.
    pub escape_timeouts: u16,
    /// What this node has; groups may require some of their leaders. None.
    pub capabilities: BTreeSet<String>,
    /// By how much a lease is shorter than an election timeout: what clocks may differ by within
    /// one, and a tick. `None`: no leases. Equal on all hosts, as is the election timeout. Default
    /// 250 ms.
    pub lease_margin: Option<Duration>,
    /// How long a state machine may take for an answer to a query. Default 10 s.
    pub query_timeout: Duration,
    /// Ticks after which the caller of a proposal learns that its outcome is unknown. Default 100.
    pub propose_give_up_ticks: u16,
    /// Entries that are kept in memory of one group at most, for followers a little behind; in
    /// bytes. Those that wait for the state machine are beside that, up to 8 MiB. Default 1 MiB.
    pub max_cached_bytes_per_group: usize,
    /// Committed entries that the state machine has not applied with which a replica campaigns at
    /// most: until they are applied it would serve no users. Default 262,144.
    pub max_unapplied_entries: u64,
    /// Entries kept in the log behind the applied and durable ones, so that a follower a little
    /// behind needs no snapshot. Default 1,024.
    pub log_trail_entries: u64,
    /// A follower further behind than this many entries no longer keeps the log from being
    /// truncated: it gets a snapshot. Default 100,000.
    pub log_keep_entries: u64,
    /// Entries after which a state machine that does not keep itself durable is snapshotted.
    /// Default 10,000.
    pub snapshot_entries: u64,
    /// Ticks after which a leader that is awake has the replicas of its group compared; 0: it does
    /// not. Default 0.
    pub consistency_ticks: u32,
    /// Within this time each hibernating group is woken once to be compared; `None`: none is. Needs
    /// [`Self::consistency_ticks`], too. Default `None`.
    pub consistency_hibernating: Option<Duration>,
    /// Bytes of state machines that this host reads per second to compare them. Default 4 MiB.
    pub consistency_bytes_per_second: u64,
    /// The longest that one step of a worker may take. One that takes longer is a
    /// [`crate::HostFault::Stuck`]. `None`: no watchdog. Default 10 s.
    pub round_limit: Option<Duration>,
    /// The longest that one call into a state machine may take before another leader is looked for,
    /// for its group, or for all groups of the host while such calls hold every apply thread. After
    /// three times as long, groups that the host leads all the same take no commands until the call
    /// returns. `None`: no limit. Default 2 s, two election timeouts.
    pub machine_limit: Option<Duration>,
    /// Bugs that a test put back on purpose. None, and without the feature `testing` there is no
    /// way to switch one on.
    #[cfg(feature = "testing")]
    pub bugs: KnownBugs,
    #[cfg(not(feature = "testing"))]
    pub(crate) bugs: KnownBugs,
}

/// What a proposal counts for beside its bytes, in the budgets of bytes in flight.
pub const PROPOSAL_OVERHEAD_BYTES: usize = 256;

impl GroupsConfig {
    /// The defaults for `node`.
    #[must_use]
    pub const fn new(node: NodeId) -> Self {
        Self {
            node,
            seed: 0,
            incarnation: 1,
            tick: Duration::from_millis(100),
            election_ticks: 10,
            heartbeat_ticks: 2,
            hibernate_after_ticks: 20,
            max_append_bytes: 256 << 10,
            max_inflight_appends: 128,
            max_command_bytes: 4 << 20,
            max_inflight_bytes_per_group: 32 << 20,
            max_inflight_bytes: 256 << 20,
            max_apply_bytes_per_group: 8 << 20,
            max_reads_per_group: 65_536,
            give_up_ticks: 20,
            freeze_timeout: Duration::from_millis(100),
            admission_ticks: 50,
            escape_timeouts: 3,
            capabilities: BTreeSet::new(),
            lease_margin: Some(Duration::from_millis(250)),
            query_timeout: Duration::from_secs(10),
            propose_give_up_ticks: 100,
            max_cached_bytes_per_group: 1 << 20,
            max_unapplied_entries: 1 << 18,
            log_trail_entries: 1_024,
            log_keep_entries: 100_000,
            snapshot_entries: 10_000,
            consistency_ticks: 0,
            consistency_hibernating: None,
            consistency_bytes_per_second: 4 << 20,
            round_limit: Some(Duration::from_secs(10)),
            machine_limit: Some(Duration::from_secs(2)),
            bugs: KnownBugs::none(),
        }
    }

    /// How long a lease lasts; `None`: there are none.
    #[must_use]
    pub fn lease_duration(&self) -> Option<Duration> {
        if self.bugs.has(KnownBug::LeaseWithoutMargin) {
            return Some(self.election_timeout() * 2);
        }
        let length = self.election_timeout().checked_sub(self.lease_margin?)?;
        (!length.is_zero()).then_some(length)
    }

    /// How long so many ticks are.
    pub(crate) fn in_time(&self, ticks: u64) -> Duration {
        self.tick.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    /// Length of the shortest election timeout.
    #[must_use]
    pub fn election_timeout(&self) -> Duration {
        self.tick * u32::from(self.election_ticks)
    }
}
