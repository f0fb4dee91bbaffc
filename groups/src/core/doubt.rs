//! A replica whose log may have lost something that it acknowledged: entries, a term, a vote.
//!
//! Raft stands on what a quorum has acknowledged, so such a replica must not be part of one as if
//! nothing were missing. It takes part again as a recovering replica does in Viewstamped
//! Replication Revisited (section 4.3):
//!
//! 1. *Asking.* It asks every other voter for its term and the end of its log, and takes nothing of
//!    Raft's before so many have answered that each quorum that it ever was part of has another
//!    member among them: of *n* voters `n - n/2`, none of them in doubt itself. When every other
//!    voter has answered, those that are in doubt count too: there is no other copy.
//! 2. *Bounded.* The newest term and the furthest end of those answers are its floor. Everything
//!    that was committed with its help ends below the floor, and no leader that was elected with it
//!    has a later term. It takes the floor's term without a vote in it, follows leaders, and votes
//!    for candidates whose log reaches the floor. It does not campaign.
//! 3. When its own log is durable up to the floor, nothing is in doubt any more, and that is
//!    written.
//!
//! A candidate that it voted for and that has not won yet knows of that vote and is no part of the
//! answers; it gives up within two election timeouts. Less than all answers are enough only after
//! that time.
//!
//! Who may answer follows from the membership as it is known here. A voter that knows a later one
//! says so; the replica then catches up with that one first and asks again. A voter that holds a
//! change that it has not applied does not answer before it has.

use raft::GetEntriesContext;
use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{
    Certainty, Doubt as Cause, GroupWrite, LogIndex, LogPosition, Member, ReplicaId, Term,
};

use super::GroupCore;
use crate::known_bugs::KnownBug;
use crate::transport::{Lane, Outgoing};
use crate::worker::Round;

/// Ticks between two requests to a voter that has not answered.
const ASK_TICKS: u64 = 5;

/// What is known about what this replica may have lost.
#[derive(Debug)]
pub(super) struct Doubt {
    cause: Cause,
    /// Ticks since it was raised.
    ticks: u64,
    /// The configuration whose voters are asked.
    config: LogIndex,
    answers: Vec<Answer>,
    floor: Option<Floor>,
}

/// What another voter said.
#[derive(Clone, Copy, Debug)]
struct Answer {
    replica: ReplicaId,
    certainty: Certainty,
    term: Term,
    /// The last entry of its log that is durable.
    last: LogPosition,
    /// The configuration that it has applied.
    config: LogIndex,
}

/// What this replica may have been part of ends here.
#[derive(Clone, Copy, Debug, Default)]
struct Floor {
    term: Term,
    last: LogPosition,
    config: LogIndex,
}

impl Doubt {
    pub(super) fn opened(certainty: Certainty, config: LogIndex) -> Option<Box<Self>> {
        match certainty {
            Certainty::Sure => None,
            Certainty::InDoubt(cause) => {
                let (answers, floor) = (Vec::new(), None);
                Some(Box::new(Self { cause, ticks: 0, config, answers, floor }))
            }
        }
    }

    fn note(&mut self, answer: Answer) {
        self.answers.retain(|known| known.replica != answer.replica);
        self.answers.push(answer);
    }

    fn answered(&self, replica: ReplicaId) -> Option<&Answer> {
        self.answers.iter().find(|answer| answer.replica == replica)
    }

    fn floor_of_answers(&self) -> Floor {
        self.answers.iter().fold(Floor::default(), |floor, answer| Floor {
            term: floor.term.max(answer.term),
            last: floor.last.max(answer.last),
            config: floor.config.max(answer.config),
        })
    }
}

impl GroupCore {
    /// Why the log of this replica may have lost something, if it may.
    pub(super) fn doubt_cause(&self) -> Option<Cause> {
        self.doubt.as_ref().map(|doubt| doubt.cause)
    }

    /// The same for a replica that does not run yet, and whose log says so already.
    pub fn open_in_doubt(&mut self, cause: Cause) {
        if self.doubt.is_none() {
            let certainty = Certainty::InDoubt(cause);
            self.doubt = Doubt::opened(certainty, self.membership.config_index);
        }
    }

