//! Accepting create requests: a node that was added to a group gets its replica.
//!
//! The leader of the group repeats its create request until the replica answers, so one that finds
//! no room here, or that cannot be followed yet, is simply dropped.

use std::fmt;
use std::sync::Arc;

use shardhost_groups::Groups;
use shardhost_groups::machine::StateMachine;
use shardhost_groups::runtime::{CreateRequest, CreateRequestSink};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::founding::Foundings;
use crate::transport::GrpcTransport;

const MAX_WAITING: usize = 1_024;

/// Makes the state machines of replicas that this node is asked to hold.
///
/// Called on a thread that may block, one create request at a time, while nothing else is done with
/// the group on this host and the log does not hold it.
pub trait ReplicaFactory: fmt::Debug + Send + Sync + 'static {
    /// An empty state machine for the replica; whatever an earlier replica of the group left
    /// behind here must be gone.
    ///
    /// # Errors
    /// Why this node holds no such replica. The leader asks again.
    fn machine(&self, create_request: &CreateRequest) -> Result<Box<dyn StateMachine>, String>;
}

/// Where Raft threads put create requests.
#[derive(Debug)]
pub(super) struct Mailbox(mpsc::Sender<CreateRequest>);

impl Mailbox {
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<CreateRequest>) {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        (Arc::new(Self(sender)), receiver)
    }
}

impl CreateRequestSink for Mailbox {
    fn requested(&self, create_request: CreateRequest) {
        if let Err(error) = self.0.try_send(create_request) {
            tracing::debug!(%error, "a create request is dropped; it comes again");
        }
    }
}

/// What it takes to follow a create request. Cheap to clone.
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

/// Follows create requests until the host stops.
pub(super) async fn accept(
    joining: Joining,
    mut create_requests: mpsc::Receiver<CreateRequest>,
    stop: CancellationToken,
) {
    while let Some(Some(create_request)) = stop.run_until_cancelled(create_requests.recv()).await {
        let joining = joining.clone();
        let follow = move || follow(joining, &create_request);
        if let Err(error) = tokio::task::spawn_blocking(follow).await {
            tracing::error!(%error, "following a create request panicked");
        }
    }
}

fn follow(joining: Joining, create_request: &CreateRequest) {
    let Joining { groups, factory, foundings, transport } = joining;
    let (group, replica, from) =
        (create_request.group, create_request.replica, create_request.from);
    match groups.is_stored(group) {
        Ok(false) if groups.group(group).is_none() => {}
        // The replica is there, or an earlier one is still on its way out.
        Ok(_) => return,
        Err(error) => return tracing::error!(%group, %error, "a create request cannot be followed"),
    }
    // The first replica of a node makes it a member of its inviter's cluster.
    if let Err(error) = foundings.before_creation(&groups, transport.founding_of(from)) {
        return tracing::error!(%group, %error, "which cluster is joined cannot be written down");
    }
    let asked = create_request.clone();
    let machine = Box::new(move || factory.machine(&asked));
    match groups.create_with(create_request.spec(), machine) {
        Ok(_) => tracing::info!(%group, %replica, %from, "holds a replica by create_request"),
        Err(error) => {
            tracing::warn!(%group, %replica, %from, %error, "a create request is not followed");
        }
    }
}
