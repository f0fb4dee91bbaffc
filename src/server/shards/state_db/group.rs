//! One group's part of the state: what a machine reads and writes through.

use std::io::Read;
use std::sync::Arc;

use rocksdb::{
    DB, DBPinnableSlice, DBRawIteratorWithThreadMode, ErrorKind, ReadOptions, WriteBatch,
};
use shardhost_groups::machine::SnapshotWriter;
use shardhost_storage::{GroupId, LogIndex, LogPosition};

use super::cells::OpenCell;
use super::error::StateDbError;
use super::keys::{APPLIED, PREFIX_BYTES, Space};
use super::progress::Progress;
use super::shared::Shared;
use super::stream::{GroupReader, GroupWriter, Record};
use super::{MachineKind, StateDb};
use crate::shards::codec::{self, DecodeError, Reader};
use crate::shards::time::TimeOfShard;

/// A restore writes batches of about this size.
const RESTORE_BATCH_BYTES: usize = 1024 * 1024;

/// Checks a record of a snapshot: its kind byte, the rest of its key, its value.
pub(crate) type RecordCheck = fn(u8, &[u8], &[u8]) -> Result<(), DecodeError>;

/// The state of one group. Cheap: a few pointers and numbers.
pub(crate) struct GroupState {
    state: Arc<StateDb>,
    /// The database that it is in; an error: that cannot be opened, or the group is removed.
    cell: Result<Arc<OpenCell>, StateDbError>,
    progress: Arc<Progress>,
    space: Space,
    kind: MachineKind,
    time: TimeOfShard,
}

impl GroupState {
    pub(crate) fn new(state: Arc<StateDb>, group: GroupId, kind: MachineKind) -> Self {
        let cell = state.cells.of(group);
        let progress = cell.as_ref().map(|cell| cell.shared.progress(group)).unwrap_or_default();
        let time = state.times.begin(group);
        Self { state, cell, progress, space: Space::new(group), kind, time }
    }

    fn cell(&self) -> Result<&OpenCell, StateDbError> {
        self.cell.as_deref().map_err(Clone::clone)
    }

    fn shared(&self) -> Result<&Shared, StateDbError> {
        Ok(&self.cell()?.shared)
    }

    pub(crate) const fn space(&self) -> Space {
        self.space
    }

    pub(crate) const fn group(&self) -> GroupId {
        self.space.group()
    }

    /// The machine reports the time of the shard.
    pub(crate) const fn time(&self) -> &TimeOfShard {
        &self.time
    }

    /// The position as of the last write. At none, there may be records of a restore that is under way,
    /// or that a crash interrupted.
    pub(crate) fn applied(&self) -> Result<Option<LogPosition>, StateDbError> {
        let Some(record) = self.get(&self.space.prefix(APPLIED))? else { return Ok(None) };
        let position = self.decode_applied(&record)?;
        self.progress.found_on_disk(position.index.get());
        Ok(Some(position))
    }

    /// Removes what an interrupted restore left, so that a replay starts from nothing. Only of the one
    /// machine of the group: another one may be restoring.
    pub(crate) fn begin(&self) -> Result<(), StateDbError> {
        if self.get(&self.space.prefix(APPLIED))?.is_some() {
            return Ok(());
        }
        let shared = self.shared()?;
        match shared.holds(self.space)? {
            true => shared.write(clearing(self.space)),
            false => Ok(()),
        }
    }

    fn decode_applied(&self, record: &[u8]) -> Result<LogPosition, StateDbError> {
        let corrupt = |cause| self.corrupt("its applied position", cause);
        let (mut reader, found) = Reader::versioned(record).map_err(corrupt)?;
        let expected = self.kind as u8;
        if found != expected {
            return Err(StateDbError::WrongKind { group: self.group(), found, expected });
        }
        let term = reader.number().map_err(corrupt)?;
        let index = reader.number().map_err(corrupt)?;
        reader.finish().map_err(corrupt)?;
        Ok(LogPosition::new(term, index))
    }

