//! Looks at RocksDB's write-ahead log before RocksDB does, to distinguish a torn tail from damage.
//!
//! RocksDB itself can only stop at the first record it cannot read, which silently drops everything
//! behind a flipped bit, or refuse, which also refuses the harmless half record of a write that a
//! crash cut short. Two facts distinguish them. The first is what follows: writes are synced one
//! after the other, so when a later write is there, the unreadable one had been acknowledged. The
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

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::crc32c;

const BLOCK_BYTES: usize = 32 * 1024;
const HEADER_BYTES: usize = 7;

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

/// Reads the log files of a database.
pub(super) fn inspect(database: &Path) -> io::Result<WalState> {
    let mut torn: Option<(WalPlace, TailShape)> = None;
    for (_, path) in files(database)? {
        let mut scan = Scan::default();
        scan.file(File::open(&path)?)?;
        let found = scan
            .broken
            .map(|broken| (WalPlace { file: path.clone(), offset: broken.offset }, broken.shape));
        let follows = if torn.is_some() { scan.writes } else { scan.writes_behind };
        torn = match (torn, found) {
            (Some((place, shape)), Some((_, later))) => Some((place, shape.max(later))),
            (earlier, found) => earlier.or(found),
        };
        let Some((place, _)) = &torn else { continue };
        if follows {
            return Ok(WalState::Damaged(place.clone(), WalDamage::Followed));
        }
        if scan.wrong_length {
            let offset = scan.broken.map_or(0, |broken| broken.offset);
            let place = WalPlace { file: path, offset };
            return Ok(WalState::Damaged(place, WalDamage::WrongLength));
        }
    }
    Ok(torn.map_or(WalState::Whole, |(place, shape)| WalState::TornTail(place, shape)))
}

/// One pass over a file.
#[derive(Debug, Default)]
struct Scan {
    broken: Option<Broken>,
    /// A write can be read.
    writes: bool,
    /// One behind something broken can.
    writes_behind: bool,
    /// The first broken record would be whole with another length.
    wrong_length: bool,
    /// Where the write starts whose last record has not come yet.
    open: Option<u64>,
    /// Offset of the block at hand.
    block: u64,
}

#[derive(Clone, Copy, Debug)]
struct Broken {
    offset: u64,
    shape: TailShape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Full,
    First,
    Middle,
    Last,
}

impl Kind {
    const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Full),
            2 => Some(Self::First),
            3 => Some(Self::Middle),
            4 => Some(Self::Last),
            _ => None,
        }
    }

    /// Whether a write starts with such a record.
    const fn starts(self) -> bool {
        matches!(self, Self::Full | Self::First)
    }
}

impl Scan {
    fn file(&mut self, mut file: File) -> io::Result<()> {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        loop {
            block.clear();
            (&mut file).take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
            self.records(&block);
            // The next question is only whether a write follows, and the answer is known.
            if self.writes_behind || block.len() < BLOCK_BYTES {
                break;
            }
            self.block += BLOCK_BYTES as u64;
        }
        if let Some(start) = self.open {
            self.breaks(start, TailShape::CutShort);
        }
        Ok(())
    }

    fn records(&mut self, block: &[u8]) {
        let mut at = 0;
        while !is_padding(block, at) && !self.writes_behind {
            match record(&block[at..]) {
                Some((kind, payload)) => {
                    self.meet(kind, payload, at);
                    at += HEADER_BYTES + payload.len();
                }
                None => {
                    let start = self.open.unwrap_or(self.block + at as u64);
                    self.wrong_length |= self.broken.is_none() && fits_to_the_end(&block[at..]);
                    self.breaks(start, self.shape(block, at));
                    at += 1;
                }
            }
        }
    }

