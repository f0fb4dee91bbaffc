//! What is done with a state machine: apply, query, snapshot, restore. One [`Applier`] per
//! replica, run by one thread at a time; in production by the apply pool, in simulation by the
//! test.

mod restore;
mod sum;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use shardhost_storage::{GroupId, LogIndex, LogPosition, SnapshotStore};

use crate::completion::Reply;
use crate::completion::{Applied, Handed};
use crate::error::{GroupFault, QueryError};
use crate::latency::Latency;
use crate::machine::{
    ApplyBatch, ApplyFault, Command, ConsistencyView, FaultKind, Progress, SnapshotWriter,
    StateChecksum, StateMachine,
};
use crate::panics;

pub(crate) use restore::restore_from;
pub use restore::restore_machine;
pub use sum::{Summed, sum_of};

/// One thing to do with a state machine.
pub enum ApplyWork {
    /// Apply these commands; afterwards the machine is at `last`.
    Commands {
        commands: Vec<Command>,
        /// The last entry, which need not be a command.
        last: LogPosition,
    },
    /// Replace the state by the snapshot at this position of the snapshot store.
    Restore {
        position: LogPosition,
    },
    Snapshot,
    /// Make durable what is applied, and say what would survive a crash.
    Durable,
    /// The replica was removed from its group: the state is not needed any more.
    Removed,
    Query {
        request: Bytes,
        reply: Reply<Result<Bytes, QueryError>>,
    },
    /// Take a view to be compared with those of other replicas, as of this position.
    Check {
        position: LogPosition,
    },
    Checksum {
        /// Who asks: the answer, and the position that it is of.
        reply: Reply<Result<(LogPosition, StateChecksum), QueryError>>,
    },
}

impl ApplyWork {
    /// Whether it is a question. One that is here may be answered at once: its caller waited until
    /// everything was applied that the answer must show.
    pub(crate) const fn is_question(&self) -> bool {
        matches!(self, Self::Query { .. } | Self::Checksum { .. })
    }

    /// Whether it takes as long as the state is large.
    pub(crate) const fn is_long(&self) -> bool {
        matches!(self, Self::Restore { .. } | Self::Checksum { .. })
    }

    /// Whether the caller went away: the answer would have no reader.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::Query { reply, .. } => reply.is_closed(),
            Self::Checksum { reply } => reply.is_closed(),
            _ => false,
        }
    }
}

impl fmt::Debug for ApplyWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commands { commands, last } => write!(f, "{} commands to {last}", commands.len()),
            Self::Restore { position } => write!(f, "restore {position}"),
            Self::Snapshot => f.write_str("snapshot"),
            Self::Durable => f.write_str("durable"),
            Self::Removed => f.write_str("removed"),
            Self::Query { .. } => f.write_str("query"),
            Self::Check { position } => write!(f, "check {position}"),
            Self::Checksum { .. } => f.write_str("checksum"),
        }
    }
}

/// What a state machine did.
pub enum ApplyReport {
    /// Everything up to here is applied.
    Applied {
        last: LogPosition,
        /// What would survive a crash.
        durable: Option<LogIndex>,
    },
    /// The snapshot at this position is the state.
    Restored {
        position: LogPosition,
        /// What would survive a crash.
        durable: Option<LogIndex>,
    },
    /// A view to be written out elsewhere, or the reason why there is none.
    SnapshotTaken {
        /// The position of the view.
        position: LogPosition,
        view: Result<Box<dyn SnapshotWriter>, ApplyFault>,
    },
    /// A view to be compared, `None` if the machine is not, or the reason why there is none.
    CheckTaken { position: LogPosition, view: Result<Option<ConsistencyView>, ApplyFault> },
    /// What would survive a crash.
    Durable(Option<LogIndex>),
    /// The machine was notified that its replica was removed; it is not needed any more.
    Removed,
    /// The machine cannot continue.
    Failed(GroupFault),
    /// The machine cannot do this now: it is to be tried again. It is as it was; of a restore, it
    /// may hold a part of either state, and answers nothing before that is done.
    Stalled {
        /// What was to be done.
        work: ApplyWork,
        fault: ApplyFault,
    },
    /// Nothing that the replica needs to know.
    Nothing,
}

