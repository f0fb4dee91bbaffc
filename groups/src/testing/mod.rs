//! What tests of this crate, and of those above it, need of its inside.
//!
//! | where | what |
//! |---|---|
//! | [`alone`] | a host without others, a group without state |
//! | [`fuzz`] | what a message from outside goes through before a replica acts on it |
//!
//! Only with feature `testing`. Nothing of the library knows this module. Suites and the simulation are the
//! crate `shardhost-testing`.

pub mod alone;
pub mod fuzz;

pub use crate::core::mix;
pub use crate::panics::panic_text;
