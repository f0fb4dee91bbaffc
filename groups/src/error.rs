//! Errors of the users of a group. One enum per operation; each variant distinguishes whether the
//! entry is surely absent from the log (*definite*) or may still be committed.

use std::sync::Arc;
use std::time::Duration;

use shardhost_storage::{GroupId, LogError, LogIndex, NodeId, ReplicaId, Term};

use crate::activity::Phase;
use crate::checksum::StateSum;
use crate::policy::{Caretaker, RejectReason, Unfit};

/// Where a group is led, as far as the answering replica knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderHint {
    pub node: NodeId,
    /// The term it leads in.
    pub term: Term,
}

/// Why a proposal was refused before it entered the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposalRejection {
    /// Too many bytes are in flight on this group or host. Try again a little later.
    #[error("too many proposals are in flight")]
    Busy,
    /// The command is over the limit. Split it.
    #[error("the command has {size} bytes, the limit is {limit}")]
    TooLarge {
        size: usize,
        /// The limit of the host.
        limit: usize,
    },
    /// The command is empty; empty entries are Raft's own.
    #[error("the command is empty")]
    Empty,
    /// The leader serves no users, for this reason; none: policies were asked about its leadership
    /// and have not answered yet. Try again a little later, here or where the group is led then.
    #[error("the leader does not serve: {}", caretaker_text(.0))]
    NotServing(Option<Arc<Caretaker>>),
    /// It was held for [`crate::GroupsConfig::propose_give_up_ticks`] by a leader that does not
    /// serve yet, and did not enter the log. Try again, here or where the group is led then.
    #[error("the leader was not ready to take it in time")]
    Expired,
    /// A barrier is open. Try again when it is closed.
    #[error("proposals are paused by a barrier")]
    Paused,
    /// The proposal was bound to another term.
    #[error("the proposal is for term {wanted}, the leader is in term {actual}")]
    TermMismatch {
        /// The term that was asked for.
        wanted: Term,
        actual: Term,
    },
    /// The host or the group is shutting down.
    #[error("the host is stopping")]
    Stopping,
    /// This replica failed before; its status has the cause. Another replica may lead.
    #[error("the replica failed: {0}")]
    Failed(GroupFault),
}

/// Why a proposal's result will stay unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownCause {
    /// The deadline passed.
    #[error("the deadline passed")]
    Timeout,
    /// This replica stopped leading before the entry was committed.
    #[error("leadership was lost")]
    LeadershipLost,
    /// The host or the group stopped.
    #[error("the group stopped")]
    Stopped,
}

/// Why a replica stopped on this host, until it is repaired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupFault {
    /// Code of the group's replica panicked; the message has the place.
    #[error("the replica panicked: {0}")]
    Panic(Arc<str>),
    /// The state machine gave up or panicked.
    #[error("{0}")]
    StateMachine(Arc<str>),
    /// The state machine could not be opened for a reason that passes, as a lack of descriptors. Open the
    /// replica again.
    #[error("{0}")]
    StatePasses(Arc<str>),
    /// What the state machine keeps on this host is damaged. The data is kept until another replica
    /// takes this one's place.
    #[error("{0}")]
    StateDamaged(Arc<str>),
    /// The shared log failed or is damaged for this group.
    #[error("{0}")]
    Log(LogError),
    /// The host cannot continue.
    #[error("{0}")]
    Host(HostFault),
    /// The leader's log contradicts what is committed here: two histories of the group exist,
    /// because a data directory was put back from an older copy, or a disk lost writes. The data is
    /// kept. Find out which replicas hold the right history before any is replaced.
    #[error(
        "the history of the group has split: replica {leader}, which leads in term {term}, \
         contradicts entries up to {committed} that are committed here; a data directory was put \
         back from an older copy, or a disk lost writes"
    )]
    Diverged {
        leader: u64,
        term: u64,
        /// The last index that is known committed here.
        committed: u64,
    },
    /// The state of this replica differs from that of a majority at the same applied position: a
    /// bug of the state machine, or a disk that damaged its state. The data is kept for the search
    /// for the cause; replace the replica by a new one.
    #[error(
        "the state of this replica differs from that of a majority at index {index}: it has {own}, \
         they have {others}; the state machine or the disk damaged it"
    )]
    Inconsistent {
        /// The applied index at which they were compared.
        index: LogIndex,
        /// What this replica holds there.
        own: StateSum,
        /// What a majority holds there.
        others: StateSum,
    },
    /// The replica stopped as [`GroupFault::Inconsistent`] in an earlier process. It is not opened again.
    #[error(
        "the state of this replica was found to differ from that of a majority; `shardhost member \
         replace GROUP NODE NODE` gives this node a new one"
    )]
    FoundToDiffer,
    /// The log contradicts itself or the peers.
    #[error("an invariant is broken: {0}")]
    Invariant(Arc<str>),
}