    /// Removes everything of the group, and flushes. Nothing is read or written afterwards. Its
    /// database is released, also when this fails: there may be no second try, and a cell that is
    /// in use is not recovered.
    pub(crate) fn remove(&mut self) -> Result<(), StateDbError> {
        self.cell = Err(StateDbError::Destroyed { group: self.group() });
        self.state.destroy(self.group())
    }

    /// Makes everything durable that the shards of its cell wrote.
    pub(crate) fn flush(&self) -> Result<(), StateDbError> {
        self.shared()?.flush()
    }

    /// What is on disk for certain.
    pub(crate) fn durable(&self) -> LogIndex {
        LogIndex::new(self.progress.durable())
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>, StateDbError> {
        self.shared()?.get(key)
    }

    /// What stands at a key, `None` if it takes a read of the disk.
    pub(crate) fn get_in_memory(
        &self,
        key: &[u8],
    ) -> Result<Option<Option<DBPinnableSlice<'_>>>, StateDbError> {
        self.shared()?.get_in_memory(key)
    }

    /// What stands at each of these keys, which must be sorted.
    pub(crate) fn get_sorted(
        &self,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<DBPinnableSlice<'_>>>, StateDbError> {
        match keys {
            // A look-up of one has a cheaper way.
            [key] => Ok(vec![self.get(key)?]),
            keys => self.shared()?.get_sorted(keys),
        }
    }

    /// All records of `kind` whose keys' rest is at or after `from`, and before `to` if given.
    pub(crate) fn scan(&self, kind: u8, from: &[u8], to: Option<&[u8]>) -> Scan<'_> {
        // 0: as many as there are.
        self.scan_passing(kind, from, to, 0)
    }

    /// The same, but a step that would pass more than `limit` deleted keys is an error instead. A
    /// range whose keys were deleted is as much work as one that is full.
    pub(crate) fn scan_passing(
        &self,
        kind: u8,
        from: &[u8],
        to: Option<&[u8]>,
        limit: u64,
    ) -> Scan<'_> {
        let end =
            to.map_or_else(|| self.space.end_of(kind).to_vec(), |to| self.space.key(kind, to));
        let start = self.space.key(kind, from);
        let mut options = ReadOptions::default();
        // RocksDB refuses a range that ends before it starts; to a caller it is an empty one.
        options.set_iterate_upper_bound(end.max(start.clone()));
        options.set_iterate_lower_bound(start);
        options.set_max_skippable_internal_keys(limit);
        let (shared, error) = match &self.cell {
            Ok(cell) => (Some(&*cell.shared), None),
            Err(error) => (None, Some(error.clone())),
        };
        let records = shared.map(|shared| {
            let mut records = shared.db.raw_iterator_opt(options);
            records.seek_to_first();
            (shared, records)
        });
        Scan { records, error, started: false, limit }
    }

    /// Writes the effects of a batch and, with them, the position that they lead to.
    pub(crate) fn commit(
        &self,
        mut batch: WriteBatch,
        last: LogPosition,
    ) -> Result<(), StateDbError> {
        if self.progress.is_retired() {
            return Err(StateDbError::Destroyed { group: self.group() });
        }
        batch.put(self.space.prefix(APPLIED), self.encode_applied(last));
        self.shared()?.commit(&self.progress, batch, last.index.get())
    }

    fn encode_applied(&self, last: LogPosition) -> Vec<u8> {
        let mut record = codec::start(self.kind as u8, 20);
        codec::put_number(&mut record, last.term.get());
        codec::put_number(&mut record, last.index.get());
        record
    }

    /// A view of the state as of the last write, to be written elsewhere.
    pub(crate) fn snapshot(&self) -> Result<Box<dyn SnapshotWriter>, StateDbError> {
        let view = self.cell()?.views.open(self.space)?;
        Ok(Box::new(GroupWriter { kind: self.kind, view }))
    }

    /// Replaces everything by what a snapshot holds.
    ///
    /// The first batch removes the group's state together with its applied position, and only
    /// the last one writes a position again. A crash in between leaves, since the disk holds a
    /// prefix of the batches, either the old state whole or a group that is at no position. So does an
    /// error that passes, as of a full disk: nothing may be read then before it is restored again.
    pub(crate) fn restore(
        &self,
        at: LogPosition,
        source: &mut dyn Read,
        check: RecordCheck,
    ) -> Result<(), StateDbError> {
        let mut reader = GroupReader::open(self.kind, source)
            .map_err(|message| self.refused(format!("{message}; nothing was changed")))?;
        self.check_room()?;
        self.clear()?;
        let mut batch = WriteBatch::default();
        while let Some(record) = reader.next().map_err(|message| self.half_restored(message))? {
            self.put_record(&mut batch, &record, check)?;
            if batch.size_in_bytes() >= RESTORE_BATCH_BYTES {
                self.check_room()?;
                self.shared()?.write(std::mem::take(&mut batch))?;
            }
        }
        self.commit(batch, at)
    }

    /// Whether the next batch of a restore leaves the log enough of the disk.
    fn check_room(&self) -> Result<(), StateDbError> {
        let disk = &self.state.cells.common().disk;
        disk.has_room_for_restore(RESTORE_BATCH_BYTES as u64)
    }

    fn clear(&self) -> Result<(), StateDbError> {
        if self.progress.is_retired() {
            return Err(StateDbError::Destroyed { group: self.group() });
        }
        let shared = self.shared()?;
        shared.start_restore(&self.progress);
        shared.write(clearing(self.space))
    }

    fn put_record(
        &self,
        batch: &mut WriteBatch,
        record: &Record,
        check: RecordCheck,
    ) -> Result<(), StateDbError> {
        let bad = |cause: DecodeError| self.half_restored(cause.to_string());
        let (&kind, rest) = record.key.split_first().ok_or_else(|| bad(DecodeError::Truncated))?;
        check(kind, rest, &record.value).map_err(bad)?;
        batch.put(self.space.key(kind, rest), &record.value);
        Ok(())
    }

    fn half_restored(&self, message: String) -> StateDbError {
        self.refused(format!("{message}; the state is cleared and waits for a good one"))
    }

    fn refused(&self, message: String) -> StateDbError {
        StateDbError::BadSnapshot { group: self.group(), message }
    }

    /// The error for a record that cannot be read.
    pub(crate) fn corrupt(&self, at: impl Into<String>, cause: DecodeError) -> StateDbError {
        StateDbError::Corrupt { group: self.group(), at: at.into(), cause }
    }

    /// The error for a contradiction.
    pub(crate) fn inconsistent(&self, message: String) -> StateDbError {
        StateDbError::Inconsistent { group: self.group(), message }
    }
}

