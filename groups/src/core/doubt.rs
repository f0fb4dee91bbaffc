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
//!    One that never had a vote, as the answers show, has no floor: it was part of no quorum.
//! 3. When its own log is durable up to the floor, nothing is in doubt any more, and that is
//!    written.
//!
//! A candidate that it voted for and that has not won yet knows of that vote and is no part of the
//! answers; it gives up within two election timeouts. Less than all answers are enough only after
//! that time.
//!
//! Who is asked follows from the configurations that are known: the one that this replica applied,
//! and those that answers show. An answer names the configuration that its sender applied and those
//! that unapplied changes in its log lead to. A configuration takes effect only after its entry was
//! committed under the one before, so the answers of one configuration show the next one, if there
//! is one, and its voters are asked, too. Configurations older than one that is known to be
//! committed are asked only for a while: their voters may be gone. Doubt ends when this replica has
//! applied what the answers know to be committed of configurations, because it must not campaign in
//! an older one.
//!
//! [`Doubt`] decides all of this from the answers and from the membership that the replica applied.

use std::collections::BTreeMap;

use raft::Changer;
use shardhost_proto::peer::{GroupMessage, MessageKind, RecoveryAnswer};
use shardhost_storage::convert::membership_to_message;
use shardhost_storage::{
    Certainty, Doubt as Cause, GroupWrite, LogIndex, LogPosition, Member, Membership, NodeId,
    ReplicaId, Term,
};

use super::GroupCore;
use crate::convert;
use crate::core::Effects;
use crate::known_bugs::KnownBug;
use crate::membership::ConfigEntry;
use crate::transport::{Lane, Outgoing};

/// Ticks between two requests to a voter that has not answered.
const ASK_TICKS: u64 = 5;
/// Bytes of unapplied entries that are looked through for an answer, on the thread of the worker. A
/// voter with more of them applies first.
const MAX_UNAPPLIED_BYTES: u64 = 8 << 20;
/// Unapplied changes that an answer names. A voter with more of them applies first.
const MAX_UNAPPLIED_CHANGES: usize = 8;

/// What is known about what this replica may have lost.
#[derive(Debug)]
pub(super) struct Doubt {
    cause: Cause,
    /// Ticks since it was raised.
    ticks: u64,
    answers: Vec<Answer>,
    floor: Option<Floor>,
}

#[derive(Clone, Debug)]
struct Answer {
    replica: ReplicaId,
    certainty: Certainty,
    term: Term,
    /// The last entry of its log that is durable.
    last: LogPosition,
    /// The configuration that it has applied, and those that changes in its log lead to.
    configs: Vec<Membership>,
    /// The newest of these that it knows to be committed.
    committed_config: LogIndex,
}

/// What this replica may have been part of ends here.
#[derive(Clone, Copy, Debug, Default)]
struct Floor {
    term: Term,
    last: LogPosition,
    /// The newest configuration that is known to be committed.
    config: LogIndex,
}

