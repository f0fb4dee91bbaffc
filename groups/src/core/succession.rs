//! A leader that should not lead looks for an eligible one, unasked.
//!
//! A voter that declined is not asked again before there is news of nodes, members or policies; and
//! the next leader gets the list of those that declined. So without news a leadership is
//! transferred at most once per voter, and two nodes that both should not lead never play
//! ping-pong. There is no notice when a voter that was silent answers again, or one that was busy
//! is done, or the state of one that lost it is back: those are asked again when no other is left, or
//! only such as lack too much.
//!
//! [`Succession`] remembers who declined, and decides who is asked when. The replica supplies the
//! voters, the best first, and the time.

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{GroupId, NodeId, ReplicaId};

use super::eligibility::Declined;
use super::{GroupCore, mix};
use crate::core::Effects;
use crate::error::TransferError;
use crate::known_bugs::{KnownBug, KnownBugs};
use crate::policy::{Caretaker, PolicyEvent, RejectReason};

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
    /// Of these, former leaders, which should not lead: no accidents, as long as this one may.
    former: Vec<u64>,
    /// When the newest accident happened.
    accident_at: u64,
    /// Until then they are about to be asked again.
    forgiven_until: u64,
    /// The nodes that a policy named when it declined this leadership.
    named: Vec<NodeId>,
    /// No other try before this tick.
    retry_at: u64,
}

/// The moment of a decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub group: GroupId,
    pub tick: u64,
    pub bugs: KnownBugs,
}

impl Succession {
    /// Whether another try is due.
    pub(super) const fn is_due(&self, tick: u64) -> bool {
        tick >= self.retry_at
    }

    /// No other try before this tick.
    pub(super) const fn retry_at(&self) -> u64 {
        self.retry_at
    }

    /// Whether a voter is to be asked again although there is no news, as long as this one should not
    /// lead.
    const fn has_failed(&self, tick: u64) -> bool {
        !self.accidents.is_empty() || tick <= self.forgiven_until
    }

    /// Why a replica declined, if it did since the last news.
    pub(super) fn declined_by(&self, replica: u64) -> Option<&Declined> {
        self.declined.iter().find(|(declined, _)| *declined == replica).map(|(_, why)| why)
    }

    /// Those that a successor should not ask again. The others are asked again here, too.
    pub(super) fn declined_for_good(&self, bugs: KnownBugs) -> impl Iterator<Item = u64> {
        let forgivable = move |replica: &u64| {
            let failed = self.accidents.contains(replica) || self.former.contains(replica);
            failed && !bugs.has(KnownBug::ForgiveTheLast)
        };
        let declined = self.declined.iter().map(|(replica, _)| *replica);
        declined.filter(move |replica| !forgivable(replica))
    }

    /// Of these fit voters, those who may follow. The nodes that a policy named count while it
    /// declines, and where one of them is fit.
    fn choose(&self, fit: Vec<NodeId>, policy_declines: bool) -> Vec<NodeId> {
        let named = self.named.iter().copied();
        let named: Vec<NodeId> =
            named.filter(|node| policy_declines && fit.contains(node)).collect();
        if named.is_empty() { fit } else { named }
    }

    /// There was none to ask. Those that failed by accident had their time if that is long ago: they do not get it
    /// twice, for the group is not served meanwhile.
    fn found_none(&mut self, at: At) {
        let waited = !self.accidents.is_empty() && at.tick >= self.accident_at + RETRY_TICKS;
        self.retry_later(if waited { LEVEL_TICKS } else { RETRY_TICKS }, at);
        self.forgive_accidents();
    }

    /// A transfer did not take place.
    pub(super) fn failed(&mut self, replica: u64, error: &TransferError, at: At) {
        match error {
            TransferError::TargetNotCaughtUp { .. } | TransferError::TargetSnapshotting { .. } => {
                self.retry_later(LEVEL_TICKS, at);
                self.forgive_old_accidents(at);
            }
            _ => {
                self.note_declined(replica, error, at);
                let forgives = at.bugs.has(KnownBug::ForgiveTheLast);
                if forgives && may_be_asked_again(error, at.bugs) && replica != 0 {
                    self.accidents.push(replica);
                }
                self.retry_later(RETRY_TICKS, at);
            }
        }
    }

