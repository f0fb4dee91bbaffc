//! The phases of a transfer, and what decides between them: pure.

use std::collections::VecDeque;

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{GroupId, NodeId, ReplicaId, Term};

use super::{Ended, TransferCompletion};
use crate::clock::Moment;
use crate::config::GroupsConfig;
use crate::error::TransferError;
use crate::known_bugs::KnownBug;

/// Entries that a target may lack when the group is frozen: they must be there before it can lead.
const FREEZE_LAG: u64 = 1_024;
/// Ticks after which a target that was asked counts as silent.
const ASK_TICKS: u64 = 5;
/// Ticks that the votes that a transfer needs may take to be durable. After that it continues
/// without.
const PREPARE_TICKS: u64 = 5;

/// A transfer under way.
#[derive(Debug)]
pub(in crate::core) struct Transfer {
    /// Who is tried, and who is next.
    pub(super) to: NodeId,
    pub(super) replica: u64,
    pub(super) next: VecDeque<NodeId>,
    /// Entries that a target may lack when it is asked; `None`: it is waited for.
    pub(super) max_lag: Option<u64>,
    pub(super) phase: Phase,
    pub(super) since: u64,
    pub(super) completions: Vec<TransferCompletion>,
    /// One node was named, and no other will do.
    named: bool,
    /// What was wrong with the candidate that came closest.
    pub(super) error: Option<TransferError>,
    /// The order to campaign, until it is known which life of the target it is meant for.
    pub(super) held: Option<GroupMessage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The target was asked at this tick.
    Asking(u64),
    /// It agreed, and lacks too much.
    Levelling(u64),
    /// Users wait since this tick and moment.
    Frozen(u64, Option<Moment>),
}

/// What the replica sees of its transfer.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub group: GroupId,
    pub config: &'a GroupsConfig,
    pub tick: u64,
    pub began: Option<Moment>,
    pub leads: bool,
    /// Who leads, or 0, and in which term.
    pub leader: u64,
    pub term: u64,
    /// The replica that raft hands the leadership to.
    pub transferee: Option<u64>,
    /// Entries that the target is not known to have.
    pub lag: u64,
    /// The votes that were prepared are durable here.
    pub prepared: bool,
}

/// What happens next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    /// Users wait from here on, and the target gets the leadership.
    Freeze,
    /// This target does not get it.
    TryAnother(TransferError),
    /// Raft gave it up, or users waited for long enough.
    GiveUp {
        overdue: bool,
        error: TransferError,
    },
    /// Another replica leads, or none.
    End(Ended),
}

/// What an answer of the target means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Agrees,
    Declines,
    /// It answers an earlier question, or says what is known.
    Old,
}

impl Transfer {
    /// A transfer to the first of these that agrees.
    pub(super) fn new(
        candidates: Vec<NodeId>,
        max_lag: Option<u64>,
        own: NodeId,
        tick: u64,
    ) -> Self {
        Self {
            to: own,
            replica: 0,
            named: candidates.len() == 1,
            next: candidates.into(),
            max_lag,
            phase: Phase::Asking(tick),
            since: tick,
            completions: Vec::new(),
            error: None,
            held: None,
        }
    }

    /// The replica that is to lead.
    pub(in crate::core) const fn replica(&self) -> u64 {
        self.replica
    }

    /// Where leadership is being handed to.
    pub(in crate::core) const fn to(&self) -> NodeId {
        self.to
    }

    pub(in crate::core) const fn is_frozen(&self) -> bool {
        matches!(self.phase, Phase::Frozen(..))
    }

    /// This one is asked.
    pub(super) const fn ask(&mut self, node: NodeId, replica: ReplicaId, tick: u64) {
        self.to = node;
        self.replica = replica.get();
        self.phase = Phase::Asking(tick);
    }

    pub(super) const fn answer(&self, stamp: u64, declines: bool) -> Answer {
        match self.phase {
            Phase::Asking(asked) if stamp != asked => Answer::Old,
            Phase::Asking(_) if !declines => Answer::Agrees,
            Phase::Levelling(_) | Phase::Frozen(..) if !declines => Answer::Old,
            _ => Answer::Declines,
        }
    }

