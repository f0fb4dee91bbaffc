//! Accepting invitations: a node that was added to a group gets its replica.
//!
//! The leader of the group repeats its invitation until the replica answers, so one that finds no
//! room here, or that cannot be followed yet, is simply dropped.

use std::fmt;
use std::sync::Arc;

use shardhost_groups::Groups;
use shardhost_groups::machine::StateMachine;
use shardhost_groups::runtime::{Invitation, InvitationSink};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::founding::Foundings;
use crate::transport::GrpcTransport;

const MAX_WAITING: usize = 1_024;

/// Makes the state machines of replicas that this node is invited to hold.
///
/// Called on a thread that may block, one invitation at a time, while nothing else is done with the
/// group on this host and the log does not hold it.
pub trait ReplicaFactory: fmt::Debug + Send + Sync + 'static {
    /// An empty state machine for the replica; whatever an earlier replica of the group left
    /// behind here must be gone.
    ///
    /// # Errors
    /// Why this node holds no such replica. The leader asks again.
    fn machine(&self, invitation: &Invitation) -> Result<Box<dyn StateMachine>, String>;
}

/// Where Raft threads put invitations.
#[derive(Debug)]
pub(super) struct Mailbox(mpsc::Sender<Invitation>);

impl Mailbox {
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<Invitation>) {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        (Arc::new(Self(sender)), receiver)
    }
}

impl InvitationSink for Mailbox {
    fn invited(&self, invitation: Invitation) {
        if let Err(error) = self.0.try_send(invitation) {
            tracing::debug!(%error, "an invitation is dropped; it comes again");
        }
    }
}

/// What it takes to follow an invitation. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Joining {
    groups: Groups,
    factory: Arc<dyn ReplicaFactory>,
    foundings: Foundings,
    transport: GrpcTransport,
}

impl Joining {
    pub(super) fn new(
        groups: Groups,
        factory: Arc<dyn ReplicaFactory>,
        foundings: &Foundings,
        transport: &GrpcTransport,
    ) -> Self {
        Self { groups, factory, foundings: foundings.clone(), transport: transport.clone() }
    }
}

/// Follows invitations until the host stops.
pub(super) async fn accept(
    joining: Joining,
    mut invitations: mpsc::Receiver<Invitation>,
    stop: CancellationToken,
) {
    while let Some(Some(invitation)) = stop.run_until_cancelled(invitations.recv()).await {
        let joining = joining.clone();
        let follow = move || follow(joining, &invitation);
        if let Err(error) = tokio::task::spawn_blocking(follow).await {
            tracing::error!(%error, "following an invitation panicked");
        }
    }
}

fn follow(joining: Joining, invitation: &Invitation) {
    let Joining { groups, factory, foundings, transport } = joining;
    let (group, replica, from) = (invitation.group, invitation.replica, invitation.from);
    match groups.is_stored(group) {
        Ok(false) if groups.group(group).is_none() => {}
        // The replica is there, or an earlier one is still on its way out.
        Ok(_) => return,
        Err(error) => return tracing::error!(%group, %error, "an invitation cannot be followed"),
    }
    // The first replica of a node makes it a member of its inviter's cluster.
    if let Err(error) = foundings.before_creation(&groups, transport.founding_of(from)) {
        return tracing::error!(%group, %error, "which cluster is joined cannot be written down");
    }
    let invited = invitation.clone();
    let machine = Box::new(move || factory.machine(&invited));
    match groups.create_with(invitation.spec(), machine) {
        Ok(_) => tracing::info!(%group, %replica, %from, "holds a replica by invitation"),
        Err(error) => {
            tracing::warn!(%group, %replica, %from, %error, "an invitation is not followed");
        }
    }
}
