//! For those who build on this crate: what tests a state machine, a log store, a transport, or
//! what clients saw.
//!
//! | where | what |
//! |---|---|
//! | [`alone`] | a host without others, a group without state |
//! | [`conformance`] | what a group promises, as a suite for any way of making hosts |
//! | [`fuzz`] | what a message from outside goes through before a replica acts on it |
//! | [`linearizability`] | whether a history of operations could have come one at a time |
//! | [`network`] | a network inside one process, with trouble on command |
//! | [`simulation`] | whole clusters in one thread, from a seed |
//! | [`state_machine`] | whether a state machine keeps its side |
//!
//! Only with feature `testing`. Nothing of the library knows this module.

pub mod alone;
pub mod conformance;
pub mod fuzz;
pub mod linearizability;
pub mod network;
pub mod simulation;
pub mod state_machine;
