//! Tasks that live as long as a leadership.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use shardhost_storage::{GroupId, Term};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::leadership::{LeadershipEvent, LeadershipEvents};
use crate::runtime::Group;

/// One leadership, for the task that lives as long as it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeaderScope {
    pub group: Group,
    /// The term it is led in.
    pub term: Term,
    /// Cancelled when the leadership is lost; the task should end then.
    pub cancelled: CancellationToken,
}

/// Keeps tasks of leadership running. Dropping it cancels them.
#[must_use = "dropping the guard cancels the leader tasks"]
#[derive(Debug)]
pub struct LeaderTaskGuard {
    stop: CancellationToken,
    supervisor: Option<JoinHandle<()>>,
}

impl LeaderTaskGuard {
    /// Cancels the tasks and waits until they ended.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(supervisor) = self.supervisor.take()
            && let Err(error) = supervisor.await
        {
            tracing::error!(%error, "the supervisor of leader tasks failed");
        }
    }
}

impl Drop for LeaderTaskGuard {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Running {
    cancelled: CancellationToken,
    task: JoinHandle<()>,
}

/// Starts a task for each (group, term) that serves, and cancels it when the leadership is lost, or
/// serves no users any more. For one group, a task starts only after the one before has ended.
pub(crate) fn supervise<F, Fut, L>(events: LeadershipEvents, lookup: L, start: F) -> LeaderTaskGuard
where
    F: Fn(LeaderScope) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
    L: Fn(GroupId) -> Option<Group> + Send + 'static,
{
    let stop = CancellationToken::new();
    let supervisor = tokio::spawn(run(events, lookup, Arc::new(start), stop.clone()));
    LeaderTaskGuard { stop, supervisor: Some(supervisor) }
}

async fn run<F, Fut, L>(
    mut events: LeadershipEvents,
    lookup: L,
    start: Arc<F>,
    stop: CancellationToken,
) where
    F: Fn(LeaderScope) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
    L: Fn(GroupId) -> Option<Group> + Send + 'static,
{
    let mut running: BTreeMap<GroupId, Running> = BTreeMap::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            event = events.recv() => event,
        };
        match event {
            None => break,
            Some(LeadershipEvent::Acquired(_)) => {}
            Some(LeadershipEvent::Ready(event)) => {
                let Some(group) = lookup(event.group) else { continue };
                let cancelled = stop.child_token();
                let scope = LeaderScope { group, term: event.term, cancelled: cancelled.clone() };
                let before = running.remove(&event.group);
                let task = tokio::spawn(follow(before, Arc::clone(&start), scope));
                running.insert(event.group, Running { cancelled, task });
            }
            Some(event @ (LeadershipEvent::Lost(_) | LeadershipEvent::Caretaker(_))) => {
                if let Some(task) = running.get(&event.group()) {
                    task.cancelled.cancel();
                }
            }
        }
        running.retain(|_, task| !task.task.is_finished());
    }
    for (group, task) in running {
        task.cancelled.cancel();
        report(group, task.task.await);
    }
}

/// Waits for the task of an earlier term, then runs the one of this term unless it is over.
async fn follow<F, Fut>(before: Option<Running>, start: Arc<F>, scope: LeaderScope)
where
    F: Fn(LeaderScope) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    if let Some(before) = before {
        before.cancelled.cancel();
        report(scope.group.id(), before.task.await);
    }
    if !scope.cancelled.is_cancelled() {
        start(scope).await;
    }
}

fn report(group: GroupId, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%group, %error, "a leader task failed");
    }
}
