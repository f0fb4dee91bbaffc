//! Skipping a command that no replica of a group can apply: it fails or kills the state machine of
//! each, so the group is stuck.
//!
//! An operator has the entry replaced by an empty one, in the log of every replica, while none of them
//! runs, in three steps: each replica notes durably that the entry is being skipped, and is not opened from
//! then on, also after a restart ([`Groups::begin_skip`]); each log is rewritten ([`Groups::skip_entry`]);
//! each note is removed ([`Groups::finish_skip`]). So the steps may be interrupted anywhere, and repeated.
//! As long as no log is rewritten, the skip can be abandoned: each replica that notes it agrees not to rewrite
//! its log ([`Groups::abandon_skip`]); then the notes are removed.
//!
//! The replicas stay equal: none has applied the command, and a log that is replicated or replayed later holds
//! the empty entry. That it is the same entry everywhere is checked by its term and a checksum; the caller
//! has to reach every replica. What an earlier leader sent and comes late is refused: each replica enters a
//! term, together with the rewritten log, that is later than any in which the command was sent. One that lacks
//! the command enters it, too, and notes that: before, its note is not removed.

use shardhost_storage::{
    Entry, EntryKind, GroupId, GroupMeta, GroupWrite, HardState, LogBatch, LogIndex, LogPosition,
    PersistedGroup, SkipNote, Term,
};

use super::open::{MachineFactory, make};
use super::stored::load;
use super::{Groups, RuntimeShared};
use crate::apply::contain;
use crate::error::{GroupStep, OpenGroupError};
use crate::known_bugs::KnownBug;
use crate::lives::{StartGuard, log_error};
use crate::validate::MAX_NUMBER;

/// What may stand in the log from the entry on. It is rewritten in one step.
pub const MAX_REWRITTEN_BYTES: u64 = 256 * 1024 * 1024;

/// Why a replica stays closed of which a command was skipped.
const KEPT_CLOSED: &str =
    "an operator has a command skipped: it is opened when every member has done so";
/// Why one is closed that the steps of a skip are done with.
pub(super) const LEFT_BY_SKIP: &str =
    "an operator's step of `group skip` closed it, and it is to be opened";
/// Why one stays closed whose skip is abandoned.
const ABANDONED: &str = "an operator abandons the skip of a command: it is opened when every member that notes the skip \
                         has agreed";

/// An entry of a log, as operators compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    pub index: LogIndex,
    /// Term it was appended in.
    pub term: Term,
    /// Whether it carries nothing for a state machine: a leader began, or it was skipped.
    pub is_empty: bool,
    /// Whether it is for the state machine, not for the group.
    pub is_command: bool,
    pub bytes: u64,
    pub checksum: u32,
}

impl StoredEntry {
    const fn position(self) -> LogPosition {
        LogPosition { term: self.term, index: self.index }
    }

    fn of(entry: &Entry) -> Self {
        Self {
            index: entry.index,
            term: entry.term,
            is_empty: entry.kind == EntryKind::Command && entry.payload_bytes() == 0,
            is_command: entry.kind == EntryKind::Command,
            bytes: entry.payload_bytes(),
            checksum: entry.checksum(),
        }
    }
}

/// What the skip of a command came to, at every member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipEnd {
    /// The entry is empty.
    Skipped,
    /// The command stays.
    Abandoned,
}

impl Groups {
    /// The entry at an index of the log of this host's replica, open or not; `None`: nothing yet.
    ///
    /// # Errors
    /// [`OpenGroupError::Unknown`], [`OpenGroupError::Invalid`] when the log begins behind it,
    /// [`OpenGroupError::Faulted`] when it cannot be read.
    pub fn stored_entry(
        &self,
        group: GroupId,
        index: LogIndex,
    ) -> Result<Option<StoredEntry>, OpenGroupError> {
        let persisted = load(self.shared(), group)?.ok_or(OpenGroupError::Unknown { group })?;
        check_in_log(&persisted, index)?;
        entry_at(self.shared(), &persisted, index)
    }

