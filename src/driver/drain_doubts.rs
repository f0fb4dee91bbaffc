//! Drains of this node of which it is unknown whether the catalog recorded them: their commands were
//! sent, and no answer came. One of them may be recorded at any time later. Pure.

use shardhost_policy::catalog::DrainIntent;

/// So many are remembered; the oldest that was ended is forgotten first.
const MAX_DOUBTS: usize = 64;

/// What a recorded drain of this node is recognized by; no later change of it changes these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoubtfulDrain {
    pub owner: String,
    /// The time of its command.
    pub begun_ms: u64,
}

impl DoubtfulDrain {
    fn is(&self, intent: &DrainIntent) -> bool {
        *self.owner == *intent.owner && self.begun_ms == intent.begun_ms
    }
}

/// What an operator decided about it since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decided {
    Nothing,
    /// It is over, whether it is recorded or not.
    End,
    /// The same, and the catalog did not know it then.
    EndUnrecorded,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct DrainDoubts(Vec<(DoubtfulDrain, Decided)>);

impl DrainDoubts {
    /// The command is sent: whether it is carried out is unknown until there is an answer.
    pub(super) fn note(&mut self, drain: DoubtfulDrain) {
        if self.0.len() >= MAX_DOUBTS {
            let over = self.0.iter().position(|(_, decided)| *decided != Decided::Nothing);
            self.0.remove(over.unwrap_or_default());
        }
        self.0.push((drain, Decided::Nothing));
    }

    /// There was an answer.
    pub(super) fn forget(&mut self, drain: &DoubtfulDrain) {
        self.0.retain(|(known, _)| known != drain);
    }

    /// An operator ends the drain of this node, with a look at the catalog or without.
    pub(super) fn end(&mut self, catalog_was_read: bool) {
        let end = if catalog_was_read { Decided::EndUnrecorded } else { Decided::End };
        self.0.iter_mut().for_each(|(_, decided)| *decided = end);
    }

    /// Whether the catalog may have recorded one without a look at it since.
    pub(super) fn are_open(&self) -> bool {
        self.0.iter().any(|(_, decided)| *decided != Decided::EndUnrecorded)
    }

    /// Whether this drain of the catalog's is one that was ended before it was known to be recorded.
    pub(super) fn is_ended(&self, intent: &DrainIntent) -> bool {
        self.0.iter().any(|(known, decided)| known.is(intent) && *decided != Decided::Nothing)
    }

    /// This drain is recorded.
    pub(super) fn settle(&mut self, intent: &DrainIntent) {
        self.0.retain(|(known, _)| !known.is(intent));
    }
}

#[cfg(test)]
mod tests {
    use shardhost_groups::NodeId;
    use shardhost_policy::catalog::{DrainFallback, DrainState, IntentId, Revision};

    use super::*;

    fn doubtful(owner: &str, begun_ms: u64) -> DoubtfulDrain {
        DoubtfulDrain { owner: owner.to_owned(), begun_ms }
    }

    fn recorded(owner: &str, begun_ms: u64) -> DrainIntent {
        DrainIntent {
            node: NodeId::must(1),
            revision: Revision::new(9),
            id: IntentId::new(Revision::new(9)),
            owner: owner.into(),
            state: DrainState::Draining,
            fallback: DrainFallback::Proceed,
            begun_ms,
            deadline_ms: begun_ms + 60_000,
            expires_ms: begun_ms + 600_000,
            clock_ms: begun_ms,
        }
    }

    #[test]
    fn a_drain_that_was_ended_in_doubt_is_recognized_when_it_turns_out_to_be_recorded() {
        let mut doubts = DrainDoubts::default();
        doubts.note(doubtful("ann", 7));
        assert!(doubts.are_open() && !doubts.is_ended(&recorded("ann", 7)), "it is to continue");
        doubts.end(false);
        assert!(doubts.are_open(), "it may be recorded");
        assert!(doubts.is_ended(&recorded("ann", 7)));
        for other in [recorded("bob", 7), recorded("ann", 8)] {
            assert!(!doubts.is_ended(&other), "{other:?}");
        }
        let extended = DrainIntent { deadline_ms: 1 << 40, clock_ms: 99, ..recorded("ann", 7) };
        assert!(doubts.is_ended(&extended));
    }

    /// The command may have been held up on its way.
    #[test]
    fn one_that_is_recorded_after_the_catalog_was_read_is_over_too() {
        let mut doubts = DrainDoubts::default();
        doubts.note(doubtful("ann", 7));
        doubts.end(true);
        assert!(!doubts.are_open());
        assert!(doubts.is_ended(&recorded("ann", 7)));
    }

    #[test]
    fn an_answer_leaves_no_doubt() {
        let mut doubts = DrainDoubts::default();
        doubts.note(doubtful("ann", 7));
        doubts.note(doubtful("ann", 8));
        doubts.forget(&doubtful("ann", 7));
        assert!(doubts.are_open());
        doubts.settle(&recorded("ann", 8));
        assert!(!doubts.are_open());
        doubts.end(false);
        assert!(!doubts.is_ended(&recorded("ann", 7)) && !doubts.is_ended(&recorded("ann", 8)));
    }

    #[test]
    fn those_that_were_ended_are_forgotten_first() {
        let mut doubts = DrainDoubts::default();
        doubts.note(doubtful("ann", 0));
        doubts.end(false);
        for begun_ms in 1..=MAX_DOUBTS as u64 {
            doubts.note(doubtful("ann", begun_ms));
        }
        assert!(!doubts.is_ended(&recorded("ann", 0)));
        doubts.end(false);
        assert!(doubts.is_ended(&recorded("ann", 1)));
        assert_eq!(doubts.0.len(), MAX_DOUBTS);
    }
}
