//! Who should lead what and which nodes hold replicas, over the whole cluster: decisions without I/O.
//!
//! Who *may* lead is decided by the groups themselves ([`shardhost_groups::policy`]), and holds without
//! anything in this crate.
//!
//! | where | what |
//! |---|---|
//! | [`planner`] | from a snapshot of the cluster to the moves that improve it |
//! | [`executor`] | which moves are ordered when, pass after pass |
//! | [`allocator`] | which nodes hold replicas: lost ones are replaced, all are spread |
//! | [`catalog`] | what the cluster intends, as the state machine of the system group |
//! | [`inputs`] | from reports and the catalog to the planner's snapshot |
//!
//! Nothing here is asked before a write or a read. A plan is a proposal: at each transfer the current leader
//! decides, and the target.
//!
//! This crate has no threads, no sockets, no disk and no clock: time is an argument.

#![forbid(unsafe_code)]
#![warn(clippy::await_holding_lock, clippy::let_underscore_must_use, clippy::unwrap_used)]

pub mod allocator;
pub mod catalog;
pub mod executor;
pub mod inputs;
pub mod planner;
#[cfg(test)]
mod simulation;
mod utc;
