//! A checksum over the bytes of a view, by which replicas are compared.
//!
//! It must be the same on every machine and in every version: replicas of two versions compare it.

use std::io::{self, Write};

use crate::checksum::StateSum;
use crate::machine::ConsistencyView;

/// What became of computing a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Summed {
    Sum(StateSum),
    /// The state machine is not compared.
    Unsupported,
    /// There was no room, or the machine failed to show its state: not this time.
    Skipped,
}

/// Computes the checksum of a view. `pace` gets the number of bytes as they are written, and may
/// take its time, or end it.
///
/// # Errors
/// Those of the view or of `pace`.
pub fn sum_of(
    view: ConsistencyView,
    pace: &mut dyn FnMut(usize) -> io::Result<()>,
) -> io::Result<StateSum> {
    let mut sink = Sink { sum: Sum::default(), pace };
    view.writer.write_to(&mut sink)?;
    Ok(StateSum { format: view.format, bytes: sink.sum.bytes, sum: sink.sum.value() })
}

struct Sink<'a> {
    sum: Sum,
    pace: &'a mut dyn FnMut(usize) -> io::Result<()>,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.pace)(bytes.len())?;
        self.sum.add(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Eight bytes at a time, however the bytes are cut into writes. Each step can be undone, so two
/// states that differ in one word never come to the same value.
#[derive(Default)]
struct Sum {
    value: u64,
    bytes: u64,
    rest: [u8; 8],
}

impl Sum {
    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let held = (self.bytes % 8) as usize;
            if let (0, Some((word, rest))) = (held, bytes.split_first_chunk::<8>()) {
                self.mix(u64::from_le_bytes(*word));
                self.bytes += 8;
                bytes = rest;
                continue;
            }
            let taken = bytes.len().min(8 - held);
            self.rest[held..held + taken].copy_from_slice(&bytes[..taken]);
            self.bytes += taken as u64;
            if held + taken == 8 {
                self.mix(u64::from_le_bytes(self.rest));
            }
            bytes = &bytes[taken..];
        }
    }

    const fn mix(&mut self, word: u64) {
        let mixed = (self.value ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.value = mixed ^ (mixed >> 32);
    }

    fn value(mut self) -> u64 {
        let held = (self.bytes % 8) as usize;
        if held > 0 {
            self.rest[held..].fill(0);
            self.mix(u64::from_le_bytes(self.rest));
        }
        self.mix(self.bytes);
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(parts: &[&[u8]]) -> u64 {
        let mut sum = Sum::default();
        parts.iter().for_each(|part| sum.add(part));
        sum.value()
    }

    #[test]
    fn it_does_not_matter_how_the_bytes_are_cut() {
        let bytes: Vec<u8> = (0..100).collect();
        for first in 0..30 {
            for second in first..60 {
                let parts = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(sum(&parts), sum(&[&bytes]), "{first} {second}");
            }
        }
    }

    #[test]
    fn every_bit_and_the_length_count() {
        let bytes = vec![0; 37];
        let plain = sum(&[&bytes]);
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(sum(&[&other]), plain, "bit {bit}");
        }
        assert_ne!(sum(&[&bytes, &[0]]), plain);
        assert_ne!(sum(&[&bytes[1..]]), plain);
    }

    /// Replicas of two versions compare it: it is what it was.
    #[test]
    fn the_value_never_changes() {
        assert_eq!(sum(&[b"replicas are equal"]), PINNED);
    }

    const PINNED: u64 = 0x8239_c342_f00f_6024;
}
