//! For those who build on shardhost: suites for a state machine, a log store, a snapshot store or a
//! transport, and what tests of a cluster need.
//!
//! | where | what |
//! |---|---|
//! | [`conformance`] | what a group promises, as a suite for any way of making hosts |
//! | [`state_machine`] | whether a state machine keeps its contract |
//! | [`log_store`] | the rules of [`shardhost_storage::LogStore`] |
//! | [`snapshot_store`] | the rules of [`shardhost_storage::SnapshotStore`] |
//! | [`linearizability`] | whether a history of operations could have happened one at a time |
//! | [`network`] | a network inside one process, with faults on command |
//! | [`simulation`] | whole clusters in one thread, from a seed |
//!
//! The suites of stores want a *subject*: a new store, and a way to let its host die and start again. They
//! cannot know what a crash does to the bytes of a particular store; tests of that (a torn tail, damage, a
//! full disk) are its maker's.

#![forbid(unsafe_code)]
#![warn(clippy::await_holding_lock, clippy::let_underscore_must_use)]

pub mod conformance;
pub mod linearizability;
pub mod log_store;
pub mod network;
pub mod simulation;
pub mod snapshot_store;
pub mod state_machine;

/// Names the test that panics, for suites that run as one.
struct Running(&'static str);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the rule that does not hold: {}", self.0);
        }
    }
}
