//! The work of one group's state machine, and the machine.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::places::Place;
use crate::apply::{Applier, ApplyWork};
use crate::error::QueryError;
use crate::lives::Ending;
use crate::panics::let_go;

/// Pieces of work that a thread does for one group before it looks after another.
pub(super) const WORK_PER_TURN: usize = 64;
/// Questions to one machine after which those are dropped whose askers went away.
pub(super) const QUESTIONS_PER_LOOK: usize = 1024;

/// How long a stalled mailbox rests first; twice as long each further time.
const FIRST_REST: Duration = Duration::from_millis(100);
/// The longest that it rests.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// The work of one group's state machine, and the machine.
pub(crate) struct Mailbox {
    pub(super) state: Mutex<MailboxState>,
    pub(super) applier: Mutex<Option<Applier>>,
}

#[derive(Default)]
pub(super) struct MailboxState {
    pub(super) work: VecDeque<ApplyWork>,
    /// Checksums that wait for a place among the long calls. What comes later passes them: each answers
    /// with the position that it is of.
    aside: VecDeque<ApplyWork>,
    /// Questions that came since those whose askers went away were dropped.
    asked: usize,
    /// A token of it is in the queue, a thread is at it, or it rests.
    scheduled: bool,
    /// It rests: no token of it is in the queue.
    rests: bool,
    /// Its first work waits for a place among the long calls: no token of it is in the queue.
    waits: bool,
    /// It stands in line for such a place.
    in_line: bool,
    /// It got one, and did not use it yet.
    place: Option<Place>,
    /// Times in a row that its work could not be done.
    stalls: u32,
    closed: bool,
    /// The replica ends when the work that is left is done.
    ending: Option<Ending>,
}

impl MailboxState {
    fn end_turn(&mut self, lacks_place: bool) -> Next {
        if self.ending.is_some() || self.place.is_some() {
            return Next::Again;
        }
        // Where another call of this turn used the place that it was granted, it is not in line any more,
        // and has to ask again.
        let Some(first) = self.work.front() else {
            if !self.aside.is_empty() && !self.in_line {
                return Next::Again;
            }
            self.scheduled = false;
            self.work.shrink_to(4);
            return Next::Nothing;
        };
        if lacks_place && self.in_line && first.is_long() && !first.is_question() {
            self.waits = true;
            return Next::Nothing;
        }
        if self.stalls == 0 {
            return Next::Again;
        }
        self.rests = true;
        let rest = FIRST_REST.saturating_mul(1 << (self.stalls - 1).min(8));
        Next::Rest(rest.min(LONGEST_REST))
    }

    /// A question comes. Now and then, questions of callers that went away are dropped: a machine
    /// that hangs answers none, and callers that give up ask again.
    fn note_question(&mut self) {
        self.asked += 1;
        if self.asked >= QUESTIONS_PER_LOOK {
            self.asked = 0;
            self.work.retain(|work| !work.is_abandoned());
            self.aside.retain(|work| !work.is_abandoned());
        }
    }
}

/// A state machine has as many questions waiting as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// What becomes of work that waits when a replica ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runtime) enum Waiting {
    /// It is dropped, which fails the callers that wait for it.
    Dropped,
    Done,
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mailbox")
    }
}

impl Mailbox {
    pub(crate) fn new(applier: Applier) -> Self {
        Self { state: Mutex::default(), applier: Mutex::new(Some(applier)) }
    }

    /// The first work of a machine could not be done when its replica was opened. The mailbox counts as
    /// scheduled; see [`ApplyQueue::begin`](super::ApplyQueue::begin).
    pub(in crate::runtime) fn begins_with(&self, work: ApplyWork) {
        let mut state = self.state.lock();
        state.work.push_front(work);
        (state.scheduled, state.stalls) = (true, 1);
    }

    /// Takes no more work, and drops what waits.
    fn shut(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let dropped = (std::mem::take(&mut state.work), std::mem::take(&mut state.aside));
        let place = state.place.take();
        drop(state);
        drop((dropped, place));
    }

    /// Drops the machine; later work is dropped, which fails its callers.
    pub(in crate::runtime) fn close(&self) {
        self.shut();
        let_go("a state machine", self.applier.lock().take());
    }

    /// Takes no more work, and ends the replica after the present work. Returns whether the mailbox
    /// must be scheduled; the ending comes back if the replica has ended already.
    pub(super) fn end(&self, ending: Ending, waiting: Waiting) -> Result<bool, Ending> {
        let mut state = self.state.lock();
        if state.closed && state.ending.is_none() {
            return Err(ending);
        }
        state.closed = true;
        let (rests, waits) = (std::mem::take(&mut state.rests), std::mem::take(&mut state.waits));
        let drops = rests || waits || waiting == Waiting::Dropped;
        let dropped = drops.then(|| std::mem::take(&mut state.work));
        let aside = std::mem::take(&mut state.aside);
        let place = state.place.take();
        state.ending = Some(ending);
        let schedule = !std::mem::replace(&mut state.scheduled, true) || rests || waits;
        drop(state);
        drop((dropped, aside, place));
        Ok(schedule)
    }

