//! What is being done with one group on this host, and what may begin next. Pure.
//!
//! A group's number is no identity: the replica behind it is opened, closed, destroyed and created
//! again. So at most one step runs per group, and an open replica is named by its [`OpenId`].

use crate::error::GroupStep;

/// Names one opening of a replica in this process. Never given out twice. The replica itself calls
/// it its open id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpenId(pub(super) u64);

impl OpenId {
    /// The opening that a replica calls its open id.
    #[must_use]
    pub const fn from_open_id(open_id: u64) -> Self {
        Self(open_id)
    }

    /// As a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// What a caller who wants something has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Granted,
    /// Another step ends soon: ask again then.
    Wait,
    AlreadyOpen,
    /// Another caller's step is under way, and takes as long as a state machine likes.
    Busy(GroupStep),
}

/// Whether callers can find a replica in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registered {
    Yes,
    No,
}

/// What becomes of a request to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClosingAdmission {
    /// The replica of this opening is to be closed by the caller.
    Granted(OpenId),
    /// It is on its way out.
    Joined,
    /// It is about to be open: ask again.
    Wait,
    /// There is nothing to close.
    NotOpen,
}

/// What becomes of a request to destroy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DestroyingAdmission {
    /// The caller destroys the replica, which is open if it has an id.
    Granted(Option<OpenId>),
    /// Another step ends: ask again then.
    Wait,
    /// Another caller's step is under way.
    Busy(GroupStep),
}

/// What follows when the group released a replica for good, and its log is destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReleaseAdmission {
    Granted,
    /// It is ending already, and its data goes with it.
    Joined,
    /// It is none of this opening.
    Stale,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// No replica runs. The log may hold one.
    #[default]
    Idle,
    Starting(GroupStep),
    Open(OpenId),
    Ending {
        step: GroupStep,
        open: Option<OpenId>,
        released: bool,
    },
}

/// Decides what may be done with one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GroupOwner {
    state: State,
    /// Creations and openings that began since the owner exists.
    starts: u64,
    /// The group released the replica that is starting: its worker runs it already.
    released_early: Option<OpenId>,
}

/// What a replica that was started comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Started {
    Open,
    /// The group released it meanwhile: it ends now.
    Released,
}

impl GroupOwner {
    /// Whether nothing need be remembered of the group.
    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// Whether a replica runs and nothing is done with it.
    pub(super) const fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Creations and openings that began so far.
    pub(super) const fn starts(&self) -> u64 {
        self.starts
    }

    /// Whether a creation or an opening could begin.
    pub(super) const fn may_start(&self) -> Admission {
        match self.state {
            State::Idle => Admission::Granted,
            State::Starting(GroupStep::Looking) => Admission::Wait,
            State::Starting(step) => Admission::Busy(step),
            State::Open(_) => Admission::AlreadyOpen,
            State::Ending { .. } => Admission::Wait,
        }
    }

    /// Begins a creation or an opening, if that may be.
    pub(super) fn start(&mut self, step: GroupStep) -> Admission {
        let admission = self.may_start();
        if admission == Admission::Granted {
            self.state = State::Starting(step);
            self.starts += 1;
        }
        admission
    }

    /// The step that began ends with a replica that runs.
    pub(super) fn opened(&mut self, open: OpenId) -> Started {
        debug_assert!(matches!(self.state, State::Starting(_)), "{:?}", self.state);
        if self.released_early.take() != Some(open) {
            self.state = State::Open(open);
            return Started::Open;
        }
        self.end(GroupStep::Destroying, Some(open));
        Started::Released
    }

    /// The step that began ends without one.
    pub(super) fn gave_up(&mut self) {
        debug_assert!(matches!(self.state, State::Starting(_)), "{:?}", self.state);
        self.state = State::Idle;
        self.released_early = None;
    }

    /// A replica is to be closed. One that is being opened may be registered already.
    pub(super) fn close(&mut self, registered: Registered) -> ClosingAdmission {
        match self.state {
            State::Open(open) => {
                self.end(GroupStep::Closing, Some(open));
                ClosingAdmission::Granted(open)
            }
            State::Ending { open: Some(_), .. } => ClosingAdmission::Joined,
            State::Starting(_) if registered == Registered::Yes => ClosingAdmission::Wait,
            _ => ClosingAdmission::NotOpen,
        }
    }

    /// A replica is to be destroyed, open or not.
    pub(super) fn destroy(&mut self) -> DestroyingAdmission {
        let open = match self.state {
            State::Idle => None,
            State::Open(open) => Some(open),
            State::Starting(GroupStep::Looking) => return DestroyingAdmission::Wait,
            State::Starting(step) => return DestroyingAdmission::Busy(step),
            State::Ending { .. } => return DestroyingAdmission::Wait,
        };
        self.end(GroupStep::Destroying, open);
        DestroyingAdmission::Granted(open)
    }

    /// The group released the replica, which destroyed itself in the log.
    pub(super) fn release(&mut self, released: OpenId) -> ReleaseAdmission {
        match &mut self.state {
            State::Open(open) if *open == released => {
                self.end(GroupStep::Destroying, Some(released));
                ReleaseAdmission::Granted
            }
            State::Ending { open: Some(open), released: flag, .. } if *open == released => {
                *flag = true;
                ReleaseAdmission::Joined
            }
            State::Starting(_) => {
                self.released_early = Some(released);
                ReleaseAdmission::Joined
            }
            _ => ReleaseAdmission::Stale,
        }
    }

    /// Whether the replica that ends was released by its group meanwhile.
    pub(super) const fn is_released(&self) -> bool {
        matches!(self.state, State::Ending { released: true, .. })
    }

