//! The numbers that name things. Newtypes, so that one cannot be taken for another.

use std::fmt;
use std::num::NonZeroU64;

/// A process: one host of the cluster. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(NonZeroU64);

/// A Raft group: the consensus side of one shard. Any number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupId(u64);

/// One replica of a group. Never zero, and never used again in the same group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(NonZeroU64);

/// A term of Raft: at most one leader each. Zero: before the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(u64);

/// A position in a group's log. The first entry is at 1; zero: before the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogIndex(u64);

/// A place in a log together with the term of the entry there: the two name an entry for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogPosition {
    pub term: Term,
    pub index: LogIndex,
}

macro_rules! plain_id {
    ($name:ident, $word:literal) => {
        impl $name {
            /// Wraps the number.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }
            /// The number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }
        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }
        id_text!($name, $word);
    };
}

macro_rules! nonzero_id {
    ($name:ident, $word:literal) => {
        impl $name {
            /// Wraps the number; `None` for zero.
            #[must_use]
            pub const fn new(value: u64) -> Option<Self> {
                match NonZeroU64::new(value) {
                    Some(value) => Some(Self(value)),
                    None => None,
                }
            }
            /// Wraps the number.
            ///
            /// # Panics
            /// If it is zero. For literals and tests; what comes from outside goes through
            /// `new`.
            #[must_use]
            pub const fn must(value: u64) -> Self {
                match NonZeroU64::new(value) {
                    Some(value) => Self(value),
                    None => panic!(concat!("a ", $word, " id is never zero")),
                }
            }
            /// The number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0.get()
            }
        }
        id_text!($name, $word);
    };
}

macro_rules! id_text {
    ($name:ident, $word:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.get().fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($word, " {}"), self.get())
            }
        }
    };
}

nonzero_id!(NodeId, "node");
nonzero_id!(ReplicaId, "replica");
plain_id!(GroupId, "group");
plain_id!(Term, "term");
plain_id!(LogIndex, "index");

impl LogIndex {
    /// The index after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl LogPosition {
    /// A position from its two numbers.
    #[must_use]
    pub const fn new(term: u64, index: u64) -> Self {
        Self { term: Term(term), index: LogIndex(index) }
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index.0, self.term.0)
    }
}

impl fmt::Debug for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