    /// Where the state machine of a replica stands that is closed, or a snapshot on its disk that is later;
    /// `None`: at nothing. No replica is opened meanwhile. Of a process that ended only what it had made
    /// durable counts.
    ///
    /// # Errors
    /// [`OpenGroupError::AlreadyOpen`], [`OpenGroupError::Busy`] while it is being opened,
    /// [`OpenGroupError::Faulted`] when the machine cannot say. Else as [`Groups::open`].
    pub fn applied_of_closed(
        &self,
        group: GroupId,
        machine: MachineFactory,
    ) -> Result<Option<LogPosition>, OpenGroupError> {
        if load(self.shared(), group)?.is_none() {
            return Err(OpenGroupError::Unknown { group });
        }
        let _held = self.shared().lives.start(vec![group], GroupStep::Looking)?;
        let persisted = load(self.shared(), group)?.ok_or(OpenGroupError::Unknown { group })?;
        Ok(applied_on_disk(&persisted, standing_of(group, machine)?))
    }

    /// Notes that a command is being skipped: this host's replica, which must be closed, is not opened before
    /// [`Groups::finish_skip`]. Blocks until it is durable. What was abandoned begins anew.
    ///
    /// # Errors
    /// As [`Groups::skip_entry`], and [`OpenGroupError::Invalid`] while the skip of another entry is not
    /// finished: its note is all that keeps members from applying what others have skipped. Nothing was
    /// changed: nothing keeps the replica closed that did not before.
    pub fn begin_skip(
        &self,
        group: GroupId,
        entry: StoredEntry,
        machine: MachineFactory,
    ) -> Result<(), OpenGroupError> {
        let (_held, persisted) = self.unapplied(group, entry, machine)?;
        if let Some(other) = persisted.meta.skipping.filter(|other| other.entry != entry.position())
        {
            return Err(unfinished(group, other));
        }
        let mut entered = false;
        if entry.index <= persisted.last.index {
            let found = entry_at(self.shared(), &persisted, entry.index)?;
            entered = check_same(group, entry, found)? == Found::Skipped;
        }
        self.note_skip(&persisted, Some(SkipNote { entry: entry.position(), entered }))?;
        self.shared().parked.keep_closed(group, KEPT_CLOSED);
        Ok(())
    }

    /// Removes the note of [`Groups::begin_skip`] of the entry at an index, if there is one. Blocks until that is
    /// durable.
    ///
    /// # Errors
    /// [`OpenGroupError::Invalid`] when the note is of another entry, or the log does not hold what `end` says:
    /// the entry is not skipped, or it is; or the replica lacks it and has not entered the term of the skip
    /// ([`Groups::skip_entry`]), so that it may still come; or the skip was not abandoned since this host started
    /// ([`Groups::abandon_skip`]). Nothing was changed. Else as [`Groups::open`].
    pub fn finish_skip(
        &self,
        group: GroupId,
        index: LogIndex,
        end: SkipEnd,
    ) -> Result<(), OpenGroupError> {
        let shared = self.shared();
        let _held = shared.lives.start(vec![group], GroupStep::Opening)?;
        let persisted = load(shared, group)?.ok_or(OpenGroupError::Unknown { group })?;
        let Some(noted) = noted_at(&persisted, index)? else { return Ok(()) };
        let may_come = !noted.entered && !shared.config.bugs.has(KnownBug::EndSkipUnentered);
        let unlike = match (end, stands(shared, &persisted, noted.entry)?) {
            (SkipEnd::Skipped, Some(Found::Command)) => "is not skipped here",
            (SkipEnd::Skipped, None) if may_come => {
                "is not there yet, and an earlier leader may still send it"
            }
            (SkipEnd::Abandoned, Some(Found::Skipped)) => "is skipped here already",
            (SkipEnd::Abandoned, _) if !shared.parked.is_skip_abandoned(group) => {
                "is being skipped, and that is not abandoned here"
            }
            _ => {
                self.note_skip(&persisted, None)?;
                shared.parked.skip_ended(group, LEFT_BY_SKIP);
                return Ok(());
            }
        };
        let message = format!(
            "entry {index} {unlike}: run `shardhost group skip {group} --index {index}` again, with --confirm, or \
             with --abandon as long as no member has skipped it"
        );
        Err(OpenGroupError::Invalid { group, message })
    }

