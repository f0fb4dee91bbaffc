//! What raft sees of a replica's log: a tail in memory in front of the shared store.
//!
//! Entries are in the tail from the moment raft hands them out for writing, so that they can be
//! read before they are durable. Only durable entries may leave the tail; entries that the state
//! machine has not applied stay up to a bound.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use shardhost_storage::{GroupId, LogError, LogIndex, LogPosition, LogStore, Term};

use crate::convert;

/// The log of one replica.
#[derive(Debug)]
pub(crate) struct ReplicaLog {
    group: GroupId,
    store: Arc<dyn LogStore>,
    initial: RaftState,
    base: LogPosition,
    last: LogPosition,
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    snapshot: Option<(LogPosition, ConfState)>,
    snapshot_wanted: Cell<bool>,
    /// Raft gets the positions of entries, and not their content.
    hollow: Cell<bool>,
    fault: RefCell<Option<LogError>>,
}

/// Entries without content that are handed out at a time.
const HOLLOW_ENTRIES: u64 = 4096;

impl ReplicaLog {
    pub(crate) fn new(
        group: GroupId,
        store: Arc<dyn LogStore>,
        initial: (HardState, ConfState),
        base: LogPosition,
        last: LogPosition,
    ) -> Self {
        Self {
            group,
            store,
            initial: RaftState::new(initial.0, initial.1),
            base,
            last,
            tail: VecDeque::new(),
            tail_bytes: 0,
            snapshot: None,
            snapshot_wanted: Cell::new(false),
            hollow: Cell::new(false),
            fault: RefCell::new(None),
        }
    }

    /// From here on entries are read without their content, term and kind, or with them again. For
    /// committed entries of which only the place is wanted: a ready reads them all, and there may be
    /// more than a round has time for.
    pub(crate) fn set_hollow(&self, hollow: bool) {
        self.hollow.set(hollow);
    }

    pub(crate) const fn base(&self) -> LogPosition {
        self.base
    }

    pub(crate) const fn last(&self) -> LogPosition {
        self.last
    }

    /// The error of the store that made raft give up, if it was one.
    pub(crate) fn take_fault(&self) -> Option<LogError> {
        self.fault.borrow_mut().take()
    }

