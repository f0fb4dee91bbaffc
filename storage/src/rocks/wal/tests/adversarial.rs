//! Random values that are made of parts of records, in logs that are cut and damaged anywhere.

use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use rocksdb::{DB, Options, WriteBatch};
use tempfile::TempDir;

use super::super::*;
use super::{CUT, Writer, batch, judged};

/// What a client writes that knows everything but what it may not choose.
#[derive(Clone, Debug)]
enum Piece {
    Noise(Vec<u8>),
    EmptyRecord,
    /// Records of batches, as they would follow the write.
    Writes {
        count: usize,
        bytes: usize,
    },
    /// A log of another database.
    Log(usize),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        vec(any::<u8>(), 0..40).prop_map(Piece::Noise),
        (0..40_000_usize).prop_map(|length| Piece::Noise(vec![0x5a; length])),
        Just(Piece::EmptyRecord),
        (1..40_usize, 0..200_usize).prop_map(|(count, bytes)| Piece::Writes { count, bytes }),
        (0..70_000_usize).prop_map(Piece::Log),
    ]
}

/// Each write consists of values, each value of pieces.
fn pieces() -> impl Strategy<Value = Vec<Vec<Vec<Piece>>>> {
    vec(vec(vec(piece(), 0..5), 1..4), 2..5)
}

fn value(pieces: &[Piece], next_sequence: u64) -> Vec<u8> {
    let (mut value, mut sequences) = (Vec::new(), next_sequence..);
    for piece in pieces {
        let mut records = Writer::default();
        match piece {
            Piece::Noise(bytes) => value.extend(bytes),
            Piece::EmptyRecord => records.push(b""),
            Piece::Writes { count, bytes } => {
                for sequence in sequences.by_ref().take(*count) {
                    records.push(&batch(sequence, &vec![0x77; *bytes]));
                }
            }
            Piece::Log(bytes) => {
                records.push(&batch(next_sequence, &vec![0x78; *bytes]));
                records.push(&batch(next_sequence + 1, b""));
            }
        }
        value.extend(records.0);
    }
    value
}

static DATABASE: LazyLock<(TempDir, DB)> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    let database = DB::open_cf(&options, directory.path(), ["log"]).expect("a database");
    (directory, database)
});

/// A log of batches of RocksDB, and where each write starts. Clients guess sequence numbers that
/// are `ahead` of the right ones.
fn adversarial_log(writes: &[Vec<Vec<Piece>>], ahead: u64) -> (Vec<u8>, Vec<usize>) {
    let family = DATABASE.1.cf_handle("log").expect("a family");
    let (mut log, mut starts, mut sequence) = (Writer::default(), Vec::new(), 40);
    for values in writes {
        let mut batch = WriteBatch::default();
        batch.delete_cf(family, b"an older run");
        let next = sequence + 1 + values.len() as u64;
        for (at, pieces) in values.iter().enumerate() {
            batch.put_cf(family, [at as u8; 16], value(pieces, next + ahead));
        }
        let mut payload = batch.data().to_vec();
        payload[..8].copy_from_slice(&sequence.to_le_bytes());
        let room = BLOCK_BYTES - log.0.len() % BLOCK_BYTES;
        starts.push(log.0.len() + if room < HEADER_BYTES { room } else { 0 });
        log.push(&payload);
        sequence = next;
    }
    (log.0, starts)
}

/// Where the records of the write start that starts here.
fn records_from(log: &[u8], start: usize) -> Vec<usize> {
    let blocks = (start / BLOCK_BYTES + 1..).map(|block| block * BLOCK_BYTES);
    let others = blocks.take_while(|at| *at < log.len());
    let all = [start].into_iter().chain(others);
    let mut ended = false;
    all.take_while(|at| {
        let going_on = !ended;
        ended |= record(&log[*at..]).is_some_and(|(kind, _)| kind.ends());
        going_on
    })
    .collect()
}

