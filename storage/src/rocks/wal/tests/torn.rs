//! Logs that were cut, garbled or damaged.

use super::super::*;
use super::{Writer, batch, cut_short, damaged, empty_batch, garbled, inspected, three_writes};

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
