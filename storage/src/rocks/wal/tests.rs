//! Logs as RocksDB writes them, and what becomes of them: cut, damaged, and with values that look
//! like records.

use std::io::Cursor;
use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use rocksdb::{DB, Options, WriteBatch};
use tempfile::TempDir;

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
        let envelope = batch(5, &[1; BLOCK_BYTES / 2]).len() - BLOCK_BYTES / 2;
        log.push(&batch(5, &vec![1; BLOCK_BYTES - HEADER_BYTES - envelope - room]));
        log.push(&batch(6, &[2; 50]));
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
    let flipped = [&log[..log.len() - 1], &[0][..]].concat();
    assert_eq!(inspected(&[&[&flipped, &empty[..]].concat()]), damaged(third));
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

#[test]
fn a_checksum_that_a_client_made_right_for_a_part_of_its_write_makes_it_no_whole_one() {
    let mut next = Writer::default();
    next.push(&batch(7, b"as if it followed"));
    let mut log = Writer::default();
    log.push(&batch(5, &[0x51; 100]));
    let second = log.0.len();
    let part = batch(6, &[0x52; 300]).len() - 200;
    let mut value = [&[0x52; 100], &next.0[..], &[0x52; 200]].concat();
    value.truncate(300);
    let mut payload = batch(6, &value);
    let wanted = crc32c::checksum([&[1], &payload[..part]]);
    forge_end(&mut payload, wanted);
    log.push(&payload);
    let header = log.0[second..].to_vec();
    let header = record::Header::of(&header).expect("a header");
    assert!(header.fits(Kind::Full, &payload[..part]), "the checksum is not forged");
    for length in second + 1..log.0.len() {
        assert_eq!(judged(&log.0[..length]), Some((second, CUT)), "cut at {length}");
    }
}

/// Changes the last four bytes so that the checksum of a full record comes out.
fn forge_end(payload: &mut [u8], checksum: u32) {
    let at = payload.len() - 4;
    // Each bit of the four bytes changes certain bits of the checksum: solved as a linear system.
    payload[at..].fill(0);
    let of = |bytes: u32, payload: &mut [u8]| {
        payload[at..].copy_from_slice(&bytes.to_le_bytes());
        crc32c::checksum([&[1], payload])
    };
    let base = of(0, payload);
    let mut rows: Vec<(u32, u32)> =
        (0..32).map(|bit| (of(1 << bit, payload) ^ base, 1 << bit)).collect();
    let (mut wanted, mut bytes) = (checksum ^ base, 0);
    for bit in 0..32 {
        let pivot = rows.iter().position(|row| row.0 >> bit & 1 == 1).expect("independent");
        let pivot = rows.swap_remove(pivot);
        let has_bit = |value: u32| value >> bit & 1 == 1;
        rows.iter_mut().filter(|row| has_bit(row.0)).for_each(|row| {
            *row = (row.0 ^ pivot.0, row.1 ^ pivot.1);
        });
        if has_bit(wanted) {
            (wanted, bytes) = (wanted ^ pivot.0, bytes ^ pivot.1);
        }
    }
    assert_eq!(of(bytes, payload), checksum);
}

#[test]
fn a_length_that_reaches_behind_the_file_is_found() {
    let mut log = Writer::default();
    let starts = [5, 6, 7].map(|sequence| {
        let start = log.0.len();
        log.push(&batch(sequence, &[0x51; 100]));
        start
    });
    for (at, start) in starts.into_iter().enumerate() {
        for length in [0x0100_u16, 0x0200, 0x7000, 0x7fff, 0xffff] {
            let mut log = log.0.clone();
            log[start + 4..start + 6].copy_from_slice(&length.to_le_bytes());
            let damage = if at == 2 { WalDamage::WrongLength } else { WalDamage::Followed };
            assert_eq!(inspected(&[&log]), WalState::Damaged(place(start), damage), "{length}");
        }
    }
}