    /// A replica did not get the leadership, for this reason. The first one counts: a transfer that
    /// fails names the worst of all reasons, which need not be that of the last target.
    pub(super) fn note_declined(&mut self, replica: u64, error: &TransferError, at: At) {
        let (reason, words) = (Some(error.reason()), error.to_string().into());
        let news = self.add_declined(replica, Declined { reason, words });
        let remembers = !at.bugs.has(KnownBug::ForgiveTheLast);
        if news && remembers && may_be_asked_again(error, at.bugs) {
            self.accidents.push(replica);
            self.accident_at = at.tick;
        }
    }

    /// The leader before lists a replica that declined.
    pub(super) fn remember_declined(&mut self, replica: u64) {
        let words = "it declined to the leader before".into();
        self.add_declined(replica, Declined { reason: None, words });
    }

    /// The leader before lists itself: it should not lead. It was not asked, and there may be no notice
    /// when that is over, so it is asked when no other is left.
    fn remember_leader(&mut self, replica: u64, bugs: KnownBugs) {
        let words = "it led before, and should not".into();
        let news = self.add_declined(replica, Declined { reason: None, words });
        if news && !bugs.has(KnownBug::ImpairedForGood) {
            self.former.push(replica);
        }
    }

    /// Returns whether it is news.
    fn add_declined(&mut self, replica: u64, why: Declined) -> bool {
        let news = replica != 0 && self.declined_by(replica).is_none();
        if news {
            self.declined.push((replica, why));
        }
        news
    }

    /// A policy declined this leadership.
    pub(super) fn decline(&mut self, targets: Vec<NodeId>) {
        self.named = targets;
        self.retry_at = 0;
    }

    /// A leadership ended, and with it a policy's decision.
    pub(super) fn forget_named(&mut self) {
        self.named.clear();
    }

    /// There is news: all may be asked again.
    pub(super) fn forget_declined(&mut self) {
        self.declined.clear();
        self.accidents.clear();
        self.former.clear();
        self.retry_at = 0;
    }

    fn retry_later(&mut self, ticks: u64, at: At) {
        let spread = mix(at.group.get() ^ at.tick) % ticks.max(1);
        self.retry_at = at.tick + ticks + spread;
    }

    /// Voters that failed by accident may be asked again: no other is left.
    fn forgive_accidents(&mut self) {
        let mut accidents = std::mem::take(&mut self.accidents);
        accidents.append(&mut self.former);
        if !accidents.is_empty() {
            self.forgiven_until = self.retry_at;
        }
        self.declined.retain(|(replica, _)| !accidents.contains(replica));
    }

    /// None of those that are left lacks little enough, which may last: those that failed by
    /// accident a while ago may be asked again.
    fn forgive_old_accidents(&mut self, at: At) {
        let waits = at.tick < self.accident_at + RETRY_TICKS;
        if !waits && !at.bugs.has(KnownBug::KeepForTheUnlevel) {
            self.forgive_accidents();
        }
    }
}

impl GroupCore {
    /// A leader that should not lead asks the next voters that may follow.
    pub(super) fn hand_on_leadership(&mut self, effects: &mut Effects) {
        let candidates = self.successors(effects);
        let at = self.at();
        if candidates.is_empty() {
            self.succession.found_none(at);
        } else if let Err(error) = self.begin_transfer(candidates, Some(SUCCESSION_LAG), effects) {
            effects.count(PolicyEvent::TransferFailed(error.reason()));
            self.succession.failed(0, &error, at);
        }
    }

    pub(super) fn at(&self) -> At {
        At { group: self.id, tick: self.ticks, bugs: self.config.bugs }
    }

