//! Why a change of membership was refused, or what became of it.

use shardhost_storage::{GroupId, LogIndex, NodeId};

use crate::error::{GroupFault, LeaderHint, UnknownCause, hint_text};

/// A change of membership did not take place, or its outcome is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// Definite. This replica does not lead; ask the one in the hint.
    #[error("group {group} is not led here{}", hint_text(hint))]
    NotLeader { group: GroupId, hint: Option<LeaderHint> },
    /// Definite. The leader is new and has not applied an entry of its term: try again. Or it lost its state,
    /// and no member has one: the status of the group says so.
    #[error(
        "the leader of group {group} does not serve yet: it has applied no entry of its term, or lost \
         its state; try again"
    )]
    NotServing { group: GroupId },
    /// Definite. Another change is not applied yet, or a joint one not finished. Try again when
    /// it is.
    #[error("group {group} has a membership change under way at index {index}")]
    ConfigChangePending {
        group: GroupId,
        /// Its index in the log.
        index: LogIndex,
    },
    /// Definite. Leadership is being handed over. Ask the next leader.
    #[error("leadership of group {group} is being transferred to node {to}")]
    TransferInProgress { group: GroupId, to: NodeId },
    /// Definite. The membership was changed meanwhile. Look at it again.
    #[error(
        "group {group} has the configuration of index {actual}, the change expects that of \
         {expected}; look at the members again"
    )]
    WrongConfig {
        group: GroupId,
        /// The index that the change expects.
        expected: LogIndex,
        /// The index of the present configuration.
        actual: LogIndex,
    },
    /// Definite. No voter would be left. Destroy the group instead.
    #[error("group {group} would have no voter left; destroy the group instead")]
    LastVoter { group: GroupId },
    /// Definite. A learner cannot be added as a voter. Promote it.
    #[error("node {node} holds a learner of group {group}; promote it instead of adding it")]
    IsLearner { group: GroupId, node: NodeId },
    /// Definite. Adding a voter as a learner would take its vote. Demote it if that is meant.
    #[error("node {node} holds a voter of group {group}; demote it if its vote is to go")]
    IsVoter { group: GroupId, node: NodeId },
    /// Definite. The node holds a replica already, in the role that was asked for.
    #[error("node {node} is a member of group {group} already")]
    AlreadyMember { group: GroupId, node: NodeId },
    /// Definite. The node holds no replica.
    #[error("node {node} is no member of group {group}")]
    NotMember { group: GroupId, node: NodeId },
    /// Definite. Only voters are demoted.
    #[error("node {node} holds no voter of group {group}")]
    NotVoter { group: GroupId, node: NodeId },
    /// Definite. Only learners are promoted.
    #[error("node {node} holds no learner of group {group}")]
    NotLearner { group: GroupId, node: NodeId },
    /// Definite. The learner is not known to hold enough of the log: it has not caught up, or its replica does
    /// not answer although its node may. Try again when it has; the status of its host says what keeps it.
    #[error("{}", behind_text(*group, *node, *needed, *matched))]
    Behind {
        group: GroupId,
        node: NodeId,
        /// The index that it must hold.
        needed: LogIndex,
        /// The index that it is known to hold; 0: its replica has not answered this leader.
        matched: LogIndex,
    },
    /// Definite. The learner has no state of the group, whatever its log holds: it was lost, or a snapshot is
    /// not restored yet. Try again when that is done, or say [`crate::CaughtUp::Unchecked`] if that is meant.
    #[error(
        "node {node} is without the state of group {group}: it waits for a snapshot, or restores one"
    )]
    LacksState { group: GroupId, node: NodeId },
    /// Definite. A promotion that asks for index 0 asks for nothing. Say
    /// [`crate::CaughtUp::Unchecked`] if that is meant.
    #[error("a promotion in group {group} asks for index 0; say so if nothing is to be checked")]
    NoMinimum { group: GroupId },
    /// Definite. Too few voters take part for the change to be committed. One takes part whose replica answers
    /// what the leader asks it for the change, and holds what was committed then: a node may answer whose replica
    /// failed, or is closed, or takes no entries. The status of its host says why.
    #[error(
        "too few voters of group {group} take part: {live}, and the change needs {needed}; the replicas of the \
         others do not answer, or lack what is committed, although their nodes may answer"
    )]
    NoQuorum {
        group: GroupId,
        /// Voters that take part, the leader among them.
        live: usize,
        /// How many a quorum needs.
        needed: usize,
    },
    /// Definite. After the change too few of the voters would take part: the group would have no
    /// quorum, and could not be changed back. Remove or replace a voter first whose replica does not answer, or
    /// lacks what is committed, although its node may answer, or wait until it does.
    #[error(
        "after the change too few voters of group {group} would take part: {live}, and it would need {needed}; \
         first remove or replace one whose replica does not answer, or lacks what is committed, although its node \
         may answer"
    )]
    NoQuorumAfter {
        group: GroupId,
        /// Voters of then that take part now, the leader among them.
        live: usize,
        /// How many a quorum would need.
        needed: usize,
    },
    /// Definite. The leader would leave, and no other voter that answers has the group's state: they lost
    /// theirs and wait for a snapshot, or did not say yet. Wait until one has it again.
    #[error(
        "after the change no voter of group {group} that answers would have its state: those that are left \
         lost theirs and wait for a snapshot; wait until one has it again"
    )]
    NoStateAfter { group: GroupId },
    /// Definite. A voter is being added, or replaced by another. Wait for its end, or cancel it.
    #[error("node {node} is being added to group {group}; wait for it or cancel it")]
    AdditionInProgress { group: GroupId, node: NodeId },
    /// Definite. There is no addition to cancel.
    #[error("no voter is being added to group {group}")]
    NothingToCancel { group: GroupId },
    /// Definite. The addition was given up before the node had its vote.
    #[error("the addition of node {node} to group {group} was given up")]
    Cancelled {
        group: GroupId,
        /// The node that was to come.
        node: NodeId,
    },
    /// Definite. No voter is known to have the required capabilities: the group would serve no
    /// users. Give the nodes what they lack first, or force it.
    #[error("no voter of group {group} meets the requirement: {reason}")]
    NobodyFit { group: GroupId, reason: String },
    /// Definite. A hook refused a node.
    #[error("node {node} may not join group {group}: {reason}")]
    Refused { group: GroupId, node: NodeId, reason: String },
    /// Definite. The change makes no sense.
    #[error("the membership of group {group} cannot be changed so: {reason}")]
    Impossible { group: GroupId, reason: String },
    /// Definite. Raft put an empty entry in the place of the change. Try again.
    #[error("the change of group {group} was replaced by an empty entry; try again")]
    Replaced { group: GroupId },
    /// Definite. Another entry was committed in its place.
    #[error("group {group} committed another entry in the place of the change")]
    Superseded { group: GroupId },
    /// Definite. Too much is under way on this host. Try again a little later.
    #[error("too much is under way; try again")]
    Busy { group: GroupId },
    /// Not definite. The change may still take effect. Look at the members.
    #[error("it is unknown whether the change of group {group} takes effect: {cause}")]
    Unknown { group: GroupId, cause: UnknownCause },
    /// Definite. The host or the group stopped before.
    #[error("group {group} stopped")]
    Stopped { group: GroupId },
    /// Not definite. This replica failed.
    #[error("the replica of group {group} failed: {fault}")]
    Faulted { group: GroupId, fault: GroupFault },
}

/// A replica that never answered this leader is not known to hold anything.
fn behind_text(group: GroupId, node: NodeId, needed: LogIndex, matched: LogIndex) -> String {
    match matched.get() {
        0 => format!(
            "the replica of group {group} on node {node} does not answer this leader, although its node may; \
             index {needed} is asked for"
        ),
        _ => {
            format!("node {node} holds group {group} up to index {matched}, {needed} is asked for")
        }
    }
}

impl MembershipError {
    /// Whether the change surely did not take effect and never will.
    #[must_use]
    pub const fn is_definite(&self) -> bool {
        !matches!(self, Self::Unknown { .. } | Self::Faulted { .. })
    }
}
