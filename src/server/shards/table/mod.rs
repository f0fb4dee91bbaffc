//! A table shard: byte keys and values, changed by commands and read by queries.
//!
//! | where | what |
//! |---|---|
//! | [`TableCommand`] | put, delete, compare-and-set: what stands in the Raft log |
//! | [`TableResponse`] | what a command answers |
//! | [`TableQuery`], [`TableAnswer`] | get and scan: what a group's `query` takes and gives |
//! | [`TableMachine`] | the state machine |

mod batch;
mod command;
mod machine;
mod query;
#[cfg(test)]
mod tests;

pub use self::command::{TableCommand, TableResponse};
pub use self::machine::TableMachine;
pub use self::query::{TableAnswer, TableQuery};

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 4 * 1024;
/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// A scan ends, with `more`, before the pair that would make its answer larger than this; never
/// before the first.
pub const MAX_SCAN_BYTES: usize = 2 * 1024 * 1024;
/// Deleted keys between two pairs that a scan passes, until they are compacted away. With more it ends
/// there, and is refused if it found nothing before.
pub const MAX_DELETED_PASSED: u64 = 2_000_000;