    /// Takes note of a readable record.
    fn meet(&mut self, kind: Kind, payload: &[u8], at: usize) {
        let offset = self.block + at as u64;
        match self.open {
            Some(start) if kind.starts() => self.breaks(start, TailShape::Garbled),
            None if !kind.starts() => self.breaks(offset, TailShape::Garbled),
            _ => {}
        }
        match kind {
            Kind::First => self.open = Some(offset),
            Kind::Full | Kind::Last => self.open = None,
            Kind::Middle => {}
        }
        if kind.starts() && !(offset == 0 && is_empty_batch(payload)) {
            self.writes = true;
            self.writes_behind |= self.broken.is_some();
        }
    }

    /// Takes note of what cannot be read; what follows in the same file is part of its shape.
    fn breaks(&mut self, offset: u64, shape: TailShape) {
        self.open = None;
        self.broken.get_or_insert(Broken { offset, shape });
    }

    /// What the unreadable record at this place of the block looks like.
    fn shape(&self, block: &[u8], at: usize) -> TailShape {
        let cut = block.len() < BLOCK_BYTES && is_beginning(&block[at..], BLOCK_BYTES - at);
        let continues = block.get(at + HEADER_BYTES - 1).is_none_or(|kind| {
            Kind::of(*kind).is_some_and(|kind| kind.starts() == self.open.is_none())
        });
        if cut && continues { TailShape::CutShort } else { TailShape::Garbled }
    }
}

/// No record starts in the last bytes of a block. At the end of a file, where the block is
/// short, they are the beginning of a header that was cut.
fn is_padding(block: &[u8], at: usize) -> bool {
    at >= block.len() || (block.len() == BLOCK_BYTES && block.len() - at < HEADER_BYTES)
}

/// The record that starts here: its kind and its payload.
fn record(bytes: &[u8]) -> Option<(Kind, &[u8])> {
    let [c0, c1, c2, c3, l0, l1, kind] = *bytes.first_chunk::<HEADER_BYTES>()?;
    let name = Kind::of(kind)?;
    let end = HEADER_BYTES + usize::from(u16::from_le_bytes([l0, l1]));
    let payload = bytes.get(HEADER_BYTES..end)?;
    let crc = crc32c::mask(crc32c::checksum([&[kind], payload]));
    (crc == u32::from_le_bytes([c0, c1, c2, c3])).then_some((name, payload))
}

/// Whether the file ends before the record does that starts here, where there was room for
/// `room` bytes of it.
fn is_beginning(bytes: &[u8], room: usize) -> bool {
    let Some([.., l0, l1, _]) = bytes.first_chunk::<HEADER_BYTES>() else { return true };
    let length = HEADER_BYTES + usize::from(u16::from_le_bytes([*l0, *l1]));
    length > bytes.len() && length <= room
}

/// Whether the checksum of the record that starts here is right when its payload is all that
/// follows: the checksum does not cover the length.
fn fits_to_the_end(bytes: &[u8]) -> bool {
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return false };
    let [c0, c1, c2, c3, _, _, kind] = *header;
    let crc = crc32c::mask(crc32c::checksum([&[kind], payload]));
    Kind::of(kind).is_some() && crc == u32::from_le_bytes([c0, c1, c2, c3])
}

