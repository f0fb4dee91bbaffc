//! Handing committed entries to the state machine, in order and no faster than it takes them.

use std::collections::VecDeque;

use raft::GetEntriesContext;
use raft::eraftpb::{Entry, EntryType};
use shardhost_storage::{LogIndex, LogPosition};

use super::GroupCore;
use crate::apply::ApplyWork;
use crate::convert::{is_check, is_requirement};
use crate::core::Effects;
use crate::error::GroupFault;
use crate::known_bugs::KnownBug;
use crate::machine::Command;

/// Bytes of durable entries that stay in memory for a state machine that has not come to them.
const UNAPPLIED_BYTES: usize = 8 << 20;

/// Where the state machine stands, as the replica knows.
#[derive(Debug)]
pub(super) struct ApplyProgress {
    applied: u64,
    handed: u64,
    /// Committed and durable here: may be handed over.
    released: u64,
    in_flight: VecDeque<(u64, usize)>,
    in_flight_bytes: usize,
    pub(super) durable: Option<LogIndex>,
}

/// How entries come to the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handed {
    /// They were handed over before.
    Nothing,
    /// It has nothing to do with them, and nothing before them: they count as applied.
    Skipped,
    /// Behind those that are on their way to it.
    Queued,
}

impl ApplyProgress {
    /// The machine is at `applied`, and raft hands out committed entries behind `passed`.
    pub(super) const fn new(applied: u64, passed: u64, durable: Option<LogIndex>) -> Self {
        Self {
            applied,
            handed: applied,
            released: passed,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            durable,
        }
    }

    pub(super) const fn applied(&self) -> u64 {
        self.applied
    }

    pub(super) const fn handed(&self) -> u64 {
        self.handed
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.applied == self.released
    }

    /// The state machine will be replaced by a snapshot at this index.
    pub(super) fn skip_to(&mut self, index: u64) {
        self.handed = index;
        self.released = index;
    }

    /// The state machine will get the state at this index, and continue from there in the same log.
    pub(super) fn go_on_from(&mut self, index: u64) {
        self.handed = index;
        self.released = self.released.max(index);
    }

    pub(super) fn finish_restore(&mut self, index: u64) {
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.applied = index;
    }

    /// Whether everything that was released was handed over.
    const fn is_level(&self) -> bool {
        self.handed == self.released
    }

    /// What was released and not handed over: the next, and the end.
    fn backlog(&self) -> Option<(u64, u64)> {
        (self.handed < self.released).then_some((self.handed + 1, self.released + 1))
    }

    /// Whether less than so much is on its way to the state machine.
    const fn has_room(&self, bytes: usize) -> bool {
        self.in_flight_bytes < bytes
    }

    /// What is committed may be handed over up to here. Returns whether that is news.
    const fn release(&mut self, last: u64) -> bool {
        let news = last > self.released;
        if news {
            self.released = last;
        }
        news
    }

    /// Entries up to here are handed over, with so many bytes of commands, if there are any.
    fn hand(&mut self, last: u64, commands: Option<usize>) -> Handed {
        if last == self.handed {
            return Handed::Nothing;
        }
        self.handed = last;
        if commands.is_none() && self.in_flight.is_empty() {
            return Handed::Skipped;
        }
        let bytes = commands.unwrap_or(0);
        self.in_flight.push_back((last, bytes));
        self.in_flight_bytes += bytes;
        Handed::Queued
    }

    /// The state machine is done with everything that was handed over up to here.
    fn settle(&mut self, last: u64) {
        while self.in_flight.front().is_some_and(|(index, _)| *index <= last) {
            if let Some((_, bytes)) = self.in_flight.pop_front() {
                self.in_flight_bytes -= bytes;
            }
        }
    }

    /// This is applied. Returns whether that is news.
    const fn advance(&mut self, index: u64) -> bool {
        let news = index > self.applied;
        if news {
            self.applied = index;
        }
        news
    }

