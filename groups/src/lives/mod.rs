//! The owner of each group's life on this host: every creation, opening, close and destruction, for
//! every caller, is one step that begins and ends here.
//!
//! | file | what |
//! |---|---|
//! | `owner` | what may be done next with one group; pure |
//! | `start` | holding groups while replicas are brought to life |
//! | `ending` | the end of a replica, on its way through the threads |
//! | `remains` | what destroyed replicas left behind |
//! | `lock` | what late work of a replica must hold so that its end waits for it |
//!
//! A step does not depend on its caller. Replicas are brought to life on the caller's thread,
//! which runs to the end or releases its hold; they end on the threads of the host: the worker
//! stops the replica, the log writer passes everything that the replica handed to it, an apply
//! thread drops the state machine, and only then the number is free.
//!
//! **Knows nothing of** logs, Raft or state machines.

mod ending;
mod lock;
mod owner;
mod remains;
mod start;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use shardhost_storage::GroupId;
use tokio::sync::oneshot;

use crate::completion::Reply;
use crate::error::{GroupStep, OpenGroupError};

pub(crate) use ending::InBatch;
pub use ending::{Destruction, Ending};
pub(crate) use ending::{Meant, is_of_unreadable, log_error};
pub(crate) use lock::LifeLock;
pub use owner::OpenId;
pub(crate) use owner::Registered;
pub(crate) use remains::Clear;
pub(crate) use start::StartGuard;

use remains::Remains;

use owner::{Admission, ClosingAdmission, DestroyingAdmission, GroupOwner, ReleaseAdmission};

/// How long a caller waits for another one's step to end before it is refused.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The owners of all groups of a host.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    owners: Mutex<Owners>,
    /// A step ended, or the host stops.
    changed: Condvar,
    openings: AtomicU64,
    remains: Remains,
}

#[derive(Debug, Default)]
struct Owners {
    /// Groups that are open, or with which something is done.
    seats: HashMap<GroupId, Seat>,
    stopped: bool,
    /// The threads have ended: no replica is left.
    ended: bool,
    /// Creations and openings under way.
    starting: usize,
}

#[derive(Debug, Default)]
struct Seat {
    owner: GroupOwner,
    /// Callers that look at the group without holding it.
    lookers: usize,
    /// Callers that wait for the step to end.
    completions: Vec<Reply<()>>,
}

/// Resolves when a step has ended, or the host.
pub(super) type StepEnd = oneshot::Receiver<()>;

/// What becomes of a request to close.
#[derive(Debug)]
pub(super) enum Closing {
    /// Send this on its way; the replica is closed when the step ends.
    Begun(Ending, StepEnd),
    Joined(StepEnd),
    Wait(StepEnd),
    NotOpen,
}

/// What becomes of a request to destroy.
#[derive(Debug)]
pub(super) enum Destroying {
    /// The caller destroys the replica, which is open if it has an id.
    Granted(Option<OpenId>),
    Wait(StepEnd),
}

impl Seat {
    fn step_end(&mut self) -> StepEnd {
        let (completion, end) = crate::completion::answer();
        self.completions.retain(|completion| !completion.is_closed());
        self.completions.push(completion);
        end
    }
}

impl Owners {
    fn of(&mut self, group: GroupId) -> &mut Seat {
        self.seats.entry(group).or_default()
    }

    /// Wakes the callers that wait for a step that ended; removes a seat that holds no state.
    fn settle(&mut self, group: GroupId) {
        let Some(seat) = self.seats.get_mut(&group) else { return };
        seat.completions.drain(..).for_each(|completion| completion.send(()));
        if seat.owner.is_idle() && seat.lookers == 0 {
            self.seats.remove(&group);
        }
    }
}