/// Whether a payload is a batch that changes nothing: a sequence number, and a count of zero.
fn is_empty_batch(payload: &[u8]) -> bool {
    const SEQUENCE_BYTES: usize = 8;
    const COUNT_BYTES: usize = 4;
    payload.len() == SEQUENCE_BYTES + COUNT_BYTES && payload.ends_with(&[0; COUNT_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a log file as RocksDB does.
    #[derive(Default)]
    struct Writer(Vec<u8>);

    impl Writer {
        fn push(&mut self, mut payload: &[u8]) {
            let mut first = true;
            loop {
                let room = BLOCK_BYTES - self.0.len() % BLOCK_BYTES;
                if room < HEADER_BYTES {
                    self.0.resize(self.0.len() + room, 0);
                    continue;
                }
                let (part, rest) = payload.split_at(payload.len().min(room - HEADER_BYTES));
                let kind = match (first, rest.is_empty()) {
                    (true, true) => 1,
                    (true, false) => 2,
                    (false, false) => 3,
                    (false, true) => 4,
                };
                let crc = crc32c::mask(crc32c::checksum([&[kind], part]));
                self.0.extend(crc.to_le_bytes());
                self.0.extend((part.len() as u16).to_le_bytes());
                self.0.push(kind);
                self.0.extend(part);
                (payload, first) = (rest, false);
                if payload.is_empty() {
                    return;
                }
            }
        }
    }

    fn inspected(files: &[&[u8]]) -> WalState {
        let dir = tempfile::tempdir().expect("a directory");
        for (number, bytes) in files.iter().enumerate() {
            fs::write(dir.path().join(format!("{number:06}.log")), bytes).expect("a file");
        }
        let relative = |place: WalPlace| WalPlace {
            file: place.file.file_name().expect("a name").into(),
            ..place
        };
        match inspect(dir.path()).expect("readable") {
            WalState::Whole => WalState::Whole,
            WalState::TornTail(place, shape) => WalState::TornTail(relative(place), shape),
            WalState::Damaged(place, damage) => WalState::Damaged(relative(place), damage),
        }
    }

    fn place(offset: usize) -> WalPlace {
        WalPlace { file: "000000.log".into(), offset: offset as u64 }
    }

    fn cut_short(offset: usize) -> WalState {
        WalState::TornTail(place(offset), TailShape::CutShort)
    }

    fn garbled(offset: usize) -> WalState {
        WalState::TornTail(place(offset), TailShape::Garbled)
    }

    fn damaged(offset: usize) -> WalState {
        WalState::Damaged(place(offset), WalDamage::Followed)
    }

    /// What RocksDB puts at the beginning of the file that follows one with a torn tail.
    fn empty_batch() -> Vec<u8> {
        let mut log = Writer::default();
        log.push(&[7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        log.0
    }

    /// A log of three writes, the second over several blocks; and where each starts.
    fn three_writes() -> (Vec<u8>, [usize; 3]) {
        let mut log = Writer::default();
        log.push(&[0x51; 100]);
        let second = log.0.len();
        log.push(&[0x52; 3 * BLOCK_BYTES]);
        let third = log.0.len();
        log.push(&[0x53; 100]);
        (log.0, [0, second, third])
    }

    #[test]
    fn an_unharmed_log_is_whole() {
        let (log, _) = three_writes();
        assert_eq!(inspected(&[&log]), WalState::Whole);
        assert_eq!(inspected(&[&log, b"", &log]), WalState::Whole);
        assert_eq!(inspected(&[]), WalState::Whole);
    }

    #[test]
    fn writes_that_end_anywhere_in_a_block_are_whole() {
        for room in 0..20 {
            let mut log = Writer::default();
            log.push(&vec![1; BLOCK_BYTES - HEADER_BYTES - room]);
            log.push(&[2; 50]);
            assert_eq!(inspected(&[&log.0]), WalState::Whole, "{room} bytes left in the block");
        }
    }

    #[test]
    fn a_log_cut_anywhere_in_its_last_write_is_torn_there() {
        let (log, [.., third]) = three_writes();
        for length in third + 1..log.len() {
            assert_eq!(inspected(&[&log[..length]]), cut_short(third), "cut at {length}");
        }
    }

    #[test]
    fn a_log_cut_in_a_write_of_many_records_is_torn_where_the_write_starts() {
        let (log, [_, second, third]) = three_writes();
        let blocks = (1..4).map(|block| block * BLOCK_BYTES);
        for length in (second + 1..third).step_by(1009).chain(blocks) {
            assert_eq!(inspected(&[&log[..length]]), cut_short(second), "cut at {length}");
        }
    }

    #[test]
    fn a_flipped_bit_before_another_write_is_damage() {
        let (log, [_, second, third]) = three_writes();
        // The headers bit by bit, lengths and kinds among them; the rest at intervals.
        let headers = (0..HEADER_BYTES).chain(second..second + HEADER_BYTES);
        for byte in headers.chain((0..third).step_by(997)) {
            for bit in 0..8 {
                let mut log = log.clone();
                log[byte] ^= 1 << bit;
                let place = if byte < second { 0 } else { second };
                assert_eq!(inspected(&[&log]), damaged(place), "bit {bit} of byte {byte}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_in_the_last_write_is_never_taken_for_a_write_that_was_cut_short() {
        let (log, [_, second, third]) = three_writes();
        let flipped = |log: &[u8], byte: usize, bit: u32, start: usize| {
            let mut log = log.to_vec();
            log[byte] ^= 1 << bit;
            let state = inspected(&[&log]);
            let is_length = matches!(state, WalState::Damaged(_, WalDamage::WrongLength));
            assert!(is_length || state == garbled(start), "bit {bit} of byte {byte}: {state:?}");
            is_length
        };
        for byte in third..log.len() {
            for bit in 0..8 {
                let is_length = flipped(&log, byte, bit, third);
                assert_eq!(is_length, (third + 4..third + 6).contains(&byte), "byte {byte}");
            }
        }
        // A write of many records, the headers of all of them bit by bit.
        let log = &log[..third];
        let headers = (0..4).map(|block| (block * BLOCK_BYTES).max(second));
        let headers = headers.flat_map(|header| header..header + HEADER_BYTES);
        for byte in headers.chain((second..third).step_by(4999)) {
            for bit in 0..8 {
                flipped(log, byte, bit, second);
            }
        }
    }

    #[test]
    fn pages_of_one_write_that_reached_the_disk_out_of_order_are_a_torn_tail() {
        let (log, [_, second, third]) = three_writes();
        let mut log = log[..third].to_vec();
        log[second + 4096..second + BLOCK_BYTES].fill(0);
        assert_eq!(inspected(&[&log]), garbled(second));
    }

    #[test]
    fn zeros_and_garbage_behind_the_last_write_are_a_torn_tail() {
        let (log, _) = three_writes();
        for tail in [vec![0; 7], vec![0; 100_000], vec![0xa5; 70], vec![0x01; 100_000]] {
            assert_eq!(inspected(&[&[log.clone(), tail].concat()]), garbled(log.len()));
        }
        // Less than a header, which no acknowledged write is.
        for tail in [vec![0; 5], vec![0xa5; 5]] {
            assert_eq!(inspected(&[&[log.clone(), tail].concat()]), cut_short(log.len()));
        }
    }

    #[test]
    fn a_torn_tail_before_another_file_with_writes_is_damage() {
        let (log, [.., third]) = three_writes();
        let cut = &log[..log.len() - 1];
        assert_eq!(inspected(&[cut, &log]), damaged(third));
        assert_eq!(inspected(&[cut, b"", &log]), damaged(third));
        assert_eq!(inspected(&[cut, b"garbage"]), garbled(third));
        assert_eq!(inspected(&[cut, b""]), cut_short(third));
    }

    #[test]
    fn an_empty_batch_at_the_beginning_of_a_later_file_is_no_write_that_follows() {
        let (log, [.., third]) = three_writes();
        let (cut, empty) = (&log[..log.len() - 1], empty_batch());
        assert_eq!(inspected(&[cut, &empty]), cut_short(third));
        assert_eq!(inspected(&[cut, &empty, &empty, b"", &empty]), cut_short(third));
        for length in 0..empty.len() {
            assert_eq!(inspected(&[cut, &empty[..length]]), cut_short(third), "{length}");
        }
        // Behind it, and elsewhere, writes follow as everywhere.
        assert_eq!(inspected(&[cut, &[&empty[..], &log].concat()]), damaged(third));
        assert_eq!(inspected(&[&[cut, &empty[..]].concat()]), damaged(third));
    }
}
