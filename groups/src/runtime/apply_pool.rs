//! The threads that run state machines. Every group has a mailbox; a mailbox with work stands
//! once in the queue that all threads take from. So a group's work is done in order by one thread
//! at a time, and a slow machine holds up one thread and no other group.
//!
//! Work that a machine cannot do now, as on a full disk, goes back to the front of its mailbox, which
//! rests for a moment (*stalled*) and is tried again; questions are answered meanwhile.
//!
//! The end of a replica comes here last: an apply thread drops the machine, after which the
//! group's number is free.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use shardhost_storage::GroupId;

use super::RuntimeShared;
use super::machine_watch::{ApplyActivity, Call, name_of};
use crate::apply::{Applier, ApplyReport, ApplyWork, contain};
use crate::error::QueryError;
use crate::lives::{Clear, Ending};
use crate::runtime::GroupShared;
use crate::worker::{GroupEvent, Input};

/// Pieces of work that a thread does for one group before it looks after another.
const WORK_PER_TURN: usize = 64;
/// Questions to one machine after which those are dropped whose askers went away.
const QUESTIONS_PER_LOOK: usize = 1024;

/// How long a stalled mailbox rests first; twice as long each further time.
const FIRST_REST: Duration = Duration::from_millis(100);
/// The longest that it rests.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// The work of one group's state machine, and the machine.
pub(crate) struct Mailbox {
    state: Mutex<MailboxState>,
    applier: Mutex<Option<Applier>>,
}

#[derive(Default)]
struct MailboxState {
    work: VecDeque<ApplyWork>,
    /// Questions that came since those whose askers went away were dropped.
    asked: usize,
    /// A token of it is in the queue, a thread is at it, or it rests.
    scheduled: bool,
    /// It rests: no token of it is in the queue.
    rests: bool,
    /// Times in a row that its work could not be done.
    stalls: u32,
    closed: bool,
    /// The replica ends when the work that is left is done.
    ending: Option<Ending>,
}

impl MailboxState {
    /// A question comes. Now and then, questions of callers that went away are dropped: a machine
    /// that hangs answers none, and callers that give up ask again.
    fn note_question(&mut self) {
        self.asked += 1;
        if self.asked >= QUESTIONS_PER_LOOK {
            self.asked = 0;
            self.work.retain(|work| !work.is_abandoned());
        }
    }
}

/// A state machine has as many questions waiting as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// What becomes of work that waits when a replica ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
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
    /// scheduled; see [`ApplyQueue::begin`].
    pub(super) fn begins_with(&self, work: ApplyWork) {
        let mut state = self.state.lock();
        state.work.push_front(work);
        (state.scheduled, state.stalls) = (true, 1);
    }

    /// Takes no more work, and drops what waits.
    fn shut(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let work = std::mem::take(&mut state.work);
        drop(state);
        drop(work);
    }

    /// Drops the machine; later work is dropped, which fails its callers.
    pub(super) fn close(&self) {
        self.shut();
        drop(self.applier.lock().take());
    }

    /// Takes no more work, and ends the replica after the present work. Returns whether the mailbox
    /// must be scheduled; the ending comes back if the replica has ended already.
    fn end(&self, ending: Ending, waiting: Waiting) -> Result<bool, Ending> {
        let mut state = self.state.lock();
        if state.closed && state.ending.is_none() {
            return Err(ending);
        }
        state.closed = true;
        let rests = std::mem::take(&mut state.rests);
        let drops = rests || waiting == Waiting::Dropped;
        let dropped = drops.then(|| std::mem::take(&mut state.work));
        state.ending = Some(ending);
        let schedule = !std::mem::replace(&mut state.scheduled, true) || rests;
        drop(state);
        drop(dropped);
        Ok(schedule)
    }

    /// The end of the replica, if no work comes before it.
    fn take_ending(&self) -> Option<Ending> {
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
    fn add(&self, work: ApplyWork) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        state.work.push_back(work);
        !std::mem::replace(&mut state.scheduled, true)
    }

    /// Adds a question, unless `most` pieces of work wait; returns whether the mailbox must be
    /// scheduled.
    fn ask(&self, question: ApplyWork, most: usize) -> Result<bool, NoRoom> {
        let mut state = self.state.lock();
        state.note_question();
        if state.work.len() >= most {
            return Err(NoRoom);
        }
        drop(state);
        Ok(self.add(question))
    }

    fn take(&self) -> VecDeque<ApplyWork> {
        let mut state = self.state.lock();
        let take = state.work.len().min(WORK_PER_TURN);
        let rest = state.work.split_off(take);
        std::mem::replace(&mut state.work, rest)
    }

    /// Puts work back that cannot be done now. A replica that ends does not wait for it.
    fn put_back(&self, work: Vec<ApplyWork>) {
        let mut state = self.state.lock();
        state.stalls = state.stalls.saturating_add(1);
        if state.closed {
            drop(state);
            return drop(work);
        }
        work.into_iter().rev().for_each(|work| state.work.push_front(work));
    }

    /// Work was done. Returns whether earlier work could not be.
    fn went_on(&self) -> bool {
        std::mem::take(&mut self.state.lock().stalls) > 0
    }

    /// Ends a turn; returns what comes next.
    fn end_turn(&self) -> Next {
        let mut state = self.state.lock();
        if state.work.is_empty() && state.ending.is_none() {
            state.scheduled = false;
            state.work.shrink_to(4);
            return Next::Nothing;
        }
        if state.stalls == 0 || state.ending.is_some() {
            return Next::Again;
        }
        state.rests = true;
        let rest = FIRST_REST.saturating_mul(1 << (state.stalls - 1).min(8));
        Next::Rest(rest.min(LONGEST_REST))
    }

    /// The rest is over; returns whether it still rested.
    fn end_rest(&self) -> bool {
        std::mem::take(&mut self.state.lock().rests)
    }
}

