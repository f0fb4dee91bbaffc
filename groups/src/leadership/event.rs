//! Events for listeners, and the selection of groups. Knows no listener.

use std::collections::BTreeMap;
use std::sync::Arc;

use shardhost_storage::{GroupId, Term};

use super::{Edge, EdgeKind, LossCause};
use crate::error::LeaderHint;
use crate::selector::GroupSelector;

/// This replica was elected, and its vote is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaderAcquired {
    pub group: GroupId,
    pub term: Term,
    /// Grows with every edge of this host.
    pub revision: u64,
}

/// This replica leads no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaderLost {
    pub group: GroupId,
    pub term: Term,
    /// Grows with every edge of this host.
    pub revision: u64,
    pub cause: LossCause,
    /// Who leads, if it is known already.
    pub successor: Option<LeaderHint>,
}

/// An event for a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeadershipEvent {
    /// Elected. Also sent, on registration, for every existing leadership.
    Acquired(LeaderAcquired),
    /// Everything that was committed before is applied here: the group serves.
    Ready(LeaderAcquired),
    /// Leads, and serves no users from here on: the status has the reason.
    Caretaker(LeaderAcquired),
    Lost(LeaderLost),
}

impl LeadershipEvent {
    /// The group.
    #[must_use]
    pub const fn group(&self) -> GroupId {
        match self {
            Self::Acquired(event) | Self::Ready(event) | Self::Caretaker(event) => event.group,
            Self::Lost(event) => event.group,
        }
    }
    /// The term that is or was led.
    #[must_use]
    pub const fn term(&self) -> Term {
        match self {
            Self::Acquired(event) | Self::Ready(event) | Self::Caretaker(event) => event.term,
            Self::Lost(event) => event.term,
        }
    }
    /// Grows with every edge of this host.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        match self {
            Self::Acquired(event) | Self::Ready(event) | Self::Caretaker(event) => event.revision,
            Self::Lost(event) => event.revision,
        }
    }
}

/// An edge as listeners get it.
pub(super) fn event_of(edge: &Edge, revision: u64) -> LeadershipEvent {
    let (group, term) = (edge.group, edge.term);
    match edge.kind {
        EdgeKind::Acquired => LeadershipEvent::Acquired(LeaderAcquired { group, term, revision }),
        EdgeKind::Ready => LeadershipEvent::Ready(LeaderAcquired { group, term, revision }),
        EdgeKind::Caretaker => LeadershipEvent::Caretaker(LeaderAcquired { group, term, revision }),
        EdgeKind::Lost { cause, successor } => {
            LeadershipEvent::Lost(LeaderLost { group, term, revision, cause, successor })
        }
    }
}

/// Whether a selector is about a group, as far as the labels say.
pub(super) fn selects(
    groups: &GroupSelector,
    labels: &BTreeMap<GroupId, Arc<BTreeMap<String, String>>>,
    group: GroupId,
) -> bool {
    labels
        .get(&group)
        .map_or_else(|| groups.means(group, &BTreeMap::new()), |labels| groups.means(group, labels))
}
