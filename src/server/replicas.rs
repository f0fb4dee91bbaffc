//! Which state machine belongs to a group, also to one that this node is asked to hold a replica
//! of.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use shardhost_groups::machine::StateMachine;
use shardhost_groups::runtime::CreateRequest;
use shardhost_storage::GroupId;

use crate::shards::StateDb;
use shardhost::driver::{GroupMachines, SYSTEM_GROUP, SYSTEM_KIND};
use shardhost::host::ReplicaFactory;
use shardhost_policy::catalog::CatalogMachine;
use shardhost_proto::shard_map::{QUEUE_KIND, TABLE_KIND};

/// The kinds of groups that this host can hold, for operators.
const KINDS: [&str; 2] = [TABLE_KIND, QUEUE_KIND];

/// Refuses a kind that operators cannot mean.
///
/// # Errors
/// What the kinds are.
pub fn check_kind(kind: &str) -> Result<(), String> {
    if KINDS.contains(&kind) {
        return Ok(());
    }
    Err(format!("there is no kind `{kind}`; the kinds are {}", KINDS.join(" and ")))
}

/// The state machine of a group of this kind.
pub(super) fn machine_of(
    state: &Arc<StateDb>,
    group: GroupId,
    kind: &str,
) -> Result<Box<dyn StateMachine>, String> {
    match kind {
        SYSTEM_KIND if group == SYSTEM_GROUP => Ok(Box::new(CatalogMachine::default())),
        TABLE_KIND => Ok(Box::new(state.table(group))),
        QUEUE_KIND => Ok(Box::new(state.queue(group))),
        _ => Err(format!("this node has no state machine of the kind `{kind}`")),
    }
}

/// The same for a replica that is being created: what an earlier one left behind goes first, for a
/// crash may have come between its end and that of its state. Only while the group is held for
/// its creation. Blocks for the disk.
pub(super) fn empty_machine_of(
    state: &Arc<StateDb>,
    group: GroupId,
    kind: &str,
) -> Result<Box<dyn StateMachine>, String> {
    // A machine that is made before its state is emptied would belong to what was removed.
    if matches!(kind, TABLE_KIND | QUEUE_KIND) {
        state.make_empty(group).map_err(|error| error.to_string())?;
    }
    machine_of(state, group, kind)
}

/// Makes the machines of replicas that this node is asked to hold.
#[derive(Default)]
pub(super) struct Replicas {
    /// Set once the state of the shards is open; create requests that come before come again.
    state: OnceLock<Weak<StateDb>>,
}

impl Replicas {
    pub(super) fn open(&self, state: &Arc<StateDb>) {
        self.state.get_or_init(|| Arc::downgrade(state));
    }

    fn state(&self) -> Result<Arc<StateDb>, String> {
        let state = self.state.get().and_then(Weak::upgrade);
        state.ok_or_else(|| "the state of the shards is not open".to_owned())
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Replicas")
    }
}

impl ReplicaFactory for Replicas {
    fn machine(&self, create_request: &CreateRequest) -> Result<Box<dyn StateMachine>, String> {
        self.create(create_request.group, &create_request.kind)
    }
}

impl GroupMachines for Replicas {
    fn create(&self, group: GroupId, kind: &str) -> Result<Box<dyn StateMachine>, String> {
        empty_machine_of(&self.state()?, group, kind)
    }

    fn destroy(&self, group: GroupId) -> Result<(), String> {
        self.state()?.destroy(group).map_err(|error| error.to_string())
    }
}