/// What comes after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Nothing,
    Again,
    Rest(Duration),
}

enum Token {
    Group(Arc<GroupShared>),
    /// The end of a replica that is not open.
    Ending(Ending),
    Stop,
}

/// The queue of mailboxes with work. At most one token per group stands in it, and one for the end
/// of a replica that is not open.
#[derive(Clone)]
pub(super) struct ApplyQueue(Sender<Token>, Arc<Resting>);

/// Mailboxes that rest, and until when. At most one entry per open replica.
#[derive(Default)]
struct Resting(Mutex<Vec<(Instant, Arc<GroupShared>)>>);

#[derive(Clone)]
pub(super) struct ApplyOutlet {
    tokens: Receiver<Token>,
    again: Sender<Token>,
    resting: Arc<Resting>,
}

impl ApplyQueue {
    pub(super) fn new() -> (Self, ApplyOutlet) {
        // Bounded by the number of groups: each has at most one token in it.
        let (sender, tokens) = unbounded();
        let again = sender.clone();
        let resting = Arc::<Resting>::default();
        (Self(sender, Arc::clone(&resting)), ApplyOutlet { tokens, again, resting })
    }

    /// Schedules the mailboxes that have rested.
    pub(super) fn end_rests(&self, now: Instant) {
        let rested: Vec<_> = self.1.0.lock().extract_if(.., |(until, _)| *until <= now).collect();
        for (_, group) in rested {
            if group.mailbox.end_rest() && self.0.send(Token::Group(group)).is_err() {
                tracing::debug!("a mailbox had rested when the apply pool had ended");
            }
        }
    }

    /// Schedules a mailbox that [begins](Mailbox::begins_with) with work, when its worker knows of it.
    pub(super) fn begin(&self, group: &Arc<GroupShared>) {
        if self.0.send(Token::Group(Arc::clone(group))).is_err() {
            tracing::debug!("a replica began after the apply pool had ended");
        }
    }

    pub(super) fn push(&self, group: &Arc<GroupShared>, work: ApplyWork) {
        if group.mailbox.add(work) && self.0.send(Token::Group(Arc::clone(group))).is_err() {
            tracing::debug!("work came after the apply pool had ended");
        }
    }

    /// A question to a group's machine, of which `most` pieces of work may wait.
    pub(super) fn ask(
        &self,
        group: &Arc<GroupShared>,
        question: ApplyWork,
        most: usize,
    ) -> Result<(), NoRoom> {
        if group.mailbox.ask(question, most)?
            && self.0.send(Token::Group(Arc::clone(group))).is_err()
        {
            tracing::debug!("a question came after the apply pool had ended");
        }
        Ok(())
    }

