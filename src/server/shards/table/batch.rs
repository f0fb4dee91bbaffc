//! One batch of commands being applied to a table.
//!
//! What RocksDB charges for is the search for a key. So the keys of a batch are sorted first:
//! each is read once, many in one look-up; the commands are run on what was read, in their order;
//! and each changed key is written once, in sorted order, where the search for one starts at the
//! one before. That is a third cheaper than to read and write key by key.
//!
//! **Memory.** A command of few bytes may name a value of a MiB, and be answered with it. What is
//! compared is kept until the batch is written, so a batch ends where that is more than
//! [`MAX_READ_BYTES`]; of all other values only their presence is kept. An answer that repeats one
//! before shares its bytes. Where a batch ends changes no answer.

use bytes::Bytes;
use rocksdb::{DBPinnableSlice, WriteBatch};
use shardhost_groups::machine::Command;

use super::command::{TableCommand, TableResponse};
use super::machine::PAIR;
use crate::shards::codec::DecodeError;
use crate::shards::session::{Admission, MAX_ANSWER_BYTES, SessionTag, Sessions};
use crate::shards::state_db::{GroupState, StateDbError};

/// A batch reads no further value to compare it once it has read so many bytes of them.
pub(super) const MAX_READ_BYTES: usize = 8 * 1024 * 1024;
/// Keys of one look-up, whose values are in memory together.
const KEYS_PER_READ: usize = 32;

/// What stands at a key.
enum Value<'a> {
    Unread,
    /// What stood there before the batch.
    Before(Option<DBPinnableSlice<'a>>),
    /// Whether something stood there before the batch, where nothing is compared with it.
    Present(bool),
    /// What a command of the batch left there; `None`: nothing.
    After(Option<&'a [u8]>),
}

impl Value<'_> {
    fn get(&self) -> Option<&[u8]> {
        match self {
            Self::Before(value) => value.as_deref(),
            Self::After(value) => *value,
            Self::Present(_) | Self::Unread => None,
        }
    }

    fn is_present(&self) -> bool {
        matches!(self, Self::Present(true)) || self.get().is_some()
    }
}

/// A key of the batch.
struct Place<'a> {
    /// As it stands in the store.
    key: Vec<u8>,
    /// The first command that names it.
    first: usize,
    /// A command compares what stands there.
    is_compared: bool,
    value: Value<'a>,
    /// The answer that names what stands there, once a command was given it.
    refusal: Option<Bytes>,
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
    /// For each command that was decoded, its place in `places`.
    place_of: Vec<usize>,
    /// Sorted by their keys, each once.
    places: Vec<Place<'a>>,
}

impl<'a> Batch<'a> {
    /// Decodes the commands and reads what stands at their keys: of all commands, or of the first ones
    /// if the others need too much memory beside them.
    pub(super) fn read(state: &'a GroupState, data: &'a [Bytes]) -> Result<Self, StateDbError> {
        let commands = data.iter().map(|data| Decoded::read(data)).collect();
        let mut batch = Self { commands, place_of: vec![0; data.len()], places: Vec::new() };
        batch.sort(state);
        batch.read_compared(state)?;
        batch.read_presence(state)?;
        Ok(batch)
    }

    /// Commands that are run; the others are for another batch.
    pub(super) fn len(&self) -> usize {
        self.commands.len()
    }

