//! What a batch comes to for each group, after checking that it keeps the rules of
//! [`GroupWrite`].
//!
//! Pure: a [`Draft`] starts from what a store holds of the group and takes the writes one after
//! the other. A store touches nothing before every write of a batch went through, so that a
//! batch that breaks a rule leaves no trace. New entries always form one contiguous stretch,
//! because each write either continues the stretch or cuts it.

use crate::ids::{GroupId, LogIndex, LogPosition, ReplicaId, Term};
use crate::store::LogError;
use crate::types::{Certainty, Entry, GroupMeta, GroupWrite, HardState, LogBatch};

/// What a store holds of a group before a batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// The replica, if there is one.
    pub replica: Option<ReplicaId>,
    /// The largest replica id destroyed so far.
    pub tombstone: Option<ReplicaId>,
    pub hard_state: HardState,
    /// The entry before the first.
    pub base: LogPosition,
    /// Index of the last entry.
    pub last: LogIndex,
    /// Whether the log may have lost something.
    pub certainty: Certainty,
    /// The stored state cannot be read: only a write that drops all of it is accepted.
    pub damage: Option<LogError>,
}

/// Looks up what a store holds.
pub(crate) trait Holdings {
    /// The stored state of `group`.
    fn standing(&self, group: GroupId) -> Result<Standing, LogError>;
    /// Term of a held entry above the base.
    fn term_at(&self, group: GroupId, index: LogIndex) -> Option<Term>;
}

/// What a batch comes to for one group.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pub group: GroupId,
    /// What the store is to hold afterwards.
    pub then: Standing,
    /// The replica that was there before is forgotten, whether or not a new one follows.
    pub destroyed: bool,
    /// The new meta, if it is replaced.
    pub meta: Option<&'a GroupMeta>,
    /// Hard state or base differ from those on disk.
    pub state_changed: bool,
    /// The note of losses differs from the one on disk.
    pub certainty_changed: bool,
    /// Held entries at or above this index are gone.
    pub cut: Option<LogIndex>,
    /// The new entries: contiguous slices, none empty.
    fresh: Vec<&'a [Entry]>,
}

/// No entry has this index, so that every entry has an index behind it.
const LIMIT: LogIndex = LogIndex::new(u64::MAX);

/// Checks a batch and returns its effect per group, in the order in which the groups first occur.
pub(crate) fn draft<'a>(
    batch: &'a LogBatch,
    holdings: &impl Holdings,
) -> Result<Vec<Draft<'a>>, LogError> {
    let mut drafts: Vec<Draft<'a>> = Vec::with_capacity(batch.writes.len());
    let mut places = std::collections::HashMap::with_capacity(batch.writes.len());
    for write in &batch.writes {
        let place = *places.entry(write.group).or_insert(drafts.len());
        if place == drafts.len() {
            drafts.push(Draft::new(write.group, holdings.standing(write.group)?));
        }
        drafts[place].take(write, holdings)?;
    }
    Ok(drafts)
}

impl<'a> Draft<'a> {
    fn new(group: GroupId, standing: Standing) -> Self {
        Self {
            group,
            then: standing,
            destroyed: false,
            meta: None,
            state_changed: false,
            certainty_changed: false,
            cut: None,
            fresh: Vec::new(),
        }
    }

    /// The new entries that are still wanted, ascending.
    pub fn fresh(&self) -> impl Iterator<Item = &'a Entry> + Clone + '_ {
        let base = self.then.base.index;
        self.fresh
            .iter()
            .flat_map(|slice| slice.iter())
            .skip_while(move |entry| entry.index <= base)
    }

    fn take(&mut self, write: &'a GroupWrite, holdings: &impl Holdings) -> Result<(), LogError> {
        if let Some(replica) = write.destroy {
            return self.destroy(write, replica);
        }
        if let Some(damage) = self.then.damage.take_if(|_| write.reset.is_none()) {
            return Err(damage);
        }
        if let Some(meta) = &write.meta {
            self.set_meta(meta)?;
        }
        if self.then.replica.is_none() {
            return Err(self.refused("the first write of a replica carries its meta"));
        }
        if let Some(state) = write.hard_state {
            self.then.hard_state = state;
            self.state_changed = true;
        }
        if let Some(certainty) = write.certainty {
            let certainty = self.then.certainty.then(certainty);
            self.certainty_changed |= certainty != self.then.certainty;
            self.then.certainty = certainty;
        }
        if let Some(position) = write.reset {
            self.reset(position)?;
        }
        if !write.entries.is_empty() {
            self.append(&write.entries)?;
        }
        write.compact.map_or(Ok(()), |position| self.compact(position, holdings))
    }

