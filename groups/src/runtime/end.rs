//! Closing and destroying replicas. A caller sends an [`Ending`] on its way and waits for it; when
//! the caller goes away, the rest happens all the same.

use std::sync::Arc;

use shardhost_storage::GroupId;

use super::apply_pool::Waiting;
use super::{Groups, RuntimeShared};
use crate::error::OpenGroupError;
use crate::lives::{Closing, Destroying, Destruction, Ending, Meant, Registered};
use crate::runtime::GroupShared;
use crate::worker::Input;

impl Groups {
    /// Closes a replica and keeps its data; it can be opened again. Waits until nothing of it can
    /// reach the log, the network or its state any more. `false`: it was not open.
    ///
    /// The replica is closed even when the future is dropped after its first poll.
    pub async fn close(&self, group: GroupId) -> bool {
        let shared = self.shared();
        loop {
            let (ended, is_over) = match shared.lives.close(group, shared.is_registered(group)) {
                Closing::NotOpen => return false,
                Closing::Joined(ended) => (ended, true),
                Closing::Wait(opened) => (opened, false),
                Closing::Begun(ending, ended) => {
                    shared.send_ending(ending);
                    (ended, true)
                }
            };
            // An error when the host has stopped: then the replica has ended as well.
            let is_stopped = ended.await.is_err();
            if is_over || is_stopped {
                return true;
            }
        }
    }

    /// Closes a replica and removes its log, its snapshots and, if it was open, its state. Its
    /// replica id is remembered and never used again.
    ///
    /// Once the destruction has begun it continues when the future is dropped. It begins with the
    /// first poll, unless another step with the group has to end before.
    ///
    /// # Errors
    /// [`OpenGroupError`] when the log cannot be written or holds no such replica.
    pub async fn destroy(&self, group: GroupId) -> Result<(), OpenGroupError> {
        self.destroy_replica(Destruction::new(group)).await
    }

    /// Destroys a replica under the conditions of `destruction`.
    ///
    /// # Errors
    /// As [`Groups::destroy`]; [`OpenGroupError::OtherGeneration`] or [`OpenGroupError::OtherReplica`] when
    /// it was ordered for another one: nothing changed then.
    pub async fn destroy_replica(&self, destruction: Destruction) -> Result<(), OpenGroupError> {
        let (shared, group) = (self.shared(), destruction.group);
        let check = || shared.check_open_replica(group, destruction.meant);
        let open = loop {
            match shared.lives.destroy(group, check)? {
                Destroying::Granted(open) => break open,
                Destroying::Wait(ended) => ended.await.map_err(|_| OpenGroupError::Stopping)?,
            }
        };
        let (done, outcome) = crate::completion::answer();
        shared.send_ending(Ending::destroying(&shared.lives, open, destruction, done));
        outcome.await.unwrap_or(Err(OpenGroupError::Stopping))
    }
}

impl RuntimeShared {
    fn is_registered(&self, group: GroupId) -> Registered {
        if self.registry.contains_key(&group) { Registered::Yes } else { Registered::No }
    }

    /// Sends the end of a replica to the worker, the first on its way.
    pub(super) fn send_ending(&self, ending: Ending) {
        let (group, cause) = (ending.group(), ending.cause());
        let input = Input::Close { group, cause, ending: Some(ending) };
        self.inboxes[self.worker_of(group)].complete(input);
    }

    /// The last thread on the way: drops the state machine.
    pub(super) fn end_machine(&self, ending: Ending) {
        let replica = self.ending_replica(&ending);
        self.apply.end(replica.as_ref(), ending, Waiting::Dropped);
    }

    /// The log holds nothing of the replica any more: its state and its snapshots are removed.
    pub(super) fn end_released(&self, ending: Ending) {
        let replica = self.ending_replica(&ending);
        self.apply.end(replica.as_ref(), ending, Waiting::Done);
    }

    pub(super) fn check_open_replica(
        &self,
        group: GroupId,
        meant: Meant,
    ) -> Result<(), OpenGroupError> {
        let known = self.registry.get(&group).map(|known| known.status().replica);
        known.map_or(Ok(()), |replica| meant.check(group, replica))
    }

    /// The replica that ends, if it is open.
    pub(super) fn ending_replica(&self, ending: &Ending) -> Option<Arc<GroupShared>> {
        let known = self.registry.get(&ending.group())?;
        let shared = known.shared();
        (Some(shared.open_id) == ending.open_id().map(|open| open.get()))
            .then(|| Arc::clone(shared))
    }
}
