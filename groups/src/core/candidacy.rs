//! Not standing for election, and not being elected, where a node should not lead: cheaper than
//! winning and handing away.
//!
//! | who | what it does | until |
//! |---|---|---|
//! | a follower on an unfit node | lets its election timeouts go by | so many went by, or all fit voters turn out to lack entries |
//! | one on a draining node | lets some go by, while others could lead | they went by |
//! | one that handed leadership on | lets them go by | two election timeouts later, or the leader's node is lost |
//! | a candidate whose votes are split for sure | stands again at once, if its turn comes first | it hears of the next candidate |
//! | one whose state machine has much to apply | lets them go by | little is left |
//! | a voter | refuses the pre-vote of an ineligible candidate | the candidate declares that no eligible one was found |
//!
//! A vote is never refused for such a reason: a group must always get a leader, even one that
//! serves no users.
//!
//! [`Candidacy`] decides when an election timeout is over, from what the replica knows then
//! ([`Standing`]); the order in which the reasons not to stand are looked at is in
//! `GroupCore::tick`.

use raft::{INVALID_ID, StateRole};
use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::NodeId;

use super::transfer::Rank;
use super::{GroupCore, mix};
use crate::core::Effects;
use crate::known_bugs::{KnownBug, KnownBugs};
use crate::policy::{Opinion, PolicyEvent, RejectReason};
use crate::transport::{Lane, Outgoing};

/// Election timeouts that a follower on a draining node lets go by, while others could lead.
const DRAINING_PATIENCE: u16 = 2;
/// Bytes of entries that are committed and not applied with which a replica stands for election at most,
/// beside `GroupsConfig::max_unapplied_entries`: raft looks through them all first, on the worker's
/// thread and in memory.
const MAX_UNAPPLIED_BYTES: u64 = 64 << 20;

/// What keeps this replica from standing for election, and when it stands.
#[derive(Debug, Default)]
pub(super) struct Candidacy {
    /// Election timeouts that went by since a leader was heard.
    passed: u16,
    /// It handed leadership on, and does not stand before this tick.
    withheld_until: u64,
    /// It campaigns although it is not eligible: no eligible voter was found.
    escaping: bool,
    /// Campaigns of this replica since a leader was heard.
    campaigned: u16,
    /// Fit voters that asked for a vote since a leader was heard, and lack entries of this replica.
    behind: Vec<NodeId>,
    /// Elections that this replica started, and timeouts that it let go by; varies the election
    /// timeout within a term.
    campaigns: u64,
    /// When it campaigns after the loss of its leader's node.
    turn: Option<Turn>,
    /// A call into the state machine here takes half as long as it may.
    busy: bool,
}

/// An election timeout of one's own, instead of a drawn one: in this term, until the next campaign.
#[derive(Clone, Copy, Debug)]
struct Turn {
    term: u64,
    campaigns: u64,
    timeout: usize,
}

/// What the replica knows of its node and of others when an election timeout is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Why this node should not lead.
    pub unfit: Option<RejectReason>,
    /// Its node hands its own leaderships away.
    pub draining: bool,
    /// Another voter that answers is known to be fit.
    pub knows_better: bool,
    /// Election timeouts after which an ineligible replica stands all the same.
    pub escape: u16,
}

impl Standing {
    /// How many election timeouts go by before the replica stands.
    pub(super) const fn patience(self) -> u16 {
        match (self.unfit, self.knows_better) {
            (Some(_), true) => self.escape.saturating_mul(2),
            (Some(_), false) => self.escape,
            (None, true) if self.draining => DRAINING_PATIENCE,
            (None, _) => 0,
        }
    }
}

/// What an election timeout is drawn from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lot {
    pub seed: u64,
    pub group: u64,
    pub replica: u64,
    pub term: u64,
}

impl Candidacy {
    /// The election timeout is over: gives why it goes by, if it does.
    fn decide(&mut self, standing: Standing) -> Option<RejectReason> {
        let stays = self.passed < standing.patience();
        if stays {
            self.passed = self.passed.saturating_add(1);
        } else {
            self.campaigned = self.campaigned.saturating_add(1);
        }
        // Voters judge by what they have applied: one that lags may find this replica unfit for ever,
        // whatever it is.
        let refused = self.campaigned > standing.escape.saturating_mul(2);
        self.escaping = !stays && (standing.unfit.is_some() || refused);
        stays.then_some(standing.unfit.unwrap_or(RejectReason::Draining))
    }