    /// A replica ends. `group` is what is shared of it, if it is open.
    pub(super) fn end(&self, group: Option<&Arc<GroupShared>>, ending: Ending, waiting: Waiting) {
        let token = match group {
            Some(group) => match group.mailbox.end(ending, waiting) {
                Ok(true) => Token::Group(Arc::clone(group)),
                Ok(false) => return,
                Err(ending) => Token::Ending(ending),
            },
            None => Token::Ending(ending),
        };
        if self.0.send(token).is_err() {
            tracing::debug!("a replica ended after the apply pool had ended");
        }
    }

    pub(super) fn stop(&self, threads: usize) {
        for _ in 0..threads {
            if self.0.send(Token::Stop).is_err() {
                return;
            }
        }
    }
}

/// Runs one thread of the pool.
pub(super) fn run(shared: &Arc<RuntimeShared>, index: usize, outlet: &ApplyOutlet) {
    let activity = &shared.apply_activities[index];
    while let Ok(token) = outlet.tokens.recv() {
        match token {
            Token::Stop => return,
            Token::Ending(ending) => end(shared, activity, None, ending),
            Token::Group(group) => {
                turn(shared, activity, &group);
                if let Some(ending) = group.mailbox.take_ending() {
                    end(shared, activity, Some(&group), ending);
                }
                match group.mailbox.end_turn() {
                    Next::Nothing => {}
                    Next::Again => {
                        if outlet.again.send(Token::Group(group)).is_err() {
                            return;
                        }
                    }
                    Next::Rest(rest) => {
                        outlet.resting.0.lock().push((Instant::now() + rest, group))
                    }
                }
            }
        }
    }
}

fn turn(shared: &Arc<RuntimeShared>, activity: &ApplyActivity, group: &Arc<GroupShared>) {
    let work = group.mailbox.take();
    // Held by a caller that asks at once.
    let waiting = activity.begin(Call::of(group, "a query"));
    let mut held = group.mailbox.applier.lock();
    drop(waiting);
    let Some(applier) = held.as_mut() else { return };
    let mut applied = None;
    let mut work = merge(work).into_iter();
    while let Some(one) = work.next() {
        let calling = activity.begin(Call::of(group, name_of(&one)));
        let done = applier.run(one);
        drop(calling);
        // What stalled comes first: when anything else is done, it was.
        let went_on = matches!(
            done,
            ApplyReport::Applied { .. } | ApplyReport::Restored { .. } | ApplyReport::Durable(_)
        );
        if went_on && group.mailbox.went_on() {
            tell(shared, group, GroupEvent::Stalled(None));
        }
        match done {
            ApplyReport::Applied { last, durable } => {
                applied = Some(GroupEvent::Applied { last, durable });
            }
            ApplyReport::Nothing => {}
            ApplyReport::Stalled { work: stalled, fault } => {
                let (questions, rest): (Vec<_>, Vec<_>) = work.partition(ApplyWork::is_question);
                group.mailbox.put_back(std::iter::once(stalled).chain(rest).collect());
                tell(shared, group, GroupEvent::Stalled(Some(fault.to_string().into())));
                for question in questions {
                    let _calling = activity.begin(Call::of(group, name_of(&question)));
                    report(shared, group, applier.run(question));
                }
                break;
            }
            other => {
                // In order: what was applied before comes first.
                applied.take().into_iter().for_each(|event| tell(shared, group, event));
                report(shared, group, other);
            }
        }
    }
    applied.into_iter().for_each(|event| tell(shared, group, event));
}

