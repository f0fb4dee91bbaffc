//! Handing leadership over, with an outcome. Raft itself reports none: it ignores a bad target
//! silently and gives up silently, so the replica watches.

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{NodeId, Term};
use tokio::sync::oneshot;

use super::GroupCore;
use crate::error::TransferError;
use crate::transport::{Lane, Outgoing};
use crate::worker::{LiveNodes, Round};

/// How a transfer ended: the node that leads afterwards and its term, or why not.
pub type TransferOutcome = Result<(NodeId, Term), TransferError>;

/// Who waits for a transfer.
pub type TransferWaiter = oneshot::Sender<TransferOutcome>;

/// Where leadership is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransferTarget {
    /// To the live voter that is furthest.
    Furthest,
    /// To this node.
    Node(NodeId),
    /// To the first of these that is fit: a live voter that lacks at most so many entries.
    FirstFit {
        /// Whom to try, in order.
        candidates: Vec<NodeId>,
        /// Entries that it may lack; 0: none.
        max_lag: u64,
    },
}

/// Asks the leader to hand over.
#[derive(Debug)]
pub struct TransferRequest {
    /// Where to.
    pub to: TransferTarget,
    /// Who waits.
    pub waiter: TransferWaiter,
}

/// A transfer under way.
#[derive(Debug)]
pub(super) struct Transfer {
    to: NodeId,
    replica: u64,
    since: u64,
    waiters: Vec<TransferWaiter>,
    /// The order to campaign, until it is known which life of the target it is meant for.
    held: Option<GroupMessage>,
}

impl Transfer {
    /// The replica that is to lead.
    pub(super) const fn replica(&self) -> u64 {
        self.replica
    }
}

impl GroupCore {
    /// Starts a transfer, joins the one to the same target, or refuses.
    pub fn transfer(&mut self, request: TransferRequest, live: &LiveNodes, round: &mut Round) {
        match self.start_transfer(&request.to, live, round) {
            Ok(transfer) => transfer.waiters.push(request.waiter),
            Err(error) => round.transfer_replies.push((request.waiter, Err(error))),
        }
    }

    fn start_transfer(
        &mut self,
        to: &TransferTarget,
        live: &LiveNodes,
        round: &mut Round,
    ) -> Result<&mut Transfer, TransferError> {
        let group = self.id;
        if !self.leads() {
            return Err(TransferError::NotLeader { group, hint: self.leader_hint() });
        }
        let running = self.transfer.as_ref().map(|transfer| transfer.to);
        let (node, replica) = match (to, running) {
            (TransferTarget::Furthest, Some(to)) => self.choose_target(to, live)?,
            (TransferTarget::Furthest, None) => {
                self.furthest_voter(live).ok_or(TransferError::NoHealthyTarget { group })?
            }
            (TransferTarget::Node(node), _) => self.choose_target(*node, live)?,
            (TransferTarget::FirstFit { candidates, max_lag }, _) => {
                self.first_fit(candidates, *max_lag, live)?
            }
        };
        match running {
            Some(to) if to != node => return Err(TransferError::InProgress { group, to }),
            Some(_) => {}
            None => self.begin_transfer(node, replica, round)?,
        }
        self.transfer.as_deref_mut().ok_or(TransferError::NoHealthyTarget { group })
    }

    fn begin_transfer(
        &mut self,
        to: NodeId,
        replica: u64,
        round: &mut Round,
    ) -> Result<(), TransferError> {
        let group = self.id;
        if self.pending_change().is_some() {
            return Err(TransferError::ConfigChangePending { group });
        }
        self.wake();
        self.void_lease(replica, round);
        // What was queued in this round goes into the log first: raft refuses it afterwards.
        self.propose_queued(round);
        self.raw.transfer_leader(replica);
        if self.raw.raft.lead_transferee != Some(replica) {
            self.resume_lease(round);
            return Err(TransferError::NoHealthyTarget { group });
        }
        let since = self.ticks;
        let (waiters, held) = (Vec::new(), None);
        self.transfer = Some(Box::new(Transfer { to, replica, since, waiters, held }));
        let error = crate::error::ReadError::Transferring { group };
        self.fail_reads(&error, round);
        Ok(())
    }