    /// Decides what happens next.
    pub(super) fn next(&self, view: &View<'_>) -> Next {
        if !view.leads {
            return self.await_successor(view);
        }
        let (group, node) = (view.group, self.to);
        match self.phase {
            Phase::Asking(asked) if view.tick - asked > ASK_TICKS => {
                let after = view.config.in_time(view.tick - asked);
                Next::TryAnother(TransferError::TargetSilent { group, node, after })
            }
            Phase::Asking(_) => Next::Wait,
            Phase::Levelling(since) => self.level(since, view),
            Phase::Frozen(since, began) => {
                let given_up = view.transferee != Some(self.replica);
                let overdue = !given_up && is_overdue(since, began, view);
                match given_up || overdue {
                    true => Next::GiveUp { overdue, error: self.aborted(view) },
                    false => Next::Wait,
                }
            }
        }
    }

    /// Freezes when the target lacks little and nothing is to be written before the election; gives
    /// it up when it does not come to that.
    fn level(&self, since: u64, view: &View<'_>) -> Next {
        let (group, node, lag) = (view.group, self.to, view.lag);
        let level = lag <= FREEZE_LAG;
        let waited = view.tick - since;
        // A disk that is slow, or hangs, must not keep the leadership where it is: others can elect
        // the target, whose vote is durable. This replica's follows when it can.
        let goes_without =
            waited >= PREPARE_TICKS && !view.config.bugs.has(KnownBug::WaitForOwnDisk);
        if level && (view.prepared || goes_without) {
            return Next::Freeze;
        }
        if waited <= u64::from(view.config.give_up_ticks) {
            return Next::Wait;
        }
        let after = view.config.in_time(waited);
        let max_lag = FREEZE_LAG;
        Next::TryAnother(match level {
            true => TransferError::Aborted { group, to: node, after },
            false => TransferError::TargetNotCaughtUp { group, node, lag, max_lag },
        })
    }

    /// This replica does not lead any more: the new leader is the outcome.
    fn await_successor(&self, view: &View<'_>) -> Next {
        let waited = view.tick - self.since;
        if self.is_frozen() && view.leader == self.replica {
            Next::End(Ok((self.to, Term::new(view.term))))
        } else if view.leader != 0 || waited > u64::from(view.config.give_up_ticks) {
            Next::End(Err(self.aborted(view)))
        } else {
            Next::Wait
        }
    }

    fn aborted(&self, view: &View<'_>) -> TransferError {
        let after = view.config.in_time(view.tick.saturating_sub(self.since));
        TransferError::Aborted { group: view.group, to: self.to, after }
    }

    /// Remembers the problem of a candidate: the most specific one of those that were tried.
    pub(super) fn blame(&mut self, error: TransferError) {
        let known = self.error.as_ref().map_or(0, closeness);
        if closeness(&error) > known {
            self.error = Some(error);
        } else if known <= 1 && !self.named {
            let group = error.group();
            self.error = Some(TransferError::NoHealthyTarget { group });
        }
    }
}

/// Whether users have waited long enough. Nothing extends it.
fn is_overdue(since: u64, began: Option<Moment>, view: &View<'_>) -> bool {
    let limit = view.config.freeze_timeout;
    match (began, view.began) {
        (Some(began), Some(now)) => now >= began + limit,
        // The time is unknown: a tick begun is a tick waited.
        _ => view.config.in_time(view.tick - since) >= limit,
    }
}