/// All places of something short; some of something long, with all near the ends of blocks.
fn places(from: usize, to: usize) -> impl Iterator<Item = usize> {
    let step = (to - from) / 200 + 1;
    let is_near = |at: &usize| (at + 20) % BLOCK_BYTES < 40;
    (from..to).filter(move |at| (at - from).is_multiple_of(step) || is_near(at))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_value_makes_a_write_that_was_cut_look_like_damage(writes in pieces()) {
        let (log, starts) = adversarial_log(&writes, 0);
        let last = starts[starts.len() - 1];
        prop_assert_eq!(judged(&log), None);
        for length in places(last + 1, log.len()) {
            prop_assert_eq!(judged(&log[..length]), Some((last, CUT)), "cut at {}", length);
        }
    }

    #[test]
    fn a_changed_byte_in_any_record_is_found(writes in pieces(), change in 1..=255_u8, at: usize) {
        let (mut log, starts) = adversarial_log(&writes, 0);
        for (turn, start) in starts.iter().enumerate() {
            let is_last = turn + 1 == starts.len();
            for header in records_from(&log, *start) {
                let (_, payload) = record(&log[header..]).expect("readable");
                let length = payload.len();
                let in_payload = (length > 0).then(|| header + HEADER_BYTES + at % length.max(1));
                for byte in (header..header + HEADER_BYTES).chain(in_payload) {
                    log[byte] ^= change;
                    let (offset, found) = judged(&log).expect("something is found");
                    log[byte] ^= change;
                    prop_assert_eq!(offset, *start, "byte {}", byte);
                    prop_assert_eq!(found.followed, !is_last, "byte {}", byte);
                    prop_assert_eq!(found.shape, TailShape::Garbled, "byte {}", byte);
                    let of_length = header + 4..header + 6;
                    prop_assert_eq!(found.wrong_length, of_length.contains(&byte), "{}", byte);
                }
            }
        }
    }

    #[test]
    fn a_changed_length_with_a_changed_checksum_hides_no_write_that_follows(
        writes in pieces(),
        changes in (1..=255_u8, 1..=255_u8),
        at in 0..4_usize,
    ) {
        let (mut log, starts) = adversarial_log(&writes, 0);
        for start in &starts[..starts.len() - 1] {
            for header in records_from(&log, *start) {
                for byte in header + 4..header + 6 {
                    log[byte] ^= changes.0;
                    log[header + at] ^= changes.1;
                    let (offset, found) = judged(&log).expect("something is found");
                    log[byte] ^= changes.0;
                    log[header + at] ^= changes.1;
                    prop_assert_eq!((offset, found.followed), (*start, true), "byte {}", byte);
                }
            }
        }
    }

    #[test]
    fn no_value_makes_a_write_that_lost_sectors_look_like_damage(
        writes in pieces(),
        lost: [u64; 8],
        headers_are_lost: bool,
        length: usize,
    ) {
        // A client that knows the sequence number could do it if the disk lost a header.
        let (mut log, starts) = adversarial_log(&writes, if headers_are_lost { 1 << 40 } else { 0 });
        let last = starts[starts.len() - 1];
        let headers: Vec<_> = records_from(&log, last);
        for (at, byte) in log.iter_mut().enumerate().skip(last) {
            let sector = at / 512;
            let has_header = headers.iter().any(|header| {
                (header / 512..=(header + HEADER_BYTES - 1) / 512).contains(&sector)
            });
            let is_lost = lost[sector / 64 % 8] >> (sector % 64) & 1 == 1;
            if is_lost && (headers_are_lost || !has_header) {
                *byte = 0;
            }
        }
        log.truncate(last + 1 + length % (log.len() - last));
        if let Some((offset, found)) = judged(&log) {
            prop_assert_eq!(offset, last);
            prop_assert!(!found.followed && !found.wrong_length, "{:?}", found);
        }
    }
}
