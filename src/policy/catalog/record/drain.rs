//! Drains: a node is to lead nothing, for which owner, and until when.

use std::time::Duration;

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
    pub node: NodeId,
    pub revision: Revision,
    /// Names this drain. A command that changes it names it, so that no operator ends the drain of
    /// another.
    pub id: IntentId,
    /// Who asked for it, 1 to [`MAX_TEXT_BYTES`](super::super::MAX_TEXT_BYTES) bytes.
    pub owner: Box<str>,
    pub state: DrainState,
    /// What happens at the deadline.
    pub fallback: DrainFallback,
    /// When it was asked for, in milliseconds since 1970.
    pub begun_ms: u64,
    /// Until when it is to be done, on its own clock.
    pub deadline_ms: u64,
    /// When it expires, done or not, on its own clock: its owner may be gone.
    pub expires_ms: u64,
    /// The time on this drain's clock: the time of the command that began or extended it, plus what
    /// passed since by the clocks of leaders of the system group, which never jump.
    pub clock_ms: u64,
}

impl DrainIntent {
    /// How long it is until the deadline, as of this record.
    #[must_use]
    pub const fn left(&self) -> Duration {
        Duration::from_millis(self.deadline_ms.saturating_sub(self.clock_ms))
    }

    /// Whether the node is to lead nothing.
    #[must_use]
    pub fn keeps_leaders_away(&self) -> bool {
        self.state != DrainState::GivenUp
    }
}