impl Doubt {
    pub(super) fn opened(certainty: Certainty) -> Option<Box<Self>> {
        match certainty {
            Certainty::Sure | Certainty::Differs => None,
            Certainty::InDoubt(cause) => {
                let (answers, floor) = (Vec::new(), None);
                Some(Box::new(Self { cause, ticks: 0, answers, floor }))
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

    /// The newest configuration that a voter whose log is whole knows to be committed.
    fn committed_config(&self) -> LogIndex {
        let sure = self.answers.iter().filter(|answer| !answer.certainty.is_in_doubt());
        sure.map(|answer| answer.committed_config).max().unwrap_or_default()
    }

    /// The configurations under which this replica, which applied `applied`, may have voted and
    /// acknowledged, as far as is known.
    fn known_configs<'a>(
        &'a self,
        applied: &'a Membership,
    ) -> impl Iterator<Item = &'a Membership> {
        let answered = self.answers.iter().flat_map(|answer| &answer.configs);
        std::iter::once(applied).chain(answered)
    }

    /// Who votes in the known configurations from this one on.
    fn voters_since(&self, oldest: LogIndex, applied: &Membership) -> BTreeMap<ReplicaId, NodeId> {
        let configs = self.known_configs(applied).filter(|config| config.config_index >= oldest);
        let members = configs.flat_map(|config| &config.members);
        let voting = members.filter(|(_, member)| member.voter || member.outgoing_voter);
        voting.map(|(id, member)| (*id, member.node)).collect()
    }

    /// Voters that did not answer.
    fn unanswered(&self, own: ReplicaId, applied: &Membership) -> BTreeMap<ReplicaId, NodeId> {
        let mut voters = self.voters_since(LogIndex::default(), applied);
        voters.retain(|id, _| *id != own && self.answered(*id).is_none());
        voters
    }

    /// The newest configuration that is known to be committed: what is applied here was.
    fn newest_committed_config(&self, applied: &Membership) -> LogIndex {
        self.committed_config().max(applied.config_index)
    }

    /// Whether each quorum that this replica was ever part of has another member among those that
    /// answered.
    fn is_enough_known(&self, own: ReplicaId, applied: &Membership, election_ticks: u64) -> bool {
        let given_up = self.ticks > 2 * election_ticks;
        let committed = self.newest_committed_config(applied);
        let voters = |config: &Membership, votes: fn(&Member) -> bool| -> Vec<ReplicaId> {
            let members = config.members.iter().filter(|(_, member)| votes(member));
            members.map(|(id, _)| *id).collect()
        };
        // Voters of an older configuration may be gone.
        let counts = |config: &&Membership| !given_up || config.config_index >= committed;
        self.known_configs(applied).filter(counts).all(|config| {
            let halves: [fn(&Member) -> bool; 2] = [|one| one.voter, |one| one.outgoing_voter];
            halves.iter().all(|half| self.is_covered(&voters(config, *half), own, given_up))
        })
    }

    /// Whether no configuration up to the newest one that the answers show gave this replica a
    /// vote: no quorum was ever made with it, so it can have lost nothing that counts. What it
    /// acknowledged as a learner its leader counts anew.
    fn never_had_a_vote(&self, own: ReplicaId, applied: &Membership) -> bool {
        let with_it = self.known_configs(applied).filter_map(|config| {
            let member = config.members.get(&own)?;
            Some((config.config_index, member.never_voted))
        });
        with_it.max_by_key(|(index, _)| *index).is_some_and(|(_, never_voted)| never_voted)
    }

    /// Takes what the answers show as the floor. A voter of an older configuration cannot lead,
    /// however long its log is: to wait for it would be to wait for ever. It alone may hold what a
    /// leader committed between the commit of the next configuration and its own application of it.
    fn take_floor(&mut self, applied: &Membership) -> Floor {
        let voters = self.voters_since(self.newest_committed_config(applied), applied);
        let floor = self.floor_of_answers(&voters);
        self.floor = Some(floor);
        floor
    }

    /// Whether a message must not be taken.
    fn refuses(&self, message: &GroupMessage) -> bool {
        match (message.kind(), self.floor) {
            (MessageKind::RecoveryRequest | MessageKind::RecoveryResponse, _) => false,
            (MessageKind::Removed | MessageKind::CreateReplica | MessageKind::Wake, _) => false,
            (_, None) => true,
            (MessageKind::TimeoutNow | MessageKind::TransferAsk | MessageKind::Hibernate, _) => {
                true
            }
            (MessageKind::Vote | MessageKind::PreVote, Some(floor)) => {
                LogPosition::new(message.log_term, message.index) < floor.last
            }
            _ => false,
        }
    }

    /// Whether it is time to ask once more.
    const fn asks_now(&self) -> bool {
        self.ticks % ASK_TICKS == 1
    }

    /// Whether each quorum of these voters that `own` was ever part of has another member among
    /// those that answered. `given_up`: candidates that `own` voted for have given up.
    fn is_covered(&self, voters: &[ReplicaId], own: ReplicaId, given_up: bool) -> bool {
        let others = voters.iter().filter(|id| **id != own);
        let answers: Vec<_> = others.clone().filter_map(|id| self.answered(*id)).collect();
        let sure = answers.iter().filter(|answer| !answer.certainty.is_in_doubt()).count();
        answers.len() == others.count() || (given_up && sure >= voters.len() - voters.len() / 2)
    }

    /// The floor, to which the logs of these voters count.
    fn floor_of_answers(&self, voters: &BTreeMap<ReplicaId, NodeId>) -> Floor {
        self.answers.iter().fold(Floor::default(), |floor, answer| {
            let counts = voters.contains_key(&answer.replica);
            Floor {
                term: floor.term.max(answer.term),
                last: if counts { floor.last.max(answer.last) } else { floor.last },
                config: floor.config.max(answer.committed_config),
            }
        })
    }
}

impl GroupCore {
    /// Why the log of this replica may have lost something, if it may.
    pub(super) fn doubt_cause(&self) -> Option<Cause> {
        self.doubt.as_ref().map(|doubt| doubt.cause)
    }

