//! The threads that run state machines. Every group has a mailbox; a mailbox with work stands
//! once in the queue that all threads take from. So a group's work is done in order by one thread
//! at a time, and a slow machine holds up one thread and no other group.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::RuntimeShared;
use crate::apply::{Applier, ApplyReport, ApplyWork};
use crate::handle::GroupShared;
use crate::machine::QueryError;
use crate::worker::{GroupEvent, Input};

/// Pieces of work that a thread does for one group before it looks after another.
const WORK_PER_TURN: usize = 64;

/// The work of one group's state machine, and the machine.
pub(crate) struct Mailbox {
    state: Mutex<MailboxState>,
    applier: Mutex<Option<Applier>>,
}

#[derive(Default)]
struct MailboxState {
    work: VecDeque<ApplyWork>,
    scheduled: bool,
    closed: bool,
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

    /// Takes no more work, and drops what waits.
    fn shut(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let work = std::mem::take(&mut state.work);
        drop(state);
        drop(work);
    }

    /// Lets the machine go; work that still comes is dropped, which fails whoever waits for it.
    pub(super) fn close(&self) {
        self.shut();
        drop(self.applier.lock().take());
    }

    /// Answers a question on the caller's thread, if the machine is not busy and so quick that
    /// this may be done. `None`: the question must queue.
    pub(crate) fn query_at_once(&self, request: &Bytes) -> Option<Result<Bytes, QueryError>> {
        self.applier.try_lock()?.as_ref()?.answer_at_once(request)
    }

    /// Adds work; says whether the mailbox must be scheduled.
    fn add(&self, work: ApplyWork) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        state.work.push_back(work);
        !std::mem::replace(&mut state.scheduled, true)
    }

    fn take(&self) -> VecDeque<ApplyWork> {
        let mut state = self.state.lock();
        let take = state.work.len().min(WORK_PER_TURN);
        let rest = state.work.split_off(take);
        std::mem::replace(&mut state.work, rest)
    }

    /// Ends a turn; says whether there is more to do.
    fn end_turn(&self) -> bool {
        let mut state = self.state.lock();
        let more = !state.work.is_empty();
        if !more {
            state.scheduled = false;
            state.work.shrink_to(4);
        }
        more
    }
}

enum Token {
    Group(Arc<GroupShared>),
    Stop,
}

/// The queue of mailboxes with work. At most one token per group stands in it.
#[derive(Clone)]
pub(super) struct ApplyQueue(Sender<Token>);

/// Where threads take from.
#[derive(Clone)]
pub(super) struct ApplyOutlet {
    tokens: Receiver<Token>,
    again: Sender<Token>,
}

impl ApplyQueue {
    pub(super) fn new() -> (Self, ApplyOutlet) {
        // Bounded by the number of groups: each has at most one token in it.
        let (sender, tokens) = unbounded();
        let again = sender.clone();
        (Self(sender), ApplyOutlet { tokens, again })
    }

    pub(super) fn push(&self, group: &Arc<GroupShared>, work: ApplyWork) {
        if group.mailbox.add(work) && self.0.send(Token::Group(Arc::clone(group))).is_err() {
            tracing::debug!("work came after the apply pool had ended");
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
pub(super) fn run(shared: &Arc<RuntimeShared>, outlet: &ApplyOutlet) {
    while let Ok(Token::Group(group)) = outlet.tokens.recv() {
        turn(shared, &group);
        if group.mailbox.end_turn() && outlet.again.send(Token::Group(group)).is_err() {
            return;
        }
    }
}

fn turn(shared: &Arc<RuntimeShared>, group: &Arc<GroupShared>) {
    let work = group.mailbox.take();
    let mut held = group.mailbox.applier.lock();
    let Some(applier) = held.as_mut() else { return };
    let mut applied = None;
    for work in merge(work) {
        match applier.run(work) {
            ApplyReport::Applied { last, durable } => {
                applied = Some(GroupEvent::Applied { last, durable });
            }
            ApplyReport::Nothing => {}
            ApplyReport::Removed => {
                *held = None;
                return forget(shared, group);
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

/// A replica that was removed is over: only from here on another one of its group may be created.
/// Whoever still waits learns that the group stopped.
fn forget(shared: &RuntimeShared, group: &GroupShared) {
    group.mailbox.shut();
    shared.registry.remove_if(&group.id, |_, known| known.shared().epoch == group.epoch);
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
        ApplyReport::Applied { last, durable } => GroupEvent::Applied { last, durable },
        ApplyReport::Removed | ApplyReport::Nothing => return,
    };
    tell(shared, group, event);
}

/// Tells the group's worker.
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