    pub(super) fn shrink(&mut self) {
        self.in_flight.shrink_to_fit();
    }
}

impl GroupCore {
    /// Whether the next committed entries go to the state machine at once.
    pub(super) fn hands_over_at_once(&self) -> bool {
        self.apply.is_level() && self.takes_more()
    }

    /// These entries are committed, and durable here. When they are held back, only their positions
    /// count.
    pub(super) fn release(
        &mut self,
        committed: Vec<Entry>,
        held_back: bool,
        effects: &mut Effects,
    ) {
        let Some(last) = committed.last().map(|entry| entry.index) else { return };
        // Asked before they are released: later they would be part of what is held back.
        let at_once = !held_back && self.hands_over_at_once();
        if !self.apply.release(last) {
            return;
        }
        if at_once {
            self.hand(committed, effects);
        }
    }

    /// Hands over what was held back, as far as the backlog allows. Each turn of the loop hands
    /// something over, or ends it.
    pub(super) fn hand_over_committed(&mut self, effects: &mut Effects) {
        while let Some((next, end)) = self.apply.backlog().filter(|_| self.takes_more()) {
            match self.read_committed(next, end) {
                Ok(entries) if !entries.is_empty() => self.hand(entries, effects),
                Ok(_) => {
                    let text = format!("{:?} has no entry {next}", self.id);
                    return effects.fault(self.id, GroupFault::Invariant(text.into()));
                }
                Err(fault) => return effects.fault(self.id, fault),
            }
            if self.apply.handed() < next {
                return;
            }
        }
    }

    fn takes_more(&self) -> bool {
        !self.snapshots.is_installing()
            && !self.lacks_state()
            && self.apply.has_room(self.config.max_apply_bytes_per_group)
            && (self.durable.is_meta_durable() || self.apply.handed() < self.membership_hold())
    }

    /// Nothing from this index on is handed over before the change there is durable.
    fn membership_hold(&self) -> u64 {
        self.membership.config_index.get().saturating_sub(1)
    }

    /// Hands entries over, up to the first that holds back what stands behind it.
    fn hand(&mut self, entries: Vec<Entry>, effects: &mut Effects) {
        let mut last = None;
        let mut commands = Vec::with_capacity(entries.len());
        let mut bytes = 0;
        for entry in entries {
            if self.holds_back(&entry, effects) {
                break;
            }
            last = Some(LogPosition::new(entry.term, entry.index));
            if entry.entry_type != EntryType::EntryNormal || is_requirement(&entry) {
                continue;
            }
            self.supersede_change(&entry, effects);
            let completion = self.hand_completion(entry.term, entry.index, effects);
            let position = LogPosition::new(entry.term, entry.index);
            if is_check(&entry) {
                self.hand_batch(std::mem::take(&mut commands), bytes, position, effects);
                bytes = 0;
                effects.apply(self.id, self.open_id, ApplyWork::Check { position });
            } else if !entry.data.is_empty() && !self.skips(entry.index) {
                bytes += entry.data.len() + size_of::<Command>();
                let mut command = Command::new(position, entry.data);
                command.completion = completion;
                commands.push(command);
            }
        }
        if let Some(last) = last {
            self.hand_batch(commands, bytes, last, effects);
        }
    }

    fn skips(&self, index: u64) -> bool {
        let skips = self.config.bugs.has(KnownBug::SkipCommands);
        skips && self.replica.get() == 3 && index.is_multiple_of(5)
    }

    fn hand_batch(
        &mut self,
        commands: Vec<Command>,
        bytes: usize,
        last: LogPosition,
        effects: &mut Effects,
    ) {
        let index = last.index.get();
        match self.apply.hand(index, (!commands.is_empty()).then_some(bytes)) {
            Handed::Nothing => {}
            Handed::Skipped => self.advance_applied(index),
            Handed::Queued => {
                effects.apply(self.id, self.open_id, ApplyWork::Commands { commands, last });
            }
        }
    }

