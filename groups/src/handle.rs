//! [`Group`]: what callers hold of a group. Cheap to clone, usable from any task or thread.
//!
//! Admission reads the published status without a lock; what passes goes into the inbox of the
//! worker that owns the group.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use crossbeam_channel::TrySendError;
use shardhost_storage::{GroupId, LogPosition, Membership, NodeId, Term};
use tokio::sync::{oneshot, watch};

use crate::apply::ApplyWork;
use crate::config::PROPOSAL_OVERHEAD_BYTES;
use crate::core::{Proposal, ReadBarrier, TransferRequest};
use crate::error::{
    ProposeError, QueryTimeout, ReadError, RejectReason, TransferError, UnknownCause,
};
use crate::machine::StateChecksum;
use crate::runtime::{Mailbox, RuntimeShared};
use crate::status::{GroupStatus, Role};
use crate::waiter::{Budget, Pending, ProposalSink, ProposeOutcome, Waiter};
use crate::worker::Input;

/// What a group is created from. Equal on every node that holds a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupSpec {
    /// The group.
    pub id: GroupId,
    /// Who belongs to it.
    pub membership: Membership,
    /// Name of the kind of state machine, for finding its factory after a restart.
    pub kind: String,
    /// Words for selectors.
    pub labels: BTreeMap<String, String>,
}

impl GroupSpec {
    /// A group whose voters are on these nodes. Their replica ids follow from the set, so every
    /// node that is given the same set derives the same group.
    #[must_use]
    pub fn new(id: GroupId, voters: impl IntoIterator<Item = NodeId>) -> Self {
        let membership = Membership::initial(voters);
        Self { id, membership, kind: String::new(), labels: BTreeMap::new() }
    }
    /// Names the kind of state machine.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }
    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadMode {
    /// Sees everything that was acknowledged before it began. Leader only; one quorum round,
    /// shared with other reads.
    Linearizable,
    /// Sees whatever this replica has applied. Any replica, at once.
    Stale,
}

/// A transfer of leadership that took place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transferred {
    /// The node that leads.
    pub to: NodeId,
    /// Its term.
    pub term: Term,
    /// From the request until this node knew the new leader.
    pub took: Duration,
}

/// What handles, apply threads and the runtime share of one replica.
pub(crate) struct GroupShared {
    pub(crate) id: GroupId,
    pub(crate) epoch: u64,
    pub(crate) worker: usize,
    pub(crate) status: ArcSwap<GroupStatus>,
    pub(crate) watchers: OnceLock<watch::Sender<Arc<GroupStatus>>>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) runtime: Arc<RuntimeShared>,
    pub(crate) mailbox: Mailbox,
    pub(crate) kind: Arc<str>,
}

impl GroupShared {
    pub(crate) fn publish(&self, status: Arc<GroupStatus>) {
        self.status.store(Arc::clone(&status));
        if let Some(watchers) = self.watchers.get() {
            watchers.send_replace(status);
        }
    }
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

    /// What is known of the replica: one consistent view, without a lock.
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
        let watchers = self.shared.watchers.get_or_init(|| watch::Sender::new(self.status()));
        let receiver = watchers.subscribe();
        // A status published while the first watcher was being set up must not be missed.
        watchers.send_replace(self.status());
        receiver
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

