//! Why the catalog does not do what it is asked: one closed list, for machine, hosts and tools.
//!
//! A refused command changed nothing. Each refusal carries what was given and what it met, in
//! bounded room, and has a name that never changes.

use std::fmt;
use std::sync::Arc;

use shardhost_storage::{GroupId, LogIndex, NodeId};

use super::MAX_RULED_VOTERS;
use super::name::MAX_NAME_BYTES;
use super::record::{DrainState, IntentId, Place, RecordKey, Revision};
use shardhost_proto::shard_map::ShardMap;
use shardhost_proto::version::ClusterVersion;

/// Groups that a refusal names at most; it also has their count.
pub const MAX_NAMED_GROUPS: usize = 10;

macro_rules! subjects {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $words:literal;)*) => {
        /// What a name, a number or a list is of.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Subject {
            $($(#[$doc])* $name = $number,)*
        }

        impl Subject {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            const fn words(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)*
                }
            }
        }
    };
}

subjects! {
    /// A kind of state machine.
    Kind = 1, "kind";
    Zone = 2, "zone";
    /// A capability, or a list of them.
    Capability = 3, "capability";
    /// The key of a label, or the labels.
    Label = 4, "label";
    /// A word to spread by.
    Spread = 5, "spread word";
    /// The value of a label.
    LabelValue = 6, "label value's length";
    /// The address of a node.
    Address = 7, "address's length";
    /// Who asks for a drain.
    Owner = 8, "owner's length";
    /// Why something is asked for.
    Reason = 9, "reason's length";
    /// The nodes that found a group.
    Founder = 10, "founding member";
    /// The nodes that belong to a group.
    Member = 11, "member";
    /// The places that a group prefers.
    Preference = 12, "preferred place";
    /// The groups of the catalog.
    Groups = 13, "number of groups";
    /// The nodes of the catalog.
    Nodes = 14, "number of nodes";
    /// What the catalog holds altogether.
    CatalogBytes = 15, "catalog's size in bytes";
    /// The time of a command.
    Now = 16, "time of the command";
    /// When a drain is to be done.
    Deadline = 17, "deadline";
    /// When a drain or a token expires.
    Expiry = 18, "expiry";
    /// Records that a query asks for.
    Page = 19, "limit of a page";
    CommandBytes = 20, "command's length";
    /// Lives that a group had before.
    Lives = 21, "number of earlier lives";
    /// Nodes that were removed.
    RemovedNodes = 22, "number of removed nodes";
    /// The time after which a node that does not answer is replaced.
    ReplaceAfter = 23, "time after which a node is replaced";
    /// The name of a token.
    Token = 24, "token";
    /// What a token allows.
    Grants = 25, "grant";
    /// The tokens of the catalog.
    Tokens = 26, "number of tokens";
    /// The name of a rule.
    Rule = 27, "rule";
    /// The rules of the catalog.
    Rules = 28, "number of rules";
    /// Replicas without a vote that a rule asks for.
    Learners = 29, "number of learners";
}

impl Subject {
    /// The number that it travels as.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }
    /// The subject of a number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|subject| subject.number() == number)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// Why no node would be eligible to lead a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrandedCause {
    /// None of the other nodes that take leaders is a member.
    NoMember,
    /// The group insists on capabilities that all of them are known to lack.
    NotCapable,
    /// Those that could lead it are being drained.
    Draining,
    /// Those that could lead it do not answer. Only hosts know that.
    NotLive,
}

impl StrandedCause {
    /// Why none of these other members that take leaders could lead a group, as far as that does
    /// not depend on who answers; `None`: one could.
    pub(crate) fn of<T>(
        others: &[T],
        capable: impl Fn(&T) -> bool,
        draining: impl Fn(&T) -> bool,
    ) -> Option<Self> {
        if others.is_empty() {
            return Some(Self::NoMember);
        }
        let mut able = others.iter().filter(|other| capable(other)).peekable();
        if able.peek().is_none() {
            return Some(Self::NotCapable);
        }
        able.all(draining).then_some(Self::Draining)
    }
}

/// A group that a drain would leave without an eligible leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrandedGroup {
    pub group: GroupId,
    pub cause: StrandedCause,
}

