//! Replicas that the log holds and that cannot be opened: a state machine that is ahead of its log,
//! or of an unknown kind, or a log that is damaged. They are parked with the cause, the others
//! continue, and a destruction, or the notice that the group continues without them, ends them. They ask for
//! that notice now and then (`asking`).

pub(super) mod asking;

use std::collections::BTreeMap;

use parking_lot::Mutex;
use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{Genesis, GroupId, GroupMeta, LogError, Membership, NodeId, ReplicaId};

use super::skip::LEFT_BY_SKIP;
use super::{Groups, RuntimeShared};
use crate::convert;
use crate::error::{GroupFault, OpenGroupError};
use crate::lives::{Destroying, Destruction, Ending, Meant};
use crate::status::Role;

/// A replica that cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParkedReplica {
    pub group: GroupId,
    /// The replica; `None`: not even its id can be read.
    pub replica: Option<ReplicaId>,
    /// What it knows of itself; `None`: that cannot be read.
    pub meta: Option<GroupMeta>,
    /// Why it cannot be opened.
    pub cause: OpenGroupError,
    /// An operator keeps it closed: nothing is wrong with it.
    pub ordered: bool,
    /// It was closed to be opened again: nothing is wrong with it.
    pub reopens: bool,
    /// The cause may have passed: it is worth a try to open it again.
    pub passes: bool,
    /// A step of the skip of a command closed it, or ended its skip, and it is to be opened since: where that
    /// failed, `cause` says why.
    pub left_by_skip: bool,
}

/// Why replicas are not open. At most as many as the log holds.
#[derive(Debug, Default)]
pub(super) struct Parked(Mutex<BTreeMap<GroupId, Note>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    cause: OpenGroupError,
    why: Why,
    left_by_skip: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// It cannot be opened.
    Fault,
    /// An operator keeps it closed.
    Ordered,
    /// The same, and the skip of a command is abandoned that the replica notes.
    SkipAbandoned,
    /// It was closed to be opened again.
    Reopens,
}

impl Why {
    const fn is_ordered(self) -> bool {
        matches!(self, Self::Ordered | Self::SkipAbandoned)
    }
}

impl Parked {
    /// A replica that the log holds was not opened. Called while its group is held, so that no note
    /// of a later step is lost.
    pub(super) fn not_opened(&self, group: GroupId, error: &OpenGroupError) {
        match error {
            OpenGroupError::Unknown { .. } => self.forget(group),
            cause @ (OpenGroupError::Faulted { .. } | OpenGroupError::Invalid { .. }) => {
                self.park(group, cause.clone());
            }
            // Another step is under way with it, or it is open.
            _ => {}
        }
    }

    pub(super) fn park(&self, group: GroupId, cause: OpenGroupError) {
        let left_by_skip = self.note_of(group).is_some_and(|note| note.left_by_skip);
        self.insert(group, Note { cause, why: Why::Fault, left_by_skip });
    }

    /// It notes the skip of a command: an operator keeps it closed. What was noted of that stays.
    pub(super) fn skip_unfinished(&self, group: GroupId, cause: OpenGroupError) {
        if !self.is_kept_closed(group) {
            self.insert(group, Note { cause, why: Why::Ordered, left_by_skip: false });
        }
    }

    /// An operator keeps it closed.
    pub(super) fn keep_closed(&self, group: GroupId, why: &str) {
        let cause = OpenGroupError::Invalid { group, message: why.to_owned() };
        self.insert(group, Note { cause, why: Why::Ordered, left_by_skip: false });
    }

    /// The same, and the skip of a command is abandoned until something else is noted.
    pub(super) fn abandon_skip(&self, group: GroupId, why: &str) {
        let cause = OpenGroupError::Invalid { group, message: why.to_owned() };
        self.insert(group, Note { cause, why: Why::SkipAbandoned, left_by_skip: false });
    }

    /// It does not note the skip of a command any more, and is to be opened.
    pub(super) fn skip_ended(&self, group: GroupId, why: &str) {
        let cause = OpenGroupError::Invalid { group, message: why.to_owned() };
        self.0.lock().insert(group, Note { cause, why: Why::Reopens, left_by_skip: true });
    }

