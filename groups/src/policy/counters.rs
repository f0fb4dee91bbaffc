//! Outcomes of leaderships and of candidates, counted by reason. A worker counts the reports of its
//! replicas in a step; readers add up the workers. Knows no clock.

use std::ops::{AddAssign, Index, IndexMut};
use std::time::Duration;

use super::RejectReason;

/// Something that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyEvent {
    /// A leader here did not ask a candidate.
    CandidateRefused(RejectReason),
    /// A replica here did not take a leadership that it was asked to take.
    LeadershipRefused(RejectReason),
    /// A replica here did not campaign when its timeout was over.
    CampaignVetoed(RejectReason),
    /// A voter here refused a pre-vote.
    PreVoteRefused(RejectReason),
    /// A replica here campaigned although it should not lead: no better one was found.
    StoodUnfit,
    /// A leader here began to serve no users.
    CaretakerBegan,
    /// A transfer that began here took place.
    TransferDone,
    /// A transfer that was asked for, or begun, here did not take place.
    TransferFailed(RejectReason),
    /// Proposals of a group were paused for a transfer, for this time.
    Froze(Duration),
    /// Users had waited long enough: a transfer was ended, and the old leader continued.
    WatchdogEnded,
    /// A leader here was deposed by the target of such a transfer, and campaigned again at once.
    StoodAgain,
}

/// A number for each reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByReason([u64; RejectReason::COUNT]);

impl Default for ByReason {
    fn default() -> Self {
        Self([0; RejectReason::COUNT])
    }
}

impl Index<RejectReason> for ByReason {
    type Output = u64;

    fn index(&self, reason: RejectReason) -> &u64 {
        &self.0[reason.index()]
    }
}

impl IndexMut<RejectReason> for ByReason {
    fn index_mut(&mut self, reason: RejectReason) -> &mut u64 {
        &mut self.0[reason.index()]
    }
}

impl AddAssign<&Self> for ByReason {
    fn add_assign(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, count)| *sum += count);
    }
}

impl ByReason {
    /// All together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that occurred, and how often, in the order of [`RejectReason::ALL`].
    pub fn counted(&self) -> impl Iterator<Item = (RejectReason, u64)> {
        let counts = RejectReason::ALL.iter().copied().zip(self.0);
        counts.filter(|(_, count)| *count > 0)
    }
}

/// What was counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicyCounters {
    /// Candidates that leaders here did not ask: the leader's gate.
    pub candidates_refused: ByReason,
    /// Leaderships that replicas here did not take when they were asked to.
    pub leaderships_refused: ByReason,
    /// Election timeouts that replicas here let go by.
    pub campaigns_vetoed: ByReason,
    /// Pre-votes that voters here refused.
    pub pre_votes_refused: ByReason,
    /// Campaigns of replicas here that should not lead.
    pub stood_unfit: u64,
    /// How often a leader here began to serve no users.
    pub caretakers_begun: u64,
    /// Transfers away from here that took place.
    pub transfers_done: u64,
    /// Transfers away from here that did not; those that were refused at once among them.
    pub transfers_failed: ByReason,
    /// Times that proposals of a group were paused for a transfer. How long:
    /// [`crate::Groups::freezes`].
    pub freezes: u64,
    /// Of these, those that the watchdog ended.
    pub watchdog_endings: u64,
    /// Leaders here that the target of such a transfer deposed, and that campaigned again at once.
    pub stood_again: u64,
}

impl PolicyCounters {
    pub(crate) fn count(&mut self, event: PolicyEvent) {
        match event {
            PolicyEvent::CandidateRefused(reason) => self.candidates_refused[reason] += 1,
            PolicyEvent::LeadershipRefused(reason) => self.leaderships_refused[reason] += 1,
            PolicyEvent::CampaignVetoed(reason) => self.campaigns_vetoed[reason] += 1,
            PolicyEvent::PreVoteRefused(reason) => self.pre_votes_refused[reason] += 1,
            PolicyEvent::StoodUnfit => self.stood_unfit += 1,
            PolicyEvent::CaretakerBegan => self.caretakers_begun += 1,
            PolicyEvent::TransferDone => self.transfers_done += 1,
            PolicyEvent::TransferFailed(reason) => self.transfers_failed[reason] += 1,
            PolicyEvent::Froze(_) => self.freezes += 1,
            PolicyEvent::WatchdogEnded => self.watchdog_endings += 1,
            PolicyEvent::StoodAgain => self.stood_again += 1,
        }
    }
}

impl AddAssign<&Self> for PolicyCounters {
    fn add_assign(&mut self, other: &Self) {
        self.candidates_refused += &other.candidates_refused;
        self.leaderships_refused += &other.leaderships_refused;
        self.campaigns_vetoed += &other.campaigns_vetoed;
        self.pre_votes_refused += &other.pre_votes_refused;
        self.stood_unfit += other.stood_unfit;
        self.caretakers_begun += other.caretakers_begun;
        self.transfers_done += other.transfers_done;
        self.transfers_failed += &other.transfers_failed;
        self.freezes += other.freezes;
        self.watchdog_endings += other.watchdog_endings;
        self.stood_again += other.stood_again;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_workers_counted_adds_up_by_reason() {
        let (mut one, mut other) = (PolicyCounters::default(), PolicyCounters::default());
        one.count(PolicyEvent::CandidateRefused(RejectReason::Draining));
        one.count(PolicyEvent::TransferFailed(RejectReason::Silent));
        other.count(PolicyEvent::CandidateRefused(RejectReason::Draining));
        other.count(PolicyEvent::CandidateRefused(RejectReason::NotLive));
        other.count(PolicyEvent::Froze(Duration::from_millis(3)));
        one += &other;
        let refused: Vec<_> = one.candidates_refused.counted().collect();
        assert_eq!(refused, [(RejectReason::NotLive, 1), (RejectReason::Draining, 2)]);
        assert_eq!((one.candidates_refused.total(), one.freezes), (3, 1));
        assert_eq!(one.transfers_failed[RejectReason::Silent], 1);
        assert_eq!(one.leaderships_refused, ByReason::default());
    }
}