    /// Nothing of the replica can reach the log, the state or the network any more.
    pub(super) fn ended(&mut self) {
        debug_assert!(matches!(self.state, State::Ending { .. }), "{:?}", self.state);
        self.state = State::Idle;
    }

    const fn end(&mut self, step: GroupStep, open: Option<OpenId>) {
        self.state = State::Ending { step, open, released: false };
    }

    /// The step that is under way.
    pub(super) const fn step(&self) -> Option<GroupStep> {
        match self.state {
            State::Starting(step) | State::Ending { step, .. } => Some(step),
            State::Idle | State::Open(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: OpenId = OpenId(4);
    const OTHER: OpenId = OpenId(5);

    fn open() -> GroupOwner {
        let mut owner = GroupOwner::default();
        assert_eq!(owner.start(GroupStep::Opening), Admission::Granted);
        owner.opened(OPEN);
        owner
    }

    #[test]
    fn one_caller_starts_a_replica_and_others_are_refused() {
        let mut owner = GroupOwner::default();
        assert_eq!(owner.start(GroupStep::Creating), Admission::Granted);
        assert_eq!(owner.start(GroupStep::Opening), Admission::Busy(GroupStep::Creating));
        owner.opened(OPEN);
        assert_eq!(owner.start(GroupStep::Opening), Admission::AlreadyOpen);
        assert_eq!(owner.starts(), 1, "a refused one counts for nothing");
    }

    #[test]
    fn whoever_wants_something_waits_for_the_end_of_a_look() {
        let mut owner = GroupOwner::default();
        assert_eq!(owner.start(GroupStep::Looking), Admission::Granted);
        assert_eq!(owner.start(GroupStep::Opening), Admission::Wait);
        assert_eq!(owner.start(GroupStep::Looking), Admission::Wait);
        assert_eq!(owner.destroy(), DestroyingAdmission::Wait);
        assert_eq!(owner.close(Registered::No), ClosingAdmission::NotOpen);
        owner.gave_up();
        assert_eq!(owner.start(GroupStep::Opening), Admission::Granted);
        assert_eq!(owner.start(GroupStep::Looking), Admission::Busy(GroupStep::Opening));
    }

    #[test]
    fn a_step_that_gives_up_leaves_the_group_as_it_was() {
        let mut owner = GroupOwner::default();
        owner.start(GroupStep::Creating);
        owner.gave_up();
        assert!(owner.is_idle());
        assert_eq!(owner.start(GroupStep::Creating), Admission::Granted);
    }

    #[test]
    fn a_second_close_joins_the_first_and_touches_no_later_replica() {
        let mut owner = open();
        assert_eq!(owner.close(Registered::Yes), ClosingAdmission::Granted(OPEN));
        assert_eq!(owner.close(Registered::Yes), ClosingAdmission::Joined);
        assert_eq!(owner.start(GroupStep::Opening), Admission::Wait, "the end comes first");
        owner.ended();
        assert_eq!(owner.close(Registered::No), ClosingAdmission::NotOpen);
        assert_eq!(owner.start(GroupStep::Opening), Admission::Granted);
    }

    #[test]
    fn a_replica_that_can_be_found_already_is_closed_once_it_is_open() {
        let mut owner = GroupOwner::default();
        owner.start(GroupStep::Opening);
        assert_eq!(owner.close(Registered::No), ClosingAdmission::NotOpen);
        assert_eq!(owner.close(Registered::Yes), ClosingAdmission::Wait);
        owner.opened(OPEN);
        assert_eq!(owner.close(Registered::Yes), ClosingAdmission::Granted(OPEN));
    }

    #[test]
    fn destroying_waits_for_an_end_and_is_refused_during_a_start() {
        let mut owner = open();
        owner.close(Registered::Yes);
        assert_eq!(owner.destroy(), DestroyingAdmission::Wait);
        owner.ended();
        assert_eq!(owner.destroy(), DestroyingAdmission::Granted(None));
        assert_eq!(owner.step(), Some(GroupStep::Destroying));
        owner.ended();
        owner.start(GroupStep::Creating);
        assert_eq!(owner.destroy(), DestroyingAdmission::Busy(GroupStep::Creating));
    }

    #[test]
    fn a_replica_that_is_released_while_it_starts_ends_when_it_has_started() {
        let mut owner = GroupOwner::default();
        owner.start(GroupStep::Creating);
        assert_eq!(owner.release(OPEN), ReleaseAdmission::Joined);
        assert_eq!(owner.opened(OPEN), Started::Released);
        assert_eq!(owner.start(GroupStep::Opening), Admission::Wait, "it ends first");
        owner.ended();
        owner.start(GroupStep::Creating);
        assert_eq!(owner.opened(OTHER), Started::Open, "another one is not concerned");
    }

    #[test]
    fn a_release_counts_for_the_opening_that_was_released() {
        let mut owner = open();
        assert_eq!(owner.release(OTHER), ReleaseAdmission::Stale);
        assert_eq!(owner.close(Registered::Yes), ClosingAdmission::Granted(OPEN));
        assert_eq!(owner.release(OTHER), ReleaseAdmission::Stale);
        assert!(!owner.is_released());
        assert_eq!(owner.release(OPEN), ReleaseAdmission::Joined);
        assert!(owner.is_released());
        owner.ended();
        assert_eq!(owner.release(OPEN), ReleaseAdmission::Stale);
        let mut other = open();
        assert_eq!(other.release(OPEN), ReleaseAdmission::Granted);
        assert_eq!(other.close(Registered::Yes), ClosingAdmission::Joined);
    }
}