    /// It is about to be closed and opened again, unless something else is noted already.
    fn reopens(&self, group: GroupId, why: &str, left_by_skip: bool) {
        let cause = OpenGroupError::Invalid { group, message: why.to_owned() };
        self.0.lock().entry(group).or_insert(Note { cause, why: Why::Reopens, left_by_skip });
    }

    /// Whether the skip of a command is abandoned.
    pub(super) fn is_skip_abandoned(&self, group: GroupId) -> bool {
        self.note_of(group).is_some_and(|note| note.why == Why::SkipAbandoned)
    }

    fn insert(&self, group: GroupId, note: Note) {
        let mut parked = self.0.lock();
        if parked.get(&group) != Some(&note) {
            let (cause, ordered) = (&note.cause, note.why.is_ordered());
            tracing::error!(%group, %cause, ordered, "the replica is parked; the others continue");
            parked.insert(group, note);
        }
    }

    /// Whether an operator keeps it closed.
    pub(super) fn is_kept_closed(&self, group: GroupId) -> bool {
        self.note_of(group).is_some_and(|note| note.why.is_ordered())
    }

    pub(super) fn forget(&self, group: GroupId) {
        self.0.lock().remove(&group);
    }

    /// Removes a note of this cause, and no other one.
    pub(super) fn forget_cause(&self, group: GroupId, cause: &OpenGroupError) {
        let mut parked = self.0.lock();
        if parked.get(&group).is_some_and(|note| note.cause == *cause) {
            parked.remove(&group);
        }
    }

    pub(super) fn is_parked(&self, group: GroupId) -> bool {
        self.0.lock().contains_key(&group)
    }

    fn note_of(&self, group: GroupId) -> Option<Note> {
        self.0.lock().get(&group).cloned()
    }

    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.0.lock().keys().copied().collect()
    }
}

impl Groups {
    /// The replicas that the log holds and that could not be opened, by group.
    #[must_use]
    pub fn parked(&self) -> Vec<ParkedReplica> {
        let groups = self.shared().parked.groups();
        groups.into_iter().filter_map(|group| self.parked_replica(group)).collect()
    }

    /// Leaves a replica that the log holds and that is not open closed, with this reason. Opening
    /// it ends that.
    pub fn park(&self, group: GroupId, why: &str) {
        self.shared().parked.keep_closed(group, why);
    }

    /// Closes a replica that the caller opens again, with [`Groups::reopen_with`]. From here on until it
    /// is open, or noted otherwise, it is parked with this reason, so that it is shown, and ends when its
    /// group removes it, whatever becomes of the caller. Else as [`Groups::close`].
    pub async fn close_to_reopen(&self, group: GroupId, why: &str) -> bool {
        self.close_noting(group, why, false).await
    }

    /// The same, for a step of the skip of a command.
    pub async fn close_for_skip(&self, group: GroupId) -> bool {
        self.close_noting(group, LEFT_BY_SKIP, true).await
    }

    async fn close_noting(&self, group: GroupId, why: &str, for_skip: bool) -> bool {
        let parked = &self.shared().parked;
        parked.reopens(group, why, for_skip);
        let was_open = self.close(group).await;
        // It may have been destroyed before the note.
        if matches!(self.is_stored(group), Ok(false)) {
            parked.forget(group);
        }
        was_open
    }

    /// Whether a replica was closed to be opened again and is not: who found it held by another step left
    /// that to the owner of the step.
    #[must_use]
    pub fn is_to_be_reopened(&self, group: GroupId) -> bool {
        self.parked_replica(group).is_some_and(|parked| parked.reopens)
    }

    /// This host's replica of the group, if it could not be opened.
    #[must_use]
    pub fn parked_replica(&self, group: GroupId) -> Option<ParkedReplica> {
        let shared = self.shared();
        let Note { cause, why, left_by_skip } = shared.parked.note_of(group)?;
        // One that is about to be closed is noted before.
        if shared.registry.contains_key(&group) {
            return None;
        }
        let meta = shared.store().and_then(|store| store.meta(group)).ok().flatten();
        let known = meta.as_ref().map(|meta| meta.replica);
        let replica = known.or_else(|| shared.store().ok()?.replica(group).ok().flatten());
        let (ordered, reopens) = (why.is_ordered(), why == Why::Reopens);
        let passes = why == Why::Fault && is_passing(&cause);
        Some(ParkedReplica { group, replica, meta, cause, ordered, reopens, passes, left_by_skip })
    }

