//! The Raft log shared by all groups of a host, and the files of their snapshots.
//!
//! One [`LogStore`] holds the log, the hard state and the membership of every replica of a
//! process. A [`LogBatch`] carries what many groups want written; it becomes durable as a whole
//! with one sync, or not at all.
//!
//! | where | what |
//! |---|---|
//! | [`ids`] | the numbers that name nodes, groups, replicas, terms and log positions |
//! | [`types`] | stored data: entries, hard state, membership, batches |
//! | [`requirement`] | what a group asks of its leader |
//! | [`store`] | the [`LogStore`] seam and its errors; [`LogLayer`] is a store on top of another |
//! | [`snapshot`] | the [`SnapshotStore`] seam and its errors |
//! | [`memory`] | both seams in memory, with crashes and faults on command |
//! | [`rocks`] | the store for production, on RocksDB |
//! | [`files`] | snapshots as files in a directory |
//! | [`rate`] | a rate of bytes that many share |
//! | [`convert`] | between the plain types and the messages on disk and wire |
//! | [`run`] | how a run of entries becomes one value |
//! | `testing` | suites for stores of other makers, with feature `testing` |
//!
//! This crate knows neither Raft nor networks: it keeps what it is given and gives it back.

#![forbid(unsafe_code)]
#![warn(clippy::await_holding_lock, clippy::let_underscore_must_use, clippy::unwrap_used)]

pub mod convert;
mod directory;
mod draft;
pub mod files;
mod frame;
mod layer;
pub mod memory;
pub mod rate;
pub mod requirement;
#[cfg(feature = "rocksdb")]
pub mod rocks;
pub mod run;
pub mod snapshot;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod types;

pub use directory::{create_directory, replace_file};
pub use files::{SnapshotFiles, SnapshotFilesOptions};
pub use layer::LogLayer;
pub use memory::{MemorySnapshots, MemoryStore, SnapshotFault, StoreFault};
pub use rate::ByteRate;
pub use requirement::{CapabilityError, Requirement, RequirementMode};
#[cfg(feature = "rocksdb")]
pub use rocks::{BootId, Identity, RocksOptions, RocksStore};
pub use shardhost_proto::ids::{self, GroupId, LogIndex, LogPosition, NodeId, ReplicaId, Term};
pub use snapshot::{
    SnapshotAnnouncement, SnapshotError, SnapshotRead, SnapshotReceive, SnapshotStore,
    SnapshotWrite,
};
pub use store::{DatabaseStats, LogError, LogStore, StoreStats};
pub use types::{
    Certainty, Doubt, Entry, EntryKind, Genesis, GroupMeta, GroupWrite, HardState, Incoming,
    LogBatch, Member, Membership, PersistedGroup, SkipNote,
};