    /// From here on the entry at an index is not skipped in the log of this host's replica before
    /// [`Groups::begin_skip`] comes again, as long as this host runs. The replica stays closed until
    /// [`Groups::finish_skip`]. Where no skip is noted, nothing is done.
    ///
    /// # Errors
    /// [`OpenGroupError::Invalid`] when the entry is skipped already, or the note is of another one. Else as
    /// [`Groups::open`].
    pub fn abandon_skip(&self, group: GroupId, index: LogIndex) -> Result<(), OpenGroupError> {
        let shared = self.shared();
        let _held = shared.lives.start(vec![group], GroupStep::Opening)?;
        let persisted = load(shared, group)?.ok_or(OpenGroupError::Unknown { group })?;
        let Some(noted) = noted_at(&persisted, index)? else { return Ok(()) };
        if stands(shared, &persisted, noted.entry)? == Some(Found::Skipped) {
            let message = format!(
                "entry {index} is skipped here already, which cannot be taken back: finish it with `shardhost group \
                 skip {group} --index {index} --confirm`"
            );
            return Err(OpenGroupError::Invalid { group, message });
        }
        shared.parked.abandon_skip(group, ABANDONED);
        Ok(())
    }

    fn note_skip(
        &self,
        persisted: &PersistedGroup,
        skipping: Option<SkipNote>,
    ) -> Result<(), OpenGroupError> {
        let meta = Some(noting(persisted, skipping));
        let write = GroupWrite { meta, ..GroupWrite::new(persisted.meta.group) };
        write_durably(self.shared(), write)
    }

    /// The term of this host's replica, open or not, as far as it is durable.
    ///
    /// # Errors
    /// [`OpenGroupError::Unknown`], [`OpenGroupError::Faulted`] when it cannot be read.
    pub fn stored_term(&self, group: GroupId) -> Result<Term, OpenGroupError> {
        let persisted = load(self.shared(), group)?.ok_or(OpenGroupError::Unknown { group })?;
        Ok(persisted.hard_state.term)
    }

    /// Replaces a command in the log of this host's replica by nothing, after [`Groups::begin_skip`] at every
    /// replica. Where the command is replaced already, or the log ends before it, the log stays as it is.
    ///
    /// The replica enters `term` in the same write, unless it is in a later one, and notes that. `term` must be later than
    /// that of every member when all had begun: from then on term and index name two contents, and an append
    /// of an earlier leader that comes late would bring the command back. No leader of `term` or a later one
    /// has the command. Blocks until it is durable.
    ///
    /// # Errors
    /// [`OpenGroupError::Invalid`]: another entry stands there, or the state machine has applied it, or the skip
    /// was not begun or is abandoned, or `term` is one in which the command may be sent;
    /// [`OpenGroupError::Faulted`]: the state machine cannot say what it has applied, for now or because its
    /// state is damaged, which may be recovered with what the command did. Nothing was changed. Else as
    /// [`Groups::open`].
    pub fn skip_entry(
        &self,
        group: GroupId,
        entry: StoredEntry,
        term: Term,
        machine: MachineFactory,
    ) -> Result<(), OpenGroupError> {
        let (_held, persisted) = self.unapplied(group, entry, machine)?;
        check_term(group, entry, term)?;
        let Some(noted) = persisted.meta.skipping.filter(|noted| noted.entry == entry.position())
        else {
            let message = format!("no skip of entry {} was begun here", entry.index);
            return Err(OpenGroupError::Invalid { group, message });
        };
        let shared = self.shared();
        if shared.parked.is_skip_abandoned(group) {
            let index = entry.index;
            let message = format!(
                "the skip of entry {index} is being abandoned: run `shardhost group skip {group} --index {index}` \
                 again, with --abandon or with --confirm"
            );
            return Err(OpenGroupError::Invalid { group, message });
        }
        let mut write = GroupWrite::new(group);
        if entry.index <= persisted.last.index {
            write.entries = rewritten(shared, &persisted, entry)?;
        }
        write.hard_state = raised(shared, persisted.hard_state, term);
        if write.entries.is_empty() && write.hard_state.is_none() && noted.entered {
            return Ok(());
        }
        write.meta = Some(noting(&persisted, Some(SkipNote { entered: true, ..noted })));
        tracing::warn!(%group, index = %entry.index, term = %entry.term, bytes = entry.bytes,
            entries = write.entries.len(), "an operator has a command skipped");
        write_durably(shared, write)
    }

