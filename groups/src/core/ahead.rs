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

/// Bytes of the log that are looked through in one tick.
const BYTES_PER_TICK: u64 = 4 << 20;

impl GroupCore {
    /// At every tick: takes the changes of members that the machine cannot come to.
    ///
    /// A change is taken when the one before is durable, as ever: a restart forgets at most the last.
    pub(super) fn go_ahead_of_machine(&mut self, effects: &mut Effects) {
        let stands_still = self.stalled.is_some() || self.recovery.is_lost();
        let waits = self.config.bugs.has(KnownBug::MembershipWaitsForMachine);
        if !stands_still || waits || self.snapshots.replaces_log() || self.has_pending_snapshot() {
            return;
        }
        let log = &self.raw.raft.raft_log;
        let (before, end) = (log.applied, log.committed.min(log.persisted));
        if before >= end {
            return;
        }
        let entries = match self.raw.store().read(before + 1, end + 1, BYTES_PER_TICK) {
            Ok(entries) => entries,
            Err(error) => return effects.fault(self.id, GroupFault::Log(error)),
        };
        let mut passed = before;
        for entry in entries {
            if self.holds_back(&entry, effects) {
                break;
            }
            passed = entry.index;
        }
        self.count_as_applied(passed);
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