/// The last step of a replica's end: nothing of it is on its way any more but what this waits for.
/// Only afterwards another replica of the group may be opened or created.
fn end(
    shared: &RuntimeShared,
    activity: &ApplyActivity,
    group: Option<&Arc<GroupShared>>,
    mut ending: Ending,
) {
    let _calling = activity.begin(Call::new(ending.group(), group.cloned(), "closing"));
    let applier = group.and_then(|group| {
        group.life.end();
        group.mailbox.applier.lock().take()
    });
    if ending.is_destroyed() {
        remove_state(&mut ending, applier);
        let id = ending.group();
        if let Err(error) = shared.snapshots.remove_below(id, None) {
            tracing::warn!(group = %id, %error, "snapshots of a destroyed replica stay");
        }
        shared.parked.forget(id);
    } else {
        drop_machine(ending.group(), applier);
    }
    if group.is_some() {
        shared.hub.forget_labels(ending.group());
    }
    drop(ending.finish(|| group.and_then(|group| shared.unregister(group))));
}

/// The log holds nothing of the replica any more: its state goes. What cannot be removed remains, for
/// an order that is repeated.
fn remove_state(ending: &mut Ending, applier: Option<Applier>) {
    let group = ending.group();
    let clear: Option<Clear> = match (ending.take_clear(), applier) {
        (Some(clear), applier) => {
            drop_machine(group, applier);
            // The next order brings the means.
            drop_machine(group, ending.take_remains());
            let cleared = contain(clear).unwrap_or_else(|fault| Err(fault.to_string()));
            return cleared.unwrap_or_else(|message| state_remains(ending, message, None));
        }
        (None, Some(applier)) => Some(clear_by(applier)),
        (None, None) => ending.take_remains(),
    };
    let Some(mut clear) = clear else { return };
    let cleared = contain(&mut clear).unwrap_or_else(|fault| Err(fault.to_string()));
    match cleared {
        Ok(()) => drop_machine(group, Some(clear)),
        Err(message) => state_remains(ending, message, Some(clear)),
    }
}

/// A machine removes its own state.
fn clear_by(mut applier: Applier) -> Clear {
    Box::new(move || match applier.run(ApplyWork::Removed) {
        ApplyReport::Failed(fault) => Err(fault.to_string()),
        _ => Ok(()),
    })
}

fn state_remains(ending: &mut Ending, message: String, clear: Option<Clear>) {
    let group = ending.group();
    tracing::error!(%group, message, "the state of a destroyed replica remains");
    ending.leave_state(message, clear);
}

fn drop_machine<T>(group: GroupId, machine: Option<T>) {
    if let Err(fault) = contain(|| drop(machine)) {
        tracing::error!(%group, %fault, "a state machine panicked when it was dropped");
    }
}

fn report(shared: &Arc<RuntimeShared>, group: &Arc<GroupShared>, report: ApplyReport) {
    let event = match report {
        ApplyReport::Restored { position, durable } => GroupEvent::Restored { position, durable },
        ApplyReport::Durable(durable) => GroupEvent::Durable(durable),
        ApplyReport::Failed(fault) => GroupEvent::Failed(fault),
        ApplyReport::SnapshotTaken { position, view } => match view {
            Ok(view) => return shared.snapshot_tasks.write(shared, group, position, view),
            Err(fault) => {
                tracing::error!(group = %group.id, %fault, "no snapshot; it is tried again");
                shared.snapshot_tasks.note_failure();
                GroupEvent::SnapshotMade(None)
            }
        },
        ApplyReport::CheckTaken { position, view } => {
            return shared.checks.compute(shared, group, position, view);
        }
        ApplyReport::Applied { last, durable } => GroupEvent::Applied { last, durable },
        ApplyReport::Removed | ApplyReport::Nothing | ApplyReport::Stalled { .. } => return,
    };
    tell(shared, group, event);
}

pub(super) fn tell(shared: &RuntimeShared, group: &GroupShared, event: GroupEvent) {
    let input = Input::Group { group: group.id, epoch: group.epoch, event };
    shared.inboxes[group.worker].complete(input);
}

/// Commands that follow each other become one batch.
fn merge(work: VecDeque<ApplyWork>) -> Vec<ApplyWork> {
    let mut merged: Vec<ApplyWork> = Vec::with_capacity(work.len());
    for next in work {
        match (merged.last_mut(), next) {
            (
                Some(ApplyWork::Commands { commands, last }),
                ApplyWork::Commands { commands: more, last: further },
            ) => {
                commands.extend(more);
                *last = further;
            }
            (_, next) => merged.push(next),
        }
    }
    merged
}

#[cfg(test)]
mod tests;
