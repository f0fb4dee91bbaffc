//! What arrives from other nodes, on its way to the workers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{GroupId, LogPosition, NodeId, ReplicaId};

use super::RuntimeShared;
use super::inbox::peer_bytes;
use crate::nodes::Advertisement;
use crate::transport::{Inbound, Recipient, ShipmentOutcome};
use crate::worker::Input;

/// The groups of a host, as the transport sees them.
#[derive(Debug)]
pub struct GroupsInbound {
    shared: Arc<RuntimeShared>,
}

impl GroupsInbound {
    pub(super) const fn new(shared: Arc<RuntimeShared>) -> Self {
        Self { shared }
    }

    fn put(&self, worker: usize, from: NodeId, messages: Vec<GroupMessage>) -> usize {
        if messages.is_empty() {
            return 0;
        }
        let bytes = peer_bytes(&messages);
        match self.shared.inboxes[worker].offer_peer(Input::Peer { from, messages }, bytes) {
            Ok(()) => 0,
            Err(Input::Peer { messages, .. }) => messages.len(),
            Err(_) => 0,
        }
    }

    fn tell(&self, group: GroupId, input: Input) {
        self.shared.inboxes[self.shared.worker_of(group)].complete(input);
    }
}

impl Inbound for GroupsInbound {
    fn deliver(&self, from: NodeId, mut messages: Vec<GroupMessage>) -> usize {
        if self.shared.is_silent() {
            // As if they were lost, and as a stopped host takes them.
            return 0;
        }
        if self.shared.takes_no_entries.load(Ordering::Relaxed) {
            // As if they were lost: the sender sends them again.
            messages.retain(|message| message.entries.is_empty());
        }
        let workers = self.shared.inboxes.len();
        if workers == 1 {
            return self.put(0, from, messages);
        }
        let mut parts: Vec<Vec<GroupMessage>> = vec![Vec::new(); workers];
        for message in messages {
            parts[self.shared.worker_of(GroupId::new(message.group))].push(message);
        }
        parts.into_iter().enumerate().map(|(worker, part)| self.put(worker, from, part)).sum()
    }

    fn snapshot_arrived(&self, from: NodeId, message: GroupMessage) {
        let worker = self.shared.worker_of(GroupId::new(message.group));
        if self.put(worker, from, vec![message]) > 0 {
            tracing::warn!(%from, "a snapshot arrived while the inbox was full; it comes again");
        }
    }

    fn wants_snapshot(
        &self,
        group: GroupId,
        replica: ReplicaId,
        position: LogPosition,
    ) -> Option<Recipient> {
        let group = self.shared.registry.get(&group)?.clone();
        let status = group.status();
        let running =
            !matches!(status.role, crate::status::Role::Failed(_) | crate::status::Role::Stopped);
        // One whose state is lost wants any snapshot that its log continues.
        let news = position.index > status.committed
            || (status.stalled.is_some() && position.index.next() >= status.first);
        let wanted = running && status.replica == replica && news;
        wanted.then(|| Recipient::of(Arc::clone(&group.shared().life)))
    }

    fn snapshot_shipped(&self, group: GroupId, to: ReplicaId, outcome: ShipmentOutcome) {
        self.tell(group, Input::Shipped { group, to, outcome });
    }

    fn peer_live(&self, node: NodeId, incarnation: u64) {
        for inbox in &self.shared.inboxes {
            inbox.complete(Input::NodeLive { node, incarnation });
        }
    }

    fn peer_lost(&self, node: NodeId) {
        for inbox in &self.shared.inboxes {
            inbox.complete(Input::NodeLost { node });
        }
    }

    fn peer_advertisement(&self, node: NodeId, incarnation: u64, advertisement: Advertisement) {
        let advertisement = Arc::new(advertisement);
        for inbox in &self.shared.inboxes {
            let advertisement = Arc::clone(&advertisement);
            inbox.complete(Input::NodeAdvertisement { node, incarnation, advertisement });
        }
    }

    fn unreachable(&self, _node: NodeId, replicas: Vec<(GroupId, ReplicaId)>) {
        let mut parts = vec![Vec::new(); self.shared.inboxes.len()];
        for (group, replica) in replicas {
            parts[self.shared.worker_of(group)].push((group, replica));
        }
        for (inbox, replicas) in self.shared.inboxes.iter().zip(parts) {
            if !replicas.is_empty() && inbox.offer(Input::Unreachable { replicas }).is_err() {
                tracing::debug!("a report of unreachable replicas was dropped: the inbox is full");
            }
        }
    }
}