    /// Has a closed replica whose log holds an entry of an earlier term where a command is skipped enter `term`,
    /// as [`Groups::skip_entry`] does: no append of an earlier leader brings it the command. Blocks until it is
    /// durable.
    ///
    /// # Errors
    /// [`OpenGroupError::Invalid`] when no replica can be in that term. Else as [`Groups::open`].
    pub fn enter_term(&self, group: GroupId, term: Term) -> Result<(), OpenGroupError> {
        let shared = self.shared();
        let _held = shared.lives.start(vec![group], GroupStep::Opening)?;
        let persisted = load(shared, group)?.ok_or(OpenGroupError::Unknown { group })?;
        if term.get() >= MAX_NUMBER {
            let message = format!("no replica can be in term {term}");
            return Err(OpenGroupError::Invalid { group, message });
        }
        match raised(shared, persisted.hard_state, term) {
            Some(state) => write_durably(
                shared,
                GroupWrite { hard_state: Some(state), ..GroupWrite::new(group) },
            ),
            None => Ok(()),
        }
    }

    /// Holds a closed replica whose state machine has not applied an entry. One that notes its skip and holds
    /// nothing in its place was asked before, and was not open since.
    fn unapplied(
        &self,
        group: GroupId,
        entry: StoredEntry,
        machine: MachineFactory,
    ) -> Result<(StartGuard, PersistedGroup), OpenGroupError> {
        let held = self.shared().lives.start(vec![group], GroupStep::Opening)?;
        let shared = self.shared();
        let persisted = load(shared, group)?.ok_or(OpenGroupError::Unknown { group })?;
        check_in_log(&persisted, entry.index)?;
        let is_noted = persisted.meta.skipping.is_some_and(|noted| noted.entry == entry.position());
        if is_noted && stands(shared, &persisted, entry.position())? == Some(Found::Skipped) {
            return Ok((held, persisted));
        }
        // A state that cannot be read may hold what the command does, also one that is damaged: all that can be
        // read of it may be recovered.
        let standing = standing_of(group, machine)?;
        if let Some(applied) = applied_on_disk(&persisted, standing)
            && applied.index >= entry.index
        {
            let applied = applied.index;
            let message = format!(
                "its state machine has applied entry {} (it is at {applied}); a replica that fails \
                 where this one does not is to be replaced, not the command skipped",
                entry.index
            );
            return Err(OpenGroupError::Invalid { group, message });
        }
        Ok((held, persisted))
    }
}

/// Where a state machine stands.
fn standing_of(
    group: GroupId,
    machine: MachineFactory,
) -> Result<Option<LogPosition>, OpenGroupError> {
    let machine = make(group, machine)?;
    let standing = contain(|| machine.applied()).and_then(|standing| Ok(standing?));
    standing.map_err(|fault| OpenGroupError::Faulted { group, fault })
}

/// What a replica knows of itself, with another note of a skip.
fn noting(persisted: &PersistedGroup, skipping: Option<SkipNote>) -> GroupMeta {
    GroupMeta { skipping, ..persisted.meta.clone() }
}

/// What the disk shows as applied: by the state, or by a snapshot, which may be of a later position and is
/// given to others.
fn applied_on_disk(
    persisted: &PersistedGroup,
    standing: Option<LogPosition>,
) -> Option<LogPosition> {
    standing.into_iter().chain(persisted.meta.snapshot).max_by_key(|position| position.index)
}

fn check_in_log(persisted: &PersistedGroup, index: LogIndex) -> Result<(), OpenGroupError> {
    let (group, base) = (persisted.meta.group, persisted.base.index);
    if index > base {
        return Ok(());
    }
    let message = format!("its log begins behind {base}: entry {index} is applied");
    Err(OpenGroupError::Invalid { group, message })
}

