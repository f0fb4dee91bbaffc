//! Reading entries while the log writer continues.
//!
//! A read takes several steps: the position of a run, its value, the next run. A write between them
//! may replace or truncate what was found. A first pass therefore takes no lock and checks that
//! nothing moved under it; if something did, the second one keeps the writer out. Reads of entries
//! that are being written are rare, because Raft reads only what it knows to be durable.

use bytes::Bytes;
use rocksdb::{ColumnFamily, DB};

use super::index::{Index, Record, RunPart};
use super::{database_error, keys};
use crate::ids::{GroupId, LogIndex};
use crate::run;
use crate::store::LogError;
use crate::types::Entry;

#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub group: GroupId,
    pub from: LogIndex,
    pub to: LogIndex,
    pub max_bytes: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// With everything that was wanted.
    Done,
    Disturbed,
}

/// One pass over the wanted entries, appending them to `out`.
pub(super) fn pass(
    database: &DB,
    log: &ColumnFamily,
    index: &Index,
    request: &Request,
    out: &mut Vec<Entry>,
) -> Result<Pass, LogError> {
    let start = out.len();
    let version = index.look(request.group, |record| check(record, request))??;
    let mut reader = Reader { database, log, index, request: *request, version };
    let outcome = reader.read(out);
    let undisturbed = index.look(request.group, |record| record.version() == version);
    if outcome == Ok(Pass::Done) && undisturbed == Ok(true) {
        return Ok(Pass::Done);
    }
    out.truncate(start);
    if undisturbed == Ok(true) { outcome } else { Ok(Pass::Disturbed) }
}

/// Checks the bounds; returns the record's version.
fn check(record: &Record, request: &Request) -> Result<u64, LogError> {
    let Request { group, from, to, .. } = *request;
    if from <= record.base.index {
        return Err(LogError::Compacted { group, index: from, base: record.base });
    }
    if to > record.last.next() {
        return Err(LogError::OutOfRange { group, index: to, last: record.last_position() });
    }
    Ok(record.version())
}

struct Reader<'a> {
    database: &'a DB,
    log: &'a ColumnFamily,
    index: &'a Index,
    request: Request,
    version: u64,
}

impl Reader<'_> {
    fn read(&mut self, out: &mut Vec<Entry>) -> Result<Pass, LogError> {
        let mut next = self.request.from;
        let mut budget = Budget { left: self.request.max_bytes, first: true };
        while next < self.request.to {
            let Some(part) = self.index.look(self.request.group, |record| record.locate(next))?
            else {
                return Ok(Pass::Disturbed);
            };
            if part.version != self.version {
                return Ok(Pass::Disturbed);
            }
            let end = part.end.min(self.request.to);
            for entry in self.part(&part, next, end)? {
                if !budget.allows(&entry) {
                    return Ok(Pass::Done);
                }
                out.push(entry);
            }
            next = end;
        }
        Ok(Pass::Done)
    }

    /// The entries `from..to` of one run.
    fn part(
        &self,
        part: &RunPart,
        from: LogIndex,
        to: LogIndex,
    ) -> Result<impl Iterator<Item = Entry>, LogError> {
        let group = self.request.group;
        let key = keys::run(group, part.run);
        let value = self.database.get_cf(self.log, key);
        let value = value.map_err(|error| database_error("reading entries", &error))?;
        let value = value.ok_or_else(|| corrupt_run(group, part.run, "it is missing"))?;
        let entries = read_run(group, part.run, value.into())?;
        let skipped = (from.get() - part.run.get()) as usize;
        let wanted = (to.get() - from.get()) as usize;
        if entries.len() < skipped + wanted {
            return Err(corrupt_run(group, part.run, "it is too short"));
        }
        Ok(entries.into_iter().skip(skipped).take(wanted))
    }
}

/// Decodes the run under the key of `first`.
pub(super) fn read_run(
    group: GroupId,
    first: LogIndex,
    value: Bytes,
) -> Result<Vec<Entry>, LogError> {
    let entries = run::decode(group, &value)
        .map_err(|error| corrupt_run(group, first, &error.to_string()))?;
    if entries.first().is_none_or(|entry| entry.index != first) {
        return Err(corrupt_run(group, first, "it starts elsewhere"));
    }
    Ok(entries)
}

/// A run that is not what was written.
pub(super) fn corrupt_run(group: GroupId, run: LogIndex, message: &str) -> LogError {
    let place = format!("the run of entries of group {group} from {run}");
    LogError::Corrupt { place, message: message.to_owned() }
}

/// Payload bytes that may still be read.
struct Budget {
    left: u64,
    first: bool,
}

impl Budget {
    fn allows(&mut self, entry: &Entry) -> bool {
        let bytes = entry.payload_bytes();
        let allowed = self.first || bytes <= self.left;
        self.first = false;
        self.left = self.left.saturating_sub(bytes);
        allowed
    }
}
