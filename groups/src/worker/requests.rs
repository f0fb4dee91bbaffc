//! What users ask of groups, and the answers where there is no such replica.

use shardhost_storage::GroupId;

use super::WorkerCore;
use crate::core::BarrierOrder;
use crate::error::{
    BarrierError, ProposalRejection, ProposeError, ReadError, TakeSnapshotError, TransferError,
};
use crate::membership::MembershipError;

impl WorkerCore {
    pub(super) fn propose(
        &mut self,
        group: GroupId,
        open_id: Option<u64>,
        proposals: Vec<crate::core::Proposal>,
    ) {
        let runs = self.groups.get(&group).map(|slot| slot.core.open_id());
        if runs.is_none() || open_id.is_some() && open_id != runs {
            let error = self.gone_for_proposals(group);
            for proposal in proposals {
                self.effects.fail(proposal.pending, error.clone());
            }
            return;
        }
        self.with(group, |core, effects| {
            core.on_request(effects);
            proposals.into_iter().for_each(|proposal| core.propose(proposal));
        });
    }

    pub(super) fn read(&mut self, group: GroupId, request: crate::core::ReadRequest) {
        if self.groups.contains_key(&group) {
            self.with(group, |core, effects| {
                core.on_request(effects);
                core.read(request, effects);
            });
            return;
        }
        let error = match self.fault_of(group) {
            Some(fault) => ReadError::Faulted { group, fault: fault.clone() },
            None => ReadError::Stopped { group },
        };
        self.effects.read_replies.push((request.completion, Err(error)));
    }

    pub(super) fn change_membership(
        &mut self,
        group: GroupId,
        request: crate::core::MembershipRequest,
    ) {
        if self.groups.contains_key(&group) {
            self.with(group, |core, effects| {
                core.on_request(effects);
                core.change_membership(request, effects);
            });
            return;
        }
        let error = match self.fault_of(group) {
            Some(fault) => MembershipError::Faulted { group, fault: fault.clone() },
            None => MembershipError::Stopped { group },
        };
        self.effects.membership_replies.push((request.completion, Err(error)));
    }

    pub(super) fn barrier(&mut self, group: GroupId, order: BarrierOrder) {
        if self.groups.contains_key(&group) {
            self.with(group, |core, effects| {
                core.on_request(effects);
                core.barrier(order, effects);
            });
            return;
        }
        let error = BarrierError::Stopped { group };
        match order {
            BarrierOrder::Open(completion) => {
                self.effects.barrier_replies.push((completion, Err(error)))
            }
            BarrierOrder::Close(_) => {}
            BarrierOrder::Drain { completion, .. } => {
                self.effects.drain_replies.push((completion, Err(error)));
            }
        }
    }

    pub(super) fn take_snapshot(
        &mut self,
        group: GroupId,
        completion: crate::core::SnapshotCompletion,
    ) {
        if self.groups.contains_key(&group) {
            self.with(group, |core, _| core.take_snapshot(completion));
            return;
        }
        let error = match self.fault_of(group) {
            Some(fault) => TakeSnapshotError::Faulted { group, fault: fault.clone() },
            None => TakeSnapshotError::Stopped { group },
        };
        self.effects.snapshot_replies.push((completion, Err(error)));
    }

    pub(super) fn transfer(&mut self, group: GroupId, request: crate::core::TransferRequest) {
        if self.groups.contains_key(&group) {
            self.with(group, |core, effects| {
                core.on_request(effects);
                core.transfer(request, effects);
            });
            return;
        }
        let error = match self.fault_of(group) {
            Some(fault) => TransferError::Faulted { group, fault: fault.clone() },
            None => TransferError::Stopped { group },
        };
        self.effects.transfer_replies.push((request.completion, Err(error)));
    }

    pub(super) fn gone_for_proposals(&self, group: GroupId) -> ProposeError {
        let reason = match self.fault_of(group) {
            Some(fault) => ProposalRejection::Failed(fault.clone()),
            None => ProposalRejection::Stopping,
        };
        ProposeError::Rejected { group, reason }
    }
}