    /// Whether the leadership is far enough to be transferred. One whose state machine stands still
    /// does not get further.
    pub(super) fn may_hand_over(&self) -> bool {
        let waits = self.config.bugs.has(KnownBug::StalledLeaderWaits);
        self.is_ready() || (self.stands_still() && !waits)
    }

    /// Whether there is an eligible voter that did not decline, and nothing is in its way that this
    /// leader knows.
    pub(super) fn can_hand_over_now(&self, effects: &Effects) -> bool {
        let takes = |node: &NodeId| self.check_target(*node, Some(SUCCESSION_LAG), effects).is_ok();
        let any = self.config.bugs.has(KnownBug::KeepForTheUnlevel);
        self.may_hand_over() && self.successors(effects).iter().any(|node| any || takes(node))
    }

    /// Whether this node should not lead: the group's requirement excludes it, or a policy, which
    /// may do it by giving no answer.
    pub(super) fn wants_successor(&self, effects: &Effects) -> bool {
        let bugs = self.config.bugs;
        self.caretaker().is_some_and(|why| is_left_to_others(why, bugs))
            || self.own_unfitness(effects).is_some()
    }

    /// Whether this leader, which should not lead, is going to ask a voter again although there is no
    /// news. A leader that may lead asks none, whatever became of transfers that callers asked for.
    pub(super) fn will_ask_successors(&self, effects: &Effects) -> bool {
        self.succession.has_failed(self.ticks) && self.wants_successor(effects)
    }

    /// Those who may follow, the best first.
    fn successors(&self, effects: &Effects) -> Vec<NodeId> {
        let declined = |node: &NodeId| {
            let replica = self.membership.replica_on(*node);
            replica.is_none_or(|replica| self.succession.declined_by(replica.get()).is_some())
        };
        let ranked = self.ranked_voters(effects).into_iter().filter(|(rank, _)| !rank.unfit);
        let fit = ranked.map(|(_, node)| node).filter(|node| !declined(node)).collect();
        let declines = self.caretaker().is_some_and(|why| is_declined(why));
        self.succession.choose(fit, declines)
    }

    /// A replica that transferred, or is about to transfer, its leadership lists those that
    /// declined, and itself if it should not lead.
    pub(super) fn remember_declined(&mut self, message: &GroupMessage) {
        for replica in &message.declined {
            let id = ReplicaId::new(*replica);
            if !id.is_some_and(|id| self.membership.members.contains_key(&id)) {
                continue;
            }
            match *replica == message.from_replica {
                true => self.succession.remember_leader(*replica, self.config.bugs),
                false => self.succession.remember_declined(*replica),
            }
        }
    }
}

const fn is_declined(why: &Caretaker) -> bool {
    matches!(why, Caretaker::Declined { .. })
}

fn is_left_to_others(why: &Caretaker, bugs: KnownBugs) -> bool {
    match why {
        Caretaker::Declined { .. } => true,
        Caretaker::NoAnswer { .. } | Caretaker::Panicked { .. } => {
            !bugs.has(KnownBug::SilentPolicyKeepsLeadership)
        }
        _ => false,
    }
}

fn may_be_asked_again(error: &TransferError, bugs: KnownBugs) -> bool {
    let passes = error.reason().passes_by_itself();
    is_accident(error)
        || (passes && !bugs.has(KnownBug::RefusedForGood))
        || (is_impaired(error) && !bugs.has(KnownBug::ImpairedForGood))
}

/// Whether the target declined because it is impaired. There is no notice when that is over.
const fn is_impaired(error: &TransferError) -> bool {
    matches!(error, TransferError::TargetRefused { reason: RejectReason::Unfit, .. })
}

