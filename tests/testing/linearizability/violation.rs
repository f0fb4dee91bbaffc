//! The report about a history that no order explains.

use std::fmt;

use super::{Model, Operation, OperationOf, Outcome};

/// Lines of the explained part that are shown; the last ones say what the state is.
const SHOWN: usize = 16;

/// The shortest beginning of a history that no order explains, and how far an order goes. An
/// operation that had not returned by its end need not have taken effect, but counts with the
/// answer that it gave later.
#[non_exhaustive]
pub struct Violation<M: Model> {
    pub key: M::Key,
    pub initial: M::State,
    /// The furthest that any order goes: operations in that order, each with the state after it.
    pub explained: Vec<(OperationOf<M>, M::State)>,
    /// What was called before the first of these returned and has no place in that order. The
    /// first one is what cannot be explained; the others might have come before it and do not
    /// help.
    pub stuck: Vec<OperationOf<M>>,
    /// Operations on the key in the whole history.
    pub of: usize,
}

impl<M: Model> Violation<M> {
    /// Operations in the beginning that has no order.
    #[must_use]
    pub fn prefix_len(&self) -> usize {
        self.explained.len() + self.stuck.len()
    }
    /// The state from which no operation is possible.
    #[must_use]
    pub fn state(&self) -> &M::State {
        self.explained.last().map_or(&self.initial, |(_, state)| state)
    }
}

impl<M: Model> fmt::Display for Violation<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, of, key) = (self.prefix_len(), self.of, &self.key);
        writeln!(f, "no order explains the first {count} of {of} operations on {key:?}")?;
        writeln!(f, "at first: {:?}", self.initial)?;
        let hidden = self.explained.len().saturating_sub(SHOWN);
        if hidden > 0 {
            writeln!(f, "  ... {hidden} operations ...")?;
        }
        for (operation, state) in &self.explained[hidden..] {
            writeln!(f, "  {}  => {state:?}", Line(operation))?;
        }
        writeln!(f, "none of these can go on from {:?}:", self.state())?;
        for operation in &self.stuck {
            writeln!(f, "  {}", Line(operation))?;
        }
        Ok(())
    }
}

impl<M: Model> fmt::Debug for Violation<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One operation on one line.
struct Line<'a, Op, Answer>(&'a Operation<Op, Answer>);

impl<Op: fmt::Debug, Answer: fmt::Debug> fmt::Display for Line<'_, Op, Answer> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operation { client, op, called, outcome } = self.0;
        match outcome {
            Outcome::Answered { at, answer } => {
                write!(f, "[{called:>6}, {at:>6}] client {client}: {op:?} -> {answer:?}")
            }
            Outcome::Unknown => {
                write!(f, "[{called:>6},      ?] client {client}: {op:?} -> unknown")
            }
        }
    }
}