    /// Proposes a command. Nothing happens before the answer is awaited, which yields the state
    /// machine's answer once the command is committed and applied here.
    ///
    /// # Errors
    /// [`ProposeError`]; it says whether the command may still take effect.
    pub fn propose(&self, command: impl Into<Bytes>) -> Propose<'_> {
        Propose { group: self, command: command.into(), in_term: None, within: None }
    }

    /// Submits many commands at once, for callers that pipeline. The outcome of each goes to
    /// `sink` with its token, exactly once, from another thread or from this call.
    pub fn submit(
        &self,
        commands: impl IntoIterator<Item = (u64, Bytes)>,
        sink: &Arc<dyn ProposalSink>,
    ) {
        let refusal = self.refuses_proposals();
        let submitted = Instant::now();
        let mut proposals = Vec::new();
        for (token, command) in commands {
            let waiter = Waiter::Sink { sink: Arc::clone(sink), token };
            match self.admit(command, waiter, None, submitted, refusal.as_ref()) {
                Ok(proposal) => proposals.push(proposal),
                Err((waiter, error)) => waiter.resolve(Err(error)),
            }
        }
        self.enqueue(proposals);
    }

    fn refuses_proposals(&self) -> Option<ProposeError> {
        let group = self.shared.id;
        let status = self.shared.status.load();
        match &status.role {
            Role::Leader if status.transferring_to.is_some() => {
                Some(ProposeError::Rejected { group, reason: RejectReason::Transferring })
            }
            Role::Leader => None,
            Role::Failed(fault) => Some(ProposeError::Faulted { group, fault: fault.clone() }),
            Role::Stopped => Some(ProposeError::Rejected { group, reason: RejectReason::Stopping }),
            _ => Some(ProposeError::NotLeader { group, hint: status.leader }),
        }
    }

    fn admit(
        &self,
        command: Bytes,
        waiter: Waiter,
        in_term: Option<Term>,
        submitted: Instant,
        refusal: Option<&ProposeError>,
    ) -> Result<Proposal, (Waiter, ProposeError)> {
        let group = self.shared.id;
        if let Some(error) = refusal {
            return Err((waiter, error.clone()));
        }
        let limit = self.shared.runtime.config.max_command_bytes;
        let size = command.len();
        let reason = match size {
            0 => Some(RejectReason::Empty),
            size if size > limit => Some(RejectReason::TooLarge { size, limit }),
            _ => None,
        };
        if let Some(reason) = reason {
            return Err((waiter, ProposeError::Rejected { group, reason }));
        }
        match self.shared.budget.charge(size + PROPOSAL_OVERHEAD_BYTES) {
            None => {
                let reason = RejectReason::Busy;
                Err((waiter, ProposeError::Rejected { group, reason }))
            }
            Some(charge) => {
                let pending = Pending::new(group, waiter, charge, submitted);
                Ok(Proposal { command, in_term, pending })
            }
        }
    }

    fn enqueue(&self, proposals: Vec<Proposal>) {
        if proposals.is_empty() {
            return;
        }
        let group = self.shared.id;
        let input = Input::Propose { group, proposals };
        let (input, reason) = match self.shared.runtime.inboxes[self.shared.worker].offer(input) {
            Ok(()) => return,
            Err(TrySendError::Full(input)) => (input, RejectReason::Busy),
            Err(TrySendError::Disconnected(input)) => (input, RejectReason::Stopping),
        };
        if let Input::Propose { proposals, .. } = input {
            for proposal in proposals {
                let reason = reason.clone();
                proposal.pending.resolve(Err(ProposeError::Rejected { group, reason }));
            }
        }
    }

    /// Waits until a read would be as fresh as `mode` asks for.
    ///
    /// # Errors
    /// [`ReadError`]. Nothing changed.
    pub async fn read_barrier(&self, mode: ReadMode) -> Result<ReadBarrier, ReadError> {
        let group = self.shared.id;
        match mode {
            ReadMode::Stale => {
                let applied = self.shared.status.load().applied;
                Ok(ReadBarrier::stale(applied))
            }
            ReadMode::Linearizable => {
                let (waiter, answer) = oneshot::channel();
                let input = Input::Read { group, waiter };
                match self.shared.runtime.inboxes[self.shared.worker].offer(input) {
                    Ok(()) => answer.await.unwrap_or(Err(ReadError::Stopped { group })),
                    Err(TrySendError::Full(_)) => Err(ReadError::Busy { group }),
                    Err(TrySendError::Disconnected(_)) => Err(ReadError::Stopped { group }),
                }
            }
        }
    }

    /// Asks the state machine.
    ///
    /// # Errors
    /// [`ReadError`]. Nothing changed.
    pub async fn query(
        &self,
        mode: ReadMode,
        request: impl Into<Bytes>,
    ) -> Result<Bytes, ReadError> {
        let request = request.into();
        // The work queues behind everything that the barrier waited for.
        let _barrier = self.read_barrier(mode).await?;
        let (reply, answer) = oneshot::channel();
        self.shared.runtime.push_work(&self.shared, ApplyWork::Query { request, reply });
        Ok(self.answered(answer).await??)
    }

    /// Number of items and checksum of the state, and the position that they are of.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn checksum(&self) -> Result<(LogPosition, StateChecksum), ReadError> {
        let (reply, answer) = oneshot::channel();
        self.shared.runtime.push_work(&self.shared, ApplyWork::Checksum { reply });
        Ok(self.answered(answer).await??)
    }

    async fn answered<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, ReadError> {
        let group = self.shared.id;
        let limit = self.shared.runtime.config.query_timeout;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(ReadError::Stopped { group }),
            Err(_) => Err(ReadError::Timeout(QueryTimeout { group, after: limit })),
        }
    }

    /// Hands leadership to `to`, or to the live voter that is furthest. Returns when this node
    /// knows the new leader. Dropping the future does not stop the transfer.
    ///
    /// # Errors
    /// [`TransferError`]; this replica or another one leads on.
    pub async fn transfer_leadership(
        &self,
        to: Option<NodeId>,
    ) -> Result<Transferred, TransferError> {
        let group = self.shared.id;
        let started = Instant::now();
        let (waiter, answer) = oneshot::channel();
        let input = Input::Transfer { group, request: TransferRequest { to, waiter } };
        if self.shared.runtime.inboxes[self.shared.worker].offer(input).is_err() {
            return Err(TransferError::Stopped { group });
        }
        let (to, term) = answer.await.unwrap_or(Err(TransferError::Stopped { group }))?;
        Ok(Transferred { to, term, took: started.elapsed() })
    }
}