impl fmt::Debug for ApplyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied { last, .. } => write!(f, "applied {last}"),
            Self::Restored { position, .. } => write!(f, "restored {position}"),
            Self::SnapshotTaken { position, .. } => write!(f, "snapshot taken {position}"),
            Self::CheckTaken { position, .. } => write!(f, "check taken {position}"),
            Self::Durable(index) => write!(f, "durable {index:?}"),
            Self::Removed => f.write_str("removed"),
            Self::Failed(fault) => write!(f, "failed: {fault}"),
            Self::Stalled { work, fault } => write!(f, "{work:?} stalled: {fault}"),
            Self::Nothing => f.write_str("nothing"),
        }
    }
}

/// A replica's state machine and where it stands.
pub struct Applier {
    group: GroupId,
    machine: Box<dyn StateMachine>,
    snapshots: Arc<dyn SnapshotStore>,
    applied: LogPosition,
    /// The state is lost, or is being replaced: it answers nothing before a snapshot is the state.
    lost: bool,
    /// What is done after the restore that the replica was opened without.
    opening: Option<AfterRestore>,
    failed: Option<GroupFault>,
    latency: Option<Arc<Latency>>,
    /// The position of the machine, for readers; moved before any caller learns that it moved.
    position: Arc<AtomicU64>,
    progress: Progress,
}

/// What a machine is given once it is restored, when its replica is opened.
pub(crate) type AfterRestore =
    Box<dyn FnOnce(&mut dyn StateMachine) -> Result<(), GroupFault> + Send>;

impl fmt::Debug for Applier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "state machine of {:?} at {}", self.group, self.applied)
    }
}

impl Applier {
    /// Wraps a machine at position `applied`.
    #[must_use]
    pub fn new(
        group: GroupId,
        machine: Box<dyn StateMachine>,
        snapshots: Arc<dyn SnapshotStore>,
        applied: LogPosition,
    ) -> Self {
        let position = Arc::new(AtomicU64::new(applied.index.get()));
        let progress = Progress::default();
        let (lost, opening, failed, latency) = (false, None, None, None);
        Self {
            group,
            machine,
            snapshots,
            applied,
            lost,
            opening,
            failed,
            latency,
            position,
            progress,
        }
    }

    /// Wraps a machine whose state is lost, of a log that begins behind `base`. It answers nothing
    /// until it is restored.
    #[must_use]
    pub fn lost(self) -> Self {
        Self { lost: true, ..self }
    }

    /// Wraps a machine that could not be restored yet, for a reason that passes. Its first work is
    /// that restore, to where the replica knows that it stands; then comes `after`.
    pub(crate) fn unrestored(self, after: AfterRestore) -> Self {
        Self { lost: true, opening: Some(after), ..self }
    }

    /// Counts how long acknowledged proposals took.
    #[must_use]
    pub fn with_latency(mut self, latency: Arc<Latency>) -> Self {
        self.latency = Some(latency);
        self
    }

