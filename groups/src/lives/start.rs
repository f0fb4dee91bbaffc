//! Holding groups while replicas are brought to life.

use std::sync::Arc;

use shardhost_storage::GroupId;

use super::owner::Started;
use super::{Admission, Ending, Lives, OpenId, Owners};
use crate::error::{GroupStep, OpenGroupError};

/// Groups that are held for a creation or an opening. Dropped, it releases those that were not
/// opened.
#[derive(Debug)]
#[must_use = "dropping it releases the groups"]
pub(crate) struct StartGuard {
    lives: Arc<Lives>,
    groups: Vec<GroupId>,
}

/// A look at a group that does not hold it. Notices whether a replica was opened meanwhile.
#[derive(Debug)]
pub(crate) struct Look {
    lives: Arc<Lives>,
    group: GroupId,
    /// Creations and openings that had begun; `None`: one was under way.
    starts: Option<u64>,
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
            (groups.first().copied().unwrap_or_default(), Admission::Granted)
        })
    }
}

impl Lives {
    /// Holds these groups, all or none, to bring replicas of them to life. Waits for replicas that
    /// end.
    ///
    /// # Errors
    /// [`OpenGroupError::AlreadyOpen`], [`OpenGroupError::Busy`], [`OpenGroupError::Stopping`].
    pub(crate) fn start(
        self: &Arc<Self>,
        groups: Vec<GroupId>,
        step: GroupStep,
    ) -> Result<StartGuard, OpenGroupError> {
        self.wait_for(|owners| {
            let answer = owners.start_all(&groups, step);
            owners.starting += usize::from(answer.1 == Admission::Granted);
            answer
        })?;
        Ok(StartGuard { lives: Arc::clone(self), groups })
    }

    /// Machines of new replicas are about to be made. Those of destroyed ones are dropped, so that none
    /// removes what the next one makes; that their state remains is known until the new replica is created.
    pub(crate) fn before_creation(&self, held: &StartGuard) {
        held.groups.iter().for_each(|group| self.drop_remains(*group));
    }

    /// The log holds new replicas: what remained of earlier ones is theirs.
    pub(crate) fn created(&self, held: &StartGuard) {
        held.groups.iter().for_each(|group| drop(self.forget_remains(*group)));
    }

    /// Looks at a group that is not open, without holding it.
    ///
    /// # Errors
    /// As [`Lives::start`].
    pub(crate) fn look(self: &Arc<Self>, group: GroupId) -> Result<Look, OpenGroupError> {
        let mut starts = None;
        self.wait_for(|owners| {
            let seat = owners.of(group);
            let admission = seat.owner.may_start();
            // A look does not disturb the step.
            if !matches!(admission, Admission::Granted | Admission::Busy(_)) {
                return (group, admission);
            }
            seat.lookers += 1;
            starts = (admission == Admission::Granted).then(|| seat.owner.starts());
            (group, Admission::Granted)
        })?;
        Ok(Look { lives: Arc::clone(self), group, starts })
    }
}

impl StartGuard {
    /// The replicas run: from here on they can be closed. In the order of the groups. The ends of
    /// those that their groups released meanwhile, to be sent on their way.
    #[must_use]
    pub(crate) fn opened(mut self, opened: &[OpenId]) -> Vec<Ending> {
        assert_eq!(self.groups.len(), opened.len(), "every group that is held is opened");
        let lives = Arc::clone(&self.lives);
        let mut released = Vec::new();
        let mut owners = lives.owners.lock();
        for (group, open) in self.groups.drain(..).zip(opened) {
            if owners.of(group).owner.opened(*open) == Started::Released {
                released.push((group, *open));
            }
            owners.settle(group);
        }
        drop(owners);
        let end = |(group, open)| Ending::release(&lives, group, open);
        released.into_iter().map(end).collect()
    }

    /// A name for a replica that is about to be opened.
    pub(crate) fn next_open_id(&self) -> OpenId {
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
        owners.starting -= 1;
        drop(owners);
        self.lives.changed.notify_all();
    }
}

impl Look {
    /// Whether no replica lived between the look and the step that `_held` holds.
    pub(crate) fn is_current(&self, _held: &StartGuard) -> bool {
        let mut owners = self.lives.owners.lock();
        let starts = owners.of(self.group).owner.starts();
        self.starts.is_some_and(|seen| seen + 1 == starts)
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        let mut owners = self.lives.owners.lock();
        if let Some(seat) = owners.seats.get_mut(&self.group) {
            seat.lookers -= 1;
            let forget = seat.lookers == 0 && seat.owner.is_idle() && seat.completions.is_empty();
            if forget {
                owners.seats.remove(&self.group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId::new(7);
    const OTHER: GroupId = GroupId::new(8);

    fn start(lives: &Arc<Lives>) -> StartGuard {
        lives.start(vec![GROUP], GroupStep::Opening).unwrap()
    }

    /// Opens a replica and lets it end.
    fn open_and_end(lives: &Arc<Lives>, held: StartGuard) {
        let open = held.next_open_id();
        assert!(held.opened(&[open]).is_empty());
        assert!(lives.release(GROUP, open).is_some());
        lives.ended(GROUP, || ());
    }

    #[test]
    fn a_stop_waits_for_the_starts_that_have_begun_and_lets_none_begin() {
        let lives = Arc::<Lives>::default();
        let (given_up, opened) = (start(&lives), lives.start(vec![OTHER], GroupStep::Creating));
        lives.stop();
        let refused = lives.start(vec![GroupId::new(9)], GroupStep::Opening);
        assert_eq!(refused.unwrap_err(), OpenGroupError::Stopping);
        let stopper = std::thread::spawn({
            let lives = Arc::clone(&lives);
            move || lives.wait_for_starts()
        });
        drop(given_up);
        assert_eq!(lives.owners.lock().starting, 1);
        assert!(!stopper.is_finished());
        let opened = opened.unwrap();
        let open = opened.next_open_id();
        assert!(opened.opened(&[open]).is_empty());
        stopper.join().unwrap();
        assert_eq!(lives.owners.lock().starting, 0);
    }

    #[test]
    fn a_look_is_current_when_no_replica_was_opened_since() {
        let lives = Arc::<Lives>::default();
        let look = lives.look(GROUP).unwrap();
        assert!(look.is_current(&start(&lives)));
    }

    #[test]
    fn a_look_is_stale_when_a_replica_was_opened_since_or_just_then() {
        let lives = Arc::<Lives>::default();
        let before = lives.look(GROUP).unwrap();
        let held = start(&lives);
        let during = lives.look(GROUP).unwrap();
        open_and_end(&lives, held);
        let held = start(&lives);
        assert!(!before.is_current(&held), "one was opened and ended");
        assert!(!during.is_current(&held), "one was being opened");
    }

    #[test]
    fn a_group_with_which_nothing_is_done_takes_no_memory() {
        let lives = Arc::<Lives>::default();
        drop(lives.look(GROUP).unwrap());
        drop(start(&lives));
        let held = start(&lives);
        open_and_end(&lives, held);
        assert!(lives.owners.lock().seats.is_empty());
    }

    #[test]
    fn groups_are_held_all_or_none() {
        let lives = Arc::<Lives>::default();
        let held = start(&lives);
        let both = vec![GroupId::new(8), GROUP];
        let refused = lives.start(both.clone(), GroupStep::Creating).unwrap_err();
        let step = GroupStep::Opening;
        assert_eq!(refused, OpenGroupError::Busy { group: GROUP, step });
        drop(held);
        let _both = lives.start(both, GroupStep::Creating).unwrap();
    }
}