    /// A message of a leader came: none is missing.
    pub(super) fn hear_leader(&mut self) {
        self.passed = 0;
        self.campaigned = 0;
        self.escaping = false;
        self.behind = Vec::new();
        self.turn = None;
    }

    /// Another try, or another timeout that goes by.
    pub(super) const fn count(&mut self) {
        self.campaigns += 1;
    }

    /// Tries and timeouts that went by, in this life of the replica.
    pub(super) const fn counted(&self) -> u64 {
        self.campaigns
    }

    /// Election timeouts that went by since a leader was heard.
    pub(super) const fn passed_timeouts(&self) -> u16 {
        self.passed
    }

    /// Leadership was handed on: others first, for a while.
    pub(super) const fn withhold_until(&mut self, tick: u64) {
        self.withheld_until = tick;
    }

    /// The replica that leadership was transferred to is gone, so none comes first.
    pub(super) const fn stop_withholding(&mut self) {
        self.withheld_until = 0;
    }

    /// It does not stand before this tick.
    pub(super) const fn withheld_until(&self) -> u64 {
        self.withheld_until
    }

    /// Whether it asks for pre-votes as the last resort.
    pub(super) const fn is_escaping(&self) -> bool {
        self.escaping
    }

    /// A call into the state machine takes half as long as it may, or it ended.
    const fn set_busy(&mut self, busy: bool) {
        self.busy = busy;
    }

    /// A fit voter asks for a vote. `behind`: it lacks entries of this replica.
    fn note_candidate(&mut self, node: NodeId, behind: bool) {
        self.behind.retain(|other| *other != node);
        if behind {
            self.behind.push(node);
        }
    }

    /// Whether this voter is known to lack entries of this replica.
    fn is_behind(&self, node: NodeId) -> bool {
        self.behind.contains(&node)
    }

    /// No other voter can lead: none is waited for.
    const fn lose_patience(&mut self) {
        self.passed = u16::MAX;
    }

    /// The next campaign comes after so many ticks without a leader, whatever was drawn.
    pub(super) const fn set_turn(&mut self, term: u64, timeout: usize) {
        self.turn = Some(Turn { term, campaigns: self.campaigns, timeout });
    }

    /// The election timeout in ticks: between one and two of `ticks`, unless it has a turn.
    pub(super) fn timeout(&self, lot: Lot, ticks: u64, bugs: KnownBugs) -> usize {
        let turn = self.turn.filter(|_| !bugs.has(KnownBug::TurnOfOneTick));
        let now = (lot.term, self.campaigns);
        if let Some(turn) = turn.filter(|turn| (turn.term, turn.campaigns) == now) {
            return turn.timeout;
        }
        let parts = [lot.group, lot.replica, lot.term, self.campaigns];
        let drawn = parts.into_iter().fold(lot.seed, |lot, part| mix(lot ^ part));
        usize::try_from(ticks + drawn % ticks.max(1)).unwrap_or(10)
    }
}

impl GroupCore {
    /// The election timeout is over: whether it goes by, because this replica should not lead.
    pub(super) fn stays_out(&mut self, effects: &mut Effects) -> bool {
        let veto = if self.ticks < self.candidacy.withheld_until() {
            Some(RejectReason::HandedOn)
        } else {
            let standing = self.standing(effects);
            self.candidacy.decide(standing)
        };
        if let Some(reason) = veto {
            effects.count(PolicyEvent::CampaignVetoed(reason));
        } else if self.candidacy.is_escaping() {
            effects.count(PolicyEvent::StoodUnfit);
        }
        veto.is_some()
    }

    pub(super) fn standing(&self, effects: &Effects) -> Standing {
        let better = |rank: &Rank| !rank.unfit && !rank.unknown && !rank.draining;
        Standing {
            unfit: self.own_unfitness(effects).map(|unfit| unfit.reject_reason()),
            draining: effects.nodes.own().draining,
            knows_better: self.ranked_voters(effects).first().is_some_and(|(rank, _)| better(rank)),
            escape: self.config.escape_timeouts,
        }
    }

