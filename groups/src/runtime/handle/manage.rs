//! What operators and policies ask of a group: handing leadership over, changing who belongs to
//! it, taking a snapshot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shardhost_storage::{LogIndex, LogPosition, Membership, NodeId, Requirement, Term};

use super::{Group, Offered};
use crate::core::{
    EligibilityReport, MembershipOrder, MembershipRequest, TransferRequest, TransferTarget,
};
use crate::error::{TakeSnapshotError, TransferError, UnknownCause};
use crate::membership::{MembershipChange, MembershipError};
use crate::worker::Input;

/// A transfer of leadership that took place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transferred {
    pub to: NodeId,
    pub term: Term,
    /// How long proposals were held, until this node knew the new leader.
    pub stalled: Duration,
    /// From the request until this node knew the new leader.
    pub took: Duration,
}

impl Group {
    /// Hands leadership to `to`, or to the live voter that is furthest. Returns when this node
    /// knows the new leader. Dropping the future does not stop the transfer.
    ///
    /// # Errors
    /// [`TransferError`]; this replica or another one leads on.
    pub async fn transfer_leadership(
        &self,
        to: Option<NodeId>,
    ) -> Result<Transferred, TransferError> {
        self.transfer(to.map_or(TransferTarget::Furthest, TransferTarget::Node)).await
    }

    /// Hands leadership to the first of `candidates` that is a live voter and lacks at most
    /// `max_lag` entries of the log; 0: none.
    ///
    /// # Errors
    /// [`TransferError::TargetNotCaughtUp`] when only the log keeps them from it,
    /// [`TransferError::NoHealthyTarget`] when none could lead, and the others. Nothing was begun
    /// but for [`TransferError::Aborted`].
    pub async fn transfer_to_first_fit(
        &self,
        candidates: impl IntoIterator<Item = NodeId>,
        max_lag: u64,
    ) -> Result<Transferred, TransferError> {
        let candidates = candidates.into_iter().collect();
        self.transfer(TransferTarget::FirstFit { candidates, max_lag }).await
    }

    async fn transfer(&self, to: TransferTarget) -> Result<Transferred, TransferError> {
        let group = self.id();
        let started = Instant::now();
        let (completion, answer) = crate::completion::answer();
        let input = Input::Transfer { group, request: TransferRequest { to, completion } };
        if self.offer(input).is_err() {
            return Err(TransferError::Stopped { group });
        }
        let (to, term, stalled) = answer.await.unwrap_or(Err(TransferError::Stopped { group }))?;
        Ok(Transferred { to, term, stalled, took: started.elapsed() })
    }

    /// Changes who belongs to the group. Returns the membership that the change led to, once it is
    /// applied here. Dropping the future does not stop the change.
    ///
    /// A node that is added gets its replica when its host accepts the create request of the
    /// leader. A node that is removed ends its replica, and removes its data, when it learns of it.
    ///
    /// # Errors
    /// [`MembershipError`]; it distinguishes whether the change may still take effect.
    pub async fn change_membership(
        &self,
        change: MembershipChange,
    ) -> Result<Arc<Membership>, MembershipError> {
        let membership = self.membership();
        for node in change.added_nodes() {
            self.ask_before_addition(node, &membership)?;
        }
        self.order(MembershipOrder::Change(change)).await
    }

    /// Replaces the member on `old` by one on `new`: a learner is added, and when it has caught up
    /// it takes the other's place in one joint change. Returns when the replacement is recorded in
    /// the group: from then on any leader continues it, and [`Membership::incoming`] shows it until
    /// it is done.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn replace_member(
        &self,
        old: NodeId,
        new: NodeId,
        expecting: Option<LogIndex>,
    ) -> Result<Arc<Membership>, MembershipError> {
        self.ask_before_addition(new, &self.membership())?;
        self.order(MembershipOrder::Replace { old, new, expecting }).await
    }

    /// Changes the requirement of the group. Returns the configuration with it, once it is applied
    /// here.
    ///
    /// # Errors
    /// [`MembershipError::NobodyFit`] when the requirement is a strict one and no voter is known to
    /// meet it, and the others.
    pub async fn require(
        &self,
        requirement: Requirement,
        expecting: Option<LogIndex>,
    ) -> Result<Arc<Membership>, MembershipError> {
        let order = MembershipOrder::Require { requirement, expecting, whoever_meets_it: false };
        self.order(order).await
    }

    /// Changes the requirement of the group, even if no node is known to meet it: then no users are
    /// served.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn require_unchecked(
        &self,
        requirement: Requirement,
        expecting: Option<LogIndex>,
    ) -> Result<Arc<Membership>, MembershipError> {
        let order = MembershipOrder::Require { requirement, expecting, whoever_meets_it: true };
        self.order(order).await
    }

    /// This replica's evaluation of who could lead: the opinion of each policy that is registered
    /// on this host on each voter, which voters declined, and whether the replica campaigns.
    /// Computed on request only.
    ///
    /// # Errors
    /// [`TransferError::Stopped`], also for a replica that failed.
    pub async fn eligibility(&self) -> Result<EligibilityReport, TransferError> {
        let group = self.id();
        let (completion, answer) = crate::completion::answer();
        let stopped = TransferError::Stopped { group };
        if self.offer(Input::EligibilityReport { group, completion }).is_err() {
            return Err(stopped);
        }
        answer.await.map_err(|_| stopped)
    }

    /// Has the policies of the group asked anew who may lead it, here.
    ///
    /// # Errors
    /// [`TransferError::Stopped`].
    pub fn reevaluate(&self) -> Result<(), TransferError> {
        let group = self.id();
        self.offer(Input::Reevaluate { group }).map_err(|_| TransferError::Stopped { group })
    }

    /// Gives up the addition or replacement that is under way: the learner that was to become a
    /// voter is removed.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn cancel_addition(
        &self,
        expecting: Option<LogIndex>,
    ) -> Result<Arc<Membership>, MembershipError> {
        self.order(MembershipOrder::CancelAddition { expecting }).await
    }

    fn ask_before_addition(
        &self,
        node: NodeId,
        membership: &Membership,
    ) -> Result<(), MembershipError> {
        let group = self.id();
        let asked = self.shared().runtime.additions.ask(group, node, membership);
        asked.map_err(|reason| MembershipError::Refused { group, node, reason })
    }

    async fn order(&self, order: MembershipOrder) -> Result<Arc<Membership>, MembershipError> {
        let group = self.id();
        let (completion, answer) = crate::completion::answer();
        let request = Box::new(MembershipRequest { order, completion });
        match self.offer(Input::ChangeMembership { group, request }) {
            Ok(()) => {}
            Err(Offered::Busy) => return Err(MembershipError::Busy { group }),
            Err(Offered::Stopped) => return Err(MembershipError::Stopped { group }),
        }
        let cause = UnknownCause::Stopped;
        answer.await.unwrap_or(Err(MembershipError::Unknown { group, cause }))
    }

    /// Takes a snapshot of everything that this replica has applied, and returns its place once
    /// it is durable.
    ///
    /// # Errors
    /// [`TakeSnapshotError`].
    pub async fn snapshot(&self) -> Result<LogPosition, TakeSnapshotError> {
        let group = self.id();
        let (completion, answer) = crate::completion::answer();
        match self.offer(Input::TakeSnapshot { group, completion }) {
            Ok(()) => answer.await.unwrap_or(Err(TakeSnapshotError::Stopped { group })),
            Err(Offered::Busy) => Err(TakeSnapshotError::Busy { group }),
            Err(Offered::Stopped) => Err(TakeSnapshotError::Stopped { group }),
        }
    }
}
