//! The threads that run state machines. Every group has a mailbox; a mailbox with work stands
//! once in the queue that all threads take from. So a group's work is done in order by one thread
//! at a time, and a slow machine holds up one thread and no other group.
//!
//! Restores and checksums take as long as a state is large, and have [places](places) of which
//! there are fewer than threads: where others have them all, a restore waits at the front of its
//! mailbox, and a checksum aside, while commands of its group go on.
//!
//! Work that a machine cannot do now, as on a full disk, goes back to the front of its mailbox,
//! which rests for a moment (*stalled*) and is tried again; questions are answered meanwhile.
//!
//! The end of a replica comes here last: an apply thread drops the machine, after which the
//! group's number is free.

mod mailbox;
mod places;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use shardhost_storage::GroupId;

use self::mailbox::Next;
use self::places::Places;
use super::RuntimeShared;
use super::machine_watch::{ApplyActivity, Call};
use crate::apply::{Applier, ApplyReport, ApplyWork, contain};
use crate::lives::{Clear, Ending};
use crate::runtime::GroupShared;
use crate::worker::{GroupEvent, Input};

pub(super) use self::mailbox::Waiting;
pub(crate) use self::mailbox::{Mailbox, NoRoom};

enum Token {
    Group(Arc<GroupShared>),
    /// The end of a replica that is not open.
    Ending(Ending),
    Stop,
}

/// The queue of mailboxes with work. At most one token per group stands in it, and one for the end
/// of a replica that is not open.
#[derive(Clone)]
pub(super) struct ApplyQueue {
    tokens: Sender<Token>,
    resting: Arc<Resting>,
    places: Arc<Places>,
}

/// Mailboxes that rest, and until when. At most one entry per open replica.
#[derive(Default)]
struct Resting(Mutex<Vec<(Instant, Arc<GroupShared>)>>);

#[derive(Clone)]
pub(super) struct ApplyOutlet {
    tokens: Receiver<Token>,
    again: Sender<Token>,
    resting: Arc<Resting>,
    places: Arc<Places>,
}

impl ApplyQueue {
    pub(super) fn new(threads: usize) -> (Self, ApplyOutlet) {
        // Bounded by the number of groups: each has at most one token in it.
        let (sender, tokens) = unbounded();
        let again = sender.clone();
        let resting = Arc::<Resting>::default();
        let places = Places::new(threads, sender.clone());
        let queue = Self { tokens: sender, resting: Arc::clone(&resting), places };
        let places = Arc::clone(&queue.places);
        (queue, ApplyOutlet { tokens, again, resting, places })
    }

    /// Schedules the mailboxes that have rested.
    pub(super) fn end_rests(&self, now: Instant) {
        let rested: Vec<_> =
            self.resting.0.lock().extract_if(.., |(until, _)| *until <= now).collect();
        for (_, group) in rested {
            if group.mailbox.end_rest() && self.tokens.send(Token::Group(group)).is_err() {
                tracing::debug!("a mailbox had rested when the apply pool had ended");
            }
        }
    }

    /// Schedules a mailbox that [begins](Mailbox::begins_with) with work, when its worker knows of
    /// it.
    pub(super) fn begin(&self, group: &Arc<GroupShared>) {
        if self.tokens.send(Token::Group(Arc::clone(group))).is_err() {
            tracing::debug!("a replica began after the apply pool had ended");
        }
    }

