//! Values of clients that look like records, and lengths that lead elsewhere.

use super::super::super::crc32c;
use super::super::*;
use super::{CUT, Writer, batch, cut_short, damaged, garbled, inspected, judged, place};

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