/// Why a whole host cannot continue. Stop it; after a restart the log shows its content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostFault {
    /// The shared log failed. Check the disk.
    #[error(transparent)]
    Log(LogError),
    /// What the state machines of this host share failed, as their database: [`crate::Groups::fail`].
    #[error("{0}")]
    State(Arc<str>),
    /// A thread of the host panicked: a bug. The message has the place.
    #[error("thread {thread} panicked: {message}")]
    Thread { thread: Arc<str>, message: Arc<str> },
    /// A round of a worker does not end: a bug, or a hook or policy of the user that hangs. The
    /// groups of the worker are mute, and shutting down cannot end them: end the process.
    #[error(
        "worker {worker} is stuck for {limit:?} {phase}; the group that it visited last is {group}"
    )]
    Stuck {
        worker: usize,
        /// The group that it visited last.
        group: GroupId,
        phase: Phase,
        /// The longest that a round may take.
        limit: std::time::Duration,
    },
}

/// A proposal was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Definite. This replica does not lead; ask the one in the hint.
    #[error("group {group} is not led here{}", hint_text(hint))]
    NotLeader { group: GroupId, hint: Option<LeaderHint> },
    /// Definite. Refused before it entered the log.
    #[error("group {group} refuses the proposal: {reason}")]
    Rejected { group: GroupId, reason: ProposalRejection },
    /// Definite. Another entry was committed in its place.
    #[error("group {group} committed another entry, of term {by}, at index {index}")]
    Superseded {
        group: GroupId,
        index: LogIndex,
        /// Term of the entry that was committed there.
        by: Term,
    },
    /// Not definite. The entry may still be committed.
    #[error("group {group} cannot tell whether the proposal takes effect: {cause}")]
    Unknown { group: GroupId, cause: UnknownCause },
    /// Not definite. This replica stopped.
    #[error("the replica of group {group} failed: {fault}")]
    Faulted { group: GroupId, fault: GroupFault },
}

impl ProposeError {
    /// Whether the entry is surely not in the log and never will be.
    #[must_use]
    pub const fn is_definite(&self) -> bool {
        matches!(self, Self::NotLeader { .. } | Self::Rejected { .. } | Self::Superseded { .. })
    }
    /// Whether the same proposal may be sent again without taking effect twice.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::NotLeader { .. } | Self::Superseded { .. } => true,
            Self::Rejected { reason, .. } => matches!(
                reason,
                ProposalRejection::Busy
                    | ProposalRejection::NotServing(_)
                    | ProposalRejection::Expired
                    | ProposalRejection::Paused
            ),
            _ => false,
        }
    }
    /// The leader, if the error names it.
    #[must_use]
    pub const fn leader_hint(&self) -> Option<&LeaderHint> {
        match self {
            Self::NotLeader { hint, .. } => hint.as_ref(),
            _ => None,
        }
    }
}

