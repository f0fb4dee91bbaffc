//! [`Group`]: what callers hold of a group. Cheap to clone, usable from any task or thread.
//!
//! Admission reads the published status without a lock; what passes goes into the inbox of the
//! worker that owns the group. One file per kind of call.

mod barrier;
mod manage;
mod propose;
mod read;
mod spec;
mod task;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam_channel::TrySendError;
use shardhost_storage::{GroupId, Membership};
use tokio::sync::watch;

use crate::clock::Moment;
use crate::completion::Budget;
use crate::core::LeaseSign;
use crate::lives::LifeLock;
use crate::machine::Progress;
use crate::panics::Watched;
use crate::runtime::{Mailbox, RuntimeShared};
use crate::status::GroupStatus;
use crate::worker::Input;

pub use barrier::Barrier;
pub use manage::Transferred;
pub use propose::{Propose, ProposeFuture};
pub use read::{LeaseStatus, NotServing, ReadMode};
pub use spec::GroupSpec;
pub(crate) use task::supervise;
pub use task::{LeaderScope, LeaderTaskGuard};

/// What handles, apply threads and the runtime share of one replica.
pub(crate) struct GroupShared {
    pub(crate) id: GroupId,
    pub(crate) open_id: u64,
    pub(crate) worker: usize,
    pub(crate) status: ArcSwap<GroupStatus>,
    pub(crate) lease: LeaseCell,
    /// The position of the state machine.
    pub(crate) position: Arc<AtomicU64>,
    /// Moves while a call into the state machine gets on.
    pub(crate) progress: Progress,
    pub(crate) watchers: OnceLock<Watched<Arc<GroupStatus>>>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) runtime: Arc<RuntimeShared>,
    pub(crate) mailbox: Mailbox,
    /// Held by work that is done late for this opening of the replica.
    pub(crate) life: Arc<LifeLock>,
    pub(crate) kind: Arc<str>,
}

impl GroupShared {
    pub(crate) fn publish(&self, status: Arc<GroupStatus>) {
        self.status.store(Arc::clone(&status));
        if let Some(watchers) = self.watchers.get() {
            watchers.set(status);
        }
    }
}

/// The published lease of a replica, read without a lock.
#[derive(Debug, Default)]
pub(crate) struct LeaseCell {
    until: AtomicU64,
    acknowledged: AtomicU64,
    contact: AtomicU64,
}

impl LeaseCell {
    pub(crate) fn publish(&self, sign: LeaseSign) {
        self.acknowledged.store(sign.acknowledged.get(), Ordering::Release);
        self.contact.store(sign.contact.get(), Ordering::Release);
        self.until.store(sign.until.get(), Ordering::Release);
    }

    fn sign(&self) -> LeaseSign {
        LeaseSign {
            until: Moment::new(self.until.load(Ordering::Acquire)),
            acknowledged: Moment::new(self.acknowledged.load(Ordering::Acquire)),
            contact: Moment::new(self.contact.load(Ordering::Acquire)),
        }
    }
}

/// Why an input did not get to its worker.
enum Offered {
    Busy,
    Stopped,
}

/// A handle of a group's replica on this host.
#[derive(Clone)]
pub struct Group {
    shared: Arc<GroupShared>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shared.id)
    }
}

impl Group {
    pub(crate) const fn from_shared(shared: Arc<GroupShared>) -> Self {
        Self { shared }
    }

    pub(crate) const fn shared(&self) -> &Arc<GroupShared> {
        &self.shared
    }

    /// The group.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.shared.id
    }

    /// Name of the kind of state machine.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.shared.kind
    }

    /// The status of the replica: one consistent view, without a lock.
    #[must_use]
    pub fn status(&self) -> Arc<GroupStatus> {
        self.shared.status.load_full()
    }

    /// Who belongs to the group.
    #[must_use]
    pub fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.shared.status.load().membership)
    }

    /// The status, and a notification of every change of it. Changes in quick succession are
    /// seen as one.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<GroupStatus>> {
        let watchers = self.shared.watchers.get_or_init(|| Watched::new(self.status()));
        let receiver = watchers.subscribe();
        // A status published while the first watcher was being set up must not be missed.
        watchers.set(self.status());
        receiver
    }

    /// Hands an order to the worker that owns the group. It is for this opening of the replica.
    fn offer(&self, order: Input) -> Result<(), Offered> {
        let (group, open_id) = (self.shared.id, self.shared.open_id);
        let inbox = &self.shared.runtime.inboxes[self.shared.worker];
        inbox.offer(Input::Order { group, open_id, order: Box::new(order) }).map_err(|error| {
            match error {
                TrySendError::Full(_) => Offered::Busy,
                TrySendError::Disconnected(_) => Offered::Stopped,
            }
        })
    }

    /// Waits until the status fulfils `condition`; `None` when that does not happen `within`.
    pub async fn wait_for(
        &self,
        mut condition: impl FnMut(&GroupStatus) -> bool,
        within: Duration,
    ) -> Option<Arc<GroupStatus>> {
        let mut watch = self.watch();
        let met = watch.wait_for(|status| condition(status));
        let status = tokio::time::timeout(within, met).await.ok()?.ok()?;
        Some(Arc::clone(&status))
    }
}
