//! Bugs in the bounds of what clients hold, which the simulation puts back to show that it notices them.
//!
//! Only in tests; in every other build [`KnownBugs::has`] is `false` at compile time.

/// A bug that can be put back on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KnownBug {
    /// What is kept for a client stays when that is gone.
    KeepForTheGone,
    /// An answer to a read is charged until it is there, and not until it is taken.
    ReadChargedWhileItRuns,
    /// A long answer to a write is not charged.
    WriteAnswersUncharged,
    /// What goes to the connection is given back before the connection has taken it.
    GiveBackWhenHanded,
    /// The batches of one connection have no share.
    NoShareOfConnection,
    /// One connection may have all streams.
    NoBoundOfStreams,
    /// A client that takes no answers keeps what others wait for.
    StalledStay,
    /// A batch that is half sent keeps what others wait for.
    HalfBatchesStay,
    /// A stream that does nothing keeps its place.
    IdleStay,
    /// A batch is read from the connection before there is room for it.
    ReadBeforeRoom,
}

/// The bug that is switched on. None by default.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KnownBugs {
    #[cfg(test)]
    pub(super) on: Option<KnownBug>,
}

impl KnownBugs {
    /// Whether a bug is switched on.
    #[cfg(test)]
    pub(super) fn has(self, bug: KnownBug) -> bool {
        self.on == Some(bug)
    }

    /// Whether a bug is switched on.
    #[cfg(not(test))]
    pub(super) const fn has(self, _: KnownBug) -> bool {
        false
    }
}
