//! The state machine of a table shard.

use std::io::Read;

use bytes::Bytes;
use rocksdb::DBPinnableSlice;
use shardhost_groups::error::QueryError;
use shardhost_groups::machine::{
    ApplyBatch, ApplyFault, ConsistencyView, Progress, SnapshotWriter, StateChecksum, StateMachine,
};
use shardhost_proto::client::{Get, Pair, Pairs, Scan, Value};
use shardhost_storage::{LogIndex, LogPosition};

use super::batch::Batch;
use super::query::{TableAnswer, TableQuery, pairs_of};
use super::{MAX_DELETED_PASSED, MAX_KEY_BYTES, MAX_SCAN_BYTES, MAX_VALUE_BYTES};
use crate::shards::codec::{DecodeError, check_limit};
use crate::shards::session::{self, SessionTag, Sessions};
use crate::shards::state_db::{COMPARED_FORMAT, GroupState, StateDbError};
use shardhost_proto::hash::SequenceSum;

/// Kind byte of a pair: behind it stands the key.
pub(super) const PAIR: u8 = 0x10;

/// A table shard's replicated state. Keeps itself in the host's [`StateDb`].
///
/// [`StateDb`]: crate::shards::StateDb
pub struct TableMachine {
    state: GroupState,
    /// Loaded with the first write of a session.
    sessions: Option<Box<Sessions>>,
}

impl TableMachine {
    pub(crate) const fn new(state: GroupState) -> Self {
        Self { state, sessions: None }
    }

    /// The sessions, if a command of a batch needs them.
    fn take_sessions(&mut self, data: &[Bytes]) -> Result<Option<Box<Sessions>>, StateDbError> {
        match self.sessions.take() {
            None if data.iter().any(|data| SessionTag::is_in_session(data)) => {
                Ok(Some(Box::new(Sessions::load(&self.state)?)))
            }
            sessions => Ok(sessions),
        }
    }

    fn get(&self, get: &Get) -> Result<Value, StateDbError> {
        let found = self.state.get(&self.state.space().key(PAIR, &get.key))?;
        Ok(Value { value: found.map(|value| Bytes::copy_from_slice(&value)) })
    }

    /// The same, `None` if it takes a read of the disk.
    fn get_in_memory(&self, get: &Get) -> Result<Option<Value>, StateDbError> {
        let found = self.state.get_in_memory(&self.state.space().key(PAIR, &get.key))?;
        let copy = |value: DBPinnableSlice<'_>| Bytes::copy_from_slice(&value);
        Ok(found.map(|found| Value { value: found.map(copy) }))
    }

    /// The pairs of a range. Ends where more than `deleted` keys in a row were deleted, with an error if
    /// no pair was found before.
    pub(super) fn scan(&self, scan: &Scan, deleted: u64) -> Result<Pairs, StateDbError> {
        let to = (!scan.to.is_empty()).then_some(&scan.to[..]);
        let mut found = self.state.scan_passing(PAIR, &scan.from, to, deleted);
        let mut answer = Pairs::default();
        let mut bytes = 0;
        loop {
            let (key, value) = match found.next() {
                Ok(Some(pair)) => pair,
                Ok(None) => break,
                // The caller continues behind the last pair.
                Err(StateDbError::TooManyDeleted { .. }) if !answer.pairs.is_empty() => {
                    answer.more = true;
                    break;
                }
                Err(error) => return Err(error),
            };
            bytes += key.len() + value.len();
            let full = answer.pairs.len() == pairs_of(scan)
                || (bytes > MAX_SCAN_BYTES && !answer.pairs.is_empty());
            if full {
                answer.more = true;
                break;
            }
            answer.pairs.push(Pair {
                key: Bytes::copy_from_slice(key),
                value: Bytes::copy_from_slice(value),
            });
        }
        Ok(answer)
    }

