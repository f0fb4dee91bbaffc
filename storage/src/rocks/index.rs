//! The state of each group in memory, so that no request has to search the database.
//!
//! A [`Record`] knows where the runs of its group start and where its terms begin: a few words
//! for an idle group. It does not know the entries. The records are spread over shards, each
//! with a lock that is never held during a disk access.

use std::collections::{HashMap, VecDeque};
use std::mem::size_of;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::draft::{Draft, Standing};
use crate::ids::{GroupId, LogIndex, LogPosition, ReplicaId, Term};
use crate::store::LogError;
use crate::types::{Certainty, Doubt, Entry, HardState};

const SHARDS: usize = 64;

/// The version of a record that has none yet.
const UNSETTLED: u64 = 0;

/// The first entry of a stretch of entries of one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TermStart {
    first: LogIndex,
    term: Term,
}

/// The state of one group.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// The replica; `None` when what it knew of itself cannot be read.
    pub replica: Option<ReplicaId>,
    pub hard_state: HardState,
    pub certainty: Certainty,
    /// The entry before the first.
    pub base: LogPosition,
    /// Index of the last entry.
    pub last: LogIndex,
    /// First indexes of the runs, ascending. A run ends where the next one starts, whatever
    /// else its value holds: that part was overwritten.
    runs: VecDeque<LogIndex>,
    /// Where terms begin, ascending. The first one may begin at or below the base.
    terms: Vec<TermStart>,
    /// A write is under way that replaces entries from this one on.
    replacing: Option<LogIndex>,
    /// Another one after everything that could make what was read in two steps not fit together.
    version: u64,
}

/// Where an entry is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunPart {
    /// First index of the run that holds it.
    pub run: LogIndex,
    /// The first index that this run does not answer for.
    pub end: LogIndex,
    pub version: u64,
}

/// The records of all groups.
#[derive(Debug)]
pub(super) struct Index {
    /// The next version of a record. Shared by all, so that a group that is destroyed and made
    /// again does not repeat one.
    versions: AtomicU64,
    shards: Vec<RwLock<HashMap<GroupId, Box<Record>>>>,
}

impl Record {
    /// What a draft starts from, apart from the tombstone.
    pub fn standing(&self) -> Standing {
        Standing {
            replica: self.replica,
            hard_state: self.hard_state,
            certainty: self.certainty,
            base: self.base,
            last: self.last,
            ..Standing::default()
        }
    }

    /// Two looks at a group that see the same version see the same entries.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The last entry, or the base.
    pub fn last_position(&self) -> LogPosition {
        let term = self.term(self.last).unwrap_or(self.base.term);
        LogPosition { term, index: self.last }
    }

    /// Term at `index`, if it lies between base and last.
    pub fn term(&self, index: LogIndex) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        if index < self.base.index || index > self.last {
            return None;
        }
        let behind = self.terms.partition_point(|start| start.first <= index);
        Some(self.terms.get(behind.checked_sub(1)?)?.term)
    }

    /// The run that holds the entry at `index`; `None` while a write replaces it.
    pub fn locate(&self, index: LogIndex) -> Option<RunPart> {
        if self.replacing.is_some_and(|from| from <= index) {
            return None;
        }
        let behind = self.runs.partition_point(|run| *run <= index);
        let run = *self.runs.get(behind.checked_sub(1)?)?;
        let end = self.runs.get(behind).copied().unwrap_or(self.last.next());
        let end = self.replacing.map_or(end, |from| from.min(end));
        Some(RunPart { run, end, version: self.version })
    }

    /// The runs that `draft` makes useless, ascending.
    pub fn stale_runs(&self, draft: &Draft<'_>) -> impl Iterator<Item = LogIndex> + '_ {
        let base = draft.then.base.index;
        let from = draft.cut.map_or(self.runs.len(), |cut| self.runs_below(cut));
        let truncated = draft.cut.is_some_and(|cut| base.next() >= cut);
        let below = if truncated { from } else { self.useless_below(base) };
        let front = self.runs.range(..below.min(from));
        front.chain(self.runs.range(from..)).copied()
    }

    /// Adds a run as it was found on disk: from `run` on it replaces whatever is known.
    pub fn add_run<'a>(&mut self, run: LogIndex, entries: impl Iterator<Item = &'a Entry>) {
        self.truncate(run);
        self.runs.push_back(run);
        for entry in entries {
            self.add_term(entry);
            self.last = entry.index;
        }
    }

    /// Forgets the runs and terms that end at or below the base.
    pub fn trim_front(&mut self) {
        let base = self.base.index;
        self.runs.drain(..self.useless_below(base));
        let first = LogIndex::new(base.get().saturating_add(1));
        let kept = self.terms.partition_point(|start| start.first <= first).saturating_sub(1);
        self.terms.drain(..kept);
        if base >= self.last {
            self.runs.clear();
            self.terms.clear();
        }
        self.shrink();
    }

    /// The part of a draft that has to be visible before it is written: reads either avoid entries
    /// that are being replaced, or do not see those that are being truncated.
    fn announce(&mut self, draft: &Draft<'_>, version: u64) {
        let truncates = draft.then.base != self.base;
        if draft.cut.is_some() || draft.then.base.index > self.last {
            self.replacing = draft.cut.filter(|_| !truncates).or(Some(self.base.index));
            self.version = version;
        } else if truncates {
            self.base = draft.then.base;
            self.trim_front();
            self.version = version;
        }
    }

    /// What of a draft becomes visible when it is durable.
    fn settle(&mut self, draft: &Draft<'_>, new_runs: &[LogIndex], version: u64) {
        if self.replacing.take().is_some() || self.version == UNSETTLED {
            self.version = version;
        }
        if let Some(cut) = draft.cut {
            self.truncate(cut);
        }
        self.replica = draft.then.replica;
        self.hard_state = draft.then.hard_state;
        self.certainty = draft.then.certainty;
        self.base = draft.then.base;
        self.last = draft.then.last;
        self.runs.extend(new_runs);
        for entry in draft.fresh() {
            self.add_term(entry);
        }
        self.trim_front();
    }

    fn truncate(&mut self, from: LogIndex) {
        self.runs.truncate(self.runs_below(from));
        self.terms.truncate(self.terms.partition_point(|start| start.first < from));
    }

    fn add_term(&mut self, entry: &Entry) {
        if self.terms.last().is_none_or(|start| start.term != entry.term) {
            self.terms.reserve_exact(usize::from(self.terms.is_empty()));
            self.terms.push(TermStart { first: entry.index, term: entry.term });
        }
    }

    fn runs_below(&self, index: LogIndex) -> usize {
        self.runs.partition_point(|run| *run < index)
    }

    /// How many runs lie wholly at or below `base`, judging by where the next one starts.
    fn useless_below(&self, base: LogIndex) -> usize {
        if base >= self.last {
            return self.runs.len();
        }
        self.runs.partition_point(|run| *run <= base.next()).saturating_sub(1)
    }

    /// Gives memory back after a busy time.
    fn shrink(&mut self) {
        const ROOM: usize = 16;
        if self.runs.capacity() > ROOM && self.runs.len() < self.runs.capacity() / 4 {
            self.runs.shrink_to(self.runs.len() * 2);
        }
        if self.terms.capacity() > ROOM && self.terms.len() < self.terms.capacity() / 4 {
            self.terms.shrink_to(self.terms.len() * 2);
        }
    }

    fn heap_bytes(&self) -> usize {
        size_of::<Self>()
            + self.runs.capacity() * size_of::<LogIndex>()
            + self.terms.capacity() * size_of::<TermStart>()
    }
}

