//! Replicas that this node should hold and does not, on their way to the host.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::convert::membership_from_message;
use shardhost_storage::{GroupId, Membership, NodeId, ReplicaId};

use crate::handle::GroupSpec;
use crate::validate::{has_plausible_numbers, told_end};

/// A node was added to a group and is asked to hold a replica of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Invitation {
    /// Which node says so: it leads the group.
    pub from: NodeId,
    /// The group.
    pub group: GroupId,
    /// The replica that this node should hold.
    pub replica: ReplicaId,
    /// Name of the kind of state machine.
    pub kind: String,
    /// Words for selectors.
    pub labels: BTreeMap<String, String>,
    /// Who belongs to the group.
    pub membership: Membership,
}

impl Invitation {
    /// What the replica is created from. It opens empty, and gets everything from its leader.
    #[must_use]
    pub fn spec(&self) -> GroupSpec {
        let mut spec = GroupSpec::new(self.group, []).kind(self.kind.clone());
        spec.membership = self.membership.clone();
        spec.labels = self.labels.clone();
        spec
    }
}

/// What is told of invitations.
pub type InvitationHandler = Arc<dyn InvitationSink>;

/// Takes invitations. Called by Raft threads: must not block.
pub trait InvitationSink: fmt::Debug + Send + Sync + 'static {
    /// This node should hold a replica. Repeated until it does.
    fn invited(&self, invitation: Invitation);
}

#[derive(Debug)]
pub(super) struct Invitations {
    handler: Option<InvitationHandler>,
}

impl Invitations {
    pub(super) const fn new(handler: Option<InvitationHandler>) -> Self {
        Self { handler }
    }

    /// Hands an invitation on, if it is one for `node`.
    pub(super) fn hand_on(&self, node: NodeId, from: NodeId, message: &GroupMessage) {
        let Some(handler) = &self.handler else {
            tracing::debug!(group = message.group, "this host accepts no invitations");
            return;
        };
        match read(node, from, message) {
            Some(invitation) => handler.invited(invitation),
            None => tracing::warn!(%from, group = message.group, "an invitation makes no sense"),
        }
    }
}

/// The invitation of a message from the wire.
fn read(node: NodeId, from: NodeId, message: &GroupMessage) -> Option<Invitation> {
    let wire = message.invitation.as_ref()?;
    let membership = membership_from_message(wire.membership.as_ref()?).ok()?;
    let replica = ReplicaId::new(message.to_replica)?;
    let sender = membership.members.get(&ReplicaId::new(message.from_replica)?)?;
    let plausible = has_plausible_numbers(&membership, told_end(message), 0);
    let ours = plausible && membership.node_of(replica) == Some(node) && sender.node == from;
    ours.then(|| Invitation {
        from,
        group: GroupId::new(message.group),
        replica,
        kind: wire.kind.clone(),
        labels: wire.labels.clone().into_iter().collect(),
        membership,
    })
}