/// Why a command was refused. It changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The record was changed meanwhile. Read it, and decide again.
    #[error("{record} is at revision {actual}, {expected} is expected; read it and try again")]
    WrongRevision {
        record: RecordKey,
        /// The revision that the command expects.
        expected: Revision,
        /// The present one; 0: there is none.
        actual: Revision,
    },
    /// There is no such group.
    #[error("the catalog has no group {group}; create it first")]
    UnknownGroup { group: GroupId },
    /// The number belongs to the cluster: the group is neither created nor destroyed. Take another.
    #[error("group {group} is the catalog's own; take another number")]
    ReservedGroup { group: GroupId },
    /// Another generation of the group is there than was meant. Look at it, and decide anew.
    #[error("generation {given} of group {group} is meant, generation {actual} is there")]
    OtherGeneration {
        group: GroupId,
        /// The generation that was meant.
        given: u32,
        /// The one that is there.
        actual: u32,
    },
    /// There is such a group. Take another id, or destroy that one first.
    #[error("group {group} exists since revision {founded}; take another id or destroy it first")]
    GroupExists { group: GroupId, founded: Revision },
    /// That life of the group is over. Leave the number out, and the next one is taken.
    #[error("generation {given} of group {group} was destroyed; the next one is {next}")]
    LifeOver {
        group: GroupId,
        /// The incarnation that was asked for.
        given: u32,
        next: u32,
    },
    /// The group is being destroyed. Wait until it is gone, and create it again if it is needed.
    #[error(
        "group {group} is being destroyed since revision {since}, until every node that held a replica has \
         confirmed its end; one that is lost for good does so when a node of its number starts on an empty directory"
    )]
    Destroying { group: GroupId, since: Revision },
    /// The group was not ordered to be destroyed. Destroy it first.
    #[error("group {group} is active since revision {founded}; destroy it first")]
    NotDestroying { group: GroupId, founded: Revision },
    /// There is no such node. Register it first.
    #[error("the catalog has no node {node}; register it first")]
    UnknownNode { node: NodeId },
    /// The number was that of a node that was removed, and is never given again. Join without a number.
    #[error("node {node} was removed from the cluster for good; take another number")]
    NodeRemoved { node: NodeId },
    /// A node is not prepared for the version of the cluster. Have it prepared, or remove it.
    #[error(
        "node {node} is not prepared for version {version} of the cluster; prepare it, or remove it"
    )]
    NotPrepared { node: NodeId, version: ClusterVersion },
    /// The cluster is at an earlier version than this needs. Raise it.
    #[error(
        "that needs version {needed} of the cluster, which is at version {present}; `shardhost cluster upgrade` \
         raises it"
    )]
    NeedsVersion { needed: ClusterVersion, present: ClusterVersion },
    /// Of a version of the cluster that this program does not know. Start a later program.
    #[error(
        "version {given} of the cluster is not known here, which knows up to {}; start a later program",
        ClusterVersion::NEWEST
    )]
    VersionNotKnown {
        /// The version that was named.
        given: ClusterVersion,
    },
    /// No node is in the zone. Register one first, or correct the name.
    #[error("no node is in zone {zone}; register one first or correct the name")]
    UnknownZone { zone: String },
    /// Another node is reached there.
    #[error("the address {address} is that of node {node}; give each node its own")]
    AddressTaken { address: String, node: NodeId },
    /// The node's process is an earlier one. Its advertisement came late and is ignored.
    #[error("the advertisement of node {node} is of process {given}, process {actual} is known")]
    StaleAdvertisement {
        node: NodeId,
        /// The incarnation in the advertisement.
        given: u64,
        /// The incarnation that is known.
        actual: u64,
    },
    /// Groups have members there. Move them first.
    #[error("node {node} is a member of {}: {}; move them first", groups_in_words(*total), list(groups, *total))]
    NodeInUse { node: NodeId, groups: Vec<GroupId>, total: usize },
    /// Only a member can lead. Add the node to the group first.
    #[error("node {node} is no member of group {group}, those are {}", list(members, members.len()))]
    NotMember {
        group: GroupId,
        /// The node that it is to be pinned to.
        node: NodeId,
        /// The members, as last reported.
        members: Vec<NodeId>,
    },
    /// Pin and preference want different things. Name the pinned node or its zone first.
    #[error("group {group} is to be pinned to node {pin} and to prefer {first}; say one thing")]
    PinContradicts { group: GroupId, pin: NodeId, first: Place },
    /// The reported members are older than the recorded ones, or contradict them.
    #[error("members of group {group} as of index {given}; those of index {actual} are known")]
    StaleMembers {
        group: GroupId,
        /// The reported index.
        given: LogIndex,
        /// The index that is known.
        actual: LogIndex,
    },
    /// Not a name.
    #[error(
        "{given:?} names no {subject}: 1 to {MAX_NAME_BYTES} of a-z, 0-9, '.', '_', '-' and '/'"
    )]
    BadName {
        /// What it is to be a name of.
        subject: Subject,
        /// As far as it is worth showing.
        given: String,
    },
    /// Too large, too long or too many.
    #[error("the {subject} is {actual}, at most {limit} are possible")]
    OverLimit { subject: Subject, actual: u64, limit: u64 },
    /// At least one is needed.
    #[error("there is no {subject}; at least 1 is needed")]
    Missing { subject: Subject },
    /// Named twice.
    #[error("the {subject} {given} is named twice; name it once")]
    Repeated { subject: Subject, given: String },
    /// A time that makes no sense at the time of the command.
    #[error("the {subject} is {given} ms, it must be from {from} to {to} ms")]
    BadTime { subject: Subject, given: u64, from: u64, to: u64 },
    /// The node is being drained. Its owner ends that, or it expires.
    #[error("node {node} is being drained for {owner} (intent {intent}); end that drain first")]
    AlreadyDraining { node: NodeId, intent: IntentId, owner: String },
    /// The node is not being drained. It was ended, or has expired.
    #[error("node {node} is not being drained, so intent {intent} is over")]
    NotDraining {
        node: NodeId,
        /// The drain that was meant.
        intent: IntentId,
    },
    /// The node is being drained for another owner.
    #[error("the drain of node {node} is intent {actual} of {owner}, not {given}")]
    WrongIntent {
        node: NodeId,
        /// The drain that was meant.
        given: IntentId,
        actual: IntentId,
        owner: String,
    },
    /// The deadline of the drain has passed. End it, and begin another one.
    #[error("the drain of node {node} is over: its deadline has passed and it is {state}")]
    DrainOver { node: NodeId, state: DrainState },
    /// The cluster has another map of shards. Put the number of shards back.
    #[error("the cluster has {cluster}; put the number of shards back")]
    OtherShardMap { cluster: Arc<ShardMap> },
    /// Groups would be left without an eligible leader. Give them members elsewhere, or accept it.
    #[error(
        "without node {node} no eligible voter is left for {}: {}; give them capable members \
         elsewhere, or accept it",
        groups_in_words(*total),
        list(groups, *total)
    )]
    Stranded { node: NodeId, groups: Vec<StrandedGroup>, total: usize },
    /// There is no such token. Look at the list, and correct the id.
    #[error("the catalog has no token {token:016x}; it was removed, or never created")]
    UnknownToken { token: u64 },
    /// Another token has this id. Choose another id at random.
    #[error(
        "token {token:016x} exists since revision {made} with other content; choose another id"
    )]
    TokenExists {
        token: u64,
        /// The revision that created it.
        made: Revision,
    },
    /// There is no such rule. Look at the list, and correct the name.
    #[error("there is no rule {rule}; `shardhost replicas rule list` shows those that are")]
    UnknownRule { rule: String },
    /// Another rule is for the same groups. Change that one, or remove it first.
    #[error("rule {rule} is for the same groups; change that one, or remove it first")]
    SameGroups {
        /// The name of the other one.
        rule: String,
    },
    /// A number of voters that no rule asks for. Take an odd one.
    #[error(
        "a rule cannot ask for {given} voters: an odd number from 1 to {MAX_RULED_VOTERS} is needed, since one more \
         than an odd number of voters outlives no further loss"
    )]
    BadVoters { given: u32 },
    /// Written by another version. Update this host, or wait until all hosts are.
    #[error("written by version {given}; this host knows version {known}")]
    UnknownVersion {
        /// The version of the bytes.
        given: u8,
        /// The version that is known here.
        known: u8,
    },
    /// The bytes are no command, or one that this version does not know.
    #[error("not a command that this version knows: {detail}")]
    Malformed { detail: String },
    /// Refused by a version that knows more reasons than this one.
    #[error("{name}: {message}")]
    Foreign {
        /// The name of the refusal.
        name: String,
        message: String,
    },
}

