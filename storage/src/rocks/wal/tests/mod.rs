//! Logs as RocksDB writes them, and what becomes of them.
//!
//! | file | what |
//! |---|---|
//! | `torn` | cut, garbled and damaged |
//! | `forged` | values that look like records, and lengths that lead elsewhere |
//! | `adversarial` | random values made of parts of records, cut and damaged anywhere |

mod adversarial;
mod forged;
mod torn;

use std::io::Cursor;

use super::super::crc32c;
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

/// A batch of one change.
fn batch(sequence: u64, value: &[u8]) -> Vec<u8> {
    let mut batch = sequence.to_le_bytes().to_vec();
    batch.extend([1, 0, 0, 0, 5, 2, 3]);
    batch.extend(b"key");
    let mut length = value.len();
    while length >= 0x80 {
        batch.push(length as u8 | 0x80);
        length >>= 7;
    }
    batch.push(length as u8);
    batch.extend(value);
    batch
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
    log.push(&batch(5, &[0x51; 100]));
    let second = log.0.len();
    log.push(&batch(6, &[0x52; 3 * BLOCK_BYTES]));
    let third = log.0.len();
    log.push(&batch(7, &[0x53; 100]));
    (log.0, [0, second, third])
}

/// How a log ends, without a place.
fn judged(log: &[u8]) -> Option<(usize, Judgement)> {
    let found = Found::read(Cursor::new(log), None).expect("bytes can be read");
    found.broken.map(|(offset, judgement)| (offset as usize, judgement))
}

const CUT: Judgement =
    Judgement { shape: TailShape::CutShort, followed: false, wrong_length: false };

#[test]
fn what_looks_like_a_record_within_a_write_that_was_cut_is_no_write_that_follows() {
    let mut embedded = Writer::default();
    embedded.push(b"");
    let mut log = Writer::default();
    log.push(&batch(5, &[0x51; 100]));
    let second = log.0.len();
    log.push(&batch(6, &[&[0x52; 50], &embedded.0[..], &[0x52; 200]].concat()));
    for length in second + 1..log.0.len() {
        assert_eq!(inspected(&[&log.0[..length]]), cut_short(second), "cut at {length}");
    }
}