    /// The log turns out to be older than what this replica acknowledged.
    pub fn raise_doubt(&mut self, cause: Cause, round: &mut Round) {
        if self.doubt.is_some() {
            return;
        }
        let certainty = Certainty::InDoubt(cause);
        self.doubt = Doubt::opened(certainty, self.membership.config_index);
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        self.pin_election_timeout();
        self.write_certainty(certainty, round);
        self.wake();
    }

    /// Whether a message must not be taken while it is not known what this replica lost.
    pub(super) fn refuses_in_doubt(&self, message: &GroupMessage) -> bool {
        let Some(doubt) = &self.doubt else { return false };
        if self.config.bugs.has(KnownBug::IgnoreDoubt) {
            return false;
        }
        match (message.kind(), doubt.floor) {
            (MessageKind::RecoveryRequest | MessageKind::RecoveryResponse, _) => false,
            (MessageKind::Removed | MessageKind::Invite | MessageKind::Wake, _) => false,
            (_, None) => true,
            (MessageKind::TimeoutNow | MessageKind::TransferAsk | MessageKind::Sleep, _) => true,
            (MessageKind::Vote | MessageKind::PreVote, Some(floor)) => {
                floor.config > doubt.config
                    || LogPosition::new(message.log_term, message.index) < floor.last
            }
            _ => false,
        }
    }

    /// Whether this replica must not campaign.
    pub(super) fn may_not_campaign_in_doubt(&self) -> bool {
        self.doubt.is_some() && !self.config.bugs.has(KnownBug::IgnoreDoubt)
    }

    /// A leader counts on entries that this replica acknowledged and lost. Its term must end: raft
    /// never sends again what was acknowledged in it.
    pub(super) fn outbid_leader(&mut self, term: u64) {
        if self.doubt.as_ref().is_some_and(|doubt| doubt.floor.is_some()) {
            let term = self.raw.raft.term.max(term) + 1;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
            self.pin_election_timeout();
        }
    }

    /// At every tick: asks, and looks whether enough is known.
    pub(super) fn check_doubt(&mut self, round: &mut Round) {
        let Some(doubt) = &mut self.doubt else { return };
        doubt.ticks += 1;
        if doubt.floor.is_some() {
            return self.check_floor(round);
        }
        if self.is_enough_known() {
            return self.take_floor(round);
        }
        if self.doubt.as_ref().is_some_and(|doubt| doubt.ticks % ASK_TICKS == 1) {
            self.ask_voters(round);
        }
    }

    fn ask_voters(&self, round: &mut Round) {
        let Some(doubt) = &self.doubt else { return };
        for (id, member) in &self.membership.members {
            let votes = member.voter || member.outgoing_voter;
            if votes && *id != self.replica && doubt.answered(*id).is_none() {
                let request = GroupMessage {
                    stamp: self.life(),
                    ..self.own_message(MessageKind::RecoveryRequest, id.get())
                };
                let (to, lane) = (member.node, Lane::Urgent);
                round.messages.push(Outgoing { to, lane, message: request });
            }
        }
    }

    /// A peer does not know what it lost.
    pub(super) fn answer_recovery(&self, message: &GroupMessage, round: &mut Round) {
        let Some(to) = self.node_of(message.from_replica) else { return };
        let Some(last) = self.durable_end() else { return };
        let progress = self.raw.raft.prs().get(message.from_replica);
        let matched = progress.filter(|_| self.leads()).map_or(0, |progress| progress.matched);
        let answer = GroupMessage {
            stamp: message.stamp,
            log_term: last.term.get(),
            index: last.index.get(),
            commit: matched,
            reject_hint: self.membership.config_index.get(),
            reject: self.doubt.is_some(),
            ..self.own_message(MessageKind::RecoveryResponse, message.from_replica)
        };
        round.messages.push(Outgoing { to, lane: Lane::Urgent, message: answer });
    }