    pub(super) fn push(&self, group: &Arc<GroupShared>, work: ApplyWork) {
        if group.mailbox.add(work) && self.tokens.send(Token::Group(Arc::clone(group))).is_err() {
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
            && self.tokens.send(Token::Group(Arc::clone(group))).is_err()
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
        if self.tokens.send(token).is_err() {
            tracing::debug!("a replica ended after the apply pool had ended");
        }
    }

    /// The threads have ended: what rests or waits is let go of.
    pub(super) fn clear(&self) {
        let resting = std::mem::take(&mut *self.resting.0.lock());
        drop(resting);
        self.places.clear();
    }

    pub(super) fn stop(&self, threads: usize) {
        for _ in 0..threads {
            if self.tokens.send(Token::Stop).is_err() {
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
                let lacks_place = turn(shared, activity, &group, &outlet.places);
                if let Some(ending) = group.mailbox.take_ending() {
                    outlet.places.forget(&group);
                    end(shared, activity, Some(&group), ending);
                }
                match group.mailbox.end_turn(lacks_place) {
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

/// Does what a group's mailbox has, as far as a turn goes. Returns whether a place for a long call
/// was lacking.
fn turn(
    shared: &Arc<RuntimeShared>,
    activity: &ApplyActivity,
    group: &Arc<GroupShared>,
    places: &Arc<Places>,
) -> bool {
    let work = group.mailbox.take();
    // Held by a caller that asks at once.
    let waiting = activity.begin(Call::of(group, "a query"));
    let mut held = group.mailbox.applier.lock();
    drop(waiting);
    let Some(applier) = held.as_mut() else { return false };
    let (applied, lacks_place) = (None, false);
    let mut turn = Turn { shared, activity, group, places, applier, applied, lacks_place };
    turn.run(work);
    turn.lacks_place
}

/// One group's turn on a thread.
struct Turn<'a> {
    shared: &'a Arc<RuntimeShared>,
    activity: &'a ApplyActivity,
    group: &'a Arc<GroupShared>,
    places: &'a Arc<Places>,
    applier: &'a mut Applier,
    /// What was applied, and not reported yet.
    applied: Option<GroupEvent>,
    lacks_place: bool,
}

impl Turn<'_> {
    fn run(&mut self, work: VecDeque<ApplyWork>) {
        let group = self.group;
        let mailbox = &group.mailbox;
        let mut work = merge(work).into_iter();
        while let Some(one) = work.next() {
            let Some(undone) = self.run_one(one) else { continue };
            let (mut questions, rest): (VecDeque<_>, Vec<_>) =
                split(work.by_ref(), ApplyWork::is_question);
            mailbox.put_back(std::iter::once(undone).chain(rest).collect());
            questions.extend(mailbox.take_questions());
            self.answer(questions);
        }
        self.tell_applied();
        self.answer(mailbox.take_aside());
    }

    /// Questions are never left undone: a checksum is put aside.
    fn answer(&mut self, questions: VecDeque<ApplyWork>) {
        questions.into_iter().for_each(|question| drop(self.run_one(question)));
    }

    /// Does one thing. It comes back if it cannot be done now.
    fn run_one(&mut self, one: ApplyWork) -> Option<ApplyWork> {
        if one.is_abandoned() {
            return None;
        }
        let place = if one.is_long() { self.places.take(self.group) } else { None };
        if one.is_long() && place.is_none() {
            self.lacks_place = true;
            if one.is_question() {
                self.group.mailbox.set_aside(one);
                return None;
            }
            return Some(one);
        }
        let calling = self.activity.begin(Call::at(self.group, &one));
        let done = self.applier.run(one);
        drop((calling, place));
        self.follow(done)
    }

    fn follow(&mut self, done: ApplyReport) -> Option<ApplyWork> {
        // What stalled comes first: when anything else is done, it was.
        let went_on = matches!(
            done,
            ApplyReport::Applied { .. } | ApplyReport::Restored { .. } | ApplyReport::Durable(_)
        );
        if went_on && self.group.mailbox.went_on() {
            tell(self.shared, self.group, GroupEvent::Stalled(None));
        }
        match done {
            ApplyReport::Applied { last, durable } => {
                self.applied = Some(GroupEvent::Applied { last, durable });
            }
            ApplyReport::Nothing => {}
            ApplyReport::Stalled { work, fault } => {
                self.group.mailbox.note_stall();
                let why = fault.to_string().into();
                tell(self.shared, self.group, GroupEvent::Stalled(Some(why)));
                return Some(work);
            }
            other => {
                // In order: what was applied before comes first.
                self.tell_applied();
                report(self.shared, self.group, other);
            }
        }
        None
    }

    fn tell_applied(&mut self) {
        if let Some(event) = self.applied.take() {
            tell(self.shared, self.group, event);
        }
    }
}

/// Parts work in two, each in order.
fn split(
    work: impl Iterator<Item = ApplyWork>,
    first: impl Fn(&ApplyWork) -> bool,
) -> (VecDeque<ApplyWork>, Vec<ApplyWork>) {
    let (mut chosen, mut rest) = (VecDeque::new(), Vec::new());
    for one in work {
        if first(&one) { chosen.push_back(one) } else { rest.push(one) }
    }
    (chosen, rest)
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

/// The log holds nothing of the replica any more: its state goes. What cannot be removed remains,
/// for an order that is repeated.
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
    let input = Input::Group { group: group.id, open_id: group.open_id, event };
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
