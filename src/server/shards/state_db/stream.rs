//! How a group's state travels in a snapshot: a header, one record per key, and a count.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `SHSTATE` and the version |
//! | 1 | the kind of machine |
//! | 4, 4, … | length of key, length of value (little endian), key, value; once per record |
//! | 4, 8 | `u32::MAX` for a key length, then the number of records |
//!
//! A key is the part behind the group id: its kind byte and the rest. So snapshots of groups look
//! alike, and no group can write into another's keys.

use std::io::{self, BufReader, Read, Write};

use shardhost_groups::machine::SnapshotWriter;

use super::MachineKind;
use super::views::View;

const MAGIC: [u8; 8] = *b"SHSTATE\x01";
const END: u32 = u32::MAX;
/// Longest key of a record: the longest table key, and its kind.
const MAX_KEY_BYTES: u32 = 8 * 1024;
/// Longest value of a record: the longest queue message, and what stands with it.
const MAX_VALUE_BYTES: u32 = 2 * 1024 * 1024;

/// Memory that a record is given before its bytes are there.
const READ_AHEAD_BYTES: usize = 16 * 1024;

pub(crate) fn put_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // Keys and values are bounded far below 4 GiB when they are written.
    out.extend_from_slice(&(key.len() as u32).to_le_bytes());
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

/// Writes the snapshot of one group.
pub(crate) struct GroupWriter {
    pub(crate) kind: MachineKind,
    pub(crate) view: View,
}

impl SnapshotWriter for GroupWriter {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> io::Result<()> {
        sink.write_all(&MAGIC)?;
        sink.write_all(&[self.kind as u8])?;
        let mut records = 0;
        let mut next = Some(self.view.start());
        while let Some(from) = next {
            let chunk = self.view.read(from).map_err(io::Error::other)?;
            sink.write_all(&chunk.bytes)?;
            records += chunk.records;
            next = chunk.next;
        }
        sink.write_all(&END.to_le_bytes())?;
        sink.write_all(&u64::to_le_bytes(records))
    }
}

/// Reads a snapshot, one record at a time.
pub(crate) struct GroupReader<'a> {
    source: BufReader<&'a mut dyn Read>,
    records: u64,
}

/// One key of a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

impl<'a> GroupReader<'a> {
    /// Checks the header; the message says what is wrong with it.
    pub(crate) fn open(kind: MachineKind, source: &'a mut dyn Read) -> Result<Self, String> {
        let mut reader = Self { source: BufReader::new(source), records: 0 };
        if reader.array::<8>()? != MAGIC {
            return Err("it is not a snapshot of a shard, or of another version".into());
        }
        let [found] = reader.array()?;
        if found != kind as u8 {
            return Err(format!("it is of kind {found}, not {}", kind as u8));
        }
        Ok(reader)
    }

    /// The next record; `None` after the last, when the count is right and nothing follows.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, String> {
        let key_bytes = u32::from_le_bytes(self.array()?);
        if key_bytes == END {
            return self.check_end().map(|()| None);
        }
        let value_bytes = u32::from_le_bytes(self.array()?);
        if key_bytes == 0 || key_bytes > MAX_KEY_BYTES || value_bytes > MAX_VALUE_BYTES {
            return Err(format!(
                "record {} has a key of {key_bytes} and a value of {value_bytes} bytes",
                self.records
            ));
        }
        self.records += 1;
        Ok(Some(Record { key: self.vec(key_bytes)?, value: self.vec(value_bytes)? }))
    }

    fn check_end(&mut self) -> Result<(), String> {
        let declared = u64::from_le_bytes(self.array()?);
        if declared != self.records {
            return Err(format!("it declares {declared} records and holds {}", self.records));
        }
        match self.source.read(&mut [0]).map_err(|error| error.to_string())? {
            0 => Ok(()),
            _ => Err("bytes follow its end".into()),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// Takes memory for what comes, not for what is announced.
    fn vec(&mut self, length: u32) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity((length as usize).min(READ_AHEAD_BYTES));
        let read = self.source.by_ref().take(length.into()).read_to_end(&mut bytes);
        match read.map_err(|error| error.to_string())? == length as usize {
            true => Ok(bytes),
            false => Err("it ends early".into()),
        }
    }
}
