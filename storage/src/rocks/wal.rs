//! Looks at RocksDB's write-ahead log before RocksDB does, to distinguish a torn tail from damage.
//!
//! RocksDB itself can only stop at the first record it cannot read, which silently drops everything
//! behind a flipped bit, or refuse, which also refuses the harmless half record of a write that a
//! crash cut short. Two facts distinguish them. The first is what follows: writes are synced one
//! after the other, so when a later write is there, the unreadable one had been acknowledged. What
//! a client put into a value never counts as one (see [`tail`]). The
//! second is the shape of the last write: as long as the machine stays up, a dying process leaves a
//! prefix of what it was writing and nothing else. Only after a loss of power can a write that was
//! never acknowledged have its full length and a wrong content, and then it looks like an
//! acknowledged one that was damaged. Nothing here changes a file.
//!
//! A log file consists of blocks of 32 KiB; a record is a header of seven bytes (masked CRC-32C
//! of kind and payload, length, kind) and its payload, and never crosses a block. A write that
//! does is spread over a first, middle and last records.
//!
//! When RocksDB drops a torn tail, it first makes a new log file that begins with an empty batch,
//! and only then lets go of the torn one. A crash in between leaves both. So an empty batch at the
//! beginning of a file is no write that follows: it acknowledges nothing.

mod batch;
mod record;
mod tail;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use record::{BLOCK_BYTES, HEADER_BYTES, Kind, is_padding, record};
use tail::{Judgement, Tail};

/// What the log files look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WalState {
    /// Every record can be read.
    Whole,
    /// The last write cannot be read.
    TornTail(WalPlace, TailShape),
    /// A write that was acknowledged cannot be read.
    Damaged(WalPlace, WalDamage),
}

/// What an unreadable last write looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TailShape {
    /// The file ends within it, and its bytes are the beginning of a write. Every acknowledged
    /// write reaches to its end, so this one was not.
    CutShort,
    /// It has its full length, or does not look like a write at all.
    Garbled,
}

/// How it is known that an unreadable write was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WalDamage {
    Followed,
    /// Its content is whole; only its length is not.
    WrongLength,
}

/// A place in a log file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WalPlace {
    pub file: PathBuf,
    pub offset: u64,
}

/// The log files of a database with their numbers, ascending.
pub(super) fn files(database: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for file in fs::read_dir(database)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            files.extend(number.map(|number| (number, path)));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// How many bytes the log files of a database hold from a place on.
pub(super) fn bytes_from(database: &Path, place: &WalPlace) -> io::Result<u64> {
    let files = files(database)?.into_iter().skip_while(|(_, path)| *path != place.file);
    let lengths = files.map(|(_, path)| Ok(fs::metadata(path)?.len()));
    let bytes: u64 = lengths.sum::<io::Result<u64>>()?;
    Ok(bytes.saturating_sub(place.offset))
}

/// Reads the log files of a database.
pub(super) fn inspect(database: &Path) -> io::Result<WalState> {
    let mut torn: Option<(WalPlace, TailShape)> = None;
    let mut next_sequence = None;
    for (_, path) in files(database)? {
        let found = Found::read(File::open(&path)?, next_sequence)?;
        next_sequence = found.next_sequence;
        let follows_torn = torn.is_some() && found.writes;
        let broken =
            found.broken.map(|(offset, judgement)| (WalPlace { file: path, offset }, judgement));
        torn = match (torn, &broken) {
            (Some((place, shape)), Some((_, later))) => Some((place, shape.max(later.shape))),
            (earlier, broken) => {
                earlier.or(broken.as_ref().map(|(place, found)| (place.clone(), found.shape)))
            }
        };
        let Some((place, _)) = &torn else { continue };
        let followed = broken.as_ref().is_some_and(|(_, found)| found.followed);
        if follows_torn || followed {
            return Ok(WalState::Damaged(place.clone(), WalDamage::Followed));
        }
        if let Some((place, Judgement { wrong_length: true, .. })) = broken {
            return Ok(WalState::Damaged(place, WalDamage::WrongLength));
        }
    }
    Ok(torn.map_or(WalState::Whole, |(place, shape)| WalState::TornTail(place, shape)))
}

/// What one file holds.
#[derive(Debug)]
struct Found {
    /// The first write that is not whole: where it starts, and what it and the rest look like.
    broken: Option<(u64, Judgement)>,
    /// Something was written before that.
    writes: bool,
    next_sequence: Option<u64>,
}

impl Found {
    fn read(mut file: impl Read + Seek, next_sequence: Option<u64>) -> io::Result<Self> {
        let mut scan = Scan { next_sequence, ..Scan::default() };
        scan.file(&mut file)?;
        let Scan { broken, writes, next_sequence, .. } = scan;
        let broken = broken.map(|offset| {
            // What a process that died leaves is one write; of a damaged file it may be all.
            let block = offset - offset % BLOCK_BYTES as u64;
            file.seek(SeekFrom::Start(block))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let tail = Tail { bytes: &bytes, start: (offset - block) as usize, next_sequence };
            io::Result::Ok((offset, tail.judge()))
        });
        Ok(Self { broken: broken.transpose()?, writes, next_sequence })
    }
}

/// Reads a file up to the first write that is not whole.
#[derive(Debug, Default)]
struct Scan {
    /// Where that write starts.
    broken: Option<u64>,
    writes: bool,
    /// The sequence number that follows the writes that were read.
    next_sequence: Option<u64>,
    /// The write whose last record has not come yet.
    open: Option<Open>,
    /// Offset of the block at hand.
    block: u64,
}

#[derive(Debug)]
struct Open {
    start: u64,
    /// The header of its batch, as far as it has come.
    head: Vec<u8>,
}

impl Scan {
    fn file(&mut self, file: &mut impl Read) -> io::Result<()> {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        loop {
            block.clear();
            file.take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
            self.records(&block);
            if self.broken.is_some() || block.len() < BLOCK_BYTES {
                break;
            }
            self.block += BLOCK_BYTES as u64;
        }
        self.broken = self.broken.or(self.open.as_ref().map(|open| open.start));
        Ok(())
    }

    fn records(&mut self, block: &[u8]) {
        let mut at = 0;
        while !is_padding(block, at) {
            let offset = self.block + at as u64;
            match record(&block[at..]) {
                Some((kind, payload)) if kind.starts() == self.open.is_none() => {
                    self.take(kind, payload, offset);
                    at += HEADER_BYTES + payload.len();
                }
                _ => {
                    self.broken = Some(self.open.as_ref().map_or(offset, |open| open.start));
                    return;
                }
            }
        }
    }

    /// Takes the next record of a write, or the first one of the next.
    fn take(&mut self, kind: Kind, payload: &[u8], offset: u64) {
        self.writes |= kind.starts() && !(offset == 0 && is_empty_batch(payload));
        let mut open = self.open.take().unwrap_or(Open { start: offset, head: Vec::new() });
        let missing = batch::HEADER_BYTES - open.head.len();
        open.head.extend_from_slice(&payload[..payload.len().min(missing)]);
        if kind.ends() {
            let header = batch::Header::of(&open.head);
            self.next_sequence = header.map(|header| header.next_sequence());
        } else {
            self.open = Some(open);
        }
    }
}

/// Whether a payload is a batch that changes nothing.
fn is_empty_batch(payload: &[u8]) -> bool {
    let changes = batch::Header::of(payload).map(|header| header.count);
    payload.len() == batch::HEADER_BYTES && changes == Some(0)
}
