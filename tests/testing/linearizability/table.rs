//! The model of a table: a value per key, with put, delete, compare-and-set and get. A register
//! is a table with one key.

use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;

use super::Model;

/// A table from keys to values, as if all its operations came one after the other.
pub struct Table<K, V>(PhantomData<fn() -> (K, V)>);

impl<K, V> Table<K, V> {
    /// The model.
    #[must_use]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Table")
    }
}

/// Something done to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOp<K, V> {
    pub key: K,
    pub action: Action<V>,
}

impl<K, V> TableOp<K, V> {
    /// An operation from its parts.
    pub const fn new(key: K, action: Action<V>) -> Self {
        Self { key, action }
    }
}

/// What is done to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<V> {
    Get,
    /// Sets the value, whatever was there.
    Put(V),
    /// Removes the value, if there is one.
    Delete,
    /// Sets or removes the value if what is there is what is expected.
    CompareAndSet {
        /// What must be there; `None`: nothing.
        expect: Option<V>,
        /// What is put there; `None`: nothing.
        value: Option<V>,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<V> {
    /// To a get: what is there.
    Value(Option<V>),
    /// To a change that was carried out.
    Done {
        /// There was a value before.
        existed: bool,
    },
    /// To a change that was carried out, from a table that does not say what was there before.
    Written,
    /// To a compare-and-set whose expectation failed: what is there.
    Differs { actual: Option<V> },
}

impl<K, V> Model for Table<K, V>
where
    K: Clone + Ord + fmt::Debug,
    V: Clone + Eq + Hash + fmt::Debug,
{
    type Key = K;
    type Op = TableOp<K, V>;
    type Answer = Answer<V>;
    type State = Option<V>;

    fn key(&self, op: &TableOp<K, V>) -> K {
        op.key.clone()
    }

    fn only_reads(&self, op: &TableOp<K, V>) -> bool {
        matches!(op.action, Action::Get)
    }

    fn initial(&self, _: &K) -> Option<V> {
        None
    }

    fn step(
        &self,
        state: &Option<V>,
        op: &TableOp<K, V>,
        heard: Option<&Answer<V>>,
    ) -> Option<Option<V>> {
        let existed = state.is_some();
        let (after, answer) = match &op.action {
            Action::Get => (state.clone(), Answer::Value(state.clone())),
            Action::Put(value) => (Some(value.clone()), Answer::Done { existed }),
            Action::Delete => (None, Answer::Done { existed }),
            Action::CompareAndSet { expect, value } if expect == state => {
                (value.clone(), Answer::Done { existed })
            }
            Action::CompareAndSet { .. } => {
                (state.clone(), Answer::Differs { actual: state.clone() })
            }
        };
        let fits = heard.is_none_or(|heard| match (heard, &answer) {
            (Answer::Written, Answer::Done { .. }) => true,
            (heard, answer) => heard == answer,
        });
        fits.then_some(after)
    }
}