    /// The same for a replica that does not run yet, and whose log has the note already.
    pub fn open_in_doubt(&mut self, cause: Cause) {
        if self.doubt.is_none() {
            let certainty = Certainty::InDoubt(cause);
            self.doubt = Doubt::opened(certainty);
        }
    }

    /// The log turns out to be older than what this replica acknowledged.
    pub fn raise_doubt(&mut self, cause: Cause, effects: &mut Effects) {
        if self.doubt.is_some() {
            return;
        }
        let certainty = Certainty::InDoubt(cause);
        self.doubt = Doubt::opened(certainty);
        self.follow_nobody();
        self.write_certainty(certainty, effects);
        self.wake();
    }

    /// Whether a message must not be taken while it is not known what this replica lost.
    pub(super) fn refuses_in_doubt(&self, message: &GroupMessage) -> bool {
        let ignores = self.config.bugs.has(KnownBug::IgnoreDoubt);
        !ignores && self.doubt.as_ref().is_some_and(|doubt| doubt.refuses(message))
    }

    /// Whether this replica must not campaign.
    pub(super) fn may_not_campaign_in_doubt(&self) -> bool {
        self.doubt.is_some() && !self.config.bugs.has(KnownBug::IgnoreDoubt)
    }

    /// A leader counts on entries that this replica acknowledged and lost. Its term must end: raft
    /// never sends again what was acknowledged in it.
    pub(super) fn outbid_leader(&mut self, term: u64) {
        if self.doubt.as_ref().is_some_and(|doubt| doubt.floor.is_some()) {
            self.follow_nobody_in(self.raw.raft.term.max(term) + 1);
        }
    }

    /// Asks, and looks whether enough is known.
    pub(super) fn check_doubt(&mut self, effects: &mut Effects) {
        let Some(doubt) = &mut self.doubt else { return };
        doubt.ticks += 1;
        let election_ticks = u64::from(self.config.election_ticks);
        if doubt.floor.is_some() {
            self.check_floor(effects);
        } else if doubt.is_enough_known(self.replica, &self.membership, election_ticks) {
            self.take_floor(effects);
        } else if doubt.asks_now() {
            self.ask_voters(effects);
        }
    }

    fn ask_voters(&self, effects: &mut Effects) {
        let Some(doubt) = &self.doubt else { return };
        for (id, to) in doubt.unanswered(self.replica, &self.membership) {
            let request = GroupMessage {
                stamp: self.life(),
                ..self.own_message(MessageKind::RecoveryRequest, id.get())
            };
            effects.messages.push(Outgoing { to, lane: Lane::Urgent, message: request });
        }
    }

