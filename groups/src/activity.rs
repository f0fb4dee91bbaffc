//! Where a worker is: written by the worker as it goes, read by a watchdog beside it.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use shardhost_storage::GroupId;

/// What a worker does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nothing is to be done.
    #[default]
    Waiting,
    /// Inputs are given to their groups.
    Inputs,
    Ticks,
    /// Groups finish what the inputs brought up.
    Groups,
    /// Effects are carried out: answers, hooks, messages.
    Effects,
    /// The queue of the log writer is full: the disk is a thousand tasks behind.
    LogQueue,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::Waiting, Self::Inputs, Self::Ticks, Self::Groups, Self::Effects, Self::LogQueue];

    /// Whether time in this phase is not the worker's own.
    #[must_use]
    pub const fn is_waiting(self) -> bool {
        matches!(self, Self::Waiting | Self::LogQueue)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting for inputs",
            Self::Inputs => "taking inputs",
            Self::Ticks => "ticking groups",
            Self::Groups => "finishing a round of its groups",
            Self::Effects => "carrying out effects",
            Self::LogQueue => "waiting for the log writer",
        })
    }
}

/// Where a worker is.
#[derive(Debug, Default)]
pub struct Activity {
    round: AtomicU64,
    phase: AtomicU8,
    group: AtomicU64,
}

/// What a look at it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub round: u64,
    pub phase: Phase,
    /// The group that it visited last.
    pub group: GroupId,
}

impl Activity {
    /// The worker begins with this.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        if phase == Phase::Waiting {
            self.round.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The worker does something with this group.
    pub(super) fn visit(&self, group: GroupId) {
        self.group.store(group.get(), Ordering::Relaxed);
    }

    /// Where the worker is at this moment.
    #[must_use]
    pub fn look(&self) -> Seen {
        let phase = usize::from(self.phase.load(Ordering::Relaxed));
        Seen {
            round: self.round.load(Ordering::Relaxed),
            phase: Phase::ALL.get(phase).copied().unwrap_or_default(),
            group: GroupId::new(self.group.load(Ordering::Relaxed)),
        }
    }
}
