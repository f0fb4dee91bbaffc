//! Many Raft groups in one process.
//!
//! | where | what |
//! |---|---|
//! | [`core`] | one replica of one group: raft and everything decided around it |
//! | [`worker`] | the groups of one worker thread: inputs in, one [`core::Effects`] out |
//! | [`apply`] | calls of a state machine |
//! | [`validate`] | what a message must be before raft sees it |
//! | [`policy`] | who may lead: the question, the answers, capabilities |
//! | [`leadership`] | edges, callbacks, streams, tasks |
//! | [`machine`], [`transport`] | what users and the host implement |
//! | [`runtime`] | the threads around it: workers, log writer, apply pool; [`Group`]: propose, read, transfer, look |
//!
//! This crate knows no network, and no plan for who leads what. Everything up to `runtime` has no
//! clock, thread, lock or channel, so a whole cluster of it runs in one thread from a seed.

#![forbid(unsafe_code)]
#![warn(clippy::await_holding_lock, clippy::let_underscore_must_use, clippy::unwrap_used)]

pub mod activity;
pub mod apply;
pub mod checksum;
pub mod clock;
pub mod completion;
pub mod config;
mod convert;
pub mod core;
pub mod error;
#[doc(hidden)]
#[cfg(feature = "testing")]
pub mod known_bugs;
#[cfg(not(feature = "testing"))]
mod known_bugs;
pub mod latency;
pub mod leadership;
pub(crate) mod lives;
mod logging;
pub mod machine;
pub mod membership;
pub mod nodes;
pub mod panics;
pub mod policy;
mod replica_log;
pub mod runtime;
pub mod selector;
mod spread;
pub mod status;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
pub mod validate;
pub mod worker;

pub use completion::{Applied, ProposalSink, ProposeOutcome};
pub use config::GroupsConfig;
pub use core::ReadBarrier;
pub use error::{
    GroupFault, HostFault, LeaderHint, OpenGroupError, ProposalRejection, ProposeError, QueryError,
    ReadError, TransferError, UnknownCause,
};
pub use machine::{
    ApplyBatch, ApplyFault, Command, ConsistencyView, Progress, SnapshotWriter, StateChecksum,
    StateMachine,
};
pub use membership::{CaughtUp, MembershipChange, MembershipError};
pub use policy::{Caretaker, LeadershipPolicy, RejectReason};
pub use runtime::{Group, GroupSpec, Groups, GroupsBuilder, Propose, ReadMode, Transferred};
pub use shardhost_storage as storage;
pub use shardhost_storage::{GroupId, LogIndex, LogPosition, Membership, NodeId, ReplicaId, Term};
pub use shardhost_storage::{Requirement, RequirementMode};
pub use status::{GroupStatus, PeerProgress, Role};