/// What the note of a skip says, if it is of the entry at this index.
fn noted_at(
    persisted: &PersistedGroup,
    index: LogIndex,
) -> Result<Option<SkipNote>, OpenGroupError> {
    let group = persisted.meta.group;
    match persisted.meta.skipping {
        Some(other) if other.entry.index != index => Err(unfinished(group, other)),
        noted => Ok(noted),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Command,
    Skipped,
}

/// Whether an entry of the log is the one to be skipped, or was skipped already.
fn check_same(
    group: GroupId,
    entry: StoredEntry,
    found: Option<StoredEntry>,
) -> Result<Found, OpenGroupError> {
    let invalid = |message| OpenGroupError::Invalid { group, message };
    let Some(found) = found else {
        return Err(invalid(format!("entry {} cannot be read", entry.index)));
    };
    if found.is_empty && found.term == entry.term {
        return Ok(Found::Skipped);
    }
    if !found.is_command {
        return Err(invalid(format!("entry {} is for the group, not a command", entry.index)));
    }
    if found != entry {
        return Err(invalid(format!(
            "another entry is at {}, of term {} and {} bytes with checksum {:08x}",
            entry.index, found.term, found.bytes, found.checksum
        )));
    }
    Ok(Found::Command)
}

/// Why a replica is not opened whose skip is not finished.
pub(super) fn unfinished(group: GroupId, noted: SkipNote) -> OpenGroupError {
    let index = noted.entry.index;
    let message = format!(
        "an operator has entry {index} skipped, and not all members have done so: run `shardhost group skip \
         {group} --index {index} --confirm` again, or with --abandon instead, which takes it back as long as no \
         member has done so"
    );
    OpenGroupError::Invalid { group, message }
}

/// The term that replicas enter is later than that of the entry, and one that peers accept.
fn check_term(group: GroupId, entry: StoredEntry, term: Term) -> Result<(), OpenGroupError> {
    if term > entry.term && term.get() < MAX_NUMBER {
        return Ok(());
    }
    let message = format!(
        "entry {} of term {} cannot be skipped in term {term}: upgrade the `shardhost` that asks for it",
        entry.index, entry.term
    );
    Err(OpenGroupError::Invalid { group, message })
}

/// A replica that enters a term has no vote in it; `None`: it is in that term, or a later one.
fn raised(shared: &RuntimeShared, known: HardState, term: Term) -> Option<HardState> {
    let enters = known.term < term && !shared.config.bugs.has(KnownBug::SkipKeepsTerm);
    enters.then_some(HardState { term, vote: None, ..known })
}

/// What a replica that is held writes outside of its worker. The log writer does it: two threads never write
/// the log, and an error of the disk ends the host.
fn write_durably(shared: &RuntimeShared, write: GroupWrite) -> Result<(), OpenGroupError> {
    let group = write.group;
    shared.log.write(LogBatch { writes: vec![write] }).map_err(|error| log_error(group, error))
}

/// The log from the entry on, with an empty entry in its place; empty: it stands there already.
fn rewritten(
    shared: &RuntimeShared,
    persisted: &PersistedGroup,
    entry: StoredEntry,
) -> Result<Vec<Entry>, OpenGroupError> {
    let (group, last) = (persisted.meta.group, persisted.last.index);
    let mut entries = entries(shared, group, entry.index, last, MAX_REWRITTEN_BYTES)?;
    let invalid = |message| OpenGroupError::Invalid { group, message };
    let followed = last.get() - entry.index.get();
    if entries.len() as u64 <= followed {
        return Err(invalid(format!(
            "{followed} entries stand behind entry {}, more than {MAX_REWRITTEN_BYTES} bytes",
            entry.index
        )));
    }
    let Some(first) = entries.first_mut() else {
        return Err(invalid(format!("entry {} cannot be read", entry.index)));
    };
    if check_same(group, entry, Some(StoredEntry::of(first)))? == Found::Skipped {
        return Ok(Vec::new());
    }
    first.data.clear();
    first.context.clear();
    Ok(entries)
}

/// The entry at an index of the log; `None`: the log does not reach there.
fn entry_at(
    shared: &RuntimeShared,
    persisted: &PersistedGroup,
    index: LogIndex,
) -> Result<Option<StoredEntry>, OpenGroupError> {
    if index <= persisted.base.index || index > persisted.last.index {
        return Ok(None);
    }
    let found = entries(shared, persisted.meta.group, index, index, u64::MAX)?;
    Ok(found.first().map(StoredEntry::of))
}

/// Whether the command of a note stands in the log or is skipped; `None`: neither, for the log holds no such
/// entry.
fn stands(
    shared: &RuntimeShared,
    persisted: &PersistedGroup,
    noted: LogPosition,
) -> Result<Option<Found>, OpenGroupError> {
    let found = entry_at(shared, persisted, noted.index)?;
    let found = found.filter(|found| found.position() == noted);
    Ok(found.map(|found| if found.is_empty { Found::Skipped } else { Found::Command }))
}

fn entries(
    shared: &RuntimeShared,
    group: GroupId,
    first: LogIndex,
    last: LogIndex,
    max_bytes: u64,
) -> Result<Vec<Entry>, OpenGroupError> {
    let mut entries = Vec::new();
    let behind = LogIndex::new(last.get().saturating_add(1));
    let read = shared
        .store()
        .and_then(|store| store.entries(group, first, behind, max_bytes, &mut entries));
    read.map_err(|error| log_error(group, error))?;
    Ok(entries)
}
