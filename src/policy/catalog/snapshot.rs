//! The format of the catalog's snapshots: a header, then frames, each with a checksum.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `SHCATAL` and the number of the format |
//! | 4, 4, … | length and CRC-32 of a message (little endian), and the message; once per frame |
//!
//! The frames are: the head; the records, in ascending order of kind and id; the last changes; the
//! end, with their numbers and the digest of the whole. A frame is small, so neither side needs
//! more than a little memory beside the catalog. Everything is checked to the last byte before
//! anything is replaced by it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};

use bytes::Bytes;
use prost::Message;

use super::convert::{key_from, key_to, record_from_message, record_to_message};
use super::feed::MAX_CHANGES;
use super::record::{Record, RecordKey, Revision};
use super::state::Catalog;
use super::view::View;
use super::wire::snapshot_frame::Frame;
use super::{MAX_ENDED, MAX_GROUPS, MAX_NODES, MAX_TOKENS, wire};

/// The format that is written here, and the only one that is read.
pub const SNAPSHOT_FORMAT: u8 = 1;

const MAGIC: [u8; 7] = *b"SHCATAL";
/// A frame ends with the record that makes it as large as this.
const FRAME_BYTES: usize = 64 * 1024;
/// Longest frame that is read: a full one and the longest record, which is that of the settings with all rules.
const MAX_FRAME_BYTES: u32 = 1024 * 1024;
const FRAME_CHANGES: usize = 4_096;
/// Records at most: groups, their ends, nodes, their drains, tokens, and the settings.
const MAX_RECORDS: usize = MAX_GROUPS + MAX_ENDED + 2 * MAX_NODES + MAX_TOKENS + 1;

/// A snapshot cannot be read. Nothing was changed. Ask for it again, or take another one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The bytes are something else.
    #[error("this is no snapshot of a catalog: it begins with {found:02x?}")]
    NotACatalog { found: [u8; 7] },
    /// Written by another version. Update this host.
    #[error("the snapshot has format {found}, this host reads format {SNAPSHOT_FORMAT}; update it")]
    UnknownFormat {
        /// The format of the snapshot.
        found: u8,
    },
    /// It cannot be read, or ends early.
    #[error("frame {frame} of the snapshot cannot be read: {error}")]
    Unreadable {
        /// The number of the frame, from 0.
        frame: u64,
        error: io::Error,
    },
    /// A frame is longer than any that is written.
    #[error(
        "frame {frame} of the snapshot has {bytes} bytes, at most {MAX_FRAME_BYTES} are possible"
    )]
    FrameTooLong {
        /// The number of the frame, from 0.
        frame: u64,
        bytes: u32,
    },
    /// Bytes changed since they were written.
    #[error(
        "frame {frame} of the snapshot is damaged: its CRC is {stored:08x}, of its bytes {actual:08x}"
    )]
    Damaged {
        /// The number of the frame, from 0.
        frame: u64,
        /// The recorded CRC.
        stored: u32,
        /// The CRC of its bytes.
        actual: u32,
    },
    /// A frame is whole and makes no sense.
    #[error("frame {frame} of the snapshot makes no sense: {detail}")]
    Malformed {
        /// The number of the frame, from 0.
        frame: u64,
        detail: String,
    },
    /// Its content does not match its numbers.
    #[error("the snapshot says it has {declared} {what}, it has {found}")]
    Count { what: &'static str, declared: u64, found: u64 },
    /// The whole is not what was written.
    #[error("the snapshot says its digest is {declared:016x}, it is {actual:016x}")]
    WrongDigest { declared: u64, actual: u64 },
    /// Bytes follow the end.
    #[error("bytes follow the end of the snapshot")]
    Trailing,
}

/// Writes a snapshot.
///
/// # Errors
/// Those of the sink.
pub fn write_snapshot(catalog: &Catalog, sink: &mut dyn Write) -> io::Result<()> {
    sink.write_all(&MAGIC)?;
    sink.write_all(&[SNAPSHOT_FORMAT])?;
    let revision = catalog.view().revision().get();
    let head = wire::SnapshotHead { revision, ended_floor: catalog.ended_floor() };
    write_frame(sink, Frame::Head(head))?;
    let records = write_records(catalog.view(), sink)?;
    let keys: Vec<_> = catalog.last_keys().map(key_to).collect();
    for keys in keys.chunks(FRAME_CHANGES) {
        write_frame(sink, Frame::Changes(wire::SnapshotChanges { keys: keys.to_vec() }))?;
    }
    let (changes, digest) = (keys.len() as u64, catalog.digest());
    write_frame(sink, Frame::End(wire::SnapshotEnd { records, changes, digest }))
}

/// Writes all records and returns their number.
fn write_records(view: &View, sink: &mut dyn Write) -> io::Result<u64> {
    let mut written = 0;
    let mut bytes = 0;
    let mut records = Vec::new();
    for record in view.all() {
        let message = record_to_message(&record);
        bytes += message.encoded_len();
        written += 1;
        records.push(message);
        if bytes >= FRAME_BYTES {
            let records = std::mem::take(&mut records);
            write_frame(sink, Frame::Records(wire::SnapshotRecords { records }))?;
            bytes = 0;
        }
    }
    if !records.is_empty() {
        write_frame(sink, Frame::Records(wire::SnapshotRecords { records }))?;
    }
    Ok(written)
}

