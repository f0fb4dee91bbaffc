//! A leader that should not lead looks for an eligible one, unasked.
//!
//! A voter that declined is not asked again before there is news of nodes, members or policies; and
//! the next leader gets the list of those that declined. So without news a leadership is
//! transferred at most once per voter, and two nodes that both should not lead never play
//! ping-pong. There is no notice when a voter that was silent answers again, or one that was busy
//! is done: those are asked again when no other is left, or only such as lack too much.

use shardhost_storage::{NodeId, ReplicaId};

use super::GroupCore;
use super::outlook::Declined;
use crate::core::Effects;
use crate::error::TransferError;
use crate::known_bugs::KnownBug;
use crate::policy::{Caretaker, PolicyEvent};

/// Entries that a successor may lack when it is asked.
const SUCCESSION_LAG: u64 = 1_024;
/// Ticks before another try when all were asked, about: retries of many groups spread.
const RETRY_TICKS: u64 = 50;
/// Ticks before another try when nothing but the log was in the way.
const LEVEL_TICKS: u64 = 3;

/// What is known of those who could follow.
#[derive(Debug, Default)]
pub(super) struct Succession {
    /// Replicas that declined since the last news, and why.
    declined: Vec<(u64, Declined)>,
    /// Of these, those that failed without a refusal, or whose reason is temporary: asked again
    /// when no other is left.
    accidents: Vec<u64>,
    /// When the newest of these failed.
    accident_at: u64,
    /// Until then they are about to be asked again.
    forgiven_until: u64,
    /// The nodes that a policy named when it declined this leadership.
    named: Vec<NodeId>,
    /// No other try before this tick.
    retry_at: u64,
}

impl GroupCore {
    /// At every tick of a leader: hands leadership on if this node should not have it.
    pub(super) fn tend_succession(&mut self, effects: &mut Effects) {
        let due = self.ticks >= self.succession.retry_at;
        if !due || !self.leads() || self.transfer.is_some() || self.pending_change().is_some() {
            return;
        }
        if !self.may_hand_over() || !self.wants_successor(effects) {
            return;
        }
        let candidates = self.successors(effects);
        if candidates.is_empty() {
            self.retry_later(RETRY_TICKS);
            self.forgive_accidents();
        } else if let Err(error) = self.begin_transfer(candidates, Some(SUCCESSION_LAG), effects) {
            effects.count(PolicyEvent::TransferFailed(error.reason()));
            self.succession_failed(0, &error);
        }
    }

    /// Whether the leadership is far enough to be transferred. One whose state machine stands still does
    /// not get further.
    fn may_hand_over(&self) -> bool {
        let ready = self.led.as_ref().is_some_and(|led| led.ready);
        let waits = self.config.bugs.has(KnownBug::StalledLeaderWaits);
        ready || (self.stands_still() && !waits)
    }

    /// Whether there is an eligible voter that did not decline, and nothing is in its way that this leader
    /// knows.
    pub(super) fn can_hand_over_now(&self, effects: &Effects) -> bool {
        let takes = |node: &NodeId| self.check_target(*node, Some(SUCCESSION_LAG), effects).is_ok();
        let any = self.config.bugs.has(KnownBug::KeepForTheUnlevel);
        self.may_hand_over() && self.successors(effects).iter().any(|node| any || takes(node))
    }

    /// Whether this node should not lead: the group's requirement excludes it, or a policy, which
    /// may do it by giving no answer.
    pub(super) fn wants_successor(&self, effects: &Effects) -> bool {
        self.caretaker().is_some_and(|why| self.is_left_to_others(why))
            || self.own_unfitness(effects).is_some()
    }

    fn is_left_to_others(&self, why: &Caretaker) -> bool {
        match why {
            Caretaker::Declined { .. } => true,
            Caretaker::NoAnswer { .. } | Caretaker::Panicked { .. } => {
                !self.config.bugs.has(KnownBug::SilentPolicyKeepsLeadership)
            }
            _ => false,
        }
    }

    /// Those who may follow, the best first.
    fn successors(&self, effects: &Effects) -> Vec<NodeId> {
        let declined = |node: &NodeId| {
            let replica = self.membership.replica_on(*node);
            replica.is_none_or(|replica| self.declined_by(replica).is_some())
        };
        let ranked = self.ranked_voters(effects).into_iter().filter(|(rank, _)| !rank.unfit);
        let fit: Vec<NodeId> =
            ranked.map(|(_, node)| node).filter(|node| !declined(node)).collect();
        // The nodes that a policy named count while it declines, and where one of them is a voter.
        let declines = self.caretaker().is_some_and(|why| is_declined(why));
        let named = self.succession.named.iter().copied().filter(|node| fit.contains(node));
        let named: Vec<NodeId> = named.filter(|_| declines).collect();
        if named.is_empty() { fit } else { named }
    }

    fn retry_later(&mut self, ticks: u64) {
        let spread = super::mix(self.id.get() ^ self.ticks) % ticks.max(1);
        self.succession.retry_at = self.ticks + ticks + spread;
    }

