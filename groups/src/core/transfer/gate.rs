//! Who can take leadership over, from the leader's point of view: its own view of the replicas'
//! logs is the only fresh one.

use raft::ProgressState;
use shardhost_storage::{NodeId, ReplicaId};

use super::super::GroupCore;
use super::TransferTarget;
use crate::core::Effects;
use crate::error::TransferError;
use crate::policy::Opinion;

impl GroupCore {
    /// Whether a transfer to `node` that is under way is the one that is asked for.
    pub(super) fn joins(&self, to: &TransferTarget, node: NodeId) -> Result<(), TransferError> {
        let group = self.id;
        let same = match to {
            TransferTarget::Furthest => true,
            TransferTarget::Node(wanted) => *wanted == node,
            TransferTarget::FirstFit { candidates, .. } => candidates.contains(&node),
        };
        if same {
            return Ok(());
        }
        if let TransferTarget::Node(wanted) = to {
            self.voter_on(*wanted)?;
        }
        Err(TransferError::InProgress { group, to: node })
    }

    /// The targets, in order, and how much they may lack.
    pub(super) fn candidates(
        &self,
        to: &TransferTarget,
        effects: &Effects,
    ) -> Result<(Vec<NodeId>, Option<u64>), TransferError> {
        let group = self.id;
        match to {
            TransferTarget::Furthest => {
                let ranked = self.ranked_voters(effects);
                let fit = ranked.into_iter().filter(|(rank, _)| !rank.unfit);
                let nodes: Vec<NodeId> = fit.map(|(_, node)| node).collect();
                if nodes.is_empty() {
                    return Err(TransferError::NoHealthyTarget { group });
                }
                Ok((nodes, None))
            }
            TransferTarget::Node(node) => Ok((vec![*node], None)),
            TransferTarget::FirstFit { candidates, .. } if candidates.is_empty() => {
                Err(TransferError::NoCandidates { group })
            }
            TransferTarget::FirstFit { candidates, max_lag } => {
                Ok((candidates.clone(), Some(*max_lag)))
            }
        }
    }

    /// The other voters that answer, the best first. Among equals the order is another one for each
    /// group, so that not everything goes to one node, and depends on nothing else.
    pub(in crate::core) fn ranked_voters(&self, effects: &Effects) -> Vec<(Rank, NodeId)> {
        let others = self.membership.voters().filter(|(id, _)| *id != self.replica);
        let live = others.filter(|(_, node)| effects.nodes.contains(*node));
        let mut ranked: Vec<(Rank, NodeId)> = live
            .map(|(id, node)| {
                let opinion = self.opinion(node, effects);
                let rank = Rank {
                    unfit: opinion.is_unfit(),
                    draining: effects
                        .nodes
                        .advertisement(node)
                        .is_some_and(|advertisement| advertisement.draining),
                    unknown: opinion == Opinion::Unknown,
                    lag: self.lag_of(id.get()),
                };
                (rank, node)
            })
            .collect();
        ranked.sort_unstable_by_key(|(rank, node)| (*rank, self.turn_of(*node)));
        ranked
    }

    /// The replica on a node that could lead, if nothing is in its way that this leader knows.
    pub(in crate::core) fn check_target(
        &self,
        node: NodeId,
        max_lag: Option<u64>,
        effects: &Effects,
    ) -> Result<ReplicaId, TransferError> {
        let group = self.id;
        let replica = self.voter_on(node)?;
        if !effects.nodes.contains(node) {
            return Err(TransferError::TargetNotLive { group, node });
        }
        if let Opinion::Unfit(unfit) = self.opinion(node, effects) {
            return Err(TransferError::TargetUnfit { group, node, unfit });
        }
        let draining =
            effects.nodes.advertisement(node).is_some_and(|advertisement| advertisement.draining);
        if draining && !self.only_draining_voters_are_left(effects) {
            return Err(TransferError::TargetDraining { group, node });
        }
        let progress = self.raw.raft.prs().get(replica.get());
        if progress.is_some_and(|progress| progress.state == ProgressState::Snapshot) {
            return Err(TransferError::TargetSnapshotting { group, node });
        }
        let lag = self.lag_of(replica.get());
        match max_lag {
            Some(max_lag) if lag > max_lag => {
                Err(TransferError::TargetNotCaughtUp { group, node, lag, max_lag })
            }
            _ if self.pending_change().is_some() => {
                Err(TransferError::ConfigChangePending { group })
            }
            _ => Ok(replica),
        }
    }

    /// Whether this leader serves no users, and every eligible voter is on a node that is draining:
    /// better there than nowhere.
    pub(in crate::core) fn only_draining_voters_are_left(&self, effects: &Effects) -> bool {
        let best = || self.ranked_voters(effects).into_iter().next();
        self.caretaker().is_some() && best().is_some_and(|(rank, _)| !rank.unfit && rank.draining)
    }

    fn voter_on(&self, node: NodeId) -> Result<ReplicaId, TransferError> {
        let group = self.id;
        if node == self.config.node {
            return Err(TransferError::AlreadyLeads { group, node });
        }
        let voter = self.membership.voters().find(|(_, voter)| *voter == node);
        voter.map(|(id, _)| id).ok_or(TransferError::NoVoter { group, node })
    }

    /// Entries of the leader's log that a replica is not known to have.
    pub(super) fn lag_of(&self, replica: u64) -> u64 {
        let matched = self.raw.raft.prs().get(replica).map_or(0, |progress| progress.matched);
        self.raw.raft.raft_log.last_index().saturating_sub(matched)
    }
}

/// How good a successor a voter would be; less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::core) struct Rank {
    pub unfit: bool,
    /// Its node hands its own leaderships away.
    pub draining: bool,
    /// Nothing is known of it.
    pub unknown: bool,
    pub lag: u64,
}
