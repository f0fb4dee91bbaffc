//! A Multi-Raft shard host.
//!
//! One process, a [`Host`], holds replicas of thousands of Raft groups. They share one log on
//! RocksDB, one batched transport, a few threads, and one place to listen to leadership.
//!
//! | where | what |
//! |---|---|
//! | [`host`] | [`Host`]: everything put together |
//! | [`transport`] | how hosts reach each other |
//! | [`driver`] | the catalog, the planner and drains, at work on a host |
//! | [`policy`] | their decisions, in a crate without I/O |
//! | [`groups`] | the Raft groups |
//! | [`storage`] | their log |
//!
//! Tables and queues are in the crate `shardhost-server`, their client in `shardhost-client`.
//!
//! The feature `rocksdb`, on by default, is the log on disk. Without it a host needs another
//! [`LogStore`](storage::LogStore), and nothing of C++ is compiled.

#![forbid(unsafe_code)]
#![warn(clippy::await_holding_lock, clippy::let_underscore_must_use, clippy::unwrap_used)]

/// The programs of the README, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod data_dir;
mod descriptors;
pub mod driver;
pub mod host;
pub mod transport;
pub mod wall_clock;

pub use descriptors::Descriptors;
pub use host::{Host, HostBuilder, HostConfig, Shutdown, StartError};
pub use shardhost_groups as groups;
pub use shardhost_groups::nodes::Advertisement;
pub use shardhost_groups::policy::{
    Acquisition, Candidate, Decision, LeadershipPolicy, Opinion, PolicyGuard, RejectReason, Unfit,
};
pub use shardhost_groups::{
    Applied, ApplyBatch, ApplyFault, Caretaker, Command, Group, GroupId, GroupSpec, GroupStatus,
    LogIndex, LogPosition, NodeId, Progress, ProposeError, QueryError, ReadError, ReadMode,
    ReplicaId, Requirement, RequirementMode, Role, SnapshotWriter, StateChecksum, StateMachine,
    Term, TransferError,
};
pub use shardhost_groups::{leadership, leadership::GroupSelector};
pub use shardhost_policy as policy;
pub use shardhost_proto as proto;
pub use shardhost_security as security;
pub use shardhost_storage as storage;
