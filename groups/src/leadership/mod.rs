//! Leadership as something to listen to: edges, callbacks, streams, and tasks that live as long
//! as a leadership.

mod event;
mod hub;

use shardhost_storage::{GroupId, Term};

use crate::error::LeaderHint;

pub use crate::selector::GroupSelector;
pub use event::{LeaderAcquired, LeaderLost, LeadershipEvent};
pub use hub::{HookGuard, HookKind, LeadershipEvents, LeadershipHub};

/// A change of this replica's leadership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    pub group: GroupId,
    /// The term that was won.
    pub term: Term,
    pub kind: EdgeKind,
}

/// What happened to a leadership. For one replica: `Acquired`; then `Ready` and `Caretaker`, never
/// the same twice in a row; then `Lost`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EdgeKind {
    /// Elected; the vote that made it so is durable.
    Acquired,
    /// The first entry of the term is applied here, and with it everything that was committed
    /// before; users are served.
    Ready,
    /// Users are not served: a policy refuses that this node leads. The status has the reason.
    Caretaker,
    Lost {
        cause: LossCause,
        /// Who leads, if it is known already.
        successor: Option<LeaderHint>,
    },
}

/// Why a leadership ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossCause {
    /// Another replica campaigned in a higher term.
    HigherTerm,
    /// No quorum answered for an election timeout.
    QuorumLost,
    Transferred,
    /// The replica was removed from the group or the host.
    Removed,
    /// The host or the group stopped.
    Stopped,
    Fault,
}
