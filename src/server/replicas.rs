//! Which state machine belongs to a group, also to one that this node is invited to.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use shardhost_groups::machine::StateMachine;
use shardhost_groups::runtime::Invitation;
use shardhost_storage::GroupId;

use crate::host::ReplicaFactory;
use crate::shards::{QUEUE_KIND, StateDb, TABLE_KIND};

/// The state machine of a group of this kind.
pub(super) fn machine_of(
    state: &Arc<StateDb>,
    group: GroupId,
    kind: &str,
) -> Result<Box<dyn StateMachine>, String> {
    match kind {
        TABLE_KIND => Ok(Box::new(state.table(group))),
        QUEUE_KIND => Ok(Box::new(state.queue(group))),
        _ => Err(format!("this node has no state machine of the kind `{kind}`")),
    }
}

/// Makes the machines of replicas that this node is invited to hold.
#[derive(Default)]
pub(super) struct Replicas {
    /// Set once the state of the shards is open; invitations that come before come again.
    state: OnceLock<Weak<StateDb>>,
}

impl Replicas {
    pub(super) fn open(&self, state: &Arc<StateDb>) {
        self.state.get_or_init(|| Arc::downgrade(state));
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Replicas")
    }
}

impl ReplicaFactory for Replicas {
    fn machine(&self, invitation: &Invitation) -> Result<Box<dyn StateMachine>, String> {
        let state = self.state.get().and_then(Weak::upgrade);
        let state = state.ok_or("the state of the shards is not open")?;
        // A crash may have come between the end of an earlier replica and that of its state.
        state.destroy(invitation.group).map_err(|error| error.to_string())?;
        machine_of(&state, invitation.group, &invitation.kind)
    }
}