/// Three short writes, and where each starts.
fn three_short_writes() -> (Vec<u8>, [usize; 3]) {
    let mut log = Writer::default();
    let starts = [5, 6, 7].map(|sequence| {
        let start = log.0.len();
        log.push(&batch(sequence, &[0x51; 100]));
        start
    });
    (log.0, starts)
}

#[test]
fn a_length_that_reaches_behind_the_file_beside_another_changed_byte_hides_no_write_that_follows() {
    let (log, starts) = three_short_writes();
    let end = log.len() - starts[2];
    for (at, start) in starts.into_iter().enumerate() {
        for length in [0x0100_u16, 0x0200, 0x7000, 0x7fff, 0xffff] {
            // The checksum; the kind; in the batch the sequence number, the key and the value.
            for other in [0, 3, 6, HEADER_BYTES + 3, HEADER_BYTES + 16, end - 100, end - 1] {
                let mut log = log.clone();
                log[start + 4..start + 6].copy_from_slice(&length.to_le_bytes());
                log[start + other] ^= 0x03;
                let state = if at == 2 { garbled(start) } else { damaged(start) };
                assert_eq!(inspected(&[&log]), state, "{length:#x} and byte {other} of {at}");
            }
        }
    }
}

#[test]
fn two_lengths_that_both_reach_behind_the_file_look_like_a_write_that_was_cut() {
    // A client can write a value that holds the writes that follow here, and the process can die in the
    // middle of it: the same bytes, but for a checksum of what is not there.
    let (mut log, [_, second, _]) = three_short_writes();
    let value = second + HEADER_BYTES + batch(6, &[]).len() - 1;
    assert_eq!(log[value], 100, "the length of the value");
    log[second + 5] = 0x10;
    log[value..value + 2].copy_from_slice(&[0x80, 0x20]);
    assert_eq!(inspected(&[&log]), cut_short(second));
}

#[test]
fn a_length_of_which_a_part_was_lost_is_no_place_that_a_client_chooses() {
    // The last byte of the length of the value is the first of a sector that was lost: what is left of
    // it leads to a place in the value.
    let (sector, place) = (512, 1000);
    let in_front = batch(6, &[]).len() - 1 + 2;
    let mut log = Writer::default();
    let second = sector - HEADER_BYTES - in_front;
    log.push(&batch(5, &vec![0x51; second - HEADER_BYTES - batch(5, &[0; 200]).len() + 200]));
    assert_eq!(log.0.len(), second);
    let mut following = Writer::default();
    for sequence in 7..20 {
        following.push(&batch(sequence, b"as if it followed"));
    }
    let mut value = [&[0x52; 1000], &following.0[..]].concat();
    value.resize((1 << 14) + place, 0x52);
    log.push(&batch(6, &value));
    log.0[sector..2 * sector].fill(0);
    for length in (2 * sector..log.0.len()).step_by(97).chain([log.0.len()]) {
        let (offset, found) = judged(&log.0[..length]).expect("something is found");
        assert_eq!((offset, found.followed), (second, false), "cut at {length}: {found:?}");
    }
}

#[test]
fn writes_behind_one_without_a_header_are_found_by_their_sequence_numbers() {
    let write = |log: &mut Writer, sequence| {
        let start = log.0.len();
        log.push(&batch(sequence, &[0x51; 700]));
        start
    };
    for (sequence, follows) in [(7, true), (6, true), (4, false), (9_000, false)] {
        let mut log = Writer::default();
        let [_, second] = [5, 6].map(|sequence| write(&mut log, sequence));
        let third = write(&mut log, sequence);
        write(&mut log, sequence + 1);
        log.0[second..third - 9].fill(0);
        let state = if follows { damaged(second) } else { garbled(second) };
        assert_eq!(inspected(&[&log.0]), state, "{sequence}");
        // Also if the last of them was cut, but not if they end before.
        log.0.truncate(log.0.len() - 1);
        assert_eq!(inspected(&[&log.0]), state, "{sequence}");
        log.0.extend([0; 300]);
        assert_eq!(inspected(&[&log.0]), garbled(second), "{sequence}");
    }
}

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