/// A proposal that is submitted when it is awaited.
#[must_use = "a proposal is not submitted until it is awaited"]
#[derive(Debug)]
pub struct Propose<'a> {
    group: &'a Group,
    command: Bytes,
    in_term: Option<Term>,
    within: Option<Duration>,
}

impl Propose<'_> {
    /// Propose in this term only; in another one the proposal is rejected.
    pub const fn in_term(mut self, term: Term) -> Self {
        self.in_term = Some(term);
        self
    }
    /// Stop waiting after this time; the outcome is unknown then. Without it, the replica gives
    /// up after [`crate::GroupsConfig::propose_give_up_ticks`].
    pub const fn within(mut self, timeout: Duration) -> Self {
        self.within = Some(timeout);
        self
    }
}

impl IntoFuture for Propose<'_> {
    type Output = ProposeOutcome;
    type IntoFuture = ProposeFuture;

    fn into_future(self) -> ProposeFuture {
        let group = self.group;
        let (sender, answer) = oneshot::channel();
        let refusal = group.refuses_proposals();
        let waiter = Waiter::One(sender);
        let now = Instant::now();
        match group.admit(self.command, waiter, self.in_term, now, refusal.as_ref()) {
            Ok(proposal) => group.enqueue(vec![proposal]),
            Err((waiter, error)) => waiter.resolve(Err(error)),
        }
        let deadline = self.within.map(|within| Box::pin(tokio::time::sleep(within)));
        ProposeFuture { group: group.id(), answer, deadline }
    }
}

/// Waits for the outcome of a proposal. Dropping it leaves the proposal to its fate.
#[derive(Debug)]
pub struct ProposeFuture {
    group: GroupId,
    answer: oneshot::Receiver<ProposeOutcome>,
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Future for ProposeFuture {
    type Output = ProposeOutcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<ProposeOutcome> {
        let group = self.group;
        if let Poll::Ready(answer) = Pin::new(&mut self.answer).poll(context) {
            let cause = UnknownCause::Stopped;
            let stopped = Err(ProposeError::Unknown { group, cause });
            return Poll::Ready(answer.unwrap_or(stopped));
        }
        let late = self.deadline.as_mut().is_some_and(|d| d.as_mut().poll(context).is_ready());
        if late {
            let cause = UnknownCause::Timeout;
            return Poll::Ready(Err(ProposeError::Unknown { group, cause }));
        }
        Poll::Pending
    }
}
