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

use raft::{INVALID_ID, StateRole};
use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::NodeId;

use super::{GroupCore, mix};
use crate::core::Effects;
use crate::known_bugs::KnownBug;
use crate::policy::{Opinion, PolicyEvent, RejectReason};
use crate::transport::{Lane, Outgoing};

/// Election timeouts that a follower on a draining node lets go by, while others could lead.
const DRAINING_PATIENCE: u16 = 2;
/// Bytes of entries that are committed and not applied with which a replica stands for election at most,
/// beside `GroupsConfig::max_unapplied_entries`: raft looks through them all first, on the worker's
/// thread and in memory.
const MAX_UNAPPLIED_BYTES: u64 = 64 << 20;

/// What keeps this replica from standing for election.
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

impl GroupCore {
    /// The election timeout is over: whether it goes by.
    pub(super) fn stays_out(&mut self, effects: &mut Effects) -> bool {
        let veto = self.vetoes_campaign(effects);
        if let Some(reason) = veto {
            effects.count(PolicyEvent::CampaignVetoed(reason));
        } else if self.candidacy.escaping {
            effects.count(PolicyEvent::StoodUnfit);
        }
        veto.is_some()
    }

    fn vetoes_campaign(&mut self, effects: &Effects) -> Option<RejectReason> {
        if self.ticks < self.candidacy.withheld_until {
            return Some(RejectReason::HandedOn);
        }
        let unfit = self.own_unfitness(effects);
        let stays = self.candidacy.passed < self.max_skipped_timeouts(unfit.is_some(), effects);
        if stays {
            self.candidacy.passed = self.candidacy.passed.saturating_add(1);
        }
        if !stays {
            self.candidacy.campaigned = self.candidacy.campaigned.saturating_add(1);
        }
        // Voters judge by what they have applied: one that lags may find this replica unfit for ever,
        // whatever it is.
        let refused = self.candidacy.campaigned > self.config.escape_timeouts.saturating_mul(2);
        self.candidacy.escaping = !stays && (unfit.is_some() || refused);
        let reason = unfit.map_or(RejectReason::Draining, |unfit| unfit.reject_reason());
        stays.then_some(reason)
    }

    /// How many election timeouts go by before this replica stands.
    pub(super) fn max_skipped_timeouts(&self, unfit: bool, effects: &Effects) -> u16 {
        let escape = self.config.escape_timeouts;
        match (unfit, self.knows_better(effects)) {
            (true, true) => escape.saturating_mul(2),
            (true, false) => escape,
            (false, true) if effects.nodes.own().draining => DRAINING_PATIENCE,
            _ => 0,
        }
    }

    /// Whether another voter that answers is known to be fit.
    fn knows_better(&self, effects: &Effects) -> bool {
        let ranked = self.ranked_voters(effects);
        ranked.first().is_some_and(|(rank, _)| !rank.unfit && !rank.unknown && !rank.draining)
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
        self.campaigns += 1;
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

    /// The next campaign comes after so many ticks without a leader, whatever was drawn.
    pub(super) fn set_turn(&mut self, timeout: usize) {
        let (term, campaigns) = (self.raw.raft.term, self.campaigns);
        self.candidacy.turn = Some(Turn { term, campaigns, timeout });
        self.pin_election_timeout();
    }

    /// That timeout, while it holds.
    pub(super) fn turn_timeout(&self) -> Option<usize> {
        let holds =
            |turn: &&Turn| (turn.term, turn.campaigns) == (self.raw.raft.term, self.campaigns);
        let turn = self.candidacy.turn.as_ref().filter(holds);
        let forgets = self.config.bugs.has(KnownBug::TurnOfOneTick);
        turn.filter(|_| !forgets).map(|turn| turn.timeout)
    }

    /// A call into the state machine takes half as long as it may, or it ended.
    pub const fn on_busy(&mut self, busy: bool) {
        self.candidacy.busy = busy;
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
        self.campaigns += 1;
        if let Err(error) = self.raw.campaign() {
            tracing::debug!(group = %self.id, %error, "a replica does not stand for election");
        }
        self.pin_election_timeout();
    }

    /// A message of a leader came: none is missing.
    pub(super) fn rest_assured(&mut self) {
        self.candidacy.passed = 0;
        self.candidacy.campaigned = 0;
        self.candidacy.escaping = false;
        self.candidacy.behind = Vec::new();
        self.candidacy.turn = None;
    }

    /// Leadership was handed on: others first, for a while.
    pub(super) fn withhold_candidacy(&mut self) {
        let pause = 2 * u64::from(self.config.election_ticks);
        self.candidacy.withheld_until = self.ticks + pause;
    }

    /// The replica that leadership was transferred to is gone, so none comes first.
    pub(super) const fn stop_withholding(&mut self) {
        self.candidacy.withheld_until = 0;
    }

    /// It does not stand before this tick.
    pub(super) const fn withheld_until(&self) -> u64 {
        self.candidacy.withheld_until
    }

    /// Election timeouts that went by since a leader was heard.
    pub(super) const fn passed_timeouts(&self) -> u16 {
        self.candidacy.passed
    }

    /// Puts into a pre-vote why an ineligible replica asks for it.
    pub(super) fn excuse(&self, wire: &mut GroupMessage) {
        wire.escape |= wire.kind() == MessageKind::PreVote && self.candidacy.escaping;
    }

    /// Refuses a pre-vote to a candidate on an ineligible node, with the reason; `false`: raft
    /// decides.
    pub(super) fn refuses_pre_vote(
        &mut self,
        node: NodeId,
        message: &GroupMessage,
        effects: &mut Effects,
    ) -> bool {
        if message.kind() != MessageKind::PreVote {
            return false;
        }
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
        let known = &mut self.candidacy.behind;
        known.retain(|other| *other != node);
        if candidate.is_unfit() || !behind {
            return;
        }
        known.push(node);
        let known = &self.candidacy.behind;
        let mut others = self.membership.voters().map(|(_, voter)| voter);
        let hope = others.any(|voter| {
            voter != self.config.node
                && effects.nodes.contains(voter)
                && !known.contains(&voter)
                && !self.opinion(voter, effects).is_unfit()
        });
        if !hope {
            self.candidacy.passed = u16::MAX;
        }
    }
}
