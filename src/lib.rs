//! A Multi-Raft shard host.
//!
//! One process, a [`Host`], holds replicas of thousands of Raft groups. They share one log on
//! RocksDB, one batched transport, a few threads, and one place to listen to leadership.
//!
//! | where | what |
//! |---|---|
//! | [`host`] | [`Host`]: everything put together |
//! | [`server`] | a host of tables and queues, from a configuration file |
//! | [`shards`] | the two kinds of shard: tables and partitioned queues |
//! | [`service`], [`client`] | how clients reach them over gRPC |
//! | [`policy`] | who should lead what: the planner, and what a cluster intends |
//! | [`transport`] | how hosts reach each other |
//! | [`groups`] | the Raft groups themselves, a crate of its own |
//! | [`storage`] | their log, a crate of its own |

#![forbid(unsafe_code)]
#![warn(
    missing_docs,
    clippy::await_holding_lock,
    clippy::let_underscore_must_use,
    clippy::unwrap_used
)]

/// The programs of the README, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod client;
mod data_dir;
mod descriptors;
mod disk_space;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzz;
pub mod host;
pub mod policy;
pub mod server;
pub mod service;
pub mod shards;
pub mod transport;

pub use descriptors::Descriptors;
pub use host::{Host, HostBuilder, HostConfig, Shutdown, StartError};
pub use shardhost_groups as groups;
pub use shardhost_groups::policy::{
    Acquisition, Candidate, Decision, LeadershipPolicy, Opinion, PolicyGuard, RejectReason, Unfit,
};
#[cfg(feature = "testing")]
pub use shardhost_groups::testing;
pub use shardhost_groups::worker::Advert;
pub use shardhost_groups::{
    Applied, ApplyBatch, ApplyFault, Command, Group, GroupId, GroupSpec, GroupStatus, LogIndex,
    LogPosition, NodeId, ProposeError, QueryError, ReadError, ReadMode, ReplicaId, Role,
    SnapshotWriter, StateChecksum, StateMachine, Term, TransferError,
};
pub use shardhost_groups::{Caretaker, Requirement, RequirementMode};
pub use shardhost_groups::{leadership, leadership::GroupSelector};
pub use shardhost_proto as proto;
pub use shardhost_storage as storage;