    /// Puts entries at the end, replacing all entries at their indexes and behind.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index <= self.last.index.get() + 1, "a gap in the log of {:?}", self.group);
        assert!(first.index > self.base.index.get(), "{:?} overwrites its base", self.group);
        self.cut_tail_from(first.index);
        for entry in entries {
            self.tail_bytes += entry_bytes(entry);
            self.last = LogPosition::new(entry.term, entry.index);
            self.tail.push_back(entry.clone());
        }
    }

    fn cut_tail_from(&mut self, index: u64) {
        while self.tail.back().is_some_and(|entry| entry.index >= index) {
            if let Some(entry) = self.tail.pop_back() {
                self.tail_bytes -= entry_bytes(&entry);
            }
        }
    }

    /// The log starts anew after a snapshot.
    pub(crate) fn reset(&mut self, position: LogPosition, conf: ConfState) {
        self.tail.clear();
        self.tail_bytes = 0;
        self.base = position;
        self.last = position;
        self.snapshot = Some((position, conf));
    }

    /// Lets entries up to `index` leave the tail; the caller knows that they are durable. Frees
    /// nothing while the tail is below `keep_bytes`.
    pub(crate) fn trim(&mut self, index: u64, keep_bytes: usize) {
        while self.tail_bytes > keep_bytes
            && self.tail.front().is_some_and(|entry| entry.index <= index)
        {
            if let Some(entry) = self.tail.pop_front() {
                self.tail_bytes -= entry_bytes(&entry);
            }
        }
    }

    /// Bytes of the entries in the tail.
    pub(crate) const fn cached_bytes(&self) -> usize {
        self.tail_bytes
    }

    pub(crate) fn shrink(&mut self) {
        self.tail.shrink_to_fit();
    }

    /// Moves the base; the entries up to it are no longer there.
    pub(crate) fn compact(&mut self, base: LogPosition) {
        if base.index > self.base.index {
            self.trim(base.index.get(), 0);
            self.base = base;
        }
    }

    /// Names the snapshot that can be sent to followers.
    pub(crate) fn set_snapshot(&mut self, position: LogPosition, conf: ConfState) {
        self.snapshot = Some((position, conf));
    }

    /// Whether raft asked for a snapshot that is not there, since the last call.
    pub(crate) fn take_snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.replace(false)
    }

    /// Entries `from..to`, at least one, stopping before more than `max_bytes`.
    pub(crate) fn read(&self, from: u64, to: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError> {
        let in_tail = self.tail.front().map_or(u64::MAX, |entry| entry.index);
        if from >= in_tail {
            return Ok(self.read_tail(from - in_tail, to, max_bytes));
        }
        let mut stored = Vec::new();
        let to = LogIndex::new(to.min(in_tail));
        self.store.entries(self.group, LogIndex::new(from), to, max_bytes, &mut stored)?;
        Ok(stored.into_iter().map(convert::entry_from_log).collect())
    }

    fn read_tail(&self, skip: u64, to: u64, max_bytes: u64) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut bytes = 0u64;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        for entry in self.tail.range(skip.min(self.tail.len())..) {
            bytes = bytes.saturating_add(entry_bytes(entry) as u64);
            if entry.index >= to || (!entries.is_empty() && bytes > max_bytes) {
                break;
            }
            entries.push(entry.clone());
        }
        entries
    }

    /// Term of the entry at `index`.
    pub(crate) fn term_of(&self, index: u64) -> Result<Term, LogError> {
        if index == self.base.index.get() {
            return Ok(self.base.term);
        }
        if index == self.last.index.get() {
            return Ok(self.last.term);
        }
        let group = self.group;
        if index < self.base.index.get() {
            let (index, base) = (LogIndex::new(index), self.base);
            return Err(LogError::Compacted { group, index, base });
        }
        if index > self.last.index.get() {
            let (index, last) = (LogIndex::new(index), self.last);
            return Err(LogError::OutOfRange { group, index, last });
        }
        match self.tail.front() {
            Some(front) if index >= front.index => {
                let at = usize::try_from(index - front.index).unwrap_or(usize::MAX);
                let entry = self.tail.get(at);
                Ok(Term::new(entry.map_or(0, |entry| entry.term)))
            }
            _ => self.store.term(group, LogIndex::new(index)),
        }
    }

    fn to_raft(&self, error: LogError) -> raft::Error {
        match error {
            LogError::Compacted { .. } => raft::Error::Store(StorageError::Compacted),
            LogError::OutOfRange { .. } => raft::Error::Store(StorageError::Unavailable),
            other => {
                let text = other.to_string();
                *self.fault.borrow_mut() = Some(other);
                raft::Error::Store(StorageError::Other(text.into()))
            }
        }
    }
}

/// What an entry counts for in the tail.
fn entry_bytes(entry: &Entry) -> usize {
    entry.data.len() + size_of::<Entry>()
}

/// The first entries of `low..high`, positions only.
fn hollow_entries(low: u64, high: u64) -> Vec<Entry> {
    let end = high.min(low.saturating_add(HOLLOW_ENTRIES));
    (low..end).map(|index| Entry { index, ..Entry::default() }).collect()
}

