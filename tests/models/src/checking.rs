//! Runs the checker, and returns what it found.

use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, Model};

/// What the checker found about a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The properties hold in each of so many states.
    Holds(usize),
    /// A property fails: its name, and the actions that lead there.
    Fails(&'static str, String),
}

impl Verdict {
    /// Whether every property holds.
    #[must_use]
    pub const fn holds(&self) -> bool {
        matches!(self, Self::Holds(_))
    }
}

/// A model that can be checked.
pub trait Checkable:
    Model<
        State: Debug + Hash + Clone + PartialEq + Send + Sync + 'static,
        Action: Debug + Clone + PartialEq,
    > + Send
    + Sync
    + 'static
{
}

impl<M> Checkable for M where
    M: Model<
            State: Debug + Hash + Clone + PartialEq + Send + Sync + 'static,
            Action: Debug + Clone + PartialEq,
        > + Send
        + Sync
        + 'static
{
}

/// Visits every state that a model can reach, on both cores of a small machine.
#[must_use]
pub fn check<M: Checkable>(model: M) -> Verdict {
    let checker = model.checker().threads(2).spawn_bfs().join();
    let mut discoveries: Vec<_> = checker.discoveries().into_iter().collect();
    discoveries.sort_by_key(|(name, _)| *name);
    match discoveries.into_iter().next() {
        None => Verdict::Holds(checker.unique_state_count()),
        Some((name, path)) => {
            let actions: Vec<String> =
                path.into_actions().iter().map(|action| format!("{action:?}")).collect();
            Verdict::Fails(name, actions.join(", "))
        }
    }
}
