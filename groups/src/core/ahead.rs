//! Changes of members do not wait for a state machine that stalls, or lost its state.
//!
//! A change is part of the log, and does not concern the machine. So a replica whose machine stalls
//! takes the changes that are committed and durable here, and counts the entries that it has looked
//! through as applied to raft. Otherwise raft would let no replica campaign that has a change to
//! apply, or much else; a leader would neither finish a change nor transfer while one is pending;
//! and a replica that waits for a snapshot would count on members that were removed.
//!
//! The machine comes to the same entries later and passes the changes by, as one does that replays its
//! log.

use super::GroupCore;
use crate::core::Effects;
use crate::error::GroupFault;
use crate::known_bugs::KnownBug;

/// Bytes of the log that one group looks through in one tick.
const BYTES_PER_TICK: u64 = 4 << 20;
/// Bytes that all groups of a worker look through in one of its steps, about: what they read holds up
/// its heartbeats.
const BYTES_PER_STEP: u64 = 16 << 20;

impl GroupCore {
    /// Takes the changes of members that the machine cannot come to. The groups of a worker
    /// share what is read in one step: a full disk makes all their machines stall together.
    ///
    /// A change is taken when the one before is durable, as ever: a restart forgets at most the last.
    pub(super) fn go_ahead_of_machine(&mut self, effects: &mut Effects) {
        let log = &self.raw.raft.raft_log;
        let (before, end) = (log.applied, log.committed.min(log.persisted));
        let next_waits =
            self.membership.config_index.get() == before + 1 && !self.durable.is_meta_durable();
        if before >= end || next_waits {
            return;
        }
        let left = BYTES_PER_STEP.saturating_sub(effects.looked_ahead).min(BYTES_PER_TICK);
        if left == 0 {
            return;
        }
        let entries = match self.raw.store().read(before + 1, end + 1, left) {
            Ok(entries) => entries,
            Err(error) => return effects.fault(self.id, GroupFault::Log(error)),
        };
        let mut passed = before;
        for entry in entries {
            effects.looked_ahead += entry.data.len() as u64;
            if self.holds_back(&entry, effects) {
                break;
            }
            passed = entry.index;
        }
        self.count_as_applied(passed);
    }

    /// Whether the state machine may take long to come to what is committed, or never does.
    pub(super) fn goes_ahead(&self) -> bool {
        let waits = self.config.bugs.has(KnownBug::MembershipWaitsForMachine);
        let stands_still = self.stands_still() || self.recovery.is_lost();
        stands_still && !waits && !self.replaces_log() && !self.has_pending_snapshot()
    }

    /// Up to where nothing is left in the log that changes the members. The state machine may be behind.
    pub(super) fn passed(&self) -> u64 {
        self.raw.raft.raft_log.applied
    }

    /// Informs raft, which ignores it when it knows of more.
    pub(super) fn count_as_applied(&mut self, index: u64) {
        if index > self.passed() {
            self.raw.advance_apply_to(index);
        }
    }
}