impl Storage for ReplicaLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if self.hollow.get() {
            return Ok(hollow_entries(low, high));
        }
        let max = max_size.into().unwrap_or(u64::MAX);
        let mut entries = self.read(low, high, max).map_err(|error| self.to_raft(error))?;
        let read = entries.last().map_or(low, |entry| entry.index + 1);
        // The range may run from the store into the tail.
        if max == u64::MAX && read < high {
            entries.extend(self.read(read, high, max).map_err(|error| self.to_raft(error))?);
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_of(index).map(Term::get).map_err(|error| self.to_raft(error))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.index.get() + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.index.get())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if let Some((position, conf)) = &self.snapshot {
            let index = position.index.get();
            if index >= request_index && index >= self.base.index.get() && index > 0 {
                let mut snapshot = Snapshot::default();
                let metadata = snapshot.mut_metadata();
                metadata.index = index;
                metadata.term = position.term.get();
                metadata.set_conf_state(conf.clone());
                return Ok(snapshot);
            }
        }
        self.snapshot_wanted.set(true);
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shardhost_storage::{
        GroupMeta, GroupWrite, LogBatch, Membership, MemoryStore, NodeId, ReplicaId, StoreFault,
    };

    use super::*;

    const GROUP: GroupId = GroupId::new(1);

    /// A log and the store behind it, which the test writes to.
    struct Pair {
        log: ReplicaLog,
        store: MemoryStore,
    }

    fn entry(term: u64, index: u64, bytes: usize) -> Entry {
        let mut entry = Entry::default();
        (entry.term, entry.index) = (term, index);
        entry.data = vec![u8::try_from(index % 251).unwrap(); bytes].into();
        entry
    }

    fn entries(term: u64, range: std::ops::Range<u64>) -> Vec<Entry> {
        range.map(|index| entry(term, index, 10)).collect()
    }

    impl Pair {
        fn new(base: LogPosition) -> Self {
            let store = MemoryStore::new();
            let mut write = GroupWrite::new(GROUP);
            write.meta = Some(GroupMeta {
                group: GROUP,
                replica: ReplicaId::must(1),
                membership: Membership::initial([NodeId::must(1)]),
                snapshot: None,
                labels: Default::default(),
                kind: String::new(),
                skipping: None,
            });
            write.reset = Some(base);
            store.write(&LogBatch { writes: vec![write] }).unwrap();
            let shared: Arc<dyn LogStore> = Arc::new(store.clone());
            Self { log: ReplicaLog::new(GROUP, shared, Default::default(), base, base), store }
        }

        fn append(&mut self, entries: &[Entry]) {
            self.log.append(entries);
            let mut write = GroupWrite::new(GROUP);
            write.entries = entries.iter().map(convert::entry_to_log).collect();
            self.store.write(&LogBatch { writes: vec![write] }).unwrap();
        }

        fn read(&self, from: u64, to: u64, max: u64) -> raft::Result<Vec<Entry>> {
            self.log.entries(from, to, max, GetEntriesContext::empty(false))
        }
    }

    fn indexes(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn entries_are_readable_before_they_are_in_the_store() {
        let mut pair = Pair::new(LogPosition::default());
        pair.log.append(&entries(1, 1..4));
        assert_eq!(pair.read(1, 4, u64::MAX).unwrap(), entries(1, 1..4));
        assert_eq!(pair.log.last(), LogPosition::new(1, 3));
        assert_eq!(pair.log.term(2), Ok(1));
    }

    #[test]
    fn a_conflict_replaces_the_entry_and_all_behind_it() {
        let mut pair = Pair::new(LogPosition::default());
        pair.append(&entries(1, 1..6));
        pair.append(&entries(2, 3..5));
        assert_eq!(pair.log.last(), LogPosition::new(2, 4));
        let expected = [entries(1, 1..3), entries(2, 3..5)].concat();
        assert_eq!(pair.read(1, 5, u64::MAX).unwrap(), expected);
        assert_eq!(pair.log.term(5), Err(raft::Error::Store(StorageError::Unavailable)));
    }

    #[test]
    fn a_conflict_below_the_tail_hides_what_the_store_still_holds() {
        let mut pair = Pair::new(LogPosition::default());
        pair.append(&entries(1, 1..6));
        pair.log.trim(5, 0);
        // Not written yet: the store still has the entries of term 1.
        pair.log.append(&entries(2, 3..4));
        assert_eq!(pair.log.term(3), Ok(2));
        assert_eq!(pair.read(3, 4, u64::MAX).unwrap(), entries(2, 3..4));
        let across = pair.read(1, 4, u64::MAX).unwrap();
        assert_eq!(across, [entries(1, 1..3), entries(2, 3..4)].concat());
    }

    #[test]
    fn trimming_frees_from_the_front_and_only_what_it_may() {
        let mut pair = Pair::new(LogPosition::default());
        pair.append(&entries(1, 1..11));
        let one = entry_bytes(&entry(1, 1, 10));
        pair.log.trim(4, 0);
        assert_eq!(pair.log.tail.front().unwrap().index, 5, "not beyond the index");
        pair.log.trim(10, 3 * one);
        assert_eq!(pair.log.tail.len(), 3, "not below the bytes");
        assert_eq!(pair.log.tail_bytes, 3 * one);
        assert_eq!(pair.read(1, 11, u64::MAX).unwrap(), entries(1, 1..11), "all still readable");
    }

    #[test]
    fn a_read_that_is_bounded_in_bytes_gives_at_least_one_entry() {
        let mut pair = Pair::new(LogPosition::default());
        pair.append(&entries(1, 1..11));
        let one = entry_bytes(&entry(1, 1, 10)) as u64;
        assert_eq!(indexes(&pair.read(3, 11, 0).unwrap()), [3], "from the tail");
        assert_eq!(indexes(&pair.read(3, 11, 2 * one).unwrap()), [3, 4]);
        pair.log.trim(10, 0);
        assert_eq!(indexes(&pair.read(3, 11, 0).unwrap()), [3], "from the store");
    }

    #[test]
    fn compaction_moves_the_base_and_keeps_its_term() {
        let mut pair = Pair::new(LogPosition::default());
        pair.append(&entries(3, 1..11));
        pair.log.compact(LogPosition::new(3, 6));
        assert_eq!(pair.log.first_index(), Ok(7));
        assert_eq!(pair.log.term(6), Ok(3));
        let compacted = Err(raft::Error::Store(StorageError::Compacted));
        assert_eq!(pair.log.term(5), compacted);
        assert_eq!(pair.log.tail.front().unwrap().index, 7);
        pair.log.compact(LogPosition::new(3, 2));
        assert_eq!(pair.log.first_index(), Ok(7), "never backwards");
    }

    #[test]
    fn a_snapshot_starts_the_log_anew() {
        let mut pair = Pair::new(LogPosition::default());
        pair.append(&entries(1, 1..6));
        pair.log.reset(LogPosition::new(4, 20), ConfState::default());
        assert_eq!(pair.log.first_index(), Ok(21));
        assert_eq!(pair.log.last_index(), Ok(20));
        assert_eq!(pair.log.term(20), Ok(4));
        assert_eq!(pair.log.tail_bytes, 0);
        assert_eq!(pair.log.snapshot(20, 2).unwrap().get_metadata().index, 20);
    }

    #[test]
    fn a_snapshot_that_is_too_old_is_wanted_anew() {
        let mut pair = Pair::new(LogPosition::default());
        pair.append(&entries(1, 1..11));
        let unavailable = || raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable);
        assert_eq!(pair.log.snapshot(0, 2), Err(unavailable()), "there is none");
        assert!(pair.log.take_snapshot_wanted());
        assert!(!pair.log.take_snapshot_wanted(), "asked for once");

        pair.log.set_snapshot(LogPosition::new(1, 4), ConfState::default());
        assert_eq!(pair.log.snapshot(4, 2).unwrap().get_metadata().index, 4);
        assert_eq!(pair.log.snapshot(5, 2), Err(unavailable()), "older than asked for");
        pair.log.compact(LogPosition::new(1, 6));
        assert_eq!(pair.log.snapshot(0, 2), Err(unavailable()), "older than the log");
        assert!(pair.log.take_snapshot_wanted());
    }

    #[test]
    fn a_failing_store_is_remembered_as_the_cause() {
        let mut pair = Pair::new(LogPosition::default());
        pair.append(&entries(1, 1..6));
        pair.log.trim(5, 0);
        assert!(pair.log.take_fault().is_none());
        pair.store.inject(StoreFault::DamagedEntry(GROUP, LogIndex::new(2)));
        assert!(matches!(
            pair.read(1, 4, u64::MAX),
            Err(raft::Error::Store(StorageError::Other(_)))
        ));
        assert!(matches!(pair.log.take_fault(), Some(LogError::Corrupt { .. })));
        assert!(pair.log.take_fault().is_none(), "once");
    }

    #[test]
    fn what_is_only_out_of_reach_is_no_fault() {
        let pair = Pair::new(LogPosition::new(2, 5));
        assert!(pair.log.term(4).is_err());
        assert!(pair.log.term(6).is_err());
        assert!(pair.log.take_fault().is_none());
    }

    #[derive(Clone, Debug)]
    enum Action {
        /// Entries from so many before the end, of the next term if any are replaced.
        Append {
            back: u64,
            count: u64,
            bytes: usize,
        },
        /// What was appended reaches the store.
        Write,
        Trim {
            back: u64,
            keep: usize,
        },
        Compact {
            back: u64,
        },
        Read {
            from: u64,
            count: u64,
            max: u64,
        },
    }

    fn action() -> impl Strategy<Value = Action> {
        let append = (prop_oneof![3 => Just(0u64), 1 => 0u64..6], 1u64..5, 0usize..60)
            .prop_map(|(back, count, bytes)| Action::Append { back, count, bytes });
        let read = (0u64..20, 1u64..20, prop_oneof![Just(u64::MAX), 0u64..800])
            .prop_map(|(from, count, max)| Action::Read { from, count, max });
        prop_oneof![
            4 => append,
            3 => Just(Action::Write),
            2 => (0u64..8, 0usize..600).prop_map(|(back, keep)| Action::Trim { back, keep }),
            1 => (0u64..12).prop_map(|back| Action::Compact { back }),
            6 => read,
        ]
    }

    /// What the log ought to be: all entries behind the base, and how many are in the store.
    struct Model {
        base: LogPosition,
        entries: Vec<Entry>,
        written: u64,
    }

    impl Model {
        fn last(&self) -> LogPosition {
            let last = self.entries.last();
            last.map_or(self.base, |entry| LogPosition::new(entry.term, entry.index))
        }

        fn range(&self, from: u64, to: u64) -> Vec<Entry> {
            let within = |entry: &&Entry| (from..to).contains(&entry.index);
            self.entries.iter().filter(within).cloned().collect()
        }
    }

    fn act(pair: &mut Pair, model: &mut Model, pending: &mut Vec<Vec<Entry>>, action: &Action) {
        let (base, last) = (model.base.index.get(), model.last().index.get());
        match *action {
            Action::Append { back, count, bytes } => {
                let first = last.saturating_sub(back).max(base) + 1;
                let term = model.last().term.get().max(1) + u64::from(first <= last);
                let batch: Vec<Entry> =
                    (first..first + count).map(|index| entry(term, index, bytes)).collect();
                model.entries.retain(|entry| entry.index < first);
                model.entries.extend(batch.iter().cloned());
                model.written = model.written.min(first - 1);
                pair.log.append(&batch);
                pending.push(batch);
            }
            Action::Write => {
                for batch in pending.drain(..) {
                    let mut write = GroupWrite::new(GROUP);
                    write.entries = batch.iter().map(convert::entry_to_log).collect();
                    pair.store.write(&LogBatch { writes: vec![write] }).unwrap();
                }
                model.written = last;
            }
            // Only entries in the store may leave the tail.
            Action::Trim { back, keep } => pair.log.trim(model.written.saturating_sub(back), keep),
            Action::Compact { back } => {
                let at = model.written.saturating_sub(back);
                if at > base && pending.is_empty() {
                    let term = pair.log.term(at).unwrap();
                    pair.log.compact(LogPosition::new(term, at));
                    model.entries.retain(|entry| entry.index > at);
                    model.base = LogPosition::new(term, at);
                }
            }
            Action::Read { .. } => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// A log is a plain list of entries, wherever they are kept.
        #[test]
        fn the_log_reads_like_a_plain_list(actions in prop::collection::vec(action(), 1..80)) {
            let base = LogPosition::new(2, 3);
            let mut pair = Pair::new(base);
            let mut model = Model { base, entries: Vec::new(), written: 3 };
            let mut pending = Vec::new();
            for action in &actions {
                act(&mut pair, &mut model, &mut pending, action);
                prop_assert_eq!(pair.log.last(), model.last());
                prop_assert_eq!(pair.log.base(), model.base);
                for entry in &model.entries {
                    prop_assert_eq!(pair.log.term(entry.index), Ok(entry.term));
                }
                let bytes: usize = pair.log.tail.iter().map(entry_bytes).sum();
                prop_assert_eq!(pair.log.tail_bytes, bytes);
                let Action::Read { from, count, max } = *action else { continue };
                let (first, end) = (model.base.index.get() + 1, model.last().index.get() + 1);
                let from = first + from % (end - first).max(1);
                let to = (from + count).min(end);
                if from < to {
                    let read = pair.read(from, to, max).unwrap();
                    prop_assert!(!read.is_empty(), "at least one, whatever fits");
                    let all = model.range(from, to);
                    prop_assert_eq!(&read[..], &all[..read.len()], "{:?}", action);
                    prop_assert!(max != u64::MAX || read.len() == all.len(), "all that was asked");
                }
            }
        }
    }
}