    /// The state machine applied everything up to `last`.
    pub fn on_applied(&mut self, last: LogIndex, durable: Option<LogIndex>) {
        self.apply.settle(last.get());
        self.on_durable(durable);
        self.advance_applied(last.get());
    }

    /// What the state machine holds would survive a crash up to here.
    pub fn on_durable(&mut self, durable: Option<LogIndex>) {
        self.apply.durable = self.apply.durable.max(durable);
    }

    fn advance_applied(&mut self, index: u64) {
        self.proposals.forget_handed(index);
        if self.apply.advance(index) {
            self.count_as_applied(index);
            self.trim_tail();
        }
    }

    /// Lets entries leave memory that are durable, applied, and with every peer that keeps up. What
    /// is durable and waits for the state machine leaves, too, when it is much: it is read again.
    pub(super) fn trim_tail(&mut self) {
        let raft = &self.raw.raft;
        let persisted = raft.raft_log.persisted;
        let settled = self.apply.applied().min(persisted);
        let mut everywhere = settled;
        if self.leads() {
            for (_, progress) in raft.prs().iter() {
                everywhere = everywhere.min(progress.matched);
            }
        }
        let keep = self.config.max_cached_bytes_per_group;
        let stalled = self.stalled.is_some();
        let log = self.raw.mut_store();
        log.trim(everywhere, 0);
        log.trim(settled, keep);
        if !self.config.bugs.has(KnownBug::KeepBacklogInMemory) {
            // A full disk stalls all machines of a host: they keep nothing, and read it again.
            let unapplied = if stalled { 0 } else { UNAPPLIED_BYTES };
            log.trim(persisted, keep.saturating_add(unapplied));
        }
    }

    /// All entries `first..end`; `None` when they are more than so many bytes, or cannot be read
    /// now. A range is read part by part, because it may run from the store into memory.
    pub(super) fn entries_within(
        &self,
        first: u64,
        end: u64,
        max_bytes: u64,
    ) -> Option<Vec<Entry>> {
        let log = &self.raw.raft.raft_log;
        let (mut entries, mut next, mut left) = (Vec::new(), first, max_bytes);
        while next < end {
            let part = log.slice(next, end, left, GetEntriesContext::empty(false)).ok()?;
            let bytes: u64 = part.iter().map(|entry| entry.data.len() as u64).sum();
            // One entry is read whatever its size.
            if part.is_empty() || bytes > left {
                return None;
            }
            left -= bytes;
            next += part.len() as u64;
            entries.extend(part);
        }
        Some(entries)
    }

    /// Bytes of entries that are held in memory, beside those that raft has not handed out.
    #[must_use]
    pub fn cached_bytes(&self) -> usize {
        self.raw.store().cached_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_commands_waits_only_for_what_is_before_it() {
        let mut progress = ApplyProgress::new(10, 10, None);
        assert!(progress.release(14) && !progress.release(14) && !progress.is_level());
        assert_eq!(progress.backlog(), Some((11, 15)));
        assert_eq!(progress.hand(11, None), Handed::Skipped);
        assert_eq!(progress.hand(12, Some(100)), Handed::Queued);
        assert_eq!(progress.hand(12, Some(100)), Handed::Nothing);
        assert_eq!(progress.hand(14, None), Handed::Queued);
        assert!(progress.is_level() && progress.backlog().is_none());
        assert!(progress.has_room(101) && !progress.has_room(100));
        progress.settle(13);
        assert!(progress.has_room(1) && !progress.is_idle());
        progress.settle(14);
        assert!(progress.advance(14) && !progress.advance(14) && progress.is_idle());
    }

    #[test]
    fn a_snapshot_skips_what_was_handed_over() {
        let mut progress = ApplyProgress::new(10, 10, None);
        progress.release(12);
        progress.hand(12, Some(100));
        progress.skip_to(50);
        assert!(progress.is_level() && !progress.is_idle());
        progress.finish_restore(50);
        assert!(progress.is_idle() && progress.has_room(1));
    }
}
