//! Stored data: entries, hard state, membership, and batches of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU64;

use bytes::Bytes;

use crate::ids::{GroupId, LogIndex, LogPosition, NodeId, ReplicaId, Term};
use crate::requirement::Requirement;

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Bytes for the state machine. Empty data: the entry a leader starts its term with.
    Command,
    Config,
    /// What the group asks of its leader from here on.
    Requirement,
}

/// One entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Term it was appended in.
    pub term: Term,
    pub index: LogIndex,
    pub kind: EntryKind,
    pub data: Bytes,
    /// Bytes beside the payload that only the host reads.
    pub context: Bytes,
}

impl Entry {
    /// Bytes of payload and context: what limits in bytes count.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        (self.data.len() + self.context.len()) as u64
    }

    /// A CRC-32 of kind, payload and context, to compare entries of different logs.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&[self.kind as u8]);
        hasher.update(&(self.data.len() as u64).to_be_bytes());
        hasher.update(&self.data);
        hasher.update(&self.context);
        hasher.finalize()
    }
}

/// What Raft must not forget between two starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: Term,
    /// The replica that this one voted for in that term.
    pub vote: Option<ReplicaId>,
    /// The newest index known committed. May lag behind the truth.
    pub commit: LogIndex,
}

/// A replica's place in the configuration of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The process that holds the replica.
    pub node: NodeId,
    /// Votes in the (incoming) configuration.
    pub voter: bool,
    /// Learner in the (incoming) configuration.
    pub learner: bool,
    /// Votes in the outgoing configuration of a joint change.
    pub outgoing_voter: bool,
    /// Had no vote in any configuration since the replica id was given out. Only such a replica may
    /// be created anew on an empty disk: one that voted may have promised what the disk held.
    /// `false` also where an earlier version did not record it.
    pub never_voted: bool,
}

impl Member {
    /// A voter of a simple configuration.
    #[must_use]
    pub const fn voter(node: NodeId) -> Self {
        Self { node, voter: true, learner: false, outgoing_voter: false, never_voted: false }
    }
    /// A learner of a simple configuration.
    #[must_use]
    pub const fn learner(node: NodeId) -> Self {
        Self { node, voter: false, learner: true, outgoing_voter: false, never_voted: true }
    }
}

/// Who belongs to a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Index of the entry that made this configuration; 0: the one the group was created with.
    pub config_index: LogIndex,
    /// Every replica, by its id.
    pub members: BTreeMap<ReplicaId, Member>,
    /// In a joint configuration: whether Raft leaves it automatically.
    pub auto_leave: bool,
    /// The largest replica id that was ever given out; `None`: that of the newest member. Replica
    /// ids are never used again, so a replica with an id up to this one that is no member was
    /// removed.
    pub newest_replica: Option<ReplicaId>,
    /// An addition or replacement that is under way.
    pub incoming: Option<Incoming>,
    /// The identity of this group: nodes that were given different first members did not create the
    /// same one. `None`: created by a version without it.
    pub genesis: Option<Genesis>,
    /// What the group asks of its leader; changed by entries of its log, as members are.
    pub requirement: Requirement,
}

/// A fingerprint of the members that a group was created with. Travels with its membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Genesis(NonZeroU64);

impl Genesis {
    /// From its number; `None` for zero.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }
    /// Its number, which is not zero.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// FNV-1a over the members. On disk and on the wire: must not change.
    fn of(members: &BTreeMap<ReplicaId, Member>) -> Option<Self> {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for (id, member) in members {
            let role = u64::from(member.voter) | u64::from(member.learner) << 1;
            for byte in [id.get(), member.node.get(), role].into_iter().flat_map(u64::to_be_bytes) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        Self::new(hash.max(1))
    }
}

/// A learner that is to become a voter when it has caught up: recorded in the group until it is
/// one, so that any leader continues it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    pub replica: ReplicaId,
    /// The member that goes when it comes.
    pub replaces: Option<ReplicaId>,
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (id, member)) in self.members.iter().enumerate() {
            let role = match (member.voter, member.learner, member.outgoing_voter) {
                (true, _, false) => "voter",
                (true, _, true) => "voter before and after",
                (_, true, false) => "learner",
                (_, true, true) => "voter that becomes a learner",
                _ => "voter that leaves",
            };
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}node {} ({role}, replica {id})", member.node)?;
        }
        Ok(())
    }
}