    /// The groups of which a replica was destroyed here and its state remains, in ascending order.
    #[must_use]
    pub fn remains(&self) -> Vec<GroupId> {
        self.shared().lives.remains()
    }

    /// Whether a replica of the group was destroyed here and its state remains.
    #[must_use]
    pub fn has_remains(&self, group: GroupId) -> bool {
        self.shared().lives.has_remains(group)
    }
}

const fn is_passing(cause: &OpenGroupError) -> bool {
    matches!(cause, OpenGroupError::Faulted { fault: GroupFault::StatePasses(_), .. })
}

/// What is wrong with the log of one group only.
pub(super) const fn concerns_one_group(error: &LogError) -> bool {
    matches!(error, LogError::Corrupt { .. })
}

impl RuntimeShared {
    /// A member reports that the group continues without a replica that does not run, or asks this
    /// node to create another one in its place. It takes part in nothing, so it is not needed any
    /// more, and one member's report of what is committed is enough. The request is repeated, and
    /// finds it gone.
    pub(super) fn dismissed(&self, from: NodeId, message: &GroupMessage) {
        let group = GroupId::new(message.group);
        let failed = self
            .registry
            .get(&group)
            .is_some_and(|known| matches!(known.status().role, Role::Failed(_)));
        if !failed && !self.parked.is_parked(group) {
            return;
        }
        let meta = match self.store().and_then(|store| store.meta(group)) {
            Ok(Some(meta)) => meta,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%group, %from, %error, "a notice of removal cannot be checked");
                return;
            }
        };
        if !is_dismissal(&meta, from, message) && !is_successor(&meta, from, message) {
            tracing::debug!(%group, %from, "a notice of removal, or a create request, does not count");
            return;
        }
        // The next replica may have been opened since.
        let check = || self.check_open_replica(group, Meant::Replica(meta.replica));
        match self.lives.destroy(group, check) {
            Ok(Destroying::Granted(open)) => {
                tracing::info!(%group, replica = %meta.replica, %from, "removed from the group: it ends");
                // No caller waits for it.
                let (done, _) = crate::completion::answer();
                let destruction = Destruction::of(group, meta.replica);
                self.send_ending(Ending::destroying(&self.lives, open, destruction, done));
            }
            // It ends already, or the notice comes again.
            Ok(Destroying::Wait(_)) | Err(_) => {}
        }
    }
}

/// Whether a member of a later configuration reports that this very replica was removed from its
/// group.
fn is_dismissal(meta: &GroupMeta, from: NodeId, message: &GroupMessage) -> bool {
    message.kind() == MessageKind::Removed
        && message.to_replica == meta.replica.get()
        && goes_on_without(meta, from, message).is_some()
}

/// Whether a member of a later configuration asks the node of a removed replica to hold another
/// one.
fn is_successor(meta: &GroupMeta, from: NodeId, message: &GroupMessage) -> bool {
    let node = meta.membership.node_of(meta.replica);
    let asked = ReplicaId::new(message.to_replica);
    message.kind() == MessageKind::CreateReplica
        && goes_on_without(meta, from, message)
            .is_some_and(|told| asked.is_some_and(|one| told.node_of(one) == node))
        && node.is_some()
}

/// The configuration of this very group, without the replica, that a member of it shows.
fn goes_on_without(meta: &GroupMeta, from: NodeId, message: &GroupMessage) -> Option<Membership> {
    let wire = message.create_request.as_ref()?.membership.as_ref()?;
    let membership = convert::membership_from_wire(wire)?;
    let sender = ReplicaId::new(message.from_replica)?;
    let node = membership.members.get(&sender)?.node;
    let same_group = meta.membership.may_be(Genesis::new(message.genesis))
        && meta.membership.may_be(membership.genesis);
    let without = node == from
        && same_group
        && membership.config_index >= meta.membership.config_index
        && membership.was_removed(meta.replica);
    without.then_some(membership)
}

#[cfg(test)]
mod tests;
