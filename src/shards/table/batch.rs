//! One batch of commands being applied to a table.
//!
//! What RocksDB charges for is the search for a key. So the keys of a batch are sorted first:
//! each is read once, all in one look-up; the commands are run on what was read, in their order;
//! and each changed key is written once, in sorted order, where the search for one starts at the
//! one before. That is a third cheaper than to read and write key by key.

use bytes::Bytes;
use rocksdb::{DBPinnableSlice, WriteBatch};
use shardhost_groups::machine::Command;

use super::command::{TableCommand, TableResponse};
use super::machine::PAIR;
use crate::shards::codec::DecodeError;
use crate::shards::session::{Admission, MAX_ANSWER_BYTES, SessionTag, Sessions};
use crate::shards::state_db::{GroupState, StateDbError};

/// What stands at a key.
enum Value<'a> {
    /// What stood there before the batch.
    Before(Option<DBPinnableSlice<'a>>),
    /// What a command of the batch left there; `None`: nothing.
    After(Option<&'a [u8]>),
}

impl Value<'_> {
    fn get(&self) -> Option<&[u8]> {
        match self {
            Self::Before(value) => value.as_deref(),
            Self::After(value) => *value,
        }
    }
}

/// A command, and its place in a session if it has one.
#[derive(Clone, Copy)]
struct Decoded<'a> {
    tag: Option<SessionTag>,
    command: TableCommand<'a>,
}

impl<'a> Decoded<'a> {
    fn read(data: &'a [u8]) -> Result<Self, DecodeError> {
        let (tag, command) = SessionTag::split(data)?;
        Ok(Self { tag, command: TableCommand::decode(command)? })
    }
}

/// The commands of a batch, and the keys they name.
pub(super) struct Batch<'a> {
    commands: Vec<Result<Decoded<'a>, DecodeError>>,
    /// For each command that was decoded, its place in `keys`.
    places: Vec<usize>,
    /// As they stand in the store, sorted, each once.
    keys: Vec<Vec<u8>>,
    values: Vec<Value<'a>>,
}

impl<'a> Batch<'a> {
    /// Decodes the commands and reads what stands at their keys.
    pub(super) fn read(state: &'a GroupState, data: &'a [Bytes]) -> Result<Self, StateDbError> {
        let commands: Vec<_> = data.iter().map(|data| Decoded::read(data)).collect();
        let mut order: Vec<(&[u8], usize)> = commands
            .iter()
            .enumerate()
            .filter_map(|(at, decoded)| Some((decoded.as_ref().ok()?.command.key(), at)))
            .collect();
        order.sort_unstable();
        let mut places = vec![0; commands.len()];
        let mut keys: Vec<Vec<u8>> = Vec::with_capacity(order.len());
        let mut last = None;
        for (key, at) in order {
            if last != Some(key) {
                keys.push(state.space().key(PAIR, key));
                last = Some(key);
            }
            places[at] = keys.len() - 1;
        }
        let values = state.get_sorted(&keys)?.into_iter().map(Value::Before).collect();
        Ok(Self { commands, places, keys, values })
    }

    /// Runs the commands in their order and gives each its answer. `sessions` are there if a
    /// command is part of one.
    pub(super) fn run<'c>(
        &mut self,
        answered: impl Iterator<Item = &'c mut Command>,
        mut sessions: Option<&mut Sessions>,
    ) {
        for ((decoded, place), command) in self.commands.iter().zip(&self.places).zip(answered) {
            let index = command.position().index.get();
            let response = match decoded {
                Ok(decoded) => {
                    run(*decoded, index, &mut self.values[*place], sessions.as_deref_mut())
                }
                Err(error) => TableResponse::Invalid { message: error.to_string() }.encode(),
            };
            command.respond(response);
        }
    }

    /// What is to be written.
    pub(super) fn writes(self) -> WriteBatch {
        let mut writes = WriteBatch::default();
        for (key, value) in self.keys.iter().zip(&self.values) {
            match value {
                Value::Before(_) => {}
                Value::After(Some(value)) => writes.put(key, value),
                Value::After(None) => writes.delete(key),
            }
        }
        writes
    }
}

/// Runs a command, unless it is part of a session in which it was applied before.
fn run<'a>(
    decoded: Decoded<'a>,
    index: u64,
    place: &mut Value<'a>,
    sessions: Option<&mut Sessions>,
) -> Bytes {
    let (Some(tag), Some(sessions)) = (decoded.tag, sessions) else {
        return run_one(decoded.command, place);
    };
    match sessions.admit(&tag, index) {
        Admission::Fresh => {
            let answer = run_one(decoded.command, place);
            sessions.remember(&tag, shortened(&answer));
            answer
        }
        Admission::Duplicate(answer) => answer,
        Admission::Refused(refusal) => TableResponse::Refused(refusal).encode(),
    }
}

/// An answer as it is kept: a long value that stood where another one was expected is left out.
fn shortened(answer: &Bytes) -> Bytes {
    if answer.len() <= MAX_ANSWER_BYTES {
        return answer.clone();
    }
    TableResponse::Written { done: false, existed: true, actual: None }.encode()
}

fn run_one<'a>(command: TableCommand<'a>, place: &mut Value<'a>) -> Bytes {
    let before = place.get();
    let existed = before.is_some();
    let after = match command {
        TableCommand::Put { value, .. } => Some(value),
        TableCommand::Delete { .. } => None,
        TableCommand::CompareAndSet { expect, value, .. } => {
            if before != expect {
                let actual = before.map(Bytes::copy_from_slice);
                return TableResponse::Written { done: false, existed, actual }.encode();
            }
            value
        }
    };
    if existed || after.is_some() {
        *place = Value::After(after);
    }
    TableResponse::done(existed)
}