/// A batch that removes everything of a group.
pub(crate) fn clearing(space: Space) -> WriteBatch {
    let (first, end) = space.whole();
    let mut batch = WriteBatch::default();
    batch.delete_range(first, end);
    batch
}

/// The rest of a key, and its value.
pub(crate) type Entry<'a> = (&'a [u8], &'a [u8]);

/// Records in the order of their keys, as of the moment the scan began.
pub(crate) struct Scan<'a> {
    records: Option<(&'a Shared, DBRawIteratorWithThreadMode<'a, DB>)>,
    error: Option<StateDbError>,
    started: bool,
    /// Deleted keys that a step may pass; 0: any number.
    limit: u64,
}

impl Scan<'_> {
    /// The next record; `None` behind the last one.
    pub(crate) fn next(&mut self) -> Result<Option<Entry<'_>>, StateDbError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let Some((shared, records)) = &mut self.records else { return Ok(None) };
        if self.started {
            records.next();
        }
        self.started = true;
        if !records.valid() {
            let status = records.status().map_err(|error| match error.kind() {
                ErrorKind::Incomplete if self.limit > 0 => {
                    StateDbError::TooManyDeleted { limit: self.limit }
                }
                _ => StateDbError::io("scanning")(error),
            });
            shared.note_failure(&status);
            return status.map(|()| None);
        }
        Ok(records.item().map(|(key, value)| (&key[PREFIX_BYTES..], value)))
    }
}