    /// Where the machine stands, as a number that moves with it.
    pub(crate) fn position(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.position)
    }

    /// What moves while a call gets on.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Where the machine stands.
    #[must_use]
    pub const fn applied(&self) -> LogPosition {
        self.applied
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &dyn StateMachine {
        &*self.machine
    }

    /// What of the machine survives a crash.
    #[must_use]
    pub fn durable_index(&self) -> Option<LogIndex> {
        self.machine.durable_index()
    }

    /// Does one thing. A panic of the machine is contained: the replica fails, and callers that
    /// wait in this work see their completion dropped or failed.
    pub fn run(&mut self, work: ApplyWork) -> ApplyReport {
        // A machine that failed is still to let go of its state.
        let refuses = !matches!(work, ApplyWork::Removed);
        if let Some(fault) = self.failed.as_ref().filter(|_| refuses) {
            return refuse(self.group, work, fault);
        }
        if self.lost && work.is_question() {
            let fault = GroupFault::StateDamaged(NO_STATE.into());
            return refuse(self.group, work, &fault);
        }
        let report = match work {
            ApplyWork::Commands { commands, last } => self.apply(commands, last),
            other => contain(|| self.run_inner(other)).unwrap_or_else(ApplyReport::Failed),
        };
        if let ApplyReport::Failed(fault) = &report {
            self.failed = Some(fault.clone());
        }
        report
    }

    fn run_inner(&mut self, work: ApplyWork) -> ApplyReport {
        match work {
            ApplyWork::Commands { .. } => ApplyReport::Nothing,
            ApplyWork::Restore { position } => self.restore(position),
            ApplyWork::Snapshot => {
                let view = self.view(|machine| machine.snapshot());
                ApplyReport::SnapshotTaken { position: self.applied, view }
            }
            ApplyWork::Check { position } => {
                let view = self.view(|machine| machine.consistency_view());
                ApplyReport::CheckTaken { position, view }
            }
            ApplyWork::Durable => match self.machine.make_durable() {
                Err(fault) if fault.kind != FaultKind::Passing => ApplyReport::Failed(fault.into()),
                // It is asked for again.
                Ok(()) | Err(_) => ApplyReport::Durable(self.machine.durable_index()),
            },
            ApplyWork::Removed => self.remove(),
            ApplyWork::Query { request, reply } => answer(reply, self.machine.query(&request)),
            ApplyWork::Checksum { reply } => {
                let position = self.applied;
                let sum = self.machine.checksum(&self.progress);
                answer(reply, sum.map(|sum| (position, sum)))
            }
        }
    }

    /// A view of the state, if there is one: others would take it for all that the replica holds.
    fn view<T>(
        &mut self,
        take: impl FnOnce(&mut dyn StateMachine) -> Result<T, ApplyFault>,
    ) -> Result<T, ApplyFault> {
        match self.lost {
            true => Err(ApplyFault::passing(NO_STATE)),
            false => take(&mut *self.machine),
        }
    }

    fn remove(&mut self) -> ApplyReport {
        match self.machine.removed() {
            Ok(()) => ApplyReport::Removed,
            Err(fault) => ApplyReport::Failed(fault.into()),
        }
    }

    /// Answers a question out of turn, if the machine is so quick that no other has to wait for it.
    pub(crate) fn answer_at_once(&self, request: &Bytes) -> Option<Result<Bytes, QueryError>> {
        if self.failed.is_some() || self.lost {
            return None;
        }
        let answer = contain(|| self.machine.answer_at_once(request)).ok().flatten();
        // Damage is for the apply thread to find, which stops the replica.
        answer.filter(|answer| !matches!(answer, Err(QueryError::Damaged(_))))
    }

    fn apply(&mut self, mut commands: Vec<Command>, last: LogPosition) -> ApplyReport {
        loop {
            let applied = contain(|| {
                let mut batch = ApplyBatch::new(self.group, last, &mut commands);
                self.machine.apply(&mut batch).map(|()| (batch.len(), batch.last()))
            });
            let fault = match applied {
                Ok(Ok((count, reached))) => {
                    // The machine may have cut the batch: what it has answered goes before it
                    // answers more.
                    let rest = commands.split_off(count);
                    self.note_applied(commands, reached);
                    commands = rest;
                    if commands.is_empty() {
                        break;
                    }
                    continue;
                }
                Ok(Err(fault)) if fault.kind == FaultKind::Passing => {
                    let work = ApplyWork::Commands { commands, last };
                    return ApplyReport::Stalled { work, fault };
                }
                Ok(Err(fault)) => GroupFault::from(fault),
                Err(fault) => fault,
            };
            refuse(self.group, ApplyWork::Commands { commands, last }, &fault);
            return ApplyReport::Failed(fault);
        }
        match contain(|| self.machine.durable_index()) {
            Ok(durable) => ApplyReport::Applied { last, durable },
            Err(fault) => ApplyReport::Failed(fault),
        }
    }

    fn note_applied(&mut self, commands: Vec<Command>, reached: LogPosition) {
        self.applied = reached;
        self.position.store(reached.index.get(), Ordering::Release);
        self.progress.step();
        let now = self.latency.as_ref().map(|_| Instant::now());
        for command in commands {
            if let Some(completion) = command.completion.and_then(Handed::take) {
                if let (Some(latency), Some(now)) = (&self.latency, now) {
                    latency.record(now.saturating_duration_since(completion.submitted()));
                }
                let position = command.position;
                completion.resolve(Ok(Applied::new(
                    position.index,
                    position.term,
                    command.response,
                )));
            }
        }
    }

    fn restore(&mut self, position: LogPosition) -> ApplyReport {
        // Whatever stops it half-way, no reader sees a part of a state.
        self.lost = true;
        let (machine, snapshots) = (&mut *self.machine, &*self.snapshots);
        match restore_from(machine, snapshots, (self.group, position), &self.progress) {
            Ok(()) => {
                let after = self.opening.take();
                let opens = after.is_some();
                if let Some(Err(fault)) = after.map(|after| after(&mut *self.machine)) {
                    return ApplyReport::Failed(fault);
                }
                self.lost = false;
                self.applied = position;
                self.position.store(position.index.get(), Ordering::Release);
                let durable = self.machine.durable_index();
                match opens {
                    // The replica stands there since it was opened.
                    true => ApplyReport::Durable(durable),
                    false => ApplyReport::Restored { position, durable },
                }
            }
            Err(fault) if fault.kind == FaultKind::Passing => {
                ApplyReport::Stalled { work: ApplyWork::Restore { position }, fault }
            }
            Err(fault) => ApplyReport::Failed(fault.into()),
        }
    }
}

