//! The one thread that computes the checksums by which replicas are compared, slowly, and that has
//! hibernating groups looked at from time to time.
//!
//! It reads so many bytes per second and no more. A view that finds no room is not compared this
//! time, which its group's leader takes for a checksum that does not come.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use shardhost_storage::LogPosition;

use super::RuntimeShared;
use super::apply_pool::tell;
use crate::apply::{Summed, sum_of};
use crate::checksum::StateSum;
use crate::machine::{ApplyFault, ConsistencyView};
use crate::panics::{Foreign, contain};
use crate::runtime::GroupShared;
use crate::worker::{GroupEvent, Input};

/// Views that may wait. Each holds on to what its state machine overwrites meanwhile.
const MAX_TASKS: usize = 8;
/// Hibernating groups are looked at in so many parts, one after the other.
const PARTS: u32 = 1_440;
/// The longest that the thread waits without looking whether the host stops.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

enum Task {
    Compute { group: Arc<GroupShared>, position: LogPosition, view: Foreign<ConsistencyView> },
    Stop,
}

/// Where views are put, and what became of them.
pub(super) struct CheckQueue {
    tasks: Sender<Task>,
    pub made: AtomicU64,
    pub skipped: AtomicU64,
}

/// Where the thread takes them.
pub(super) struct CheckOutlet(Receiver<Task>);

impl CheckQueue {
    pub(super) fn new() -> (Self, CheckOutlet) {
        let (tasks, receiver) = bounded(MAX_TASKS);
        let (made, skipped) = (AtomicU64::new(0), AtomicU64::new(0));
        (Self { tasks, made, skipped }, CheckOutlet(receiver))
    }

    /// Has the checksum of a view computed.
    pub(super) fn compute(
        &self,
        shared: &RuntimeShared,
        group: &Arc<GroupShared>,
        position: LogPosition,
        view: Result<Option<ConsistencyView>, ApplyFault>,
    ) {
        let summed = match view {
            Ok(Some(view)) => {
                let view = Foreign::new("a view of a state machine", view);
                let task = Task::Compute { group: Arc::clone(group), position, view };
                if self.tasks.try_send(task).is_ok() {
                    return;
                }
                Summed::Skipped
            }
            Ok(None) => Summed::Unsupported,
            Err(fault) => {
                tracing::warn!(group = %group.id, %fault, "not compared with other replicas");
                Summed::Skipped
            }
        };
        if summed == Summed::Skipped {
            self.skipped.fetch_add(1, Ordering::Relaxed);
        }
        tell(shared, group, GroupEvent::Summed { position, summed });
    }

    pub(super) fn stop(&self) {
        if self.tasks.send(Task::Stop).is_err() {
            tracing::debug!("the thread that compares replicas had ended");
        }
    }
}

/// Runs the thread until stopped.
pub(super) fn run(shared: &Arc<RuntimeShared>, outlet: &CheckOutlet) {
    let config = &shared.config;
    let hibernating = config.consistency_hibernating.filter(|_| config.consistency_ticks > 0);
    let every = hibernating.map(|whole| whole / PARTS);
    let mut next = every.and_then(|every| Instant::now().checked_add(every));
    let mut part = 0;
    loop {
        let task = match next {
            Some(next) => outlet.0.recv_deadline(next),
            None => outlet.0.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match task {
            Ok(Task::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Task::Compute { group, position, view }) => {
                let summed = compute(shared, &group, view);
                tell(shared, &group, GroupEvent::Summed { position, summed });
            }
            Err(RecvTimeoutError::Timeout) => {
                let of = u64::from(PARTS);
                for inbox in &shared.inboxes {
                    inbox.complete(Input::CheckHibernating { part, of });
                }
                part = (part + 1) % of;
                next = every.and_then(|every| Instant::now().checked_add(every));
            }
        }
    }
}

/// A panic of the state machine costs its group the comparison.
fn compute(
    shared: &RuntimeShared,
    replica: &GroupShared,
    view: Foreign<ConsistencyView>,
) -> Summed {
    let mut pace = Pace::new(shared, replica);
    let computed = contain(|| {
        let summed = sum_of(view.into_inner(), &mut |bytes| pace.take(bytes));
        // An error is a value of the user, too.
        summed.map_err(|error| error.to_string())
    });
    let computed: Result<StateSum, String> =
        computed.unwrap_or_else(|panic| Err(format!("the state machine panicked: {panic}")));
    match computed {
        Ok(sum) => {
            shared.checks.made.fetch_add(1, Ordering::Relaxed);
            Summed::Sum(sum)
        }
        Err(error) => {
            if !shared.is_stopping() && !replica.life.is_over() {
                tracing::warn!(group = %replica.id, %error, "not compared with other replicas");
            }
            shared.checks.skipped.fetch_add(1, Ordering::Relaxed);
            Summed::Skipped
        }
    }
}

/// So many bytes per second, from the beginning of a view.
struct Pace<'a> {
    shared: &'a RuntimeShared,
    replica: &'a GroupShared,
    began: Instant,
    bytes: u64,
}

impl<'a> Pace<'a> {
    fn new(shared: &'a RuntimeShared, replica: &'a GroupShared) -> Self {
        Self { shared, replica, began: Instant::now(), bytes: 0 }
    }

    /// Waits until these bytes may have been read, too.
    fn take(&mut self, bytes: usize) -> io::Result<()> {
        self.bytes += bytes as u64;
        let rate = self.shared.config.consistency_bytes_per_second.max(1);
        let due = Duration::from_micros(self.bytes.saturating_mul(1_000_000) / rate);
        loop {
            if self.shared.is_stopping() || self.replica.life.is_over() {
                return Err(io::Error::other("the replica ended"));
            }
            let ahead = due.saturating_sub(self.began.elapsed());
            if ahead.is_zero() {
                return Ok(());
            }
            std::thread::sleep(ahead.min(LONGEST_WAIT));
        }
    }
}