    fn sort(&mut self, state: &GroupState) {
        let mut order: Vec<(&'a [u8], usize, bool)> = self
            .commands
            .iter()
            .enumerate()
            .filter_map(|(at, decoded)| {
                let command = &decoded.as_ref().ok()?.command;
                let compares = matches!(command, TableCommand::CompareAndSet { .. });
                Some((command.key(), at, compares))
            })
            .collect();
        order.sort_unstable();
        self.places.reserve(order.len());
        let mut last = None;
        for (key, first, is_compared) in order {
            if last != Some(key) {
                let (value, refusal) = (Value::Unread, None);
                let stored = state.space().key(PAIR, key);
                self.places.push(Place { key: stored, first, is_compared, value, refusal });
                last = Some(key);
            }
            let at = self.places.len() - 1;
            self.place_of[first] = at;
            self.places[at].is_compared |= is_compared;
        }
    }

    /// Reads what is compared, in the order of the commands, until it is too much; then only the
    /// commands before are left.
    fn read_compared(&mut self, state: &'a GroupState) -> Result<(), StateDbError> {
        let mut compared: Vec<usize> =
            (0..self.places.len()).filter(|at| self.places[*at].is_compared).collect();
        compared.sort_unstable_by_key(|at| self.places[*at].first);
        let mut bytes = 0;
        for window in compared.chunks_mut(KEYS_PER_READ) {
            if bytes > MAX_READ_BYTES {
                let end = self.places[window[0]].first;
                self.commands.truncate(end);
                return Ok(());
            }
            window.sort_unstable();
            for (at, value) in window.iter().zip(self.look_up(state, window)?) {
                bytes += value.as_ref().map_or(0, |value| value.len());
                self.places[*at].value = Value::Before(value);
            }
        }
        Ok(())
    }

    /// Reads whether something stands at the other keys of the commands that are left.
    fn read_presence(&mut self, state: &'a GroupState) -> Result<(), StateDbError> {
        let end = self.commands.len();
        let wanted = |place: &Place<'_>| !place.is_compared && place.first < end;
        let keys: Vec<usize> =
            (0..self.places.len()).filter(|at| wanted(&self.places[*at])).collect();
        for window in keys.chunks(KEYS_PER_READ) {
            for (at, value) in window.iter().zip(self.look_up(state, window)?) {
                self.places[*at].value = Value::Present(value.is_some());
            }
        }
        Ok(())
    }

    fn look_up(
        &self,
        state: &'a GroupState,
        places: &[usize],
    ) -> Result<Vec<Option<DBPinnableSlice<'a>>>, StateDbError> {
        let keys: Vec<&[u8]> = places.iter().map(|at| &self.places[*at].key[..]).collect();
        state.get_sorted(&keys)
    }

    /// Runs the commands in their order and gives each its answer. `sessions` are there if a
    /// command is part of one.
    pub(super) fn run<'c>(
        &mut self,
        answered: impl Iterator<Item = &'c mut Command>,
        mut sessions: Option<&mut Sessions>,
    ) {
        for ((decoded, place), command) in self.commands.iter().zip(&self.place_of).zip(answered) {
            let index = command.position().index.get();
            let response = match decoded {
                Ok(decoded) => {
                    run(*decoded, index, &mut self.places[*place], sessions.as_deref_mut())
                }
                Err(error) => TableResponse::Invalid { message: error.to_string() }.encode(),
            };
            command.respond(response);
        }
    }

    /// What is to be written.
    pub(super) fn writes(self) -> WriteBatch {
        let mut writes = WriteBatch::default();
        for Place { key, value, .. } in &self.places {
            match value {
                Value::Unread | Value::Before(_) | Value::Present(_) => {}
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
    place: &mut Place<'a>,
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

fn run_one<'a>(command: TableCommand<'a>, place: &mut Place<'a>) -> Bytes {
    let existed = place.value.is_present();
    let after = match command {
        TableCommand::Put { value, .. } => Some(value),
        TableCommand::Delete { .. } => None,
        TableCommand::CompareAndSet { expect, value, .. } => {
            if place.value.get() != expect {
                return refuse(place);
            }
            value
        }
    };
    if existed || after.is_some() {
        place.value = Value::After(after);
        place.refusal = None;
    }
    TableResponse::done(existed)
}

/// The answer to a failed expectation. All of one value share it.
fn refuse(place: &mut Place<'_>) -> Bytes {
    let Place { value, refusal, .. } = place;
    let encode = || {
        let actual = value.get().map(Bytes::copy_from_slice);
        TableResponse::Written { done: false, existed: actual.is_some(), actual }.encode()
    };
    refusal.get_or_insert_with(encode).clone()
}