fn write_frame(sink: &mut dyn Write, frame: Frame) -> io::Result<()> {
    let bytes = wire::SnapshotFrame { frame: Some(frame) }.encode_to_vec();
    // Far below 4 GiB.
    sink.write_all(&(bytes.len() as u32).to_le_bytes())?;
    sink.write_all(&crc32fast::hash(&bytes).to_le_bytes())?;
    sink.write_all(&bytes)
}

/// Reads a snapshot, checked to its last byte.
///
/// # Errors
/// [`SnapshotError`].
pub fn read_snapshot(source: &mut dyn Read) -> Result<Catalog, SnapshotError> {
    let mut reader = Reader { source, frame: 0 };
    reader.check_header()?;
    let Frame::Head(head) = reader.next()? else {
        return Err(reader.malformed("it is not the head"));
    };
    let mut parts = Parts::default();
    loop {
        match reader.next()? {
            Frame::Records(frame) => parts.add_records(frame, &head),
            Frame::Changes(frame) => parts.add_changes(&frame, &head),
            Frame::End(end) => return parts.finish(&mut reader, &head, &end),
            Frame::Head(_) => Err("there is a second head".to_owned()),
        }
        .map_err(|detail| reader.malformed(detail))?;
    }
}

struct Reader<'a> {
    source: &'a mut dyn Read,
    /// The number of the next frame.
    frame: u64,
}

impl Reader<'_> {
    fn check_header(&mut self) -> Result<(), SnapshotError> {
        let found = self.array()?;
        if found != MAGIC {
            return Err(SnapshotError::NotACatalog { found });
        }
        match self.array()? {
            [SNAPSHOT_FORMAT] => Ok(()),
            [found] => Err(SnapshotError::UnknownFormat { found }),
        }
    }

    fn next(&mut self) -> Result<Frame, SnapshotError> {
        let length = u32::from_le_bytes(self.array()?);
        let stored = u32::from_le_bytes(self.array()?);
        let frame = self.frame;
        if length > MAX_FRAME_BYTES {
            return Err(SnapshotError::FrameTooLong { frame, bytes: length });
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        let actual = crc32fast::hash(&bytes);
        if actual != stored {
            return Err(SnapshotError::Damaged { frame, stored, actual });
        }
        let message = wire::SnapshotFrame::decode(Bytes::from(bytes));
        let message = message.map_err(|error| self.malformed(error))?;
        let content = message.frame.ok_or_else(|| self.malformed("its kind is not known"))?;
        self.frame += 1;
        Ok(content)
    }

    fn check_end(&mut self) -> Result<(), SnapshotError> {
        let mut byte = [0];
        loop {
            match self.source.read(&mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(SnapshotError::Trailing),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(SnapshotError::Unreadable { frame: self.frame, error }),
            }
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        let frame = self.frame;
        self.source.read_exact(bytes).map_err(|error| SnapshotError::Unreadable { frame, error })
    }

    fn malformed(&self, detail: impl ToString) -> SnapshotError {
        SnapshotError::Malformed { frame: self.frame, detail: detail.to_string() }
    }
}

/// What was read up to here.
#[derive(Default)]
struct Parts {
    view: View,
    records: usize,
    last: Option<RecordKey>,
    keys: VecDeque<RecordKey>,
}

impl Parts {
    fn add_records(
        &mut self,
        frame: wire::SnapshotRecords,
        head: &wire::SnapshotHead,
    ) -> Result<(), String> {
        if !self.keys.is_empty() {
            return Err("records follow changes".to_owned());
        }
        for message in frame.records {
            let record = record_from_message(message).map_err(|refusal| refusal.to_string())?;
            self.add(record, head)?;
        }
        Ok(())
    }

    fn add(&mut self, record: Record, head: &wire::SnapshotHead) -> Result<(), String> {
        let (key, revision) = (record.key(), record.revision().get());
        if let Some(last) = self.last.filter(|last| *last >= key) {
            return Err(format!("{key} follows {last}"));
        }
        if revision > head.revision {
            return Err(format!("{key} is of revision {revision}, the head of {}", head.revision));
        }
        if self.records == MAX_RECORDS {
            return Err(format!("there are more than {MAX_RECORDS} records"));
        }
        self.records += 1;
        self.last = Some(key);
        self.view.put(record);
        Ok(())
    }

    fn add_changes(
        &mut self,
        frame: &wire::SnapshotChanges,
        head: &wire::SnapshotHead,
    ) -> Result<(), String> {
        for key in &frame.keys {
            self.keys.push_back(key_from(key).map_err(|refusal| refusal.to_string())?);
        }
        let (changes, revision) = (self.keys.len(), head.revision);
        if changes > MAX_CHANGES || changes as u64 > revision {
            return Err(format!(
                "there are {changes} changes, at most {MAX_CHANGES} and {revision} are possible"
            ));
        }
        Ok(())
    }

    fn finish(
        mut self,
        reader: &mut Reader<'_>,
        head: &wire::SnapshotHead,
        end: &wire::SnapshotEnd,
    ) -> Result<Catalog, SnapshotError> {
        check_count("records", end.records, self.records)?;
        check_count("changes", end.changes, self.keys.len())?;
        self.view.advance(Revision::new(head.revision));
        let catalog = Catalog::from_parts(self.view, self.keys, head.ended_floor);
        let actual = catalog.digest();
        if actual != end.digest {
            return Err(SnapshotError::WrongDigest { declared: end.digest, actual });
        }
        reader.check_end()?;
        Ok(catalog)
    }
}

const fn check_count(what: &'static str, declared: u64, found: usize) -> Result<(), SnapshotError> {
    let found = found as u64;
    if declared == found { Ok(()) } else { Err(SnapshotError::Count { what, declared, found }) }
}
