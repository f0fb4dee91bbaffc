//! A client of the shards: finds them, follows their leaders, batches and pipelines.
//!
//! [`Client::connect`] asks any node for the directory. Each operation goes to the leader of the
//! shard that its key belongs to, over one stream per node and kind; thousands of concurrent
//! operations share it and travel in batches. A refused operation is sent again, to the leader that
//! the node names or after a pause, until its deadline.
//!
//! **Definite and unknown.** An error distinguishes whether the operation surely took no effect
//! ([`ClientError::is_definite`]).
//!
//! **Exactly once.** A write whose outcome is unknown is sent again, and takes effect once: it is
//! part of a session, and the shard answers a copy of what it applied with the first answer. So an
//! unknown outcome is left only when the deadline ends, or when the shard dropped the session (it
//! keeps the most recently used 4,096, for 30 minutes). A receive is not sent again. The options
//! switch this off: see [`Resend`].
//!
//! **Order.** Two operations are in order when the second is started after the first was
//! acknowledged. Operations under way at the same time may take effect in any order.
//!
//! | where | what |
//! |---|---|
//! | [`TableClient`] | put, get, delete, compare-and-set, scan |
//! | [`QueueClient`] | send, receive, ack, peek |
//! | [`ClientOptions`] | deadlines and bounds |
//! | [`ClientError`] | what can go wrong |

mod backoff;
mod caller;
mod channel;
mod connection;
mod error;
mod options;
mod queue;
mod routes;
mod session;
mod table;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shardhost_proto::admin::ShowGroupRequest;
use shardhost_proto::admin::admin_client::AdminClient;
use shardhost_proto::ids::{GroupId, LogIndex, NodeId};
use shardhost_proto::limits::wait_of;
use tokio::time::{Instant, sleep_until, timeout_at};

pub use shardhost_security as security;

pub use self::error::ClientError;
pub use self::options::{ClientOptions, Resend};
pub use self::queue::{QueueClient, Received};
pub use self::table::{ScanPage, TableClient};

use self::caller::Caller;
use self::routes::Routes;
use self::wire::{QueueWire, TableWire};

/// Between two looks at how far a replica has applied.
const APPLIED_POLL: Duration = Duration::from_millis(5);

/// A client of one cluster. Cheap to clone; all clones share their connections.
///
/// ```no_run
/// # async fn example() -> Result<(), shardhost_client::ClientError> {
/// use shardhost_client::{Client, ClientOptions};
///
/// let client = Client::connect(["127.0.0.1:7001"], ClientOptions::default()).await?;
/// let table = client.table();
/// table.put("greeting", "hello").await?;
/// assert_eq!(table.get("greeting").await?.as_deref(), Some(&b"hello"[..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    table: Arc<Caller<TableWire>>,
    queue: Arc<Caller<QueueWire>>,
}

impl Client {
    /// Asks the nodes at `addresses` (`host:port`), one after the other, for the directory of
    /// shards. One that answers is enough.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] when none answers in time.
    pub async fn connect<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let addresses: Vec<String> = addresses.into_iter().map(Into::into).collect();
        let options = Arc::new(options);
        let (table, queue) = tokio::try_join!(
            Routes::discover::<TableWire>(&addresses, &options),
            Routes::discover::<QueueWire>(&addresses, &options),
        )?;
        let table = Arc::new(Caller::new(table, Arc::clone(&options)));
        let queue = Arc::new(Caller::new(queue, options));
        Ok(Self { table, queue })
    }

    /// The tables of the cluster.
    #[must_use]
    pub fn table(&self) -> TableClient {
        TableClient::new(Arc::clone(&self.table))
    }

    /// The queues of the cluster.
    #[must_use]
    pub fn queue(&self) -> QueueClient {
        QueueClient::new(Arc::clone(&self.queue))
    }

    /// The nodes that the directory names, with the addresses clients reach them at.
    #[must_use]
    pub fn nodes(&self) -> BTreeMap<NodeId, String> {
        self.table.routes().nodes()
    }

    /// Waits until the replica of `group` on `node` has applied `index`: a stale read from there
    /// then sees it. It asks what operators ask, at the address of clients: a node with a listener of its own for
    /// clients, or for operators, refuses that. Where nodes have those, read what must be seen without staleness.
    ///
    /// # Errors
    /// [`ClientError::Timeout`], with what was seen last; [`ClientError::Unavailable`] where the node serves
    /// operators at another address.
    pub async fn wait_applied(
        &self,
        node: NodeId,
        group: GroupId,
        index: LogIndex,
        within: Duration,
    ) -> Result<(), ClientError> {
        let deadline = Instant::now() + wait_of(within);
        let mut seen = "it did not answer".to_owned();
        while Instant::now() < deadline {
            match timeout_at(deadline, self.applied(node, group)).await {
                Ok(Ok(applied)) if applied >= index.get() => return Ok(()),
                Ok(Ok(applied)) => seen = format!("it has applied {applied}"),
                Ok(Err(Unseen::Elsewhere(message))) => {
                    return Err(ClientError::Unavailable { message });
                }
                Ok(Err(Unseen::Now(message))) => seen = message,
                Err(_) => break,
            }
            sleep_until(deadline.min(Instant::now() + APPLIED_POLL)).await;
        }
        Err(ClientError::Timeout {
            message: format!("node {node} should apply {index} of group {group}: {seen}"),
        })
    }

    async fn applied(&self, node: NodeId, group: GroupId) -> Result<u64, Unseen> {
        let address = self.table.routes().address(node.get());
        let unknown = || Unseen::Now(format!("the directory names no node {node}"));
        let address = address.ok_or_else(unknown)?;
        let channel = channel::open(&address, self.table.options()).map_err(Unseen::Now)?;
        let request = ShowGroupRequest { group: group.get() };
        let status = AdminClient::new(channel).show_group(request).await;
        let words = |status: tonic::Status| match status.code() {
            tonic::Code::FailedPrecondition => Unseen::Elsewhere(channel::words_of(&status)),
            _ => Unseen::Now(channel::words_of(&status)),
        };
        status.map(|status| status.into_inner().applied).map_err(words)
    }
}

/// Why it was not seen how far a replica is, in words.
enum Unseen {
    /// It may be another time.
    Now(String),
    /// Its node answers that where operators are served.
    Elsewhere(String),
}
