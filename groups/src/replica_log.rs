//! What raft sees of a replica's log: a tail in memory in front of the shared store.
//!
//! Entries are in the tail from the moment raft hands them out for writing, so that they can be
//! read before they are durable. Only what is durable and applied may leave the tail.

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
    fault: RefCell<Option<LogError>>,
}

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
            fault: RefCell::new(None),
        }
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

    /// Puts entries at the end, replacing whatever stands at their indexes and behind.
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

    /// Gives spare memory back.
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

    pub(crate) fn snapshot_position(&self) -> Option<LogPosition> {
        self.snapshot.as_ref().map(|(position, _)| *position)
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
