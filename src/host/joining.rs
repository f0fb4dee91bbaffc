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

/// Invitations that may wait.
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
pub(super) struct Letterbox(mpsc::Sender<Invitation>);

impl Letterbox {
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<Invitation>) {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        (Arc::new(Self(sender)), receiver)
    }
}

impl InvitationSink for Letterbox {
    fn invited(&self, invitation: Invitation) {
        if let Err(error) = self.0.try_send(invitation) {
            tracing::debug!(%error, "an invitation is dropped; it comes again");
        }
    }
}

/// Follows invitations until the host stops.
pub(super) async fn accept(
    groups: Groups,
    factory: Arc<dyn ReplicaFactory>,
    mut invitations: mpsc::Receiver<Invitation>,
    stop: CancellationToken,
) {
    while let Some(Some(invitation)) = stop.run_until_cancelled(invitations.recv()).await {
        let (groups, factory) = (groups.clone(), Arc::clone(&factory));
        let follow = move || follow(&groups, factory, &invitation);
        if let Err(error) = tokio::task::spawn_blocking(follow).await {
            tracing::error!(%error, "following an invitation panicked");
        }
    }
}

fn follow(groups: &Groups, factory: Arc<dyn ReplicaFactory>, invitation: &Invitation) {
    let (group, replica, from) = (invitation.group, invitation.replica, invitation.from);
    match groups.is_stored(group) {
        Ok(false) if groups.group(group).is_none() => {}
        // The replica is there, or an earlier one is still on its way out.
        Ok(_) => return,
        Err(error) => return tracing::error!(%group, %error, "an invitation cannot be followed"),
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
