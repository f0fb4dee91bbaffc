//! Whether what concurrent clients saw could have come from operations that took effect one at a
//! time, each at some moment between its call and its return.
//!
//! [`check`] looks for such an order with the search of Wing and Gong, with Lowe's memory of the
//! (operations placed, state) pairs that led nowhere. Operations on different keys are checked
//! apart. One whose outcome is unknown may take effect at any moment after its call, or never.
//!
//! The search is bounded. A check that runs out of its [`Limits`] proves nothing, and callers
//! treat it as a failure: [`Verdict::demand`] does.
//!
//! This module knows nothing of Raft, time or threads: it judges what was written down.
//!
//! ```
//! use shardhost_testing::linearizability::table::{Action, Answer, Table, TableOp};
//! use shardhost_testing::linearizability::{Limits, Recorder, check};
//!
//! let recorder = Recorder::new();
//! // Client 1 writes and is answered; client 2 writes and never hears what became of it.
//! let put = recorder.call(1, TableOp::new("color", Action::Put("blue")));
//! put.answered(Answer::Done { existed: false });
//! let lost = recorder.call(2, TableOp::new("color", Action::Put("red")));
//! lost.unknown();
//! // Client 1 reads its own write: the other one took effect later, or never.
//! let get = recorder.call(1, TableOp::new("color", Action::Get));
//! get.answered(Answer::Value(Some("blue")));
//! check(&Table::new(), &recorder.history(), Limits::default()).demand();
//!
//! // A value that was never written is explained by no order.
//! let get = recorder.call(3, TableOp::new("color", Action::Get));
//! get.answered(Answer::Value(Some("green")));
//! let verdict = check(&Table::new(), &recorder.history(), Limits::default());
//! assert!(verdict.is_violation());
//! ```

mod history;
mod search;
mod taken;
mod violation;

pub mod table;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hash;
use std::time::{Duration, Instant};

pub use history::{Call, History, Operation, Outcome, Recorder};
pub use violation::Violation;

use search::{Found, Search};

/// What the operations would do if they took effect one at a time.
pub trait Model {
    /// Names the part of the state that an operation concerns.
    type Key: Clone + Ord + fmt::Debug;
    /// What a client asks for.
    type Op: Clone + fmt::Debug;
    type Answer: Clone + fmt::Debug;
    /// One part of the state. Equal states must behave equally.
    type State: Clone + Eq + Hash + fmt::Debug;

    /// The part that `op` concerns. Operations on different parts must not influence each other.
    fn key(&self, op: &Self::Op) -> Self::Key;

    /// A part before the first operation.
    fn initial(&self, key: &Self::Key) -> Self::State;

    /// Whether `op` never changes the state, whatever is answered. Such operations are not tried in
    /// every order.
    fn only_reads(&self, op: &Self::Op) -> bool {
        let _ = op;
        false
    }

    /// The state after `op`, if `op` can take effect in `state` and give this answer. `None` as the
    /// answer: it was not received, and any will do. `None` as the result: it cannot.
    fn step(
        &self,
        state: &Self::State,
        op: &Self::Op,
        answer: Option<&Self::Answer>,
    ) -> Option<Self::State>;
}

/// An operation of a model.
pub type OperationOf<M> = Operation<<M as Model>::Op, <M as Model>::Answer>;

/// A history of a model's operations.
pub type HistoryOf<M> = History<<M as Model>::Op, <M as Model>::Answer>;

/// How much a check may take, over all keys together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Operations that are tried. Each that fits takes about 100 bytes of memory. Default one
    /// million.
    pub steps: u64,
    /// Time that passes. Default 10 s.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { steps: 1_000_000, time: Duration::from_secs(10) }
    }
}

impl Limits {
    /// Sets the number of operations that are tried.
    #[must_use]
    pub const fn steps(mut self, steps: u64) -> Self {
        self.steps = steps;
        self
    }
    /// Sets the time that may pass.
    #[must_use]
    pub const fn time(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }
}

/// What a check came to.
#[must_use = "a verdict that nobody looks at checks nothing"]
#[non_exhaustive]
pub enum Verdict<M: Model> {
    /// There is an order that explains every answer.
    Linearizable,
    Violation(Box<Violation<M>>),
    /// The limits were reached while this key was checked. It proves nothing: a failure.
    OutOfTime {
        key: M::Key,
        operations: usize,
        /// Operations that were tried, on all keys.
        steps: u64,
    },
}

impl<M: Model> Verdict<M> {
    /// Whether there is an order that explains every answer.
    #[must_use]
    pub const fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable)
    }
    /// Whether there is none.
    #[must_use]
    pub const fn is_violation(&self) -> bool {
        matches!(self, Self::Violation(_))
    }
    /// For tests: accepts nothing but [`Verdict::Linearizable`].
    ///
    /// # Panics
    /// With the explanation, on everything else.
    #[track_caller]
    pub fn demand(&self) {
        assert!(self.is_linearizable(), "{self}");
    }
}

impl<M: Model> fmt::Display for Verdict<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linearizable => f.write_str("linearizable"),
            Self::Violation(violation) => violation.fmt(f),
            Self::OutOfTime { key, operations, steps } => write!(
                f,
                "the check ran out of its limits after {steps} steps, at the {operations} \
                 operations on {key:?}: it proves nothing"
            ),
        }
    }
}

impl<M: Model> fmt::Debug for Verdict<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Looks for an order that explains the history, one key after the other.
pub fn check<M: Model>(model: &M, history: &HistoryOf<M>, limits: Limits) -> Verdict<M> {
    let mut parts: BTreeMap<M::Key, Vec<&OperationOf<M>>> = BTreeMap::new();
    for operation in history.operations() {
        parts.entry(model.key(&operation.op)).or_default().push(operation);
    }
    let deadline = Instant::now().checked_add(limits.time);
    let mut steps = 0;
    for (key, operations) in parts {
        let count = operations.len();
        let mut search = Search::new(model, &key, operations);
        match search.run(limits.steps, deadline, &mut steps) {
            Found::Order => {}
            Found::None => return Verdict::Violation(Box::new(search.explain(key))),
            Found::OutOfTime => return Verdict::OutOfTime { key, operations: count, steps },
        }
    }
    Verdict::Linearizable
}
