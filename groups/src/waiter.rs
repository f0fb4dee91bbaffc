//! Who waits for a proposal, and how the outcome reaches them.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use shardhost_storage::{LogIndex, Term};
use tokio::sync::oneshot;

use crate::error::ProposeError;

/// A proposal that was committed and applied here.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied {
    /// Its place in the log.
    pub index: LogIndex,
    /// The term it was committed in.
    pub term: Term,
    /// What the state machine answered.
    pub response: Bytes,
}

impl Applied {
    /// An outcome from its parts.
    #[must_use]
    pub const fn new(index: LogIndex, term: Term, response: Bytes) -> Self {
        Self { index, term, response }
    }
}

/// What became of a proposal.
pub type ProposeOutcome = Result<Applied, ProposeError>;

/// Takes the outcomes of many proposals, for callers that pipeline. Called from apply and Raft
/// threads: must not block.
pub trait ProposalSink: Send + Sync + 'static {
    /// The proposal that was submitted with `token` ended. Called exactly once per proposal.
    fn complete(&self, token: u64, outcome: ProposeOutcome);
}

/// Whoever waits for one proposal. Resolved exactly once; when it is dropped unresolved (its
/// worker is gone), the waiting side sees a closed channel and reports an unknown outcome.
pub enum Waiter {
    /// One future.
    One(oneshot::Sender<ProposeOutcome>),
    /// One of many proposals of a sink.
    Sink {
        /// Where the outcome goes.
        sink: Arc<dyn ProposalSink>,
        /// Which of its proposals.
        token: u64,
    },
}

impl Waiter {
    /// Hands over the outcome. A caller that went away is no error.
    pub fn resolve(self, outcome: ProposeOutcome) {
        match self {
            Self::One(sender) => drop(sender.send(outcome)),
            Self::Sink { sink, token } => sink.complete(token, outcome),
        }
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(_) => f.write_str("Waiter::One"),
            Self::Sink { token, .. } => write!(f, "Waiter::Sink({token})"),
        }
    }
}
