//! What a store holds, as plainly as it can be written down: the measure of other stores.

use std::collections::VecDeque;

use super::Groups;
use crate::draft::{Holdings, Standing};
use crate::ids::{GroupId, LogIndex, LogPosition, ReplicaId, Term};
use crate::store::LogError;
use crate::types::{
    Certainty, Doubt, Entry, GroupMeta, GroupWrite, HardState, LogBatch, PersistedGroup,
};

/// All groups and tombstones of a store.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    groups: Groups<Replica>,
    tombstones: Groups<ReplicaId>,
}

#[derive(Clone, Debug)]
struct Replica {
    meta: GroupMeta,
    hard_state: HardState,
    base: LogPosition,
    entries: VecDeque<Entry>,
    certainty: Certainty,
}

impl State {
    /// Applies a batch that keeps the rules.
    pub fn apply(&mut self, batch: &LogBatch) {
        for write in &batch.writes {
            self.apply_write(write);
        }
    }

    fn apply_write(&mut self, write: &GroupWrite) {
        if let Some(destroyed) = write.destroy {
            self.groups.remove(&write.group);
            let tombstone = self.tombstones.entry(write.group).or_insert(destroyed);
            *tombstone = destroyed.max(*tombstone);
            return;
        }
        if let Some(meta) = &write.meta {
            self.groups
                .entry(write.group)
                .and_modify(|replica| replica.meta = meta.clone())
                .or_insert_with(|| Replica::new(meta.clone()));
        }
        if let Some(replica) = self.groups.get_mut(&write.group) {
            replica.apply(write);
        }
    }

    /// Every replica may have lost something.
    pub fn raise_doubt(&mut self, doubt: Doubt) {
        for replica in self.groups.values_mut() {
            replica.certainty = replica.certainty.then(Certainty::InDoubt(doubt));
        }
    }

    pub fn groups(&self) -> Vec<GroupId> {
        self.groups.keys().copied().collect()
    }

    pub fn tombstone(&self, group: GroupId) -> Option<ReplicaId> {
        self.tombstones.get(&group).copied()
    }

    pub fn load(&self, group: GroupId) -> Option<PersistedGroup> {
        let replica = self.groups.get(&group)?;
        Some(PersistedGroup {
            meta: replica.meta.clone(),
            hard_state: replica.hard_state,
            base: replica.base,
            last: replica.last(),
            certainty: replica.certainty,
        })
    }

    pub fn entries(
        &self,
        group: GroupId,
        from: LogIndex,
        to: LogIndex,
        max_bytes: u64,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogError> {
        let replica = self.replica(group)?;
        if from <= replica.base.index {
            return Err(LogError::Compacted { group, index: from, base: replica.base });
        }
        if to > replica.last().index.next() {
            return Err(LogError::OutOfRange { group, index: to, last: replica.last() });
        }
        let mut bytes = 0u64;
        for (count, index) in (from.get()..to.get()).enumerate() {
            let Some(entry) = replica.entry(LogIndex::new(index)) else { break };
            bytes = bytes.saturating_add(entry.payload_bytes());
            if count > 0 && bytes > max_bytes {
                break;
            }
            out.push(entry.clone());
        }
        Ok(())
    }

    pub fn term(&self, group: GroupId, index: LogIndex) -> Result<Term, LogError> {
        let replica = self.replica(group)?;
        let (base, last) = (replica.base, replica.last());
        if index < base.index {
            return Err(LogError::Compacted { group, index, base });
        }
        replica.term(index).ok_or(LogError::OutOfRange { group, index, last })
    }

    fn replica(&self, group: GroupId) -> Result<&Replica, LogError> {
        self.groups.get(&group).ok_or(LogError::UnknownGroup { group })
    }
}

impl Holdings for State {
    fn standing(&self, group: GroupId) -> Result<Standing, LogError> {
        let tombstone = self.tombstone(group);
        let held = self.groups.get(&group).map(|replica| Standing {
            replica: Some(replica.meta.replica),
            tombstone,
            hard_state: replica.hard_state,
            base: replica.base,
            last: replica.last().index,
            certainty: replica.certainty,
            damage: None,
        });
        Ok(held.unwrap_or(Standing { tombstone, ..Standing::default() }))
    }

    fn term_at(&self, group: GroupId, index: LogIndex) -> Option<Term> {
        self.groups.get(&group)?.term(index)
    }
}

impl Replica {
    fn new(meta: GroupMeta) -> Self {
        Self {
            meta,
            hard_state: HardState::default(),
            base: LogPosition::default(),
            entries: VecDeque::new(),
            certainty: Certainty::default(),
        }
    }

    fn apply(&mut self, write: &GroupWrite) {
        if let Some(state) = write.hard_state {
            self.hard_state = state;
        }
        if let Some(certainty) = write.certainty {
            self.certainty = self.certainty.then(certainty);
        }
        if let Some(position) = write.reset {
            self.entries.clear();
            self.base = position;
        }
        if let Some(first) = write.entries.first() {
            self.entries.truncate(self.place(first.index).unwrap_or(0));
            self.entries.extend(write.entries.iter().cloned());
        }
        if let Some(position) = write.compact {
            self.compact(position);
        }
    }

    fn compact(&mut self, to: LogPosition) {
        let Some(last_gone) = self.place(to.index) else { return };
        self.entries.drain(..=last_gone);
        self.base = to;
    }

    fn last(&self) -> LogPosition {
        let last = self.entries.back();
        last.map_or(self.base, |entry| LogPosition { term: entry.term, index: entry.index })
    }

    fn term(&self, index: LogIndex) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        self.entry(index).map(|entry| entry.term)
    }

    fn entry(&self, index: LogIndex) -> Option<&Entry> {
        self.entries.get(self.place(index)?)
    }

    /// The position of the entry at `index` in `entries`, if it is there at all.
    fn place(&self, index: LogIndex) -> Option<usize> {
        let distance = index.get().checked_sub(self.base.index.get())?.checked_sub(1)?;
        usize::try_from(distance).ok()
    }
}