    /// A transfer did not take place.
    pub(super) fn succession_failed(&mut self, replica: u64, error: &TransferError) {
        match error {
            TransferError::TargetNotCaughtUp { .. } | TransferError::TargetSnapshotting { .. } => {
                self.retry_later(LEVEL_TICKS);
                self.forgive_old_accidents();
            }
            _ => {
                self.note_declined(replica, error);
                let forgives = self.config.bugs.has(KnownBug::ForgiveTheLast);
                if forgives && self.may_be_asked_again(error) && replica != 0 {
                    self.succession.accidents.push(replica);
                }
                self.retry_later(RETRY_TICKS);
            }
        }
    }

    /// A policy declined this leadership.
    pub(super) fn decline(&mut self, targets: Vec<NodeId>) {
        self.succession.named = targets;
        self.succession.retry_at = 0;
    }

    /// There is news: all may be asked again.
    pub(super) fn forget_declined(&mut self) {
        self.succession.declined.clear();
        self.succession.accidents.clear();
        self.succession.retry_at = 0;
    }

    /// Voters that failed by accident may be asked again: no other is left.
    fn forgive_accidents(&mut self) {
        let accidents = std::mem::take(&mut self.succession.accidents);
        if !accidents.is_empty() {
            self.succession.forgiven_until = self.succession.retry_at;
        }
        self.succession.declined.retain(|(replica, _)| !accidents.contains(replica));
    }

    /// None of those that are left lacks little enough, which may last: those that failed by accident a while
    /// ago may be asked again.
    fn forgive_old_accidents(&mut self) {
        let waits = self.ticks < self.succession.accident_at + RETRY_TICKS;
        if !waits && !self.config.bugs.has(KnownBug::KeepForTheUnlevel) {
            self.forgive_accidents();
        }
    }

    /// Whether a voter is to be asked again although there is no news.
    pub(super) fn has_failed_successors(&self) -> bool {
        !self.succession.accidents.is_empty() || self.ticks <= self.succession.forgiven_until
    }

    /// A replica did not get the leadership, for this reason. The first one counts: a transfer that
    /// fails names the worst of all reasons, which need not be that of the last target.
    pub(super) fn note_declined(&mut self, replica: u64, error: &TransferError) {
        let (reason, words) = (Some(error.reason()), error.to_string().into());
        let news = self.add_declined(replica, Declined { reason, words });
        if news && self.may_be_asked_again(error) && !self.config.bugs.has(KnownBug::ForgiveTheLast)
        {
            self.succession.accidents.push(replica);
            self.succession.accident_at = self.ticks;
        }
    }

    fn may_be_asked_again(&self, error: &TransferError) -> bool {
        let passes = error.reason().passes_by_itself();
        is_accident(error) || (passes && !self.config.bugs.has(KnownBug::RefusedForGood))
    }

    /// Returns whether it is news.
    fn add_declined(&mut self, replica: u64, why: Declined) -> bool {
        let news = replica != 0 && self.declined().all(|known| known != replica);
        if news {
            self.succession.declined.push((replica, why));
        }
        news
    }

    /// A replica that transferred, or is about to transfer, its leadership lists those that
    /// declined.
    pub(super) fn remember_declined(&mut self, declined: &[u64]) {
        for replica in declined {
            let id = ReplicaId::new(*replica);
            if id.is_some_and(|id| self.membership.members.contains_key(&id)) {
                let words = "it declined to the leader before".into();
                self.add_declined(*replica, Declined { reason: None, words });
            }
        }
    }

    /// A leadership ended, and with it a policy's decision.
    pub(super) fn forget_named(&mut self) {
        self.succession.named.clear();
    }

    /// Those that a successor need not know: they are asked again.
    pub(super) fn is_forgivable(&self, replica: u64) -> bool {
        self.succession.accidents.contains(&replica)
            && !self.config.bugs.has(KnownBug::ForgiveTheLast)
    }

    /// Replicas that declined since the last news.
    pub(super) fn declined(&self) -> impl Iterator<Item = u64> {
        self.succession.declined.iter().map(|(replica, _)| *replica)
    }

    /// Why a replica declined, if it did since the last news.
    pub(super) fn declined_by(&self, replica: ReplicaId) -> Option<&Declined> {
        let mut declined = self.succession.declined.iter();
        declined.find(|(declined, _)| *declined == replica.get()).map(|(_, why)| why)
    }

    /// No other try before this tick.
    pub(super) const fn next_succession(&self) -> u64 {
        self.succession.retry_at
    }
}

const fn is_declined(why: &Caretaker) -> bool {
    matches!(why, Caretaker::Declined { .. })
}

/// Whether a transfer failed although its target did not say that it must not lead.
const fn is_accident(error: &TransferError) -> bool {
    use TransferError::{TargetDraining, TargetRefused, TargetUnfit};
    !matches!(error, TargetUnfit { .. } | TargetDraining { .. } | TargetRefused { .. })
}
