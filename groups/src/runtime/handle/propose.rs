//! Proposing: admission by status and budget, and the futures that wait for outcomes.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::TrySendError;
use shardhost_storage::{GroupId, Term};
use tokio::sync::oneshot;

use super::Group;
use crate::completion::{Completion, Pending, ProposalSink, ProposeOutcome};
use crate::config::PROPOSAL_OVERHEAD_BYTES;
use crate::core::Proposal;
use crate::error::{ProposalRejection, ProposeError, UnknownCause};
use crate::status::Role;
use crate::worker::Input;

/// What a caller asks for beside the command.
#[derive(Clone, Copy, Debug, Default)]
struct Terms {
    in_term: Option<Term>,
    through_barrier: bool,
}

impl Group {
    /// Proposes a command. Nothing happens before the answer is awaited, which yields the state
    /// machine's answer once the command is committed and applied here.
    ///
    /// # Errors
    /// [`ProposeError`]; it distinguishes whether the command may still take effect.
    pub fn propose(&self, command: impl Into<Bytes>) -> Propose<'_> {
        Propose { group: self, command: command.into(), terms: Terms::default(), within: None }
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
            let completion = Completion::Sink { sink: Arc::clone(sink), token };
            match self.admit(command, completion, Terms::default(), submitted, refusal.as_ref()) {
                Ok(proposal) => proposals.push(proposal),
                Err((completion, error)) => completion.resolve(Err(error)),
            }
        }
        self.enqueue(proposals);
    }

    fn refuses_proposals(&self) -> Option<ProposeError> {
        let group = self.shared.id;
        let status = self.shared.status.load();
        match &status.role {
            Role::Leader => status.caretaker.clone().map(|reason| {
                let reason = ProposalRejection::NotServing(Some(reason));
                ProposeError::Rejected { group, reason }
            }),
            Role::Failed(fault) => {
                let reason = ProposalRejection::Failed(fault.clone());
                Some(ProposeError::Rejected { group, reason })
            }
            Role::Stopped | Role::Removed => {
                Some(ProposeError::Rejected { group, reason: ProposalRejection::Stopping })
            }
            // What a hibernating follower knows of its leader may be out of date: it looks first.
            _ if status.hibernating => None,
            _ => Some(ProposeError::NotLeader { group, hint: status.leader }),
        }
    }

    fn admit(
        &self,
        command: Bytes,
        completion: Completion,
        terms: Terms,
        submitted: Instant,
        refusal: Option<&ProposeError>,
    ) -> Result<Proposal, (Completion, ProposeError)> {
        let group = self.shared.id;
        if let Some(error) = refusal {
            return Err((completion, error.clone()));
        }
        let limit = self.shared.runtime.config.max_command_bytes;
        let size = command.len();
        let paused = self.shared.status.load().paused && !terms.through_barrier;
        let reason = match size {
            0 => Some(ProposalRejection::Empty),
            _ if paused => Some(ProposalRejection::Paused),
            size if size > limit => Some(ProposalRejection::TooLarge { size, limit }),
            _ => None,
        };
        if let Some(reason) = reason {
            return Err((completion, ProposeError::Rejected { group, reason }));
        }
        match self.shared.budget.charge(size + PROPOSAL_OVERHEAD_BYTES) {
            None => {
                let reason = ProposalRejection::Busy;
                Err((completion, ProposeError::Rejected { group, reason }))
            }
            Some(charge) => {
                let pending = Pending::new(group, completion, charge, submitted);
                let Terms { in_term, through_barrier } = terms;
                Ok(Proposal { command, in_term, through_barrier, pending })
            }
        }
    }

    fn enqueue(&self, proposals: Vec<Proposal>) {
        if proposals.is_empty() {
            return;
        }
        let group = self.shared.id;
        let open_id = Some(self.shared.open_id);
        let input = Input::Propose { group, open_id, proposals };
        let (input, reason) = match self.shared.runtime.inboxes[self.shared.worker].offer(input) {
            Ok(()) => return,
            Err(TrySendError::Full(input)) => (input, ProposalRejection::Busy),
            Err(TrySendError::Disconnected(input)) => (input, ProposalRejection::Stopping),
        };
        if let Input::Propose { proposals, .. } = input {
            for proposal in proposals {
                let reason = reason.clone();
                proposal.pending.resolve(Err(ProposeError::Rejected { group, reason }));
            }
        }
    }
}

/// A proposal that is submitted when it is awaited.
#[must_use = "a proposal is not submitted until it is awaited"]
#[derive(Debug)]
pub struct Propose<'a> {
    group: &'a Group,
    command: Bytes,
    terms: Terms,
    within: Option<Duration>,
}

impl Propose<'_> {
    /// Propose in this term only; in another one the proposal is rejected.
    pub const fn in_term(mut self, term: Term) -> Self {
        self.terms.in_term = Some(term);
        self
    }
    /// An operator's proposal: an open barrier lets it through.
    pub const fn through_barrier(mut self) -> Self {
        self.terms.through_barrier = true;
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
        let (sender, answer) = crate::completion::answer();
        let refusal = group.refuses_proposals();
        let completion = Completion::One(sender);
        let now = Instant::now();
        match group.admit(self.command, completion, self.terms, now, refusal.as_ref()) {
            Ok(proposal) => group.enqueue(vec![proposal]),
            Err((completion, error)) => completion.resolve(Err(error)),
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