/// How close a candidate came to lead, from what was wrong with it.
const fn closeness(error: &TransferError) -> u8 {
    match error {
        TransferError::TargetNotCaughtUp { .. } => 3,
        TransferError::AlreadyLeads { .. }
        | TransferError::NoVoter { .. }
        | TransferError::TargetNotLive { .. }
        | TransferError::NoHealthyTarget { .. } => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GROUP: GroupId = GroupId::new(1);
    const TARGET: u64 = 2;

    fn config() -> GroupsConfig {
        GroupsConfig {
            tick: Duration::from_millis(50),
            give_up_ticks: 40,
            freeze_timeout: Duration::from_millis(100),
            ..GroupsConfig::new(NodeId::must(1))
        }
    }

    fn transfer(phase: Phase) -> Transfer {
        let mut transfer = Transfer::new(vec![NodeId::must(2)], None, NodeId::must(1), 100);
        transfer.ask(NodeId::must(2), ReplicaId::must(TARGET), 100);
        transfer.phase = phase;
        transfer
    }

    /// A leader that hands over to the target, which lacks nothing.
    fn view(config: &GroupsConfig, tick: u64) -> View<'_> {
        let (leads, leader, term) = (true, 1, 5);
        let (began, lag, prepared) = (Some(Moment::new(tick * 50_000_000)), 0, true);
        let (group, transferee) = (GROUP, Some(TARGET));
        View { group, config, tick, began, leads, leader, term, transferee, lag, prepared }
    }

    #[test]
    fn a_target_that_does_not_answer_is_given_up() {
        let config = config();
        let asking = transfer(Phase::Asking(100));
        assert_eq!(asking.next(&view(&config, 100 + ASK_TICKS)), Next::Wait);
        let next = asking.next(&view(&config, 101 + ASK_TICKS));
        assert!(matches!(next, Next::TryAnother(TransferError::TargetSilent { .. })), "{next:?}");
    }

    #[test]
    fn users_wait_only_when_the_target_lacks_little_and_votes_are_durable() {
        let config = config();
        let levelling = transfer(Phase::Levelling(100));
        let next =
            |tick, lag, prepared| levelling.next(&View { lag, prepared, ..view(&config, tick) });
        assert_eq!(next(100, FREEZE_LAG, true), Next::Freeze);
        assert_eq!(next(100, FREEZE_LAG + 1, true), Next::Wait);
        assert_eq!(next(99 + PREPARE_TICKS, 0, false), Next::Wait);
        assert_eq!(next(100 + PREPARE_TICKS, 0, false), Next::Freeze, "a disk is slow");
        let late = next(141, FREEZE_LAG + 1, true);
        assert!(matches!(late, Next::TryAnother(TransferError::TargetNotCaughtUp { .. })));
    }

    #[test]
    fn users_wait_no_longer_than_they_may_whether_the_time_is_known_or_not() {
        let config = config();
        for began in [Some(Moment::new(100 * 50_000_000)), None] {
            let frozen = transfer(Phase::Frozen(100, began));
            assert_eq!(frozen.next(&view(&config, 101)), Next::Wait);
            let next = frozen.next(&view(&config, 102));
            assert!(matches!(next, Next::GiveUp { overdue: true, .. }), "{next:?}");
            let next = frozen.next(&View { transferee: None, ..view(&config, 101) });
            assert!(matches!(next, Next::GiveUp { overdue: false, .. }), "{next:?}");
        }
    }

    #[test]
    fn the_new_leader_is_the_outcome() {
        let config = config();
        let frozen = transfer(Phase::Frozen(100, None));
        let next = |leader, tick| {
            frozen.next(&View { leads: false, leader, term: 6, ..view(&config, tick) })
        };
        assert_eq!(next(0, 101), Next::Wait);
        assert_eq!(next(TARGET, 101), Next::End(Ok((NodeId::must(2), Term::new(6)))));
        assert!(matches!(next(3, 101), Next::End(Err(TransferError::Aborted { .. }))));
        assert!(matches!(next(0, 141), Next::End(Err(TransferError::Aborted { .. }))));
    }

    #[test]
    fn only_answers_to_the_question_that_is_open_count() {
        let asking = transfer(Phase::Asking(100));
        assert_eq!(asking.answer(100, false), Answer::Agrees);
        assert_eq!(asking.answer(100, true), Answer::Declines);
        assert_eq!(asking.answer(99, true), Answer::Old);
        let frozen = transfer(Phase::Frozen(101, None));
        assert_eq!(frozen.answer(100, false), Answer::Old);
        assert_eq!(frozen.answer(100, true), Answer::Declines, "after TimeoutNow");
    }
}
