//! The public state of a group, published by its worker and read without a lock.

use std::sync::Arc;

use shardhost_storage::{
    Doubt, GroupId, LogIndex, LogPosition, Membership, NodeId, ReplicaId, Term,
};

use crate::error::{GroupFault, LeaderHint};
use crate::policy::Caretaker;

/// What a replica is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Leads. Serves proposals and reads once [`GroupStatus::serving`].
    Leader,
    Follower,
    /// Asks whether an election could be won.
    PreCandidate,
    Candidate,
    Learner,
    /// Stopped after a fault; its data is kept.
    Failed(GroupFault),
    Stopped,
    /// Ended because the group continues without this replica; its data is removed.
    Removed,
}

impl Role {
    /// One word for people.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Failed(_) => "failed",
            Self::Stopped => "stopped",
            Self::Removed => "removed",
        }
    }
}

/// How far a peer is, as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    pub replica: ReplicaId,
    pub node: NodeId,
    /// The last index known to be equal there.
    pub matched: LogIndex,
    /// The next index to send.
    pub next: LogIndex,
    pub state: &'static str,
    /// Answered this leader within the last election timeout. While the group hibernates nothing is asked, and this is
    /// `false`.
    pub recently_active: bool,
}

/// One consistent view of a replica, as of the end of a worker's round.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStatus {
    pub id: GroupId,
    /// This host's replica of it.
    pub replica: ReplicaId,
    /// What the replica is doing.
    pub role: Role,
    pub term: Term,
    pub leader: Option<LeaderHint>,
    /// Leads, the first entry of the own term is applied, and no policy objects: proposals and
    /// reads are taken.
    pub serving: bool,
    /// Leads, and serves no users, for this reason.
    pub caretaker: Option<Arc<Caretaker>>,
    /// First entry in the log.
    pub first: LogIndex,
    /// Last entry in the log.
    pub last: LogIndex,
    pub committed: LogIndex,
    pub applied: LogIndex,
    pub snapshot: Option<LogPosition>,
    /// Who belongs to the group.
    pub membership: Arc<Membership>,
    /// Where leadership is being transferred to.
    pub transferring_to: Option<NodeId>,
    /// An unfinished change of membership: its index in the log.
    pub pending_change: Option<LogIndex>,
    /// A barrier is open: proposals of users are refused.
    pub paused: bool,
    /// A node that holds another group of the same id: it was created there with other members,
    /// and one of the two must be destroyed. Neither takes the other's votes or entries.
    pub conflicting: Option<NodeId>,
    /// Hibernating: no ticks and no heartbeats until something happens.
    pub hibernating: bool,
    /// The log of this replica may have lost acknowledged entries. It takes part in no election
    /// before enough of its peers have reported what they hold.
    pub doubt: Option<Doubt>,
    /// The newest index at which this replica was found equal to a majority, since it was opened.
    pub checked: Option<LogIndex>,
    /// The replicas of the group differ at this index, and no majority of them agrees: it is
    /// unknown which of them are right, and all continue. Ends when a majority is found equal.
    pub differs: Option<LogIndex>,
    /// Why the state machine stalls: the same call is repeated, as on a full disk, or a call into
    /// it does not return. Such a replica does not lead as long as another can.
    pub stalled: Option<Arc<str>>,
    /// On a leader: how far the others are. Renewed at ticks.
    pub peers: Arc<[PeerProgress]>,
}

impl GroupStatus {
    /// Index of the entry that made the present configuration.
    #[must_use]
    pub fn config_index(&self) -> LogIndex {
        self.membership.config_index
    }
    /// Entries that are committed here and not applied yet.
    #[must_use]
    pub const fn apply_backlog(&self) -> u64 {
        self.committed.get().saturating_sub(self.applied.get())
    }
    /// Other members of the group.
    #[must_use]
    pub fn other_members(&self) -> usize {
        self.membership.members.keys().filter(|id| **id != self.replica).count()
    }
    /// Whether this replica leads.
    #[must_use]
    pub const fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader)
    }
}
