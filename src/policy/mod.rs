//! Who should lead what, over the whole cluster. Who *may* lead is decided below, in
//! [`crate::groups::policy`] and around it, and holds without anything that stands here.
//!
//! | where | what |
//! |---|---|
//! | [`planner`] | from a snapshot of the cluster to the moves that make it better: pure |
//! | [`executor`] | carries plans out, round after round: pure |
//! | [`catalog`] | what the cluster intends, as the state machine of a system group: pure |
//! | [`view`] | what one host knows of the cluster, as the planner wants it |
//! | [`drain`] | emptying a node of its leaderships |
//!
//! Nothing here is asked before a write or a read. A plan is a proposal: at the moment of each
//! transfer the leader that hands over decides, and the target.

pub mod catalog;
pub mod drain;
pub mod drains;
pub mod executor;
pub mod planner;
pub mod system;
mod utc;
pub mod view;

pub use drain::{Drain, DrainOptions, DrainProgress, DrainState, Fallback};