/// A read was not answered. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// This replica does not lead; ask the one in the hint.
    #[error("group {group} is not led here{}", hint_text(hint))]
    NotLeader { group: GroupId, hint: Option<LeaderHint> },
    /// Too many reads wait. Try again a little later.
    #[error("group {group} has too many reads waiting")]
    Busy { group: GroupId },
    /// The leader serves no users. Try again a little later.
    #[error("the leader of group {group} does not serve: {reason}")]
    NotServing { group: GroupId, reason: Arc<Caretaker> },
    /// Leadership is being handed over.
    #[error("leadership of group {group} is being transferred")]
    Transferring { group: GroupId },
    /// No quorum confirmed the leadership in time, or leadership was lost meanwhile.
    #[error("group {group} could not confirm its leadership in time")]
    Unconfirmed { group: GroupId },
    /// The host or the group stopped.
    #[error("group {group} stopped")]
    Stopped { group: GroupId },
    /// This replica failed.
    #[error("the replica of group {group} failed: {fault}")]
    Faulted { group: GroupId, fault: GroupFault },
    /// The state machine did not come to an answer in time.
    #[error(transparent)]
    Timeout(#[from] QueryTimeout),
    /// The state machine did not answer.
    #[error(transparent)]
    Query(#[from] QueryError),
}

/// A state machine did not come to an answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state machine of group {group} gave no answer within {after:?}")]
pub struct QueryTimeout {
    pub group: GroupId,
    pub after: Duration,
}

/// A transfer of leadership did not take place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// This replica does not lead; ask the one in the hint.
    #[error("group {group} is not led here{}", hint_text(hint))]
    NotLeader { group: GroupId, hint: Option<LeaderHint> },
    /// The target is this node already.
    #[error("node {node} already leads group {group}")]
    AlreadyLeads { group: GroupId, node: NodeId },
    /// The target holds no replica of the group, or a learner only.
    #[error("node {node} holds no voter of group {group}")]
    NoVoter { group: GroupId, node: NodeId },
    /// The target's node does not answer.
    #[error("node {node} does not answer, and takes no leadership of group {group}")]
    TargetNotLive { group: GroupId, node: NodeId },
    /// No other voter that answers could lead.
    #[error("group {group} has no healthy target for the transfer")]
    NoHealthyTarget { group: GroupId },
    /// A list of candidates is empty. Name one.
    #[error("no candidate was named for the transfer of group {group}")]
    NoCandidates { group: GroupId },
    /// Every candidate that could lead lacks too much of the log. Try again, or allow more.
    #[error("node {node} lacks {lag} entries of group {group}, {max_lag} are allowed")]
    TargetNotCaughtUp { group: GroupId, node: NodeId, lag: u64, max_lag: u64 },
    /// The target's node should not lead the group. Name another, or give the node what it lacks.
    #[error("node {node} should not lead group {group}: {unfit}")]
    TargetUnfit {
        group: GroupId,
        node: NodeId,
        /// The missing capabilities, or a policy's reason.
        unfit: Unfit,
    },
    /// The target's node hands its own leaderships away. Name another.
    #[error("node {node} is draining and takes no leadership of group {group}")]
    TargetDraining { group: GroupId, node: NodeId },
    /// The target is being given a snapshot. Try again when it has it.
    #[error("node {node} is receiving a snapshot of group {group}")]
    TargetSnapshotting { group: GroupId, node: NodeId },
    /// The target was asked, and declined. This replica leads on.
    #[error("node {node} declines the leadership of group {group}: {words}")]
    TargetRefused {
        group: GroupId,
        node: NodeId,
        /// The cause by name; [`RejectReason::Refused`]: it gave none that is known here.
        reason: RejectReason,
        /// Its reason, for people.
        words: String,
    },
    /// The target was asked, and did not answer; an older version never does. This replica leads
    /// on.
    #[error("node {node} did not say within {after:?} whether it takes group {group} over")]
    TargetSilent { group: GroupId, node: NodeId, after: Duration },
    /// Another transfer is in progress; it continues undisturbed.
    #[error("group {group} is being transferred to node {to}")]
    InProgress { group: GroupId, to: NodeId },
    /// A change of membership is not applied yet. Try again when it is.
    #[error("a membership change of group {group} is pending")]
    ConfigChangePending { group: GroupId },
    /// Raft gave up, or another node won. This or another replica leads on.
    #[error("the transfer of group {group} to node {to} was aborted after {after:?}")]
    Aborted {
        group: GroupId,
        to: NodeId,
        /// How long it was tried.
        after: Duration,
    },
    /// The host or the group stopped.
    #[error("group {group} stopped")]
    Stopped { group: GroupId },
    /// This replica failed.
    #[error("the replica of group {group} failed: {fault}")]
    Faulted { group: GroupId, fault: GroupFault },
}

