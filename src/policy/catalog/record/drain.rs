//! Drains: a node is to lead nothing, for whom, and until when.

use shardhost_storage::NodeId;

use super::{IntentId, Revision};

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainState {
    /// Leaders are being moved away.
    Draining,
    /// None are left, and none come.
    Drained,
    /// The deadline passed with [`DrainFallback::Proceed`]: it counts as drained.
    Partial,
    /// The deadline passed with [`DrainFallback::GiveUp`]: the node takes leaders again.
    GivenUp,
}

/// What happens when the deadline of a drain passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainFallback {
    /// The node takes leaders again.
    GiveUp,
    /// The node stays without those that it has handed over; the rest are elected elsewhere when
    /// it stops.
    Proceed,
}

/// A node is to lead nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainIntent {
    /// The node.
    pub node: NodeId,
    /// Of its last change.
    pub revision: Revision,
    /// Names this drain. Whoever changes it says it, so that nobody ends the drain of another.
    pub id: IntentId,
    /// Who asked for it, 1 to [`MAX_TEXT_BYTES`](super::super::MAX_TEXT_BYTES) bytes.
    pub owner: Box<str>,
    /// How far it is.
    pub state: DrainState,
    /// What happens at the deadline.
    pub fallback: DrainFallback,
    /// When it was asked for, in milliseconds since 1970.
    pub begun_ms: u64,
    /// Until when it is to be done.
    pub deadline_ms: u64,
    /// When it ends by itself, done or not: its owner may be gone.
    pub expires_ms: u64,
}

impl DrainIntent {
    /// Whether the node is to lead nothing.
    #[must_use]
    pub fn keeps_leaders_away(&self) -> bool {
        self.state != DrainState::GivenUp
    }
}