    /// A peer does not know what it lost.
    pub(super) fn answer_recovery(&self, message: &GroupMessage, effects: &mut Effects) {
        let Some(to) = self.node_of(message.from_replica) else { return };
        if self.is_log_replaced() {
            return;
        }
        let progress = self.raw.raft.prs().get(message.from_replica);
        let matched = progress.filter(|_| self.leads()).map_or(0, |progress| progress.matched);
        // A leader may commit what the asker acknowledged and lost, before its own disk has it.
        let end = self.raw.raft.raft_log.persisted.max(matched);
        let (Some(last), Some(unapplied)) = (self.position_of(end), self.unapplied_configs())
        else {
            return;
        };
        let committed = self.raw.raft.raft_log.committed;
        let committed_term = self.raw.raft.raft_log.term(committed).unwrap_or(0);
        let recovery = RecoveryAnswer {
            applied: Some(membership_to_message(&self.membership)),
            unapplied: unapplied.iter().map(membership_to_message).collect(),
            committed,
            matched,
            committed_term,
        };
        let answer = GroupMessage {
            stamp: message.stamp,
            log_term: last.term.get(),
            index: last.index.get(),
            reject: self.doubt.is_some(),
            recovery: Some(Box::new(recovery)),
            ..self.own_message(MessageKind::RecoveryResponse, message.from_replica)
        };
        effects.messages.push(Outgoing { to, lane: Lane::Urgent, message: answer });
    }

    /// The memberships that changes in the log lead to, which are not applied; `None` when there
    /// are too many, or one cannot be read now.
    fn unapplied_configs(&self) -> Option<Vec<Membership>> {
        let log = &self.raw.raft.raft_log;
        // The membership may be ahead of the state machine.
        let passed = self.passed().max(self.membership.config_index.get());
        let last = log.last_index();
        if passed >= last {
            return Some(Vec::new());
        }
        let entries = self.entries_within(passed + 1, last + 1, MAX_UNAPPLIED_BYTES)?;
        let changes = entries.iter().filter(|entry| is_change(entry));
        let mut tracker = self.raw.raft.prs().clone();
        let mut configs: Vec<Membership> = Vec::new();
        for entry in changes {
            if configs.len() == MAX_UNAPPLIED_CHANGES {
                return None;
            }
            let config = ConfigEntry::decode(&entry.data, &entry.context)?;
            let before = configs.last().unwrap_or(&self.membership);
            let after = foresee(&mut tracker, &config, before, LogIndex::new(entry.index))?;
            configs.push(after);
        }
        Some(configs)
    }

    fn persisted_end(&self) -> Option<LogPosition> {
        self.position_of(self.raw.raft.raft_log.persisted)
    }

    fn position_of(&self, index: u64) -> Option<LogPosition> {
        let term = self.raw.raft.raft_log.term(index).ok()?;
        Some(LogPosition::new(term, index))
    }

    /// A voter reports what it holds.
    pub(super) fn take_recovery(&mut self, message: &GroupMessage) {
        let own = self.life();
        let (Some(doubt), Some(replica)) = (&mut self.doubt, ReplicaId::new(message.from_replica))
        else {
            return;
        };
        let Some(recovery) = message.recovery.as_ref().filter(|_| message.stamp == own) else {
            return;
        };
        let configs = recovery.applied.iter().chain(&recovery.unapplied);
        let configs: Option<Vec<_>> = configs.map(convert::membership_from_wire).collect();
        let Some(configs) = configs.filter(|configs| !configs.is_empty()) else { return };
        let committed = LogIndex::new(recovery.committed);
        let indexes = configs.iter().map(|config| config.config_index);
        let committed_config = indexes.filter(|index| *index <= committed).max();
        let certainty =
            if message.reject { Certainty::InDoubt(doubt.cause) } else { Certainty::Sure };
        let overrated = recovery.matched > self.raw.raft.raft_log.last_index();
        doubt.note(Answer {
            replica,
            certainty,
            // A leader from before may count on what was lost here, below the end of this log too,
            // where other entries stand now: it has to be elected anew.
            term: Term::new(message.term + 1),
            last: LogPosition::new(message.log_term, message.index),
            configs,
            committed_config: committed_config.unwrap_or_default(),
        });
        if overrated && doubt.floor.is_some() {
            self.outbid_leader(message.term);
        }
        self.take_commit(recovery.committed, recovery.committed_term);
    }