impl Index {
    pub fn new() -> Self {
        Self {
            versions: AtomicU64::new(UNSETTLED + 1),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
        }
    }

    fn shard(&self, group: GroupId) -> &RwLock<HashMap<GroupId, Box<Record>>> {
        // Fibonacci hashing: neighbouring ids go to different shards.
        let mixed = group.get().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.shards[(mixed >> 32) as usize % SHARDS]
    }

    /// Looks at the record of a group. `look` runs under the shard's lock and must be quick.
    pub fn look<T>(&self, group: GroupId, look: impl FnOnce(&Record) -> T) -> Result<T, LogError> {
        let shard = self.shard(group).read();
        shard.get(&group).map(|record| look(record)).ok_or(LogError::UnknownGroup { group })
    }

    fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds a record as it was found on disk.
    pub fn insert(&self, group: GroupId, mut record: Record) {
        record.version = self.next_version();
        self.shard(group).write().insert(group, Box::new(record));
    }

    /// Remembers that the log of a group may have lost something.
    pub fn raise_doubt(&self, group: GroupId, doubt: Doubt) {
        if let Some(record) = self.shard(group).write().get_mut(&group) {
            record.certainty = record.certainty.then(Certainty::InDoubt(doubt));
        }
    }

    /// All groups, ascending.
    pub fn groups(&self) -> Vec<GroupId> {
        let groups = |shard: &RwLock<HashMap<GroupId, _>>| -> Vec<GroupId> {
            shard.read().keys().copied().collect()
        };
        let mut groups: Vec<GroupId> = self.shards.iter().flat_map(groups).collect();
        groups.sort_unstable();
        groups
    }

    /// To be called before a draft is written.
    pub fn announce(&self, draft: &Draft<'_>) {
        if let Some(record) = self.shard(draft.group).write().get_mut(&draft.group) {
            record.announce(draft, self.next_version());
        }
    }

    /// To be called when a draft is durable, with the first indexes of its new runs.
    pub fn settle(&self, draft: &Draft<'_>, new_runs: &[LogIndex]) {
        let mut shard = self.shard(draft.group).write();
        if draft.then.replica.is_none() {
            shard.remove(&draft.group);
            return;
        }
        shard.entry(draft.group).or_default().settle(draft, new_runs, self.next_version());
    }

    /// Bytes that the records take.
    pub fn memory_bytes(&self) -> usize {
        let slot = size_of::<(GroupId, Box<Record>)>() + 1;
        let shard_bytes = |shard: &RwLock<HashMap<GroupId, Box<Record>>>| {
            let shard = shard.read();
            // The table keeps one slot in eight free.
            shard.capacity() * 8 / 7 * slot
                + shard.values().map(|record| record.heap_bytes()).sum::<usize>()
        };
        self.shards.iter().map(shard_bytes).sum()
    }
}