    /// Whether so much waits for the state machine that this replica does not campaign. As a leader
    /// it would serve no users before all of that is applied.
    pub(super) fn lags_too_far(&self) -> bool {
        if self.config.bugs.has(KnownBug::ReadBacklogAtOnce) {
            return false;
        }
        let log = &self.raw.raft.raft_log;
        let (first, end) = (log.first_index().max(log.applied + 1), log.committed + 1);
        let count = end.saturating_sub(first);
        if count == 0 || count > self.config.max_unapplied_entries {
            return count > 0;
        }
        self.entries_within(first, end, MAX_UNAPPLIED_BYTES).is_none()
    }

    /// Lets an election timeout go by, as a follower that knows no leader: merely to wait longer
    /// would keep others' candidates from its vote.
    pub(super) fn let_timeout_pass(&mut self) {
        self.candidacy.count();
        self.follow_nobody();
    }

    /// Follows, as one that knows no leader of its term.
    pub(super) fn follow_nobody(&mut self) {
        self.follow_nobody_in(self.raw.raft.term);
    }

    /// The same in this term or a later one.
    pub(super) fn follow_nobody_in(&mut self, term: u64) {
        self.raw.raft.become_follower(term, INVALID_ID);
        self.pin_election_timeout();
    }

    /// A leader that asks for votes in a later term does not lead any more: raft would ignore it,
    /// as it ignores every candidate while the leader is active.
    pub(super) fn notice_abdication(&mut self, message: &GroupMessage) {
        let asks = matches!(message.kind(), MessageKind::PreVote | MessageKind::Vote);
        let raft = &self.raw.raft;
        if asks && message.from_replica == raft.leader_id && message.term > raft.term {
            self.follow_nobody();
        }
    }

    /// A request for a vote. Of two candidates in one term of which neither can win without the
    /// other, the one whose turn is first campaigns again, without waiting for another timeout.
    pub(super) fn step_vote(&mut self, node: NodeId, message: GroupMessage, effects: &Effects) {
        let split = self.is_split_with(node, &message, effects) && self.comes_before(node, effects);
        self.step_raft(message);
        if split {
            self.stand();
        }
    }

    /// Whether a candidate of this term is asked for its vote by another one whose vote it needs.
    fn is_split_with(&self, rival: NodeId, message: &GroupMessage, effects: &Effects) -> bool {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Candidate || message.term != raft.term || self.joint {
            return false;
        }
        let own = self.config.node;
        let voters = self.membership.voters().map(|(_, node)| node);
        let (mut all, mut possible) = (0, 0);
        for node in voters {
            all += 1;
            possible += usize::from(node != rival && (node == own || effects.nodes.contains(node)));
        }
        possible <= all / 2
    }

    /// Whether this candidate, rather than its rival, should lead; both see it alike.
    fn comes_before(&self, rival: NodeId, effects: &Effects) -> bool {
        let own = (self.own_unfitness(effects).is_some(), self.turn_of(self.config.node));
        own < (self.opinion(rival, effects).is_unfit(), self.turn_of(rival))
    }

    /// The order in which nodes come, where there is nothing to choose between them: another one
    /// for each group, so that not everything falls to one node.
    pub(super) const fn turn_of(&self, node: NodeId) -> u64 {
        mix(self.id.get() ^ mix(node.get()))
    }

    /// A call into the state machine takes half as long as it may, or it ended.
    pub const fn on_busy(&mut self, busy: bool) {
        self.candidacy.set_busy(busy);
    }

    /// Whether the state machine here, or all that this node runs, is about to be too slow to lead.
    pub(super) fn is_busy(&self, effects: &Effects) -> bool {
        self.candidacy.busy || effects.nodes.is_busy()
    }

    /// Stands for election before its time is over.
    pub(super) fn stand(&mut self) {
        if self.may_not_campaign_in_doubt() || self.lacks_state() || self.lags_too_far() {
            return;
        }
        self.candidacy.count();
        if let Err(error) = self.raw.campaign() {
            tracing::debug!(group = %self.id, %error, "a replica does not stand for election");
        }
        self.pin_election_timeout();
    }

    /// Leadership was handed on: others first, for a while.
    pub(super) fn withhold_candidacy(&mut self) {
        let pause = 2 * u64::from(self.config.election_ticks);
        self.candidacy.withhold_until(self.ticks + pause);
    }