impl Refusal {
    /// Its name. The same for ever, and in every version.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::WrongRevision { .. } => "WRONG_REVISION",
            Self::UnknownGroup { .. } => "UNKNOWN_GROUP",
            Self::ReservedGroup { .. } => "RESERVED_GROUP",
            Self::OtherGeneration { .. } => "OTHER_GENERATION",
            Self::GroupExists { .. } => "GROUP_EXISTS",
            Self::LifeOver { .. } => "LIFE_OVER",
            Self::Destroying { .. } => "DESTROYING",
            Self::NotDestroying { .. } => "NOT_DESTROYING",
            Self::UnknownNode { .. } => "UNKNOWN_NODE",
            Self::NodeRemoved { .. } => "NODE_REMOVED",
            Self::NotPrepared { .. } => "NOT_PREPARED",
            Self::NeedsVersion { .. } => "NEEDS_VERSION",
            Self::VersionNotKnown { .. } => "VERSION_NOT_KNOWN",
            Self::UnknownZone { .. } => "UNKNOWN_ZONE",
            Self::AddressTaken { .. } => "ADDRESS_TAKEN",
            Self::StaleAdvertisement { .. } => "STALE_ADVERTISEMENT",
            Self::NodeInUse { .. } => "NODE_IN_USE",
            Self::NotMember { .. } => "NOT_MEMBER",
            Self::PinContradicts { .. } => "PIN_CONTRADICTS",
            Self::StaleMembers { .. } => "STALE_MEMBERS",
            Self::BadName { .. } => "BAD_NAME",
            Self::OverLimit { .. } => "OVER_LIMIT",
            Self::Missing { .. } => "MISSING",
            Self::Repeated { .. } => "REPEATED",
            Self::BadTime { .. } => "BAD_TIME",
            Self::AlreadyDraining { .. } => "ALREADY_DRAINING",
            Self::NotDraining { .. } => "NOT_DRAINING",
            Self::WrongIntent { .. } => "WRONG_INTENT",
            Self::DrainOver { .. } => "DRAIN_OVER",
            Self::OtherShardMap { .. } => "OTHER_SHARD_MAP",
            Self::Stranded { .. } => "STRANDED",
            Self::UnknownToken { .. } => "UNKNOWN_TOKEN",
            Self::TokenExists { .. } => "TOKEN_EXISTS",
            Self::UnknownRule { .. } => "UNKNOWN_RULE",
            Self::SameGroups { .. } => "SAME_GROUPS",
            Self::BadVoters { .. } => "BAD_VOTERS",
            Self::UnknownVersion { .. } => "UNKNOWN_VERSION",
            Self::Malformed { .. } => "MALFORMED",
            Self::Foreign { name, .. } => name,
        }
    }
}

impl fmt::Display for DrainState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Partial => "partly drained",
            Self::GivenUp => "given up",
        })
    }
}

impl fmt::Display for StrandedGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.cause {
            StrandedCause::NoMember => "no other member",
            StrandedCause::NotCapable => "no other is capable",
            StrandedCause::Draining => "the others that could are being drained",
            StrandedCause::NotLive => "the others that could do not answer",
        };
        write!(f, "{} ({why})", self.group)
    }
}

fn groups_in_words(count: usize) -> String {
    if count == 1 { "1 group".to_owned() } else { format!("{count} groups") }
}

fn list<T: fmt::Display>(shown: &[T], total: usize) -> String {
    let words: Vec<String> = shown.iter().map(ToString::to_string).collect();
    let more = if total > shown.len() { ", …" } else { "" };
    format!("{}{more}", words.join(", "))
}