impl TransferError {
    /// The group.
    #[must_use]
    pub const fn group(&self) -> GroupId {
        match self {
            Self::NotLeader { group, .. }
            | Self::AlreadyLeads { group, .. }
            | Self::NoVoter { group, .. }
            | Self::TargetNotLive { group, .. }
            | Self::NoHealthyTarget { group }
            | Self::NoCandidates { group }
            | Self::TargetNotCaughtUp { group, .. }
            | Self::TargetUnfit { group, .. }
            | Self::TargetDraining { group, .. }
            | Self::TargetSnapshotting { group, .. }
            | Self::TargetRefused { group, .. }
            | Self::TargetSilent { group, .. }
            | Self::InProgress { group, .. }
            | Self::ConfigChangePending { group }
            | Self::Aborted { group, .. }
            | Self::Stopped { group }
            | Self::Faulted { group, .. } => *group,
        }
    }

    /// The cause by name.
    #[must_use]
    pub fn reason(&self) -> RejectReason {
        match self {
            Self::NotLeader { .. } => RejectReason::NotLeader,
            Self::AlreadyLeads { .. } => RejectReason::AlreadyLeads,
            Self::NoVoter { .. } => RejectReason::NotVoter,
            Self::TargetNotLive { .. } => RejectReason::NotLive,
            Self::NoHealthyTarget { .. } => RejectReason::NoTarget,
            Self::NoCandidates { .. } => RejectReason::NoCandidates,
            Self::TargetNotCaughtUp { .. } => RejectReason::NotCaughtUp,
            Self::TargetUnfit { unfit, .. } => unfit.reject_reason(),
            Self::TargetDraining { .. } => RejectReason::Draining,
            Self::TargetSnapshotting { .. } => RejectReason::Snapshotting,
            Self::TargetRefused { reason, .. } => *reason,
            Self::TargetSilent { .. } => RejectReason::Silent,
            Self::InProgress { .. } => RejectReason::TransferInProgress,
            Self::ConfigChangePending { .. } => RejectReason::ConfigChangePending,
            Self::Aborted { .. } => RejectReason::Aborted,
            Self::Stopped { .. } => RejectReason::Stopped,
            Self::Faulted { .. } => RejectReason::Faulted,
        }
    }
}

/// No snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TakeSnapshotError {
    /// The state machine gave no view, or it could not be written. The host's log has the cause;
    /// free space if the disk is full, and try again.
    #[error("no snapshot of group {group} could be written; the log of the host says why")]
    Failed { group: GroupId },
    /// Too much is under way. Try again a little later.
    #[error("group {group} has too much under way")]
    Busy { group: GroupId },
    /// The host or the group stopped.
    #[error("group {group} stopped")]
    Stopped { group: GroupId },
    /// This replica failed.
    #[error("the replica of group {group} failed: {fault}")]
    Faulted { group: GroupId, fault: GroupFault },
}

