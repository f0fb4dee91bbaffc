//! What a replica handed to the log writer, and what of it is durable.
//!
//! Three things are written: readies of raft, by number; what the replica knows of itself, by the
//! count of its changes; and votes that were prepared, by their count. [`Durable`] counts all
//! three, and decides when a hard state must be written.

use shardhost_storage::HardState;

use super::PersistAck;
use super::transfer::Preparation;
use crate::known_bugs::KnownBugs;

/// How far the commit index on disk may lag. After a restart the leader supplies the real one.
const COMMIT_LAG: u64 = 512;
/// Ticks without anything new after which a commit index that lags is written all the same, and
/// ticks after which it is written if there always is something new. A replica that forgot that its
/// entries were committed would let a leader that never had them cut them off, without a word.
pub(super) const COMMIT_QUIET_TICKS: u16 = 5;
pub(super) const COMMIT_TICKS: u64 = 50;

/// What was handed over, and what is durable.
#[derive(Debug)]
pub(super) struct Durable {
    /// Number of the newest ready that was handed to the log writer, and of the newest durable.
    handed: u64,
    number: u64,
    /// The newest term whose hard state is durable.
    term: u64,
    /// The hard state as it was last handed to the log writer.
    state: HardState,
    /// Its commit index is to be written although nothing else is.
    commit_due: bool,
    /// Changes of what the replica knows of itself, and how many of them were handed over and are
    /// durable.
    meta_changes: u64,
    meta_handed: u64,
    meta: u64,
    /// A vote that is on disk before it is given.
    pub(super) preparation: Preparation,
}

impl Durable {
    pub(super) fn opened(state: HardState) -> Self {
        Self {
            handed: 0,
            number: 0,
            term: state.term.get(),
            state,
            commit_due: false,
            meta_changes: 0,
            meta_handed: 0,
            meta: 0,
            preparation: Preparation::default(),
        }
    }

    // ---- readies ----

    /// This ready is on its way to the disk.
    pub(super) const fn hand(&mut self, number: u64) {
        self.handed = number;
    }

    /// The log writer is done with this. Returns whether it made readies durable.
    pub(super) fn take_ack(&mut self, ack: &PersistAck) -> bool {
        self.meta = self.meta.max(ack.meta);
        self.preparation.on_durable(ack.prepared);
        if ack.number <= self.number {
            return false;
        }
        self.number = ack.number;
        self.term = self.term.max(ack.term);
        true
    }

    /// The newest ready that is durable.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// The newest term that is durable.
    pub(super) const fn term(&self) -> u64 {
        self.term
    }

    /// Whether no ready is on its way to the disk.
    pub(super) const fn is_settled(&self) -> bool {
        self.handed == self.number
    }

    /// Whether neither a ready nor a vote that was prepared is on its way to the disk.
    pub(super) const fn is_idle(&self, bugs: KnownBugs) -> bool {
        self.is_settled() && self.preparation.is_durable(bugs)
    }

    // ---- what the replica knows of itself ----

    /// It changed, and must be written.
    pub(super) const fn change_meta(&mut self) {
        self.meta_changes += 1;
    }

    /// Changes that are not handed over yet: from here on they are. The number is that of the last.
    pub(super) fn hand_meta(&mut self) -> Option<u64> {
        let changed = self.meta_handed < self.meta_changes;
        self.meta_handed = self.meta_changes;
        changed.then_some(self.meta_changes)
    }

    /// Whether a crash would take nothing of it back.
    pub(super) const fn is_meta_durable(&self) -> bool {
        self.meta == self.meta_changes
    }

    // ---- the hard state ----

    /// Whether this hard state must be written: a term and a vote always, a commit index only now
    /// and then, for it may lag behind and costs a key each time.
    ///
    /// It may not lag in a batch that carries a change of configuration. A leader proposes one when
    /// it has applied the change before, so a replica that takes it knows that one committed. A
    /// replica that acknowledged the later change and forgot that the earlier one was committed
    /// could be elected under the configuration before both, beside a leader of the one after both.
    pub(super) fn must_write(&self, state: HardState, carries_a_change: bool) -> bool {
        let lag = state.commit.get().saturating_sub(self.state.commit.get());
        let bound = if carries_a_change { 1 } else { COMMIT_LAG };
        !self.is_of_same_vote(&self.preparation.with_vote(state)) || lag >= bound
    }

