//! Looks at RocksDB's write-ahead log before RocksDB does, to tell a torn tail from damage.
//!
//! RocksDB itself can only be told to stop at the first record it cannot read, which silently
//! drops everything behind a flipped bit, or to refuse, which also refuses the harmless half
//! record of a write that a crash cut short. The difference is what follows: writes are synced
//! one after the other, so when a later write is there, the unreadable one had been
//! acknowledged. Nothing here changes a file, and nothing here knows what the records say.
//!
//! A log file consists of blocks of 32 KiB; a record is a header of seven bytes (masked CRC-32C
//! of kind and payload, length, kind) and its payload, and never crosses a block. A write that
//! does is spread over a first, middle and last records.

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
    /// The last write is not whole, or something that is no write follows it.
    TornTail(WalPlace),
    /// A record is damaged that a later write follows.
    Damaged(WalPlace),
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
    let mut torn: Option<WalPlace> = None;
    for (_, file) in files(database)? {
        let mut scan = Scan { hunting: torn.is_some(), ..Scan::default() };
        let written_behind = scan.file(File::open(&file)?)?;
        if torn.is_none() {
            torn = scan.broken.map(|offset| WalPlace { file, offset });
        }
        if let Some(place) = torn.as_ref().filter(|_| written_behind) {
            return Ok(WalState::Damaged(place.clone()));
        }
    }
    Ok(torn.map_or(WalState::Whole, WalState::TornTail))
}

/// One pass over a file.
#[derive(Debug, Default)]
struct Scan {
    /// Something before was broken: only the question whether a write follows is left.
    hunting: bool,
    /// Where the first broken write of this file starts.
    broken: Option<u64>,
    /// Where the write starts whose last record has not come yet.
    open: Option<u64>,
    /// Offset of the block at hand.
    block: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Full,
    First,
    Middle,
    Last,
}

impl Scan {
    /// True when a write follows what is broken.
    fn file(&mut self, mut file: File) -> io::Result<bool> {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        loop {
            block.clear();
            (&mut file).take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
            if self.records(&block) {
                return Ok(true);
            }
            if block.len() < BLOCK_BYTES {
                break;
            }
            self.block += BLOCK_BYTES as u64;
        }
        if let Some(start) = self.open {
            self.breaks(start);
        }
        Ok(false)
    }

    fn records(&mut self, block: &[u8]) -> bool {
        let mut at = 0;
        while !is_padding(block, at) {
            match record(&block[at..]) {
                Some((kind, length)) => {
                    if self.meet(kind, at) {
                        return true;
                    }
                    at += length;
                }
                None => {
                    self.breaks(self.open.unwrap_or(self.block + at as u64));
                    at += 1;
                }
            }
        }
        false
    }

    /// Takes note of a readable record; true when it is a write behind something broken.
    fn meet(&mut self, kind: Kind, at: usize) -> bool {
        let offset = self.block + at as u64;
        let starts = matches!(kind, Kind::Full | Kind::First);
        match self.open {
            Some(start) if starts => self.breaks(start),
            None if !starts => self.breaks(offset),
            _ => {}
        }
        match kind {
            Kind::First => self.open = Some(offset),
            Kind::Full | Kind::Last => self.open = None,
            Kind::Middle => {}
        }
        self.hunting && starts
    }

    fn breaks(&mut self, offset: u64) {
        self.open = None;
        if !self.hunting {
            self.hunting = true;
            self.broken = Some(offset);
        }
    }
}

/// No record starts in the last bytes of a block. At the end of a file, where the block is
/// short, they are the beginning of a header that was cut.
fn is_padding(block: &[u8], at: usize) -> bool {
    at >= block.len() || (block.len() == BLOCK_BYTES && block.len() - at < HEADER_BYTES)
}

/// The kind of the record that starts here, and its length with the header.
fn record(bytes: &[u8]) -> Option<(Kind, usize)> {
    let [c0, c1, c2, c3, l0, l1, kind] = *bytes.first_chunk::<HEADER_BYTES>()?;
    let end = HEADER_BYTES + usize::from(u16::from_le_bytes([l0, l1]));
    let payload = bytes.get(HEADER_BYTES..end)?;
    let name = match kind {
        1 => Kind::Full,
        2 => Kind::First,
        3 => Kind::Middle,
        4 => Kind::Last,
        _ => return None,
    };
    let crc = crc32c::mask(crc32c::checksum([&[kind], payload]));
    (crc == u32::from_le_bytes([c0, c1, c2, c3])).then_some((name, end))
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
            WalState::TornTail(place) => WalState::TornTail(relative(place)),
            WalState::Damaged(place) => WalState::Damaged(relative(place)),
        }
    }

    fn torn(offset: usize) -> WalState {
        WalState::TornTail(WalPlace { file: "000000.log".into(), offset: offset as u64 })
    }

    fn damaged(offset: usize) -> WalState {
        WalState::Damaged(WalPlace { file: "000000.log".into(), offset: offset as u64 })
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
            assert_eq!(inspected(&[&log[..length]]), torn(third), "cut at {length}");
        }
    }

    #[test]
    fn a_log_cut_in_a_write_of_many_records_is_torn_where_the_write_starts() {
        let (log, [_, second, third]) = three_writes();
        for length in (second + 1..third).step_by(1009) {
            assert_eq!(inspected(&[&log[..length]]), torn(second), "cut at {length}");
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
    fn a_flipped_bit_in_the_last_write_is_a_torn_tail() {
        let (log, [.., third]) = three_writes();
        for byte in third..log.len() {
            let mut log = log.clone();
            log[byte] ^= 0x10;
            assert_eq!(inspected(&[&log]), torn(third), "byte {byte}");
        }
    }

    #[test]
    fn pages_of_one_write_that_reached_the_disk_out_of_order_are_a_torn_tail() {
        let (log, [_, second, third]) = three_writes();
        let mut log = log[..third].to_vec();
        log[second + 4096..second + BLOCK_BYTES].fill(0);
        assert_eq!(inspected(&[&log]), torn(second));
    }

    #[test]
    fn zeros_and_garbage_behind_the_last_write_are_a_torn_tail() {
        let (log, _) = three_writes();
        for tail in [vec![0; 5], vec![0; 100_000], vec![0xa5; 5], vec![0x01; 100_000]] {
            assert_eq!(inspected(&[&[log.clone(), tail].concat()]), torn(log.len()));
        }
    }

    #[test]
    fn a_torn_tail_before_another_file_with_writes_is_damage() {
        let (log, [.., third]) = three_writes();
        let cut = &log[..log.len() - 1];
        assert_eq!(inspected(&[cut, &log]), damaged(third));
        assert_eq!(inspected(&[cut, b"", &log]), damaged(third));
        assert_eq!(inspected(&[cut, b"garbage"]), torn(third));
    }
}