/// A barrier cannot be opened or waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// This replica does not lead; ask the one in the hint.
    #[error("group {group} is not led here{}", hint_text(hint))]
    NotLeader { group: GroupId, hint: Option<LeaderHint> },
    /// Another one is open. Wait until it is closed.
    #[error("group {group} has an open barrier already")]
    AlreadyOpen { group: GroupId },
    /// The leadership that the barrier belonged to is over, and so is the barrier.
    #[error("the barrier of group {group} ended with its leadership")]
    Ended { group: GroupId },
    /// Too much is under way. Try again a little later.
    #[error("group {group} has too much under way")]
    Busy { group: GroupId },
    /// The host or the group stopped.
    #[error("group {group} stopped")]
    Stopped { group: GroupId },
}

/// A replica could not be created or opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenGroupError {
    /// The group is open on this host.
    #[error("group {group} is open already")]
    AlreadyOpen { group: GroupId },
    /// Another caller's step is under way with it: nothing was done. Try again when that is over.
    #[error("group {group} is {step} on this host; try again")]
    Busy {
        group: GroupId,
        /// The step in progress.
        step: GroupStep,
    },
    /// The order was for another generation of the group: nothing was done, and nothing needs to be.
    #[error("generation {expected} of group {group} was meant, but generation {found} is here")]
    OtherGeneration { group: GroupId, expected: u32, found: u32 },
    /// The order was for another replica of the group: nothing was done, and nothing needs to be.
    #[error("replica {expected} of group {group} was meant, but replica {found} is here")]
    OtherReplica { group: GroupId, expected: ReplicaId, found: ReplicaId },
    /// The log holds no replica of it. Create it first.
    #[error("group {group} is not in this host's log; create it first")]
    Unknown { group: GroupId },
    /// The log holds a replica of it. Open it instead.
    #[error("group {group} is in this host's log already; open it instead of creating it")]
    Exists { group: GroupId },
    /// The specification makes no sense.
    #[error("group {group} cannot be created: {message}")]
    Invalid { group: GroupId, message: String },
    /// The log, the snapshot or the state machine contradict each other, or cannot be read.
    #[error("group {group} cannot be opened: {fault}")]
    Faulted { group: GroupId, fault: GroupFault },
    /// The replica is destroyed, and its state is not removed: destroy it again.
    #[error(
        "the log of group {group} is destroyed, its state remains: {message}; destroy it again"
    )]
    StateRemains { group: GroupId, message: String },
    /// The host is stopping.
    #[error("the host is stopping")]
    Stopping,
}

fn caretaker_text(reason: &Option<Arc<Caretaker>>) -> String {
    match reason {
        Some(reason) => reason.to_string(),
        None => "policies are asked about its leadership".to_owned(),
    }
}

pub(crate) fn hint_text(hint: &Option<LeaderHint>) -> String {
    match hint {
        Some(hint) => format!("; node {} leads in term {}", hint.node, hint.term),
        None => "; no leader is known".to_owned(),
    }
}

/// A question to a state machine was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The machine answers no questions.
    #[error("this state machine answers no queries")]
    Unsupported,
    /// The question makes no sense to the machine.
    #[error("the query is invalid: {0}")]
    Invalid(String),
    /// The machine would have to do more for the answer than it does for one question. Ask for less, or
    /// later.
    #[error("the query asks for too much: {0}")]
    TooMuch(String),
    /// The machine could not read its state.
    #[error("the state machine could not answer: {0}")]
    Failed(String),
    /// The state that the machine would have to read is damaged. The caller gets an error, and the
    /// replica stops.
    #[error("the state machine could not answer: its state is damaged: {0}")]
    Damaged(String),
}

/// Something that is done with a group as a whole, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupStep {
    Creating,
    /// Its replica is opened, and its state machine restored if it must be.
    Opening,
    /// Its state is looked at. Others wait for the end of it.
    Looking,
    /// Its replica ends, its data stays.
    Closing,
    /// Its replica ends, and its data with it.
    Destroying,
}

impl std::fmt::Display for GroupStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "being created",
            Self::Opening => "being opened",
            Self::Looking => "being looked at",
            Self::Closing => "being closed",
            Self::Destroying => "being destroyed",
        })
    }
}
