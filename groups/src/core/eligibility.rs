//! A replica's evaluation of who could lead its group, on request. Changes nothing.

use std::time::Duration;

use shardhost_storage::{NodeId, ReplicaId};

use super::GroupCore;
use crate::completion::Reply;
use crate::core::Effects;
use crate::policy::{PolicyOpinion, RejectReason};

/// Who waits for an eligibility report.
pub type EligibilityCompletion = Reply<EligibilityReport>;

/// What a replica makes of who could lead its group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EligibilityReport {
    /// Each voter, the answering replica among them if it has a vote.
    pub voters: Vec<VoterEligibility>,
    /// The replica handed the leadership on, and does not stand for election for so long.
    pub withheld: Option<Duration>,
    /// Election timeouts that it let go by since it heard a leader, because it should not lead.
    pub passed_timeouts: u16,
    /// How many it lets go by before it stands all the same; 0: it stands when the first is over.
    pub max_skipped_timeouts: u16,
    /// It leads and should not, and asks others again after so long, or when there is news.
    pub next_try: Option<Duration>,
}

/// What a replica makes of a voter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VoterEligibility {
    pub replica: ReplicaId,
    pub node: NodeId,
    /// The opinion of each policy of the group on the node, as they were registered on this host.
    pub opinions: Vec<PolicyOpinion>,
    /// It declined the leadership, or did not get it, and is not asked again before there is news
    /// of nodes, members or policies.
    pub declined: Option<Declined>,
}

/// Why a voter does not lead that was asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Declined {
    /// The cause; `None`: it declined to an earlier leader, which passed on only that.
    pub reason: Option<RejectReason>,
    /// Its text, for people.
    pub words: Box<str>,
}

impl GroupCore {
    /// Returns this replica's evaluation of who could lead.
    pub fn eligibility(&self, completion: EligibilityCompletion, effects: &mut Effects) {
        let voters = self.membership.voters().map(|(replica, node)| {
            let candidate = self.candidate(node, &self.membership.requirement, effects);
            let opinions = self.policies.opinions(&candidate);
            let declined = self.succession.declined_by(replica.get()).cloned();
            VoterEligibility { replica, node, opinions, declined }
        });
        let voters = voters.collect();
        let tries = self.leads() && self.wants_successor(effects);
        let next_try = tries.then(|| self.ticks_until(self.succession.retry_at()));
        let eligibility = EligibilityReport {
            voters,
            withheld: Some(self.ticks_until(self.candidacy.withheld_until()))
                .filter(|left| !left.is_zero()),
            passed_timeouts: self.candidacy.passed_timeouts(),
            max_skipped_timeouts: match self.leads() {
                true => 0,
                false => self.standing(effects).patience(),
            },
            next_try,
        };
        effects.eligibility_replies.push((completion, eligibility));
    }

    fn ticks_until(&self, tick: u64) -> Duration {
        self.config.in_time(tick.saturating_sub(self.ticks))
    }
}