    /// The end of the replica, if no work comes before it.
    pub(super) fn take_ending(&self) -> Option<Ending> {
        let mut state = self.state.lock();
        if !state.work.is_empty() {
            return None;
        }
        state.ending.take()
    }

    /// Answers a question on the caller's thread, if the machine is not busy and so quick that
    /// this may be done. `None`: the question must queue.
    pub(crate) fn query_at_once(&self, request: &Bytes) -> Option<Result<Bytes, QueryError>> {
        self.applier.try_lock()?.as_ref()?.answer_at_once(request)
    }

    /// Adds work; returns whether the mailbox must be scheduled.
    pub(super) fn add(&self, work: ApplyWork) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        state.work.push_back(work);
        !std::mem::replace(&mut state.scheduled, true)
    }

    /// Adds a question, unless `most` pieces of work wait; returns whether the mailbox must be
    /// scheduled. One that waits for a place answers questions meanwhile.
    pub(super) fn ask(&self, question: ApplyWork, most: usize) -> Result<bool, NoRoom> {
        let mut state = self.state.lock();
        state.note_question();
        if state.work.len() + state.aside.len() >= most {
            return Err(NoRoom);
        }
        if state.closed {
            drop(state);
            drop(question);
            return Ok(false);
        }
        state.work.push_back(question);
        let waits = std::mem::take(&mut state.waits);
        Ok(!std::mem::replace(&mut state.scheduled, true) || waits)
    }

    pub(super) fn take(&self) -> VecDeque<ApplyWork> {
        let mut state = self.state.lock();
        let take = state.work.len().min(WORK_PER_TURN);
        let rest = state.work.split_off(take);
        std::mem::replace(&mut state.work, rest)
    }

    /// Puts work back that cannot be done now. A replica that ends does not wait for it.
    pub(super) fn put_back(&self, work: Vec<ApplyWork>) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            return drop(work);
        }
        work.into_iter().rev().for_each(|work| state.work.push_front(work));
    }

    /// Work could not be done: the mailbox rests before it is tried again.
    pub(super) fn note_stall(&self) {
        let mut state = self.state.lock();
        state.stalls = state.stalls.saturating_add(1);
    }

    /// The questions behind what cannot be done now.
    pub(super) fn take_questions(&self) -> VecDeque<ApplyWork> {
        let mut state = self.state.lock();
        let work = std::mem::take(&mut state.work).into_iter();
        let (questions, rest) = work.partition(ApplyWork::is_question);
        state.work = rest;
        questions
    }

    /// Puts a checksum aside until the mailbox has a place for it.
    pub(super) fn set_aside(&self, sum: ApplyWork) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            return drop(sum);
        }
        state.aside.push_back(sum);
    }

    pub(super) fn take_aside(&self) -> VecDeque<ApplyWork> {
        std::mem::take(&mut self.state.lock().aside)
    }

    /// It stands in line for a place; returns whether it did not before, and may.
    pub(super) fn stand_in_line(&self) -> bool {
        let mut state = self.state.lock();
        !state.closed && !std::mem::replace(&mut state.in_line, true)
    }

    pub(super) fn is_in_line(&self) -> bool {
        self.state.lock().in_line
    }

    /// It is its turn to get a place. Returns whether it must be scheduled; `None`: it has ended, and
    /// takes none.
    pub(super) fn grant(&self, place: impl FnOnce() -> Place) -> Option<bool> {
        let mut state = self.state.lock();
        state.in_line = false;
        if state.closed {
            return None;
        }
        state.place = Some(place());
        let waits = std::mem::take(&mut state.waits);
        Some(!std::mem::replace(&mut state.scheduled, true) || waits)
    }

    pub(super) fn take_place(&self) -> Option<Place> {
        self.state.lock().place.take()
    }

    /// Work was done. Returns whether earlier work could not be.
    pub(super) fn went_on(&self) -> bool {
        std::mem::take(&mut self.state.lock().stalls) > 0
    }

    /// Ends a turn, in which a place was lacking or not; returns what comes next.
    pub(super) fn end_turn(&self, lacks_place: bool) -> Next {
        let mut state = self.state.lock();
        // Nothing of it needs the place: the next one gets it.
        let needless = if lacks_place { None } else { state.place.take() };
        let next = state.end_turn(lacks_place);
        drop(state);
        drop(needless);
        next
    }

    /// The rest is over; returns whether it still rested.
    pub(super) fn end_rest(&self) -> bool {
        std::mem::take(&mut self.state.lock().rests)
    }
}

/// What comes after a turn. `Nothing`, too, when it waits for a place, with which it is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    Again,
    Rest(Duration),
}