    /// Refuses a pre-vote to a candidate on an ineligible node, with the reason; `false`: raft
    /// decides.
    pub(super) fn refuses_pre_vote(
        &mut self,
        node: NodeId,
        message: &GroupMessage,
        effects: &mut Effects,
    ) -> bool {
        let opinion = self.opinion(node, effects);
        self.notice_hopeless(node, message, &opinion, effects);
        let Opinion::Unfit(unfit) = opinion else { return false };
        if message.escape {
            return false;
        }
        effects.count(PolicyEvent::PreVoteRefused(unfit.reject_reason()));
        let answer = GroupMessage {
            reject: true,
            ..self.own_message(MessageKind::PreVoteResponse, message.from_replica)
        };
        effects.messages.push(Outgoing { to: node, lane: Lane::Urgent, message: answer });
        true
    }

    /// An eligible candidate that lacks entries of this replica does not get its vote. When there
    /// is no other eligible voter that may have them, an ineligible one has to bring it level
    /// first.
    fn notice_hopeless(
        &mut self,
        node: NodeId,
        message: &GroupMessage,
        candidate: &Opinion,
        effects: &Effects,
    ) {
        let log = &self.raw.raft.raft_log;
        let behind = !log.is_up_to_date(message.index, message.log_term);
        let counts = behind && !candidate.is_unfit();
        self.candidacy.note_candidate(node, counts);
        if !counts {
            return;
        }
        let mut others = self.membership.voters().map(|(_, voter)| voter);
        let hope = others.any(|voter| {
            voter != self.config.node
                && effects.nodes.contains(voter)
                && !self.candidacy.is_behind(voter)
                && !self.opinion(voter, effects).is_unfit()
        });
        if !hope {
            self.candidacy.lose_patience();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIT: Standing = Standing { unfit: None, draining: false, knows_better: true, escape: 3 };
    const UNFIT: Standing = Standing { unfit: Some(RejectReason::Incapable), ..FIT };
    const DRAINING: Standing = Standing { draining: true, ..FIT };

    /// Timeouts that go by before the replica stands for the first time.
    fn lets_go_by(candidacy: &mut Candidacy, standing: Standing) -> usize {
        (0..100).take_while(|_| candidacy.decide(standing).is_some()).count()
    }

    #[test]
    fn a_replica_lets_timeouts_go_by_for_others() {
        let alone = |standing| Standing { knows_better: false, ..standing };
        let cases = [
            (FIT, 0),
            (alone(FIT), 0),
            (DRAINING, usize::from(DRAINING_PATIENCE)),
            (alone(DRAINING), 0),
            (UNFIT, 6),
            (alone(UNFIT), 3),
        ];
        for (standing, timeouts) in cases {
            let mut candidacy = Candidacy::default();
            assert_eq!(lets_go_by(&mut candidacy, standing), timeouts, "{standing:?}");
            assert_eq!(candidacy.is_escaping(), standing.unfit.is_some(), "{standing:?}");
            candidacy.hear_leader();
            assert!(!candidacy.is_escaping());
            assert_eq!(lets_go_by(&mut candidacy, standing), timeouts, "anew: {standing:?}");
        }
    }

    #[test]
    fn one_that_has_no_hope_of_others_stands_at_once() {
        let mut candidacy = Candidacy::default();
        candidacy.lose_patience();
        assert_eq!(lets_go_by(&mut candidacy, UNFIT), 0);
    }

    #[test]
    fn a_fit_one_that_voters_refuse_for_long_asks_as_the_last_resort() {
        let mut candidacy = Candidacy::default();
        let tries = (0..20).take_while(|_| {
            candidacy.decide(FIT);
            !candidacy.is_escaping()
        });
        assert_eq!(tries.count(), 6);
    }

    #[test]
    fn a_turn_replaces_what_is_drawn_until_the_next_campaign() {
        let lot = Lot { seed: 1, group: 2, replica: 3, term: 4 };
        let timeout = |candidacy: &Candidacy, lot| candidacy.timeout(lot, 10, KnownBugs::none());
        let mut candidacy = Candidacy::default();
        let drawn = timeout(&candidacy, lot);
        assert!((10..20).contains(&drawn));
        candidacy.set_turn(4, 33);
        assert_eq!(timeout(&candidacy, lot), 33);
        assert!(timeout(&candidacy, Lot { term: 5, ..lot }) < 20, "in its term only");
        candidacy.count();
        assert!(timeout(&candidacy, lot) < 20);
    }
}
