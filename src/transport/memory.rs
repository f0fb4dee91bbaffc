//! What outlives the process: which starts of its peers a host has seen, where it found those that moved,
//! and that its own data directory was rolled back.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use shardhost_storage::NodeId;
use tonic::Status;

use super::handshake::Rollback;
use super::receiver::note_refusal;
use super::shared::Shared;

/// Keeps a host's knowledge of the starts of nodes, and of their addresses. The calls block until their
/// input is durable.
pub trait IncarnationMemory: Debug + Send + Sync {
    /// The newest incarnation of a peer that was ever seen; 0: none.
    fn newest(&self, node: NodeId) -> u64;

    /// A peer was seen.
    ///
    /// # Errors
    /// When it cannot be kept.
    fn saw(&self, node: NodeId, incarnation: u64) -> io::Result<()>;

    /// Where a peer was found last; `None`: where it is configured to be, or that is not remembered.
    fn moved_to(&self, node: NodeId) -> Option<String> {
        let _ = node;
        None
    }

    /// A peer was found there; `None`: where it is configured to be.
    ///
    /// # Errors
    /// When it cannot be kept. It is found there all the same.
    fn found(&self, node: NodeId, address: Option<&str>) -> io::Result<()> {
        let _ = (node, address);
        Ok(())
    }

    /// A peer knows of a later start of this node than its data directory. When this returns, no
    /// replica votes as if it had everything that it acknowledged.
    ///
    /// # Errors
    /// When that cannot be kept.
    fn rolled_back(&self, rollback: Rollback) -> io::Result<()>;
}

/// Remembers nothing, as a host without a data directory.
#[derive(Debug, Default)]
pub struct Forgetful;

impl IncarnationMemory for Forgetful {
    fn newest(&self, _: NodeId) -> u64 {
        0
    }
    fn saw(&self, _: NodeId, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn rolled_back(&self, _: Rollback) -> io::Result<()> {
        Ok(())
    }
}

/// Takes over what a peer knows of this node, before any message of the stream is taken or sent.
pub(super) async fn learn_known(
    shared: &Arc<Shared>,
    by: NodeId,
    known: u64,
) -> Result<(), Status> {
    let rollback = shared.identity.check_known(by, known, shared.horizon.latest());
    let rollback = rollback.inspect_err(|refusal| note_refusal(shared, Some(by), refusal))?;
    let Some(rollback) = rollback else { return Ok(()) };
    let memory = Arc::clone(&shared.memory);
    keep(by, move || memory.rolled_back(rollback)).await
}

/// A peer has read the answer to its greeting: it knows what was known of it before. Only from here
/// on its new start represents the earlier ones, and before anything is taken from it.
pub(super) async fn confirm(
    shared: &Arc<Shared>,
    node: NodeId,
    incarnation: u64,
) -> Result<(), Status> {
    if incarnation <= shared.memory.newest(node) {
        return Ok(());
    }
    let memory = Arc::clone(&shared.memory);
    keep(node, move || memory.saw(node, incarnation)).await
}

/// Remembers where a peer was found. Without it, the next process looks for it elsewhere first.
pub(super) async fn found(shared: &Arc<Shared>, node: NodeId, address: Option<&str>) {
    if shared.memory.moved_to(node).as_deref() == address {
        return;
    }
    let (memory, address) = (Arc::clone(&shared.memory), address.map(str::to_owned));
    let kept = tokio::task::spawn_blocking(move || memory.found(node, address.as_deref())).await;
    if let Err(error) = kept.unwrap_or_else(|error| Err(io::Error::other(error))) {
        tracing::warn!(%error, %node, "cannot keep where a peer was found");
    }
}

async fn keep(
    node: NodeId,
    write: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), Status> {
    let kept = tokio::task::spawn_blocking(write).await;
    kept.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| {
        tracing::error!(%error, %node, "cannot keep what a greeting says of incarnations");
        Status::unavailable(format!("cannot keep what a greeting says: {error}"))
    })
}