/// Whether a transfer failed although its target did not say that it must not lead.
const fn is_accident(error: &TransferError) -> bool {
    use TransferError::{TargetDraining, TargetRefused, TargetUnfit};
    !matches!(error, TargetUnfit { .. } | TargetDraining { .. } | TargetRefused { .. })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GROUP: GroupId = GroupId::new(7);

    fn at(tick: u64) -> At {
        At { group: GROUP, tick, bugs: KnownBugs::none() }
    }

    fn node(id: u64) -> NodeId {
        NodeId::must(id)
    }

    fn silent(id: u64) -> TransferError {
        TransferError::TargetSilent { group: GROUP, node: node(id), after: Duration::ZERO }
    }

    fn draining(id: u64) -> TransferError {
        TransferError::TargetDraining { group: GROUP, node: node(id) }
    }

    fn lacks(id: u64) -> TransferError {
        let (group, node) = (GROUP, node(id));
        TransferError::TargetNotCaughtUp { group, node, lag: 2_000, max_lag: 1_024 }
    }

    #[test]
    fn what_a_policy_named_counts_only_while_it_declines_and_is_fit() {
        let mut succession = Succession::default();
        succession.decline(vec![node(3), node(9)]);
        let fit = vec![node(2), node(3)];
        assert_eq!(succession.choose(fit.clone(), true), [node(3)]);
        assert_eq!(succession.choose(fit, false), [node(2), node(3)]);
        assert_eq!(succession.choose(vec![node(2)], true), [node(2)]);
    }

    #[test]
    fn one_that_was_silent_is_asked_again_when_no_other_is_left() {
        let mut succession = Succession::default();
        succession.failed(2, &silent(2), at(100));
        succession.note_declined(
            3,
            &TransferError::NoVoter { group: GROUP, node: node(3) },
            at(100),
        );
        assert!(succession.declined_by(2).is_some() && succession.has_failed(100));
        assert_eq!(succession.declined_for_good(KnownBugs::none()).count(), 0);
        succession.found_none(at(200));
        assert!(succession.declined_by(2).is_none() && succession.declined_by(3).is_none());
        let retry = succession.retry_at();
        assert!((203..206).contains(&retry) && succession.is_due(retry), "it had its time");
        assert!(succession.has_failed(retry) && !succession.has_failed(retry + 1));
    }

    #[test]
    fn one_that_is_impaired_and_a_former_leader_are_asked_when_no_other_is_left() {
        let (group, reason, words) = (GROUP, RejectReason::Unfit, "its state is lost".to_owned());
        let impaired = TransferError::TargetRefused { group, node: node(2), reason, words };
        for (bugs, asked) in
            [(KnownBugs::none(), true), (KnownBugs::from([KnownBug::ImpairedForGood]), false)]
        {
            let mut succession = Succession::default();
            let at = |tick| At { bugs, ..at(tick) };
            succession.note_declined(2, &impaired, at(100));
            succession.remember_leader(3, bugs);
            succession.remember_declined(4);
            let left = succession.declined_for_good(bugs).count();
            assert_eq!(left, if asked { 1 } else { 3 });
            succession.found_none(at(200));
            let declined = |replica| succession.declined_by(replica).is_some();
            assert_eq!([declined(2), declined(3)], [!asked, !asked]);
            assert!(declined(4), "it declined, to another leader");
        }
    }

    #[test]
    fn one_that_lacks_entries_is_tried_soon_and_lets_old_accidents_pass() {
        for (since, forgiven) in [(60, false), (100, true)] {
            let mut succession = Succession::default();
            succession.failed(2, &silent(2), at(50));
            succession.failed(3, &lacks(3), at(since));
            assert!((since + 3..since + 6).contains(&succession.retry_at()));
            assert_eq!(succession.declined_by(2).is_none(), forgiven, "at {since}");
            assert!(succession.declined_by(3).is_none());
        }
    }

    #[test]
    fn the_first_reason_counts_until_there_is_news() {
        let mut succession = Succession::default();
        succession.note_declined(2, &draining(2), at(1));
        let first = succession.declined_by(2).cloned();
        succession.note_declined(2, &silent(2), at(2));
        assert_eq!(succession.declined_by(2).cloned(), first);
        succession.remember_declined(2);
        assert_eq!(succession.declined_by(2).cloned(), first);
        succession.forget_declined();
        assert!(succession.declined_by(2).is_none() && succession.is_due(0));
    }
}
