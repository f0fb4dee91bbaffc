//! Holding groups while replicas are brought to life.

use std::sync::Arc;

use shardhost_storage::GroupId;

use super::{Admission, GroupStep, Lives, OpenId, Owners};
use crate::error::OpenGroupError;

/// Groups that are held for a creation or an opening. Dropped, it releases those that were not
/// opened.
#[derive(Debug)]
#[must_use = "dropping it releases the groups"]
pub(in crate::runtime) struct StartGuard {
    lives: Arc<Lives>,
    groups: Vec<GroupId>,
}

/// A look at a group that does not hold it. Notices whether a replica was opened meanwhile.
#[derive(Debug)]
pub(in crate::runtime) struct Look {
    lives: Arc<Lives>,
    group: GroupId,
    starts: u64,
}

impl Owners {
    /// Starts all of these groups, or names one that is in the way.
    fn start_all(&mut self, groups: &[GroupId], step: GroupStep) -> (GroupId, Admission) {
        let admission = |group: &GroupId| {
            let seat = self.seats.get(group);
            (*group, seat.map_or(Admission::Granted, |seat| seat.owner.may_start()))
        };
        let blocked = groups.iter().map(admission).find(|(_, one)| *one != Admission::Granted);
        blocked.unwrap_or_else(|| {
            groups.iter().for_each(|group| {
                self.of(*group).owner.start(step);
            });
            (groups[0], Admission::Granted)
        })
    }
}

impl Lives {
    /// Holds these groups, all or none, to bring replicas of them to life. Waits for replicas that
    /// end.
    ///
    /// # Errors
    /// [`OpenGroupError::AlreadyOpen`], [`OpenGroupError::Busy`], [`OpenGroupError::Stopping`].
    pub(in crate::runtime) fn start(
        self: &Arc<Self>,
        groups: Vec<GroupId>,
        step: GroupStep,
    ) -> Result<StartGuard, OpenGroupError> {
        if !groups.is_empty() {
            self.wait_for(|owners| owners.start_all(&groups, step))?;
        }
        Ok(StartGuard { lives: Arc::clone(self), groups })
    }

    /// Looks at a group that is not open, without holding it.
    ///
    /// # Errors
    /// As [`Lives::start`].
    pub(in crate::runtime) fn look(
        self: &Arc<Self>,
        group: GroupId,
    ) -> Result<Look, OpenGroupError> {
        let mut starts = 0;
        self.wait_for(|owners| {
            let seat = owners.of(group);
            let admission = match seat.owner.may_start() {
                // A look does not disturb the step.
                Admission::Busy(_) => Admission::Granted,
                other => other,
            };
            if admission == Admission::Granted {
                seat.lookers += 1;
                starts = seat.owner.starts();
            }
            (group, admission)
        })?;
        Ok(Look { lives: Arc::clone(self), group, starts })
    }
}

impl StartGuard {
    /// The replicas run: from here on they can be closed. In the order of the groups.
    pub(in crate::runtime) fn opened(mut self, opened: &[OpenId]) {
        assert_eq!(self.groups.len(), opened.len(), "every group that is held is opened");
        let mut owners = self.lives.owners.lock();
        for (group, open) in self.groups.drain(..).zip(opened) {
            owners.of(group).owner.opened(*open);
            owners.settle(group);
        }
        drop(owners);
    }

    /// A name for a replica that is about to be opened.
    pub(in crate::runtime) fn next_open_id(&self) -> OpenId {
        self.lives.next_open_id()
    }
}

impl Drop for StartGuard {
    fn drop(&mut self) {
        let mut owners = self.lives.owners.lock();
        for group in self.groups.drain(..) {
            owners.of(group).owner.gave_up();
            owners.settle(group);
        }
        drop(owners);
    }
}

impl Look {
    /// Whether no replica lived between the look and the step that `_held` holds.
    pub(in crate::runtime) fn is_current(&self, _held: &StartGuard) -> bool {
        let mut owners = self.lives.owners.lock();
        owners.of(self.group).owner.starts() == self.starts + 1
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        let mut owners = self.lives.owners.lock();
        if let Some(seat) = owners.seats.get_mut(&self.group) {
            seat.lookers -= 1;
            let forget = seat.lookers == 0 && seat.owner.is_idle() && seat.waiters.is_empty();
            if forget {
                owners.seats.remove(&self.group);
            }
        }
    }
}