    fn destroy(&mut self, write: &GroupWrite, replica: ReplicaId) -> Result<(), LogError> {
        let alone = GroupWrite { destroy: Some(replica), ..GroupWrite::new(write.group) };
        if *write != alone {
            return Err(self.refused("a destroying write carries something else"));
        }
        if let Some(held) = self.then.replica.filter(|held| *held != replica) {
            return Err(self.refused(format!("replica {replica} is to go, {held} is here")));
        }
        let tombstone = self.then.tombstone.max(Some(replica));
        let doubted = self.then.certainty != Certainty::Sure || self.then.damage.is_some();
        self.certainty_changed |= doubted;
        self.then = Standing { tombstone, ..Standing::default() };
        self.meta = None;
        self.destroyed = true;
        self.state_changed = false;
        self.drop_entries();
        Ok(())
    }

    fn set_meta(&mut self, meta: &'a GroupMeta) -> Result<(), LogError> {
        if meta.group != self.group {
            return Err(self.refused(format!("the meta is that of group {}", meta.group)));
        }
        match (self.then.replica, self.then.tombstone) {
            (Some(held), _) if held != meta.replica => {
                let message =
                    format!("the meta is that of replica {}, {held} is here", meta.replica);
                return Err(self.refused(message));
            }
            (None, Some(tombstone)) if meta.replica <= tombstone => {
                let message =
                    format!("replica {} is not above the destroyed {tombstone}", meta.replica);
                return Err(self.refused(message));
            }
            _ => {}
        }
        for (id, member) in &meta.membership.members {
            if member.voter == member.learner && (member.voter || !member.outgoing_voter) {
                return Err(self.refused(format!("member {id} must be one of voter and learner")));
            }
        }
        // A new replica's state is written even if it is the default: the record then exists.
        self.state_changed |= self.then.replica.is_none();
        self.then.replica = Some(meta.replica);
        self.meta = Some(meta);
        Ok(())
    }

    fn reset(&mut self, position: LogPosition) -> Result<(), LogError> {
        if position.index == LIMIT {
            return Err(self.refused("no log can start behind the last index there is"));
        }
        self.drop_entries();
        // The unreadable part may be the note of losses.
        self.certainty_changed |= self.then.damage.take().is_some();
        self.then.base = position;
        self.then.last = position.index;
        self.state_changed = true;
        Ok(())
    }

    fn append(&mut self, entries: &'a [Entry]) -> Result<(), LogError> {
        let (first, last) = (entries[0].index, entries[entries.len() - 1].index);
        let (base, held) = (self.then.base.index, self.then.last);
        if first <= base {
            return Err(self.refused(format!("entry {first} is not above the base {base}")));
        }
        if first > held.next() {
            return Err(self.refused(format!("entry {first} leaves a gap after {held}")));
        }
        if last == LIMIT || !contiguous(entries) {
            return Err(self.refused(format!("the entries {first} to {last} are not contiguous")));
        }
        self.cut_from(first);
        self.fresh.push(entries);
        self.then.last = last;
        Ok(())
    }

    fn compact(&mut self, to: LogPosition, holdings: &impl Holdings) -> Result<(), LogError> {
        if to.index <= self.then.base.index {
            return Ok(());
        }
        if to.index > self.then.last {
            return Err(self.refused(format!("{to} is beyond the last entry {}", self.then.last)));
        }
        let term = self.term_at(to.index, holdings);
        if term != Some(to.term) {
            return Err(self.refused(format!("the entry at {to} is of term {term:?}")));
        }
        self.then.base = to;
        self.state_changed = true;
        Ok(())
    }

    fn term_at(&self, index: LogIndex, holdings: &impl Holdings) -> Option<Term> {
        if self.fresh_first().is_none_or(|first| index < first) {
            return holdings.term_at(self.group, index);
        }
        self.fresh().find(|entry| entry.index == index).map(|entry| entry.term)
    }

    fn fresh_first(&self) -> Option<LogIndex> {
        self.fresh.first().map(|slice| slice[0].index)
    }

    fn drop_entries(&mut self) {
        self.cut = Some(LogIndex::default());
        self.fresh.clear();
    }

    /// Forgets every entry at or above `first`, held or new.
    fn cut_from(&mut self, first: LogIndex) {
        if first <= self.then.last {
            self.cut = Some(self.cut.map_or(first, |cut| cut.min(first)));
        }
        self.fresh.retain_mut(|slice| {
            let keep = slice.partition_point(|entry| entry.index < first);
            *slice = &slice[..keep];
            keep > 0
        });
    }

    fn refused(&self, message: impl Into<String>) -> LogError {
        LogError::Invalid { group: self.group, message: message.into() }
    }
}

fn contiguous(entries: &[Entry]) -> bool {
    let follows = |pair: &[Entry]| pair[0].index.get().checked_add(1) == Some(pair[1].index.get());
    entries.windows(2).all(follows)
}
