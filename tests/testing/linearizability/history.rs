//! What clients saw: operations with the moments of their call and return.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<Op, Answer> {
    /// Who called. Only for people: nothing is concluded from it.
    pub client: u64,
    pub op: Op,
    /// The moment of the call, in any unit that all operations of a history share.
    pub called: u64,
    pub outcome: Outcome<Answer>,
}

/// How an operation ended. One that surely took no effect has no place in a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<Answer> {
    Answered {
        /// The moment when the client knew, not before [`Operation::called`].
        at: u64,
        answer: Answer,
    },
    /// Unknown: it may take effect at any moment after its call, or never.
    Unknown,
}

impl<Answer> Outcome<Answer> {
    /// The answer, if there was one.
    #[must_use]
    pub const fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Answered { answer, .. } => Some(answer),
            Self::Unknown => None,
        }
    }
}

/// Operations in no particular order. Two whose moments touch count as concurrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History<Op, Answer> {
    operations: Vec<Operation<Op, Answer>>,
}

impl<Op, Answer> Default for History<Op, Answer> {
    fn default() -> Self {
        Self { operations: Vec::new() }
    }
}

impl<Op, Answer> History<Op, Answer> {
    /// A history without operations.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds an operation.
    pub fn push(&mut self, operation: Operation<Op, Answer>) {
        self.operations.push(operation);
    }
    /// All operations.
    #[must_use]
    pub fn operations(&self) -> &[Operation<Op, Answer>] {
        &self.operations
    }
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.operations.len()
    }
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

impl<Op, Answer> FromIterator<Operation<Op, Answer>> for History<Op, Answer> {
    fn from_iter<T: IntoIterator<Item = Operation<Op, Answer>>>(operations: T) -> Self {
        Self { operations: operations.into_iter().collect() }
    }
}

/// Writes down what clients of one process do. Clones write to the same history; calls and
/// returns are ordered as they are written down.
pub struct Recorder<Op, Answer> {
    notes: Arc<Mutex<Notes<Op, Answer>>>,
}

struct Notes<Op, Answer> {
    moment: u64,
    /// `None`: it surely took no effect.
    operations: Vec<Option<Operation<Op, Answer>>>,
}

impl<Op, Answer> Clone for Recorder<Op, Answer> {
    fn clone(&self) -> Self {
        Self { notes: Arc::clone(&self.notes) }
    }
}

impl<Op, Answer> Default for Recorder<Op, Answer> {
    fn default() -> Self {
        let notes = Notes { moment: 0, operations: Vec::new() };
        Self { notes: Arc::new(Mutex::new(notes)) }
    }
}

impl<Op, Answer> fmt::Debug for Recorder<Op, Answer> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} operations", self.notes.lock().operations.len())
    }
}

impl<Op, Answer> Recorder<Op, Answer> {
    /// A recorder of an empty history.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A client is about to call. Its outcome is reported to the returned value; one that is
    /// dropped without a report counts as unknown.
    pub fn call(&self, client: u64, op: Op) -> Call<Op, Answer> {
        let mut notes = self.notes.lock();
        notes.moment += 1;
        let called = notes.moment;
        notes.operations.push(Some(Operation { client, op, called, outcome: Outcome::Unknown }));
        let place = notes.operations.len() - 1;
        Call { notes: Arc::clone(&self.notes), place }
    }

    /// What was written down so far; operations under way are unknown.
    #[must_use]
    pub fn history(&self) -> History<Op, Answer>
    where
        Op: Clone,
        Answer: Clone,
    {
        self.notes.lock().operations.iter().flatten().cloned().collect()
    }
}

/// An operation under way.
#[must_use = "tell it what became of the operation"]
pub struct Call<Op, Answer> {
    notes: Arc<Mutex<Notes<Op, Answer>>>,
    place: usize,
}

impl<Op, Answer> fmt::Debug for Call<Op, Answer> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation {}", self.place)
    }
}

impl<Op, Answer> Call<Op, Answer> {
    /// The client was answered.
    pub fn answered(self, answer: Answer) {
        let mut notes = self.notes.lock();
        notes.moment += 1;
        let at = notes.moment;
        if let Some(operation) = &mut notes.operations[self.place] {
            operation.outcome = Outcome::Answered { at, answer };
        }
    }
    /// It surely took no effect and never will: the operation is forgotten.
    pub fn refused(self) {
        self.notes.lock().operations[self.place] = None;
    }
    /// Its outcome is unknown.
    pub fn unknown(self) {}
}