impl From<ApplyFault> for GroupFault {
    fn from(fault: ApplyFault) -> Self {
        let text = fault.to_string().into();
        match fault.kind {
            FaultKind::Damaged => Self::StateDamaged(text),
            FaultKind::Passing => Self::StatePasses(text),
            FaultKind::Broken => Self::StateMachine(text),
        }
    }
}

/// Answers a question; a caller that went away is no error. Damage that a question finds is a fault
/// of the replica.
fn answer<T>(reply: Reply<Result<T, QueryError>>, answer: Result<T, QueryError>) -> ApplyReport {
    let damage = match &answer {
        Err(error @ QueryError::Damaged(_)) => Some(error.to_string()),
        _ => None,
    };
    reply.send(answer);
    damage.map_or(ApplyReport::Nothing, |text| {
        ApplyReport::Failed(GroupFault::StateDamaged(text.into()))
    })
}

/// The error instead of an answer.
const NO_STATE: &str = "the state of this replica is lost or being replaced";

/// Turns a panic of the machine into a fault.
pub(crate) fn contain<T>(run: impl FnOnce() -> T) -> Result<T, GroupFault> {
    panics::contain(run).map_err(|panic| {
        GroupFault::StateMachine(format!("the state machine panicked: {panic}").into())
    })
}

/// A failed machine does nothing more; callers get the error.
fn refuse(group: GroupId, work: ApplyWork, fault: &GroupFault) -> ApplyReport {
    let failed = || QueryError::Failed(fault.to_string());
    match work {
        ApplyWork::Commands { commands, .. } => {
            let completions = commands.into_iter().filter_map(|command| command.completion?.take());
            for completion in completions {
                let fault = fault.clone();
                completion.resolve(Err(crate::error::ProposeError::Faulted { group, fault }));
            }
        }
        ApplyWork::Query { reply, .. } => reply.send(Err(failed())),
        ApplyWork::Checksum { reply } => reply.send(Err(failed())),
        ApplyWork::Restore { .. }
        | ApplyWork::Snapshot
        | ApplyWork::Check { .. }
        | ApplyWork::Durable
        | ApplyWork::Removed => {}
    }
    ApplyReport::Nothing
}

#[cfg(test)]
mod tests;
