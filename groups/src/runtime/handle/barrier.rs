//! Barriers: users' proposals wait outside while an operator's go through.

use shardhost_storage::{LogIndex, Term};

use super::{Group, Offered};
use crate::core::BarrierOrder;
use crate::error::BarrierError;
use crate::worker::Input;

/// An open barrier. Users' proposals are refused with [`crate::ProposalRejection::Paused`] until it
/// is closed, dropped, or the leadership ends that it belongs to.
#[must_use = "dropping the barrier closes it"]
#[derive(Debug)]
pub struct Barrier {
    group: Group,
    term: Term,
    number: u64,
}

impl Group {
    /// Opens a barrier: from the answer on no proposal of a user gets into the log of this term,
    /// only those made with [`crate::Propose::through_barrier`].
    ///
    /// # Errors
    /// [`BarrierError`]; none was opened.
    pub async fn open_barrier(&self) -> Result<Barrier, BarrierError> {
        let group = self.id();
        let (completion, answer) = crate::completion::answer();
        let order = BarrierOrder::Open(completion);
        self.offer_barrier(order)?;
        let (term, number) = answer.await.unwrap_or(Err(BarrierError::Stopped { group }))?;
        Ok(Barrier { group: self.clone(), term, number })
    }

    fn offer_barrier(&self, order: BarrierOrder) -> Result<(), BarrierError> {
        let group = self.id();
        self.offer(Input::Barrier { group, order }).map_err(|error| match error {
            Offered::Busy => BarrierError::Busy { group },
            Offered::Stopped => BarrierError::Stopped { group },
        })
    }
}

impl Barrier {
    /// The term that it belongs to.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// Waits until everything that users proposed before is applied here, and returns the last
    /// index of it. When nothing is under way it returns at once. Dropping the future is safe.
    ///
    /// # Errors
    /// [`BarrierError::Ended`] when the leadership ends first.
    pub async fn drain(&self) -> Result<LogIndex, BarrierError> {
        let group = self.group.id();
        let (completion, answer) = crate::completion::answer();
        self.group.offer_barrier(BarrierOrder::Drain { number: self.number, completion })?;
        answer.await.unwrap_or(Err(BarrierError::Stopped { group }))
    }

    /// Closes it: users' proposals are taken again. Those who drain are let go. Closing one that
    /// ended already does nothing.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        let group = self.group.id();
        let shared = self.group.shared();
        let order = Box::new(Input::Barrier { group, order: BarrierOrder::Close(self.number) });
        let order = Input::Order { group, open_id: shared.open_id, order };
        shared.runtime.inboxes[shared.worker].complete(order);
    }
}