    fn sum(&self, progress: &Progress) -> Result<StateChecksum, StateDbError> {
        let mut items = 0;
        let mut sum = SequenceSum::default();
        let mut pairs = self.state.scan(PAIR, &[], None);
        while let Some((key, value)) = pairs.next()? {
            items += 1;
            progress.step();
            sum.add(key);
            sum.add(value);
        }
        session::add_to_checksum(&self.state, progress, &mut sum)?;
        Ok(StateChecksum { items, checksum: sum.value() })
    }
}

impl StateMachine for TableMachine {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.state.applied()?)
    }

    fn begin(&mut self) -> Result<(), ApplyFault> {
        self.state.begin()?;
        self.state.time().opened(session::time_ms(&self.state)?);
        Ok(())
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        let data: Vec<Bytes> = batch.commands().map(|command| command.data().clone()).collect();
        // Taken out: should anything fail, no sessions stay that are ahead of what was written.
        let mut sessions = self.take_sessions(&data)?;
        let mut work = Batch::read(&self.state, &data)?;
        // An empty batch is read whole.
        batch.cut(work.len());
        work.run(batch.commands(), sessions.as_deref_mut());
        let mut writes = work.writes();
        if let Some(sessions) = &mut sessions {
            sessions.write(self.state.space(), &mut writes);
        }
        self.state.commit(writes, batch.last())?;
        if let Some(sessions) = &sessions {
            self.state.time().applied(sessions.time_ms());
        }
        self.sessions = sessions;
        Ok(())
    }

    fn query(&self, request: &Bytes) -> Result<Bytes, QueryError> {
        let query = TableQuery::decode(request);
        let answer = match query.map_err(|error| QueryError::Invalid(error.to_string()))? {
            TableQuery::Get(get) => TableAnswer::Value(self.get(&get)?),
            TableQuery::Scan(scan) => TableAnswer::Pairs(self.scan(&scan, MAX_DELETED_PASSED)?),
        };
        Ok(answer.encode())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(self.state.snapshot()?)
    }

    fn consistency_view(&mut self) -> Result<Option<ConsistencyView>, ApplyFault> {
        let writer = self.state.snapshot()?;
        Ok(Some(ConsistencyView { format: COMPARED_FORMAT, writer }))
    }

    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        self.sessions = None;
        self.state.restore(at, source, check_record)?;
        self.state.time().applied(session::time_ms(&self.state)?);
        Ok(())
    }

    fn durable_index(&self) -> Option<LogIndex> {
        Some(self.state.durable())
    }

    /// A get is a look-up in memory tables and cached blocks, or goes elsewhere. A scan is bounded by what it returns,
    /// and not by the deleted keys that it passes.
    fn answers_at_once(&self, request: &Bytes) -> bool {
        TableQuery::is_get(request)
    }

    fn answer_at_once(&self, request: &Bytes) -> Option<Result<Bytes, QueryError>> {
        if !TableQuery::is_get(request) {
            return None;
        }
        let Ok(TableQuery::Get(get)) = TableQuery::decode(request) else { return None };
        match self.get_in_memory(&get) {
            Ok(found) => found.map(|value| Ok(TableAnswer::Value(value).encode())),
            Err(error) => Some(Err(error.into())),
        }
    }

    fn make_durable(&mut self) -> Result<(), ApplyFault> {
        Ok(self.state.flush()?)
    }

    fn removed(&mut self) -> Result<(), ApplyFault> {
        Ok(self.state.remove()?)
    }

    fn checksum(&self, progress: &Progress) -> Result<StateChecksum, QueryError> {
        Ok(self.sum(progress)?)
    }
}

fn check_record(kind: u8, key: &[u8], value: &[u8]) -> Result<(), DecodeError> {
    if kind != PAIR {
        return session::check_record(kind, key, value);
    }
    check_limit("key's length", key.len() as u64, MAX_KEY_BYTES as u64)?;
    check_limit("value's length", value.len() as u64, MAX_VALUE_BYTES as u64)
}