impl Lives {
    fn next_open_id(&self) -> OpenId {
        OpenId(self.openings.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Asks until the answer is not [`Admission::Wait`]. `ask` names the group that it is about.
    fn wait_for(
        &self,
        mut ask: impl FnMut(&mut Owners) -> (GroupId, Admission),
    ) -> Result<(), OpenGroupError> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        let mut owners = self.owners.lock();
        loop {
            if owners.stopped {
                return Err(OpenGroupError::Stopping);
            }
            match ask(&mut owners) {
                (_, Admission::Granted) => return Ok(()),
                (group, Admission::AlreadyOpen) => {
                    return Err(OpenGroupError::AlreadyOpen { group });
                }
                (group, Admission::Busy(step)) => return Err(OpenGroupError::Busy { group, step }),
                (group, Admission::Wait) => self.wait(&mut owners, group, deadline)?,
            }
        }
    }

    fn wait(
        &self,
        owners: &mut MutexGuard<'_, Owners>,
        group: GroupId,
        deadline: Instant,
    ) -> Result<(), OpenGroupError> {
        if !self.changed.wait_until(owners, deadline).timed_out() {
            return Ok(());
        }
        let step = owners.seats.get(&group).and_then(|seat| seat.owner.step());
        Err(OpenGroupError::Busy { group, step: step.unwrap_or(GroupStep::Closing) })
    }

    /// A replica is to be closed. One that is being opened may be registered already.
    pub(super) fn close(self: &Arc<Self>, group: GroupId, registered: Registered) -> Closing {
        let mut owners = self.owners.lock();
        let ended = owners.ended;
        let Some(seat) = owners.seats.get_mut(&group).filter(|_| !ended) else {
            return Closing::NotOpen;
        };
        match seat.owner.close(registered) {
            ClosingAdmission::NotOpen => Closing::NotOpen,
            ClosingAdmission::Joined => Closing::Joined(seat.step_end()),
            ClosingAdmission::Wait => Closing::Wait(seat.step_end()),
            ClosingAdmission::Granted(open) => {
                let end = seat.step_end();
                drop(owners);
                Closing::Begun(Ending::closing(self, group, open), end)
            }
        }
    }

    /// A replica is to be destroyed, unless `check` refuses the one that is open.
    pub(super) fn destroy(
        self: &Arc<Self>,
        group: GroupId,
        check: impl FnOnce() -> Result<(), OpenGroupError>,
    ) -> Result<Destroying, OpenGroupError> {
        let mut owners = self.owners.lock();
        if owners.stopped {
            return Err(OpenGroupError::Stopping);
        }
        let seat = owners.of(group);
        if seat.owner.is_open() {
            check()?;
        }
        match seat.owner.destroy() {
            DestroyingAdmission::Granted(open) => Ok(Destroying::Granted(open)),
            DestroyingAdmission::Wait => Ok(Destroying::Wait(seat.step_end())),
            DestroyingAdmission::Busy(step) => Err(OpenGroupError::Busy { group, step }),
        }
    }

    /// The group released a replica, and the log holds nothing of it any more. The end of it, to
    /// be sent on its way; `None`: it is on its way, or over.
    pub(super) fn release(self: &Arc<Self>, group: GroupId, open: OpenId) -> Option<Ending> {
        let mut owners = self.owners.lock();
        let admission = owners.seats.get_mut(&group)?.owner.release(open);
        drop(owners);
        (admission == ReleaseAdmission::Granted).then(|| Ending::release(self, group, open))
    }

    /// Whether the replica that ends was released by its group meanwhile.
    fn is_released(&self, group: GroupId) -> bool {
        self.owners.lock().seats.get(&group).is_some_and(|seat| seat.owner.is_released())
    }

    /// A step that ended a replica is over: the number is free. `unregister` runs before another
    /// step can begin.
    fn ended<T>(&self, group: GroupId, unregister: impl FnOnce() -> T) -> T {
        let mut owners = self.owners.lock();
        let unregistered = unregister();
        owners.of(group).owner.ended();
        owners.settle(group);
        drop(owners);
        self.changed.notify_all();
        unregistered
    }

    /// A step was lost with the thread that carried it: the host fails. Callers stop waiting, and
    /// no other step begins.
    fn abandoned(&self, group: GroupId) {
        if let Some(seat) = self.owners.lock().seats.get_mut(&group) {
            seat.completions.clear();
        }
    }

    /// No step begins after this. Steps that have begun continue.
    pub(super) fn stop(&self) {
        self.owners.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits until no creation or opening is under way. None begins after [`Lives::stop`]; those
    /// that had begun end on their callers' threads, and have the log open until then.
    pub(super) fn wait_for_starts(&self) {
        let mut owners = self.owners.lock();
        while owners.starting > 0 {
            self.changed.wait(&mut owners);
        }
    }

    /// The threads of the host have ended, and every replica with them.
    pub(super) fn end(&self) {
        let mut owners = self.owners.lock();
        owners.ended = true;
        owners.seats.values_mut().for_each(|seat| seat.completions.clear());
        drop(owners);
    }
}
