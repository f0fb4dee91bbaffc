//! A queue shard: messages in order per partition key, received with a receipt and acked.
//!
//! **Promises.** Messages of one partition key are delivered in the order they were sent: while one
//! is in flight (received, not acked, its visibility not ended) no later one of that key is
//! delivered; one receive may take several in a row. Delivery is at least once: a message that is
//! not acked within its visibility is delivered again, with the next attempt number and another
//! receipt. A receipt is valid until its message is acked or delivered again; after that it is
//! *stale*, acks nothing and is counted. Across keys the oldest goes first.
//!
//! **De-duplication.** A message sent with the id of an earlier one is not stored again, and its
//! sender gets the sequence of the earlier one, as long as that id is in the window: sent within
//! [`DEDUP_WINDOW_MS`] and among the last [`DEDUP_WINDOW_IDS`] ids of the shard.
//!
//! **Time** is part of the commands, for a state machine has no clock; the shard's time is the
//! largest it has seen and never runs backwards. The proposer gets it from [`ShardTimes`].
//!
//! [`ShardTimes`]: crate::shards::ShardTimes
//!
//! **Memory.** An index of what is in the shard stands in memory once it is used: about 80 bytes
//! a message and 200 bytes and its key a partition key, whatever the bodies; about 100 bytes
//! and the id for an id in the window. [`MAX_MESSAGES`] bounds it.
//!
//! | where | what |
//! |---|---|
//! | [`QueueCommand`] | send, receive, ack: what stands in the Raft log |
//! | [`QueueResponse`] | what a command answers |
//! | [`QueueQuery`] | peek, and whether a receive would take something: what a group's `query` takes; it answers `Deliveries` |
//! | [`QueueMachine`] | the state machine |

mod command;
mod dedup;
mod index;
mod machine;
mod query;
mod receipt;
mod record;
mod response;
mod store;
#[cfg(test)]
mod tests;

pub use self::command::{QueueCommand, QueueOperation, Receipts};
pub use self::machine::QueueMachine;
pub use self::query::{QueueQuery, Receivable};
pub use self::receipt::{MAX_ATTEMPT, MAX_SEQUENCE, Receipt};
pub use self::response::QueueResponse;
pub use shardhost_proto::limits::MAX_RECEIVE;

/// Longest partition key, in bytes.
pub const MAX_PARTITION_KEY_BYTES: usize = 1024;
/// Longest body of a message, in bytes.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// Longest de-duplication id, in bytes. It counts for one partition key.
pub const MAX_DEDUP_ID_BYTES: usize = 256;
/// Receipts that one ack names at most.
pub const MAX_ACK: usize = 10_000;
/// Longest visibility: twelve hours.
pub const MAX_VISIBILITY_MS: u64 = 12 * 60 * 60 * 1_000;
/// Messages a peek returns when it names no limit.
pub const DEFAULT_PEEK_LIMIT: u32 = 1_000;
/// Messages a peek returns at most.
pub const MAX_PEEK_LIMIT: u32 = 10_000;
/// A receive or a peek ends before the message that would make its answer larger than this;
/// never before the first.
pub const MAX_DELIVERY_BYTES: usize = 2 * 1024 * 1024;
/// Deleted messages between two that a peek passes, until they are compacted away. With more it ends there,
/// and is refused if it found nothing before.
pub const MAX_DELETED_PASSED: u64 = 2_000_000;
/// Messages in a shard. A send beyond is refused as long as nothing is acked.
pub const MAX_MESSAGES: usize = 5_000_000;
/// How long a de-duplication id is remembered: five minutes.
pub const DEDUP_WINDOW_MS: u64 = 5 * 60 * 1_000;
/// How many de-duplication ids a shard remembers.
pub const DEDUP_WINDOW_IDS: usize = 100_000;
/// Bytes of these ids and of the partition keys that they count for, together.
pub const DEDUP_WINDOW_BYTES: usize = 32 * 1024 * 1024;
/// Largest time a command may carry: the end of the year 9999, in milliseconds.
pub const MAX_TIME_MS: u64 = 253_402_300_799_999;
