//! Asking the policies about a leadership that was acquired. Done on a thread that may block.

use shardhost_storage::{GroupId, Term};

use super::{Acquisition, AskedPolicy, Decision};

/// A leadership that policies are to be asked about.
#[derive(Debug)]
pub struct AdmissionRequest {
    pub group: GroupId,
    /// Which opening of its replica.
    pub open_id: u64,
    /// Which question about this leadership it is; the answer names it, and one to an earlier
    /// question is dropped.
    pub question: u64,
    /// The input of the policies.
    pub(crate) acquired: Acquisition,
    /// The policies to ask, in order.
    pub(crate) policies: Vec<AskedPolicy>,
}

/// A policy gave no answer: it panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionFault {
    pub policy: &'static str,
}

impl AdmissionRequest {
    /// The term that is asked about.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.acquired.term
    }

    /// Asks one after the other, until one does not say [`Decision::Serve`]. May take as long as
    /// the policies do.
    ///
    /// # Errors
    /// The first one that gave no answer.
    pub fn ask(&self) -> Result<Decision, AdmissionFault> {
        for policy in &self.policies {
            match policy.ask(&self.acquired) {
                Some(Decision::Serve) => {}
                Some(decision) => return Ok(decision),
                None => return Err(AdmissionFault { policy: policy.name() }),
            }
        }
        Ok(Decision::Serve)
    }
}