    /// A peer knows what is committed, and this log holds the same entry there. It may be the only
    /// one that can lead, and must apply the changes of its configuration before.
    fn take_commit(&mut self, index: u64, term: u64) {
        let replaced = self.is_log_replaced();
        let log = &mut self.raw.raft.raft_log;
        if term > 0 && index <= log.persisted && !replaced {
            log.maybe_commit(index, term);
        }
    }

    /// From here on it takes part, within bounds.
    fn take_floor(&mut self, effects: &mut Effects) {
        let Some(doubt) = &mut self.doubt else { return };
        if doubt.never_had_a_vote(self.replica, &self.membership) {
            return self.settle_doubt(effects);
        }
        let own = self.replica.get();
        let floor = doubt.take_floor(&self.membership);
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
        self.check_floor(effects);
    }

    /// Whether what may have been lost is there again.
    fn check_floor(&mut self, effects: &mut Effects) {
        let Some(floor) = self.doubt.as_ref().and_then(|doubt| doubt.floor) else { return };
        let known = floor.config <= self.membership.config_index && !self.is_log_replaced();
        if known && self.persisted_end().is_some_and(|end| end >= floor.last) {
            self.settle_doubt(effects);
        }
    }

    fn settle_doubt(&mut self, effects: &mut Effects) {
        self.doubt = None;
        self.write_certainty(Certainty::Sure, effects);
        tracing::info!(group = %self.id, "a replica is in doubt no longer");
    }

