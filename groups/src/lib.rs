//! Many Raft groups in one process.
pub mod error;
pub mod machine;
pub mod status;
pub mod transport;
pub mod waiter;
pub use shardhost_storage as storage;