    /// The last entry that is durable here; `None` while that cannot be said, or a change of the
    /// membership stands in the log that is not applied.
    fn durable_end(&self) -> Option<LogPosition> {
        let log = &self.raw.raft.raft_log;
        if self.snapshots.is_installing() {
            return None;
        }
        let (applied, last) = (self.apply.applied(), log.last_index());
        if applied < last {
            let context = GetEntriesContext::empty(false);
            let pending = log.slice(applied + 1, last + 1, raft::NO_LIMIT, context).ok()?;
            let plain = raft::eraftpb::EntryType::EntryNormal;
            if pending.iter().any(|entry| entry.entry_type != plain) {
                return None;
            }
        }
        self.persisted_end()
    }

    fn persisted_end(&self) -> Option<LogPosition> {
        let log = &self.raw.raft.raft_log;
        let term = log.term(log.persisted).ok()?;
        Some(LogPosition::new(term, log.persisted))
    }

    /// A voter says what it holds.
    pub(super) fn take_recovery(&mut self, message: &GroupMessage) {
        let own = self.life();
        let (Some(doubt), Some(replica)) = (&mut self.doubt, ReplicaId::new(message.from_replica))
        else {
            return;
        };
        if message.stamp != own {
            return;
        }
        let certainty =
            if message.reject { Certainty::InDoubt(doubt.cause) } else { Certainty::Sure };
        let overrated = message.commit > self.raw.raft.raft_log.last_index();
        doubt.note(Answer {
            replica,
            certainty,
            // A leader from before may count on what was lost here, below the end of this log too,
            // where other entries stand now: it has to be elected anew.
            term: Term::new(message.term + 1),
            last: LogPosition::new(message.log_term, message.index),
            config: LogIndex::new(message.reject_hint),
        });
        if overrated && doubt.floor.is_some() {
            self.outbid_leader(message.term);
        }
    }

    /// Whether each quorum that this replica was ever part of has another member among those that
    /// answered.
    fn is_enough_known(&self) -> bool {
        let Some(doubt) = &self.doubt else { return false };
        let given_up = doubt.ticks > 2 * u64::from(self.config.election_ticks);
        let answered = |votes: fn(&Member) -> bool| {
            let voters = self.membership.members.iter().filter(|(_, member)| votes(member));
            let others: Vec<_> = voters.filter(|(id, _)| **id != self.replica).collect();
            let answers = others.iter().filter_map(|(id, _)| doubt.answered(**id));
            let sure = answers.clone().filter(|answer| !answer.certainty.is_in_doubt()).count();
            let all = others.len() + 1;
            answers.count() == others.len() || (given_up && sure >= all - all / 2)
        };
        answered(|member| member.voter) && answered(|member| member.outgoing_voter)
    }

    /// From here on it takes part, within bounds.
    fn take_floor(&mut self, round: &mut Round) {
        let own = self.replica.get();
        let Some(doubt) = &mut self.doubt else { return };
        let floor = doubt.floor_of_answers();
        doubt.floor = Some(floor);
        let raft = &mut self.raw.raft;
        if floor.term.get() > raft.term {
            raft.become_follower(floor.term.get(), raft::INVALID_ID);
        }
        if raft.vote == raft::INVALID_ID {
            // It may have voted in this term, and must not vote in it again.
            raft.vote = own;
        }
        self.pin_election_timeout();
        tracing::info!(group = %self.id, term = %floor.term, last = %floor.last,
            "enough peers of a replica in doubt have said what they hold");
        self.check_floor(round);
    }

    /// Whether what may have been lost is there again.
    fn check_floor(&mut self, round: &mut Round) {
        let Some(doubt) = &mut self.doubt else { return };
        let Some(floor) = doubt.floor else { return };
        if self.membership.config_index != doubt.config {
            doubt.config = self.membership.config_index;
            doubt.answers.clear();
            doubt.floor = None;
            return;
        }
        let known = floor.config <= doubt.config && !self.snapshots.is_installing();
        if known && self.persisted_end().is_some_and(|end| end >= floor.last) {
            self.doubt = None;
            self.write_certainty(Certainty::Sure, round);
            tracing::info!(group = %self.id, "a replica is in doubt no longer");
        }
    }

    fn write_certainty(&self, certainty: Certainty, round: &mut Round) {
        let certainty = Some(certainty);
        round.log.batch.writes.push(GroupWrite { certainty, ..GroupWrite::new(self.id) });
    }
}
