//! What a host offers to clients over gRPC: tables, queues, and where their shards are led.
//!
//! A client sends batches of requests down one stream and gets batches of replies back, by id and
//! in any order. A batch costs one submission per group it writes to; whatever completed since
//! the last reply goes out together. One bad request is answered as such and disturbs no other.
//!
//! | where | what |
//! |---|---|
//! | [`GroupLookup`] | what the services ask of the host |
//! | [`table_server`], [`queue_server`] | the pipelined services of the two kinds of shard |
//! | [`ClientBudget`] | what all clients of a host may hold of its memory |
//! | [`MAX_STREAMS`] | how many streams they may have |
//! | [`Requests`] | what became of their requests |
//! | [`directory_server`] | which shards there are, and who leads them |
//!
//! The services know groups by their handles only; who holds which replica, and why, is the
//! host's.

mod budget;
mod directory;
mod failure;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzz;
mod in_flight;
mod known_bugs;
#[cfg(test)]
mod no_groups;
mod pipeline;
mod queue;
mod reads;
mod requests;
mod session;
mod stream_places;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::shards::ShardTimes;
use crate::shards::queue::{MAX_BODY_BYTES, MAX_DELIVERY_BYTES};
use crate::shards::table::{MAX_SCAN_BYTES, MAX_VALUE_BYTES};
use shardhost_groups::Group;
use shardhost_proto::client::directory_server::DirectoryServer;
use shardhost_proto::client::queue_server::QueueServer;
use shardhost_proto::client::table_server::TableServer;
use shardhost_proto::shard_map::ShardMap;
use shardhost_storage::{GroupId, NodeId};
use tokio_util::sync::CancellationToken;

pub use self::budget::{ClientBudget, DEFAULT_CLIENT_BYTES, MIN_CLIENT_BYTES};
pub use self::directory::DirectoryService;
pub use self::pipeline::{PipelineService, Unread};
pub use self::queue::QueueProtocol;
pub use self::requests::{Access, Requests};
pub use self::stream_places::{MAX_STREAMS, MAX_STREAMS_PER_CONNECTION};
pub use self::table::TableProtocol;
use shardhost_proto::limits::MAX_BATCH_BYTES;

/// Requests of one stream that may be in flight before no further batch is read.
pub const MAX_IN_FLIGHT_REQUESTS: usize = 32_768;
/// The same in bytes of commands, with [`REQUEST_OVERHEAD_BYTES`] each.
pub const MAX_IN_FLIGHT_BYTES: usize = 32 * 1024 * 1024;
/// What a request in flight counts for beside its bytes: as much as one takes that waits, of which group
/// and for what ever, and as its reply takes until it is sent.
pub const REQUEST_OVERHEAD_BYTES: usize = 512;
/// An answer of a write that is no longer than this is counted with its command.
const SHORT_ANSWER_BYTES: usize = 128;
/// How long a client may leave an answer where it is, or a batch half sent, while others wait for memory
/// or a stream.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// What a read costs while it runs, beside its answer.
const READ_TASK_BYTES: usize = 4 * 1024;
/// Weight of the reads of one stream that may be running or waiting to be sent: a get weighs 1,
/// a scan or a peek [`RANGE_READ_WEIGHT`].
pub const MAX_READ_WEIGHT: u32 = 256;
/// How much of it one group may have: what hangs in its state machine keeps no other group waiting.
pub const MAX_GROUP_READ_WEIGHT: u32 = MAX_READ_WEIGHT / 4;
/// Weight of a scan or a peek, whose answer may be some MiB large.
pub const RANGE_READ_WEIGHT: u32 = 8;

/// The most that the answer to a get may be, encoded.
const MAX_GET_ANSWER_BYTES: usize = MAX_VALUE_BYTES + 1024;
/// The most that the answer to a scan or a peek may be, encoded: with the lengths of many small items.
const MAX_RANGE_ANSWER_BYTES: usize = MAX_SCAN_BYTES + 512 * 1024;
const _: () = assert!(MAX_DELIVERY_BYTES <= MAX_SCAN_BYTES && MAX_BODY_BYTES <= MAX_VALUE_BYTES);

/// What the services ask of the host.
pub trait GroupLookup: Send + Sync + 'static {
    /// The replica of a group on this host.
    fn group(&self, id: GroupId) -> Option<Group>;

    /// Which shards the cluster has; `None`: that is not known here yet.
    fn map(&self) -> Option<Arc<ShardMap>>;

    /// What time it is for the shards.
    fn times(&self) -> Arc<ShardTimes>;

    /// Where the clients of each node connect to.
    fn addresses(&self) -> BTreeMap<NodeId, String>;

    /// Cancelled when the host stops: streams of clients end then, and clients go elsewhere. Never,
    /// unless it is said.
    fn stopped(&self) -> CancellationToken {
        CancellationToken::new()
    }

    /// Where the clients of one node connect to.
    fn address(&self, node: NodeId) -> Option<String> {
        self.addresses().remove(&node)
    }
}

/// The table service of a host.
pub fn table_server(
    lookup: Arc<dyn GroupLookup>,
    budget: &Arc<ClientBudget>,
) -> Unread<TableServer<PipelineService<TableProtocol>>> {
    let server = TableServer::new(PipelineService::new(lookup, budget));
    Unread(server.max_encoding_message_size(MAX_BATCH_BYTES))
}

/// The queue service of a host.
pub fn queue_server(
    lookup: Arc<dyn GroupLookup>,
    budget: &Arc<ClientBudget>,
) -> Unread<QueueServer<PipelineService<QueueProtocol>>> {
    let server = QueueServer::new(PipelineService::new(lookup, budget));
    Unread(server.max_encoding_message_size(MAX_BATCH_BYTES))
}

/// The directory of a host.
pub fn directory_server(lookup: Arc<dyn GroupLookup>) -> DirectoryServer<DirectoryService> {
    DirectoryServer::new(DirectoryService::new(lookup))
}
