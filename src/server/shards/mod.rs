//! The two kinds of shard of a server: tables and queues.
//!
//! Both are state machines of a Raft group, and both keep their state in the one [`StateDb`] of
//! the host, so that a group costs no file, no thread and no memtable of its own.
//!
//! | where | what |
//! |---|---|
//! | [`state_db`] | the state of all groups of a host in one RocksDB, without a log of its own |
//! | [`table`] | put, delete, compare-and-set, get and scan over byte keys |
//! | [`queue`] | messages in order per partition key: send, receive, ack, peek |
//! | [`session`] | resent writes take effect once |
//! | [`time`] | what time it is for a shard |
//!
//! What is here knows neither Raft nor networks: it is given committed commands and answers them.

mod codec;
#[cfg(test)]
mod compared;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzz;
pub mod queue;
pub mod session;
pub mod state_db;
pub mod table;
#[cfg(test)]
mod testing;
pub mod time;

pub use codec::DecodeError;
pub use queue::QueueMachine;
pub(crate) use state_db::files_are_free;
pub use state_db::{Salvaged, StateDb, StateDbError, StateDbOptions, StateHealth};
pub use table::TableMachine;
pub use time::ShardTimes;