impl Membership {
    /// The configuration of a new group: voters with replica ids 1, 2, … in the order of their
    /// node ids, so that every node derives the same ids from the same set.
    #[must_use]
    pub fn initial(voters: impl IntoIterator<Item = NodeId>) -> Self {
        let nodes: BTreeSet<NodeId> = voters.into_iter().collect();
        let members = (1..)
            .zip(nodes)
            .filter_map(|(id, node)| Some((ReplicaId::new(id)?, Member::voter(node))))
            .collect();
        Self::founded_by(members)
    }

    /// The configuration of a new group of these members.
    #[must_use]
    pub fn founded_by(members: BTreeMap<ReplicaId, Member>) -> Self {
        let genesis = Genesis::of(&members);
        Self { members, genesis, ..Self::default() }
    }

    /// Whether a group with this genesis may be this one: it is, or one of the two does not say.
    #[must_use]
    pub fn may_be(&self, genesis: Option<Genesis>) -> bool {
        self.genesis.is_none() || genesis.is_none() || self.genesis == genesis
    }

    /// Whether a joint change is under way: it needs a majority of both configurations.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        self.members.values().any(|member| member.outgoing_voter)
    }

    /// The replicas with a vote in the (incoming) configuration.
    pub fn voters(&self) -> impl Iterator<Item = (ReplicaId, NodeId)> + '_ {
        let voters = self.members.iter().filter(|(_, member)| member.voter);
        voters.map(|(id, member)| (*id, member.node))
    }

    /// The replicas that only learn.
    pub fn learners(&self) -> impl Iterator<Item = (ReplicaId, NodeId)> + '_ {
        let learners = self.members.iter().filter(|(_, member)| member.learner);
        learners.map(|(id, member)| (*id, member.node))
    }

    /// The nodes whose replicas have no vote. One that has its vote in either half of a joint change is none of
    /// them: it decides there.
    #[must_use]
    pub fn nodes_without_vote(&self) -> BTreeSet<NodeId> {
        let members = self.members.values();
        let without = members.filter(|member| !member.voter && !member.outgoing_voter);
        without.map(|member| member.node).collect()
    }

    /// The id for the next replica that is added; `None` when all ids are used up.
    #[must_use]
    pub fn next_replica(&self) -> Option<ReplicaId> {
        ReplicaId::new(self.newest_known().checked_add(1)?)
    }

    /// Whether the replica belonged to the group once and does not any more.
    #[must_use]
    pub fn was_removed(&self, replica: ReplicaId) -> bool {
        replica.get() <= self.newest_known() && !self.members.contains_key(&replica)
    }

    /// Whether the replica is one that this membership does not know yet.
    #[must_use]
    pub fn is_yet_to_come(&self, replica: ReplicaId) -> bool {
        replica.get() > self.newest_known()
    }

    /// Whether the replica never had another member beside it, as far as this membership knows.
    #[must_use]
    pub fn was_always_alone(&self, replica: ReplicaId) -> bool {
        let is_first = replica.get() as u32 == 1;
        is_first && self.newest_known() == replica.get() && self.members.contains_key(&replica)
    }

    fn newest_known(&self) -> u64 {
        let member = self.members.last_key_value().map_or(0, |(id, _)| id.get());
        self.newest_replica.map_or(0, ReplicaId::get).max(member)
    }

    /// The node that holds `replica`.
    #[must_use]
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.members.get(&replica).map(|member| member.node)
    }

    /// The replica that `node` holds.
    #[must_use]
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.members.iter().find(|(_, member)| member.node == node).map(|(id, _)| *id)
    }
}

/// What a replica knows of itself apart from its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMeta {
    pub group: GroupId,
    /// Which replica of it this store holds.
    pub replica: ReplicaId,
    /// The configuration as of the newest applied change.
    pub membership: Membership,
    /// The snapshot that the state machine can be restored from, if one was made or received.
    pub snapshot: Option<LogPosition>,
    /// Free words about the group, for selectors.
    pub labels: BTreeMap<String, String>,
    /// Name of the kind of state machine.
    pub kind: String,
    /// The command that an operator has skipped at all members, and not all have done so: the replica is not
    /// opened meanwhile.
    pub skipping: Option<SkipNote>,
}

