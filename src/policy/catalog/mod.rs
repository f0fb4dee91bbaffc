//! The catalog: the intentions of the cluster. It is the state of the *system group*, a Raft group
//! like any other: which groups there are, their initial members, their requirements, the nodes,
//! which of them are being drained, rules for replicas, and the tokens of clients and operators.
//!
//! It holds intentions, not planner_inputs: hosts compare it with what they hold ([`reconcile`])
//! and do what is missing. While it cannot be reached, nothing is created, destroyed or planned,
//! and everything else continues. If it is lost, nothing else is lost: hosts leave alone what it
//! does not name.
//!
//! | where | what |
//! |---|---|
//! | [`Command`], [`Operation`] | what it can be asked to do |
//! | [`Refusal`], [`Done`] | what it answers |
//! | [`Catalog`] | the state and its rules |
//! | [`View`], [`Record`] | its content, for readers |
//! | [`Query`], [`Answer`] | how it is read from elsewhere: records, pages, changes |
//! | [`CatalogMachine`] | the state machine, with its snapshots |
//! | [`reconcile`] | what a host has to do |
//!
//! **Revisions.** Each change of a record takes the next number. A command may name the revision at
//! which it expects its record, and is refused if another command changed it. Hosts follow by
//! listing all records once and asking for the changes since then.
//!
//! **Names** of kinds, zones, capabilities and the like are 1 to [`MAX_NAME_BYTES`] of a-z, 0-9,
//! `.`, `_`, `-` and `/`. A capability that no node has may be required: a later binary may bring
//! it.
//!
//! **Memory.** About 230 bytes a group of three founders without labels, 260 with one required
//! capability, 350 with a pin, preferences and a word to spread by besides; everything else is
//! bounded by the numbers below and by [`MAX_CATALOG_BYTES`] on the whole.
//!
//! This module knows neither Raft nor networks, clocks or disks: it is given committed commands and
//! answers them.

mod command;
mod convert;
mod digest;
mod error;
mod feed;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzz;
mod machine;
mod name;
mod query;
mod reconcile;
mod record;
mod reply;
mod rights;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod view;

use shardhost_proto::version::ClusterVersion;
use shardhost_proto::{catalog as wire, log};
use shardhost_storage::GroupId;

pub use self::command::{Command, NewDrain, NewGroup, NewNode, NewToken, Operation, Stranding};
pub use self::error::{MAX_NAMED_GROUPS, Refusal, StrandedCause, StrandedGroup, Subject};
pub use self::feed::{Compacted, MAX_CHANGES};
pub use self::machine::CatalogMachine;
pub use self::name::{MAX_NAME_BYTES, Name};
pub use self::query::{Answer, Change, Content, Query};
pub use self::reconcile::{
    Action, Blocked, Finding, Held, HeldState, Local, MAX_FINDINGS, Oddity, Reason, Round, Step,
    reconcile, reconcile_only,
};
pub use self::record::{
    Advertisement, DrainFallback, DrainIntent, DrainState, EndedGroup, GroupRecord, GroupState,
    IntentId, Label, Members, NodeRecord, Place, Placement, PlannedMoves, PlannerMode, Record,
    RecordKey, RecordKind, ReplicaRule, ReplicaSettings, Revision, Selection, Settings, Token,
    TokenDigest, rule_of, rule_of_catalog,
};
pub use self::reply::{Done, Effect, Reply, decode_reply, encode_reply};
pub use self::rights::Sender;
pub use self::snapshot::{SNAPSHOT_FORMAT, SnapshotError, read_snapshot, write_snapshot};
pub use self::state::Catalog;
pub use self::view::View;
pub use shardhost_storage::requirement::MAX_CAPABILITIES;

/// Leading byte of commands, replies, queries and answers that this version writes.
const VERSION: u8 = 1;

/// From this version of the cluster on replicas are moved automatically.
pub const REPLICAS_MOVED: ClusterVersion = ClusterVersion::new(2);
/// From this version of the cluster on there are tokens.
pub const TOKENS_KNOWN: ClusterVersion = ClusterVersion::new(3);

/// From this version of the cluster on there are rules for replicas, and members without a vote are reported.
pub const RULES_KNOWN: ClusterVersion = ClusterVersion::new(3);

/// The store of a node that was announced and never seen.
pub const UNKNOWN_STORE: u64 = 0;

/// The group whose state the catalog is. It names no such group.
pub const SYSTEM_GROUP: GroupId = GroupId::new(0);

/// Groups at most.
pub const MAX_GROUPS: usize = 200_000;
/// Groups that are gone and remembered. Beyond, the one with the least id is forgotten.
pub const MAX_ENDED: usize = 200_000;
/// Nodes at most.
pub const MAX_NODES: usize = 1_024;
/// Removed nodes that are remembered. Beyond, none is removed.
pub const MAX_REMOVED_NODES: usize = 10_000;
/// Tokens at most.
pub const MAX_TOKENS: usize = 1_000;
/// Rules for replicas at most.
pub const MAX_RULES: usize = 64;
/// Zones that a rule names at most.
pub const MAX_RULED_ZONES: usize = 32;
/// Voters that a rule asks for at most.
pub const MAX_RULED_VOTERS: u32 = 7;
/// Learners that a rule asks for at most.
pub const MAX_RULED_LEARNERS: u32 = 8;
/// What the catalog holds altogether, as it counts it: about the bytes of memory.
pub const MAX_CATALOG_BYTES: usize = 128 * 1024 * 1024;
/// Members of a group at most.
pub const MAX_MEMBERS: usize = 16;
/// Lives that a group has before its last one at most.
pub const MAX_LIVES: u32 = u32::MAX - 1;
/// Labels of a group at most.
pub const MAX_LABELS: usize = 32;
/// Longest value of a label, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;
/// Places that a group prefers at most.
pub const MAX_PREFERENCES: usize = 32;
/// Longest address of a node, in bytes.
pub const MAX_ADDRESS_BYTES: usize = 256;
/// Longest text for people (an owner, a reason), in bytes.
pub const MAX_TEXT_BYTES: usize = 256;
/// Longest time from its command to the expiry of a drain: seven days.
pub const MAX_DRAIN_MS: u64 = 7 * 24 * 60 * 60 * 1_000;
/// Longest time that passes with one command: an hour.
pub const MAX_PASSED_MS: u64 = 60 * 60 * 1_000;
/// Shortest time after which a node that does not answer is replaced: a second.
pub const MIN_REPLACE_AFTER_MS: u64 = 1_000;
/// Longest time after which it is: seven days.
pub const MAX_REPLACE_AFTER_MS: u64 = 7 * 24 * 60 * 60 * 1_000;
/// Largest time a command may carry: the end of the year 9999, in milliseconds.
pub const MAX_TIME_MS: u64 = 253_402_300_799_999;
/// Longest command, in bytes. Nothing within the other bounds comes near it.
pub const MAX_COMMAND_BYTES: usize = 64 * 1024;
/// Records that a page has when its query names no limit.
pub const DEFAULT_PAGE_LIMIT: u32 = 1_000;
/// Records that a page has at most.
pub const MAX_PAGE_LIMIT: u32 = 10_000;
/// A page ends, with `more`, before the record that would make it larger than this; never before
/// the first.
pub const MAX_PAGE_BYTES: usize = 2 * 1024 * 1024;