    fn choose_target(
        &self,
        node: NodeId,
        live: &LiveNodes,
    ) -> Result<(NodeId, u64), TransferError> {
        let group = self.id;
        if node == self.config.node {
            return Err(TransferError::AlreadyLeads { group, node });
        }
        let members = &self.membership.members;
        let voter = members.iter().find(|(_, member)| member.node == node && member.voter);
        let (replica, _) = voter.ok_or(TransferError::NoVoter { group, node })?;
        if !live.contains(node) {
            return Err(TransferError::NoHealthyTarget { group });
        }
        Ok((node, replica.get()))
    }

    /// The first candidate that is fit, or what is wrong with the best of them.
    fn first_fit(
        &self,
        candidates: &[NodeId],
        max_lag: u64,
        live: &LiveNodes,
    ) -> Result<(NodeId, u64), TransferError> {
        let group = self.id;
        if candidates.is_empty() {
            return Err(TransferError::NoCandidates { group });
        }
        let mut lagging = None;
        for &node in candidates {
            let Ok((node, replica)) = self.choose_target(node, live) else { continue };
            let progress = self.raw.raft.prs().get(replica);
            let matched = progress.map_or(0, |progress| progress.matched);
            let lag = self.raw.raft.raft_log.last_index().saturating_sub(matched);
            if lag <= max_lag {
                return Ok((node, replica));
            }
            lagging.get_or_insert(TransferError::TargetNotCaughtUp { group, node, lag, max_lag });
        }
        Err(lagging.unwrap_or(TransferError::NoHealthyTarget { group }))
    }

    /// Keeps the order to campaign until the target is known.
    pub(super) fn hold_order(&mut self, order: GroupMessage) {
        if let Some(transfer) = self.transfer.as_mut() {
            transfer.held = Some(order);
        }
    }

    /// The target was heard from: it can be told to campaign.
    pub(super) fn release_order(&mut self, replica: u64, life: u64, round: &mut Round) {
        let Some(transfer) = self.transfer.as_mut().filter(|one| one.replica == replica) else {
            return;
        };
        if let Some(mut message) = transfer.held.take() {
            message.life = life;
            round.messages.push(Outgoing { to: transfer.to, lane: Lane::Urgent, message });
        }
    }

    fn furthest_voter(&self, live: &LiveNodes) -> Option<(NodeId, u64)> {
        let raft = &self.raw.raft;
        let fit = self.membership.members.iter().filter(|(id, member)| {
            **id != self.replica && member.voter && live.contains(member.node)
        });
        let with_match = fit.filter_map(|(id, member)| {
            let progress = raft.prs().get(id.get())?;
            Some((progress.matched, member.node, id.get()))
        });
        // The smallest node id among equals, so that the choice does not depend on map order.
        let best = with_match.max_by_key(|(matched, node, _)| (*matched, std::cmp::Reverse(*node)));
        best.map(|(_, node, replica)| (node, replica))
    }

    /// Notices how a transfer ended.
    pub(super) fn watch_transfer(&mut self, round: &mut Round) {
        let Some(transfer) = &self.transfer else { return };
        let raft = &self.raw.raft;
        let waited = self.ticks - transfer.since;
        let outcome = if raft.state == raft::StateRole::Leader {
            let given_up = raft.lead_transferee != Some(transfer.replica);
            given_up.then(|| self.aborted(transfer, waited))
        } else if raft.leader_id == transfer.replica {
            Some(Ok((transfer.to, Term::new(raft.term))))
        } else if raft.leader_id != 0 || waited > u64::from(self.config.give_up_ticks) {
            Some(self.aborted(transfer, waited))
        } else {
            None
        };
        if let Some(outcome) = outcome {
            self.end_transfer(&outcome, round);
        }
    }

    fn aborted(&self, transfer: &Transfer, ticks: u64) -> TransferOutcome {
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        let after = self.config.tick.saturating_mul(ticks);
        Err(TransferError::Aborted { group: self.id, to: transfer.to, after })
    }

    pub(super) fn fail_transfer(&mut self, error: &TransferError, round: &mut Round) {
        self.end_transfer(&Err(error.clone()), round);
    }

    fn end_transfer(&mut self, outcome: &Result<(NodeId, Term), TransferError>, round: &mut Round) {
        let Some(transfer) = self.transfer.take() else { return };
        if self.leads() {
            self.resume_lease(round);
        }
        let waiters = transfer.waiters.into_iter();
        round.transfer_replies.extend(waiters.map(|waiter| (waiter, outcome.clone())));
    }

    /// Where leadership is being handed to.
    pub(super) fn transferring_to(&self) -> Option<NodeId> {
        self.transfer.as_ref().map(|transfer| transfer.to)
    }
}