    pub(super) fn write_certainty(&self, certainty: Certainty, effects: &mut Effects) {
        let certainty = Some(certainty);
        effects.log.batch.writes.push(GroupWrite { certainty, ..GroupWrite::new(self.id) });
    }
}

fn is_change(entry: &raft::eraftpb::Entry) -> bool {
    entry.entry_type != raft::eraftpb::EntryType::EntryNormal
}

/// The membership after a change that is not applied, and raft's view of it, which moves on.
fn foresee(
    tracker: &mut raft::ProgressTracker,
    config: &ConfigEntry,
    before: &Membership,
    index: LogIndex,
) -> Option<Membership> {
    let change = config.to_raft();
    let mut changer = Changer::new(tracker);
    let (next, changes) = if change.leave_joint() {
        changer.leave_joint().ok()?
    } else if let Some(auto_leave) = change.enter_joint() {
        changer.enter_joint(auto_leave, &change.changes).ok()?
    } else {
        changer.simple(&change.changes).ok()?
    };
    let after = config.apply(before, &next.to_conf_state(), index)?;
    tracker.apply_conf(next, changes, 1);
    Some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: ReplicaId = ReplicaId::must(1);
    const ELECTION_TICKS: u64 = 10;

    fn members(nodes: std::ops::RangeInclusive<u64>, config_index: u64) -> Membership {
        let config_index = LogIndex::new(config_index);
        Membership { config_index, ..Membership::initial(nodes.map(NodeId::must)) }
    }

    fn doubt() -> Doubt {
        Doubt { cause: Cause::TornTail, ticks: 0, answers: Vec::new(), floor: None }
    }

    /// A voter that is sure of its log, and knows this configuration.
    fn answer(replica: u64, last: (u64, u64), config: &Membership) -> Answer {
        Answer {
            replica: ReplicaId::must(replica),
            certainty: Certainty::Sure,
            term: Term::new(last.0 + 1),
            last: LogPosition::new(last.0, last.1),
            configs: vec![config.clone()],
            committed_config: config.config_index,
        }
    }

    fn is_enough(doubt: &Doubt, applied: &Membership) -> bool {
        doubt.is_enough_known(OWN, applied, ELECTION_TICKS)
    }

    #[test]
    fn all_voters_answer_or_so_many_after_a_while_that_every_quorum_has_one() {
        let five = members(1..=5, 0);
        let mut doubt = doubt();
        for (answers, at_once, later) in
            [(0, false, false), (2, false, false), (3, false, true), (4, true, true)]
        {
            doubt.answers = (2..2 + answers).map(|id| answer(id, (3, 20), &five)).collect();
            doubt.ticks = 0;
            assert_eq!(is_enough(&doubt, &five), at_once, "{answers} answers");
            doubt.ticks = 2 * ELECTION_TICKS + 1;
            assert_eq!(is_enough(&doubt, &five), later, "{answers} answers");
        }
    }

    #[test]
    fn one_in_doubt_counts_only_where_all_answered() {
        let three = members(1..=3, 0);
        let mut doubt = doubt();
        let unsure = Certainty::InDoubt(Cause::TornTail);
        doubt.note(Answer { certainty: unsure, ..answer(2, (3, 20), &three) });
        doubt.ticks = 100;
        assert!(!is_enough(&doubt, &three));
        doubt.note(Answer { certainty: unsure, ..answer(3, (3, 20), &three) });
        assert!(is_enough(&doubt, &three));
    }

    #[test]
    fn voters_of_a_configuration_that_only_an_answer_shows_are_asked_too() {
        let (before, after) = (members(1..=3, 0), members(1..=4, 9));
        let mut doubt = doubt();
        assert_eq!(doubt.unanswered(OWN, &before).len(), 2);
        doubt.note(answer(2, (3, 20), &after));
        doubt.note(answer(3, (3, 20), &after));
        assert!(!is_enough(&doubt, &before));
        let left: Vec<_> = doubt.unanswered(OWN, &before).into_keys().collect();
        assert_eq!(left, [ReplicaId::must(4)]);
    }

    #[test]
    fn the_floor_is_the_newest_term_and_the_furthest_log_of_those_that_can_lead() {
        let (before, after) = (members(1..=4, 0), members(1..=3, 9));
        let mut doubt = doubt();
        doubt.note(answer(2, (3, 20), &after));
        doubt.note(answer(3, (3, 22), &after));
        doubt.note(answer(4, (5, 90), &before));
        let floor = doubt.take_floor(&before);
        assert_eq!(floor.last, LogPosition::new(3, 22), "the one that was removed cannot lead");
        assert_eq!((floor.term, floor.config), (Term::new(6), LogIndex::new(9)));
    }

    #[test]
    fn one_that_never_had_a_vote_has_nothing_to_lose() {
        let mut with_learner = members(1..=3, 4);
        if let Some(own) = with_learner.members.get_mut(&OWN) {
            own.never_voted = true;
        }
        let mut doubt = doubt();
        assert!(doubt.never_had_a_vote(OWN, &with_learner));
        doubt.note(answer(2, (3, 20), &members(1..=3, 9)));
        assert!(!doubt.never_had_a_vote(OWN, &with_learner), "a later change gave it one");
    }

    #[test]
    fn what_is_taken_in_doubt() {
        let message = |kind: MessageKind, log_term, index| GroupMessage {
            kind: kind.into(),
            log_term,
            index,
            ..GroupMessage::default()
        };
        let mut doubt = doubt();
        assert!(doubt.refuses(&message(MessageKind::Append, 3, 20)));
        assert!(!doubt.refuses(&message(MessageKind::RecoveryResponse, 3, 20)));
        doubt.floor = Some(Floor { last: LogPosition::new(3, 20), ..Floor::default() });
        assert!(!doubt.refuses(&message(MessageKind::Append, 3, 20)));
        assert!(doubt.refuses(&message(MessageKind::Vote, 3, 19)));
        assert!(!doubt.refuses(&message(MessageKind::Vote, 3, 20)));
        assert!(doubt.refuses(&message(MessageKind::TimeoutNow, 9, 99)));
    }
}
