//! Replicas that this node should hold and does not, on their way to the host.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::convert::membership_from_message;
use shardhost_storage::{GroupId, Membership, NodeId, ReplicaId};

use crate::panics::contain;
use crate::runtime::GroupSpec;
use crate::validate::{floor_of_generation, has_plausible_numbers, told_end};

/// A node was added to a group and is asked to hold a replica of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateRequest {
    /// The node that asks: it leads the group.
    pub from: NodeId,
    pub group: GroupId,
    /// The replica that this node should hold.
    pub replica: ReplicaId,
    /// Name of the kind of state machine.
    pub kind: String,
    pub labels: BTreeMap<String, String>,
    /// Who belongs to the group.
    pub membership: Membership,
}

impl CreateRequest {
    /// What the replica is created from. It opens empty, and gets everything from its leader.
    #[must_use]
    pub fn spec(&self) -> GroupSpec {
        let mut spec = GroupSpec::new(self.group, []).kind(self.kind.clone());
        spec.membership = self.membership.clone();
        spec.labels = self.labels.clone();
        spec
    }
}

/// The listener of create-replica requests.
pub type CreateRequestHandler = Arc<dyn CreateRequestSink>;

/// Takes create requests. Called by Raft threads: must not block.
pub trait CreateRequestSink: fmt::Debug + Send + Sync + 'static {
    /// This node should hold a replica. Repeated until it does.
    fn requested(&self, create_request: CreateRequest);
}

#[derive(Debug)]
pub(super) struct CreateRequests {
    handler: Option<CreateRequestHandler>,
}

impl CreateRequests {
    pub(super) const fn new(handler: Option<CreateRequestHandler>) -> Self {
        Self { handler }
    }

    /// Hands a create request on, if it is one for `node`.
    pub(super) fn hand_on(&self, node: NodeId, from: NodeId, message: &GroupMessage) {
        let Some(handler) = &self.handler else {
            tracing::debug!(group = message.group, "this host accepts no create_requests");
            return;
        };
        match read(node, from, message) {
            // It is repeated until there is a replica.
            Some(create_request) => {
                if let Err(panic) = contain(|| handler.requested(create_request)) {
                    tracing::error!(%from, group = message.group, %panic,
                        "the listener of create requests panicked");
                }
            }
            None => tracing::warn!(%from, group = message.group, "a create request makes no sense"),
        }
    }
}

/// The create request of a message from the wire.
fn read(node: NodeId, from: NodeId, message: &GroupMessage) -> Option<CreateRequest> {
    let wire = message.create_request.as_ref()?;
    let membership = membership_from_message(wire.membership.as_ref()?).ok()?;
    let replica = ReplicaId::new(message.to_replica)?;
    let sender = membership.members.get(&ReplicaId::new(message.from_replica)?)?;
    let floor = floor_of_generation(&membership);
    let plausible = has_plausible_numbers(&membership, told_end(message), floor);
    let ours = plausible && membership.node_of(replica) == Some(node) && sender.node == from;
    ours.then(|| CreateRequest {
        from,
        group: GroupId::new(message.group),
        replica,
        kind: wire.kind.clone(),
        labels: wire.labels.clone().into_iter().collect(),
        membership,
    })
}

#[cfg(test)]
mod tests {
    use shardhost_proto::peer::CreateRequest as WireCreateRequest;
    use shardhost_storage::convert::membership_to_message;

    use super::*;
    use crate::GroupSpec;

    fn accepts(spec: GroupSpec, raise: u64) -> Option<CreateRequest> {
        read(NodeId::must(3), NodeId::must(1), &sent(spec, raise))
    }

    /// What the leader on node 1 sends to node 3, whose member has this number in the group.
    fn sent(spec: GroupSpec, raise: u64) -> GroupMessage {
        let mut membership: Membership = spec.membership;
        let (last, member) = membership.members.pop_last().unwrap();
        let last = ReplicaId::must(last.get() + raise);
        membership.members.insert(last, member);
        membership.newest_replica = Some(last);
        let leader = membership.members.keys().next().unwrap().get();
        GroupMessage {
            group: 7,
            from_replica: leader,
            to_replica: last.get(),
            commit: 9,
            create_request: Some(WireCreateRequest {
                membership: Some(membership_to_message(&membership)),
                ..WireCreateRequest::default()
            }),
            ..GroupMessage::default()
        }
    }

    #[derive(Debug)]
    struct Panics(std::sync::atomic::AtomicBool);

    impl CreateRequestSink for Panics {
        fn requested(&self, _: CreateRequest) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
            panic!("told to panic");
        }
    }

    #[test]
    fn a_listener_that_panics_does_not_end_the_thread_that_calls_it() {
        let listener = Arc::new(Panics(false.into()));
        let requests = CreateRequests::new(Some(Arc::clone(&listener) as CreateRequestHandler));
        let spec = GroupSpec::new(GroupId::new(7), (1..=3).map(NodeId::must));
        requests.hand_on(NodeId::must(3), NodeId::must(1), &sent(spec, 0));
        assert!(listener.0.load(std::sync::atomic::Ordering::SeqCst), "it was called");
    }

    #[test]
    fn a_replica_of_any_generation_is_invited_and_none_of_another_one_than_its_leader() {
        let spec = || GroupSpec::new(GroupId::new(7), (1..=3).map(NodeId::must));
        for generation in [0, 1, 2, 70_000, u32::MAX - 1] {
            assert!(accepts(spec().incarnation(generation), 0).is_some(), "{generation}");
            assert!(accepts(spec().incarnation(generation), 1 << 20).is_some(), "{generation}");
        }
        assert!(accepts(spec(), 1 << 33).is_none());
        assert!(accepts(spec().incarnation(5), 1 << 33).is_none());
    }
}