    /// Whether nothing but the commit index differs from what the log writer has.
    pub(super) fn commit_lags(&self, state: HardState) -> bool {
        self.is_of_same_vote(&self.preparation.with_vote(state)) && state.commit > self.state.commit
    }

    fn is_of_same_vote(&self, state: &HardState) -> bool {
        (state.term, state.vote) == (self.state.term, self.state.vote)
    }

    /// A commit index that lags is written from here on.
    pub(super) fn note_commit_lag(&mut self, state: HardState) {
        self.commit_due |= self.commit_lags(state);
    }

    /// Whether a commit index that lags is to be written now. Asked once.
    pub(super) fn take_commit_due(&mut self) -> bool {
        std::mem::take(&mut self.commit_due)
    }

    /// The hard state that is written for this one of raft's: with a vote that was prepared.
    pub(super) fn hand_state(&mut self, state: HardState) -> HardState {
        self.state = self.preparation.with_vote(state);
        self.preparation.forget_other(&self.state);
        self.state
    }
}

#[cfg(test)]
mod tests {
    use shardhost_storage::{GroupId, LogIndex, ReplicaId, Term};

    use super::*;

    fn state(term: u64, vote: u64, commit: u64) -> HardState {
        let (term, commit) = (Term::new(term), LogIndex::new(commit));
        HardState { term, vote: ReplicaId::new(vote), commit }
    }

    fn ack(number: u64, meta: u64, prepared: u64) -> PersistAck {
        PersistAck { group: GroupId::new(1), open_id: 1, number, term: 5, meta, prepared }
    }

    #[test]
    fn a_hard_state_is_written_for_its_vote_and_rarely_for_its_commit_index() {
        let durable = Durable::opened(state(4, 2, 10));
        let cases = [
            (state(4, 2, 10), false, false),
            (state(4, 2, 10 + COMMIT_LAG - 1), false, false),
            (state(4, 2, 10 + COMMIT_LAG), false, true),
            (state(4, 2, 10), true, false),
            (state(4, 2, 11), true, true),
            (state(5, 2, 10), false, true),
            (state(4, 3, 10), false, true),
        ];
        for (state, change, written) in cases {
            assert_eq!(durable.must_write(state, change), written, "{state:?} {change}");
        }
    }

    #[test]
    fn a_vote_that_was_prepared_is_not_written_twice() {
        let mut durable = Durable::opened(state(4, 2, 10));
        let two = ReplicaId::must(2);
        assert_eq!(durable.preparation.prepare(Term::new(5), two), Some(1));
        assert_eq!(durable.preparation.prepare(Term::new(5), two), None);
        assert_eq!(durable.hand_state(state(4, 2, 12)), state(5, 2, 12));
        assert!(!durable.must_write(state(4, 2, 12), false), "it keeps the vote");
        assert!(!durable.must_write(state(5, 2, 12), false), "it is given");
        assert!(durable.must_write(state(5, 3, 12), false), "another one is");
        assert!(durable.commit_lags(state(5, 2, 13)));
    }

    #[test]
    fn a_commit_index_that_lags_is_due_once_and_only_where_nothing_else_is_written() {
        let cases = [(state(4, 2, 10), false), (state(4, 2, 11), true), (state(5, 2, 11), false)];
        for (state, due) in cases {
            let mut durable = Durable::opened(super::tests::state(4, 2, 10));
            durable.note_commit_lag(state);
            assert_eq!(durable.take_commit_due(), due, "{state:?}");
            assert!(!durable.take_commit_due());
        }
    }

    #[test]
    fn what_is_handed_over_is_durable_when_it_is_acknowledged() {
        let mut durable = Durable::opened(state(4, 2, 10));
        durable.hand(7);
        durable.change_meta();
        assert_eq!((durable.hand_meta(), durable.hand_meta()), (Some(1), None));
        assert!(!durable.is_settled() && !durable.is_meta_durable());
        assert!(!durable.take_ack(&ack(0, 1, 0)));
        assert!(!durable.is_settled() && durable.is_meta_durable());
        assert!(durable.take_ack(&ack(7, 0, 0)) && durable.is_settled());
        assert_eq!((durable.number(), durable.term()), (7, 5));
        assert!(!durable.take_ack(&ack(7, 0, 0)), "it is known");
    }
}