/// What a replica notes of a command that an operator has skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkipNote {
    /// Where the command stands, or stood.
    pub entry: LogPosition,
    /// Whether the replica has done its part: the command is not in its log, and the replica has entered a term
    /// in which no leader has it.
    pub entered: bool,
}

/// Why acknowledged entries, terms or votes of a replica may be missing from its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Doubt {
    /// The log ended in a write that could not be read and may have been acknowledged: power may
    /// have been lost since it was written.
    TornTail,
    /// The data directory is an older copy: peers know of a later start of the node.
    RolledBack,
    /// A replica of the group that could not be read was destroyed here before: it may have been this one.
    Unreadable,
}

/// Whether a replica's log has everything that the replica ever acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Certainty {
    /// It has, as far as the disk shows.
    #[default]
    Sure,
    /// It may not. Kept until a write settles it, also over restarts.
    InDoubt(Doubt),
    /// Whatever the log has, the state made from it was found to differ from that of a majority. Kept as
    /// long as the replica: no other write than its destruction takes it back.
    Differs,
}

impl Certainty {
    /// Whether something may be missing.
    #[must_use]
    pub const fn is_in_doubt(self) -> bool {
        matches!(self, Self::InDoubt(_))
    }

    /// The knowledge after `next` is added.
    #[must_use]
    pub(crate) const fn then(self, next: Self) -> Self {
        match self {
            Self::Differs => self,
            Self::Sure | Self::InDoubt(_) => next,
        }
    }
}

/// What a store knows of one replica when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersistedGroup {
    /// What the replica knows of itself.
    pub meta: GroupMeta,
    pub hard_state: HardState,
    /// The entry before the first one that is still there.
    pub base: LogPosition,
    /// The last entry; equals `base` when the log is empty.
    pub last: LogPosition,
    /// Whether the log may have lost something.
    pub certainty: Certainty,
}

/// What one group wants written. The parts take effect in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupWrite {
    /// The group; must be unique in a batch before merging.
    pub group: GroupId,
    /// Forget the replica and its log; keep a tombstone with its id. Nothing else may be set.
    pub destroy: Option<ReplicaId>,
    /// Replace what the replica knows of itself. The first write of a replica carries one.
    pub meta: Option<GroupMeta>,
    pub hard_state: Option<HardState>,
    /// Drop all entries: the log starts anew after this position (a snapshot was installed, or
    /// the replica is new).
    pub reset: Option<LogPosition>,
    /// Contiguous entries. They replace all entries at their indexes and behind them. The first
    /// index is at most one after the last entry, and above the base.
    pub entries: Vec<Entry>,
    /// Entries up to and including this one are not needed any more.
    pub compact: Option<LogPosition>,
    /// Replace the note about what the log may have lost.
    pub certainty: Option<Certainty>,
}

impl GroupWrite {
    /// An empty write of `group`.
    #[must_use]
    pub fn new(group: GroupId) -> Self {
        Self { group, ..Self::default() }
    }
}

/// What many groups want written, as one atomic and durable step. A group may occur more than
/// once (batches are merged by appending); its writes then take effect in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBatch {
    pub writes: Vec<GroupWrite>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_votes_in_a_half_of_a_joint_change_is_not_without_a_vote() {
        let member = |voter, outgoing_voter, learner| Member {
            voter,
            outgoing_voter,
            learner,
            ..Member::learner(NodeId::must(1))
        };
        let without = |member| {
            let members = BTreeMap::from([(ReplicaId::must(1), member)]);
            !Membership { members, ..Membership::default() }.nodes_without_vote().is_empty()
        };
        assert!(without(member(false, false, true)), "a learner");
        assert!(!without(member(true, false, false)), "a voter, or one that comes");
        assert!(!without(member(false, true, true)), "a voter that becomes a learner");
        assert!(!without(member(false, true, false)), "a voter that leaves");
    }
}
