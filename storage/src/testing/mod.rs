//! What tests of this crate, and of those above it, need of its inside.
//!
//! | where | what |
//! |---|---|
//! | [`fixtures`] | short words for what tests of stores write and read |
//! | [`fuzz`] | what the fuzzing of decoders works with |
//! | [`process`] | tests that need a process of their own |
//!
//! Only with feature `testing`. The suites for stores are in the crate `shardhost-testing`.

pub mod fixtures;
pub mod fuzz;
pub mod process;
