//! Makes inputs from those of a corpus: flips, cuts, splices, lengths that are far too large, parts that
//! are repeated. The same seed and corpus give the same inputs.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use shardhost_storage::testing::fuzz::Seed;

/// Inputs grow up to here.
const MOST_BYTES: usize = 64 * 1024;
/// Changes of an input at most.
const MOST_CHANGES: u32 = 6;

/// Numbers at which something may turn.
const NUMBERS: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX,
];

pub struct Mutator<'a> {
    corpus: &'a [Seed],
    random: SmallRng,
}

impl<'a> Mutator<'a> {
    pub fn new(corpus: &'a [Seed], seed: u64) -> Self {
        Self { corpus, random: SmallRng::seed_from_u64(seed) }
    }

    /// The next input.
    pub fn next(&mut self) -> Vec<u8> {
        // Long files are few, and take as long as many short ones.
        let mut input = self.pick();
        if input.len() > 4096 && self.random.random_ratio(7, 8) {
            input = self.pick();
        }
        for _ in 0..self.random.random_range(1..=MOST_CHANGES) {
            self.change(&mut input);
            input.truncate(MOST_BYTES);
        }
        input
    }

    fn pick(&mut self) -> Vec<u8> {
        self.corpus[self.random.random_range(0..self.corpus.len())].bytes.clone()
    }

    /// A place in the input, its end included.
    fn place(&mut self, input: &[u8]) -> usize {
        self.random.random_range(0..=input.len())
    }

    /// A part of the input, often a short one.
    fn part(&mut self, input: &[u8]) -> std::ops::Range<usize> {
        let start = self.place(input);
        let rest = input.len() - start;
        let most = if self.random.random() { rest.min(16) } else { rest };
        start..start + self.random.random_range(0..=most)
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        match self.random.random_range(0..12u32) {
            0 | 1 => self.flip(input),
            2 => self.overwrite_byte(input),
            3 => self.overwrite_number(input),
            4 => self.replace_varint(input),
            5 => {
                let part = self.part(input);
                input.drain(part);
            }
            6 => {
                let end = self.place(input);
                input.truncate(end);
            }
            7 => self.repeat(input),
            8 => self.splice(input),
            9 => self.insert(input),
            10 => self.swap(input),
            _ => self.add(input),
        }
    }

    fn flip(&mut self, input: &mut [u8]) {
        if !input.is_empty() {
            let at = self.random.random_range(0..input.len());
            input[at] ^= 1 << self.random.random_range(0..8u32);
        }
    }

    fn overwrite_byte(&mut self, input: &mut [u8]) {
        if !input.is_empty() {
            let at = self.random.random_range(0..input.len());
            input[at] = self.random.random();
        }
    }

    fn number(&mut self) -> u64 {
        match self.random.random_range(0..4u32) {
            0 => self.random.random(),
            1 => self.random.random_range(0..300),
            _ => NUMBERS[self.random.random_range(0..NUMBERS.len())],
        }
    }

    /// A number of fixed width, as lengths of frames are.
    fn overwrite_number(&mut self, input: &mut [u8]) {
        let width = [1, 2, 4, 8][self.random.random_range(0..4usize)];
        if input.len() < width {
            return;
        }
        let at = self.random.random_range(0..=input.len() - width);
        let number = self.number();
        let bytes = if self.random.random() {
            number.to_be_bytes()[8 - width..].to_vec()
        } else {
            number.to_le_bytes()[..width].to_vec()
        };
        input[at..at + width].copy_from_slice(&bytes);
    }

    /// A number of seven bits a byte, in the place of one that may stand there.
    fn replace_varint(&mut self, input: &mut Vec<u8>) {
        let at = self.place(input);
        let length = input[at..].iter().take(10).take_while(|byte| **byte & 0x80 != 0).count();
        let end = (at + length + 1).min(input.len());
        let mut number = self.number();
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        input.splice(at..end, bytes);
    }

    fn repeat(&mut self, input: &mut Vec<u8>) {
        let part = self.part(input);
        if part.is_empty() {
            return;
        }
        let most = (MOST_BYTES / part.len()).clamp(1, 2_000);
        let times = if self.random.random_ratio(1, 8) { most } else { most.min(4) };
        let times = self.random.random_range(1..=times);
        let repeated = input[part.clone()].repeat(times);
        input.splice(part.end..part.end, repeated);
    }

    /// The front of this and the back of another one.
    fn splice(&mut self, input: &mut Vec<u8>) {
        let other = self.pick();
        let (at, from) = (self.place(input), self.place(&other));
        input.truncate(at);
        input.extend_from_slice(&other[from..]);
    }

    /// A part of another one, in between.
    fn insert(&mut self, input: &mut Vec<u8>) {
        let other = self.pick();
        let (at, part) = (self.place(input), self.part(&other));
        input.splice(at..at, other[part].iter().copied());
    }

    fn swap(&mut self, input: &mut [u8]) {
        if input.len() > 1 {
            let (one, two) = (
                self.random.random_range(0..input.len()),
                self.random.random_range(0..input.len()),
            );
            input.swap(one, two);
        }
    }

    /// One more or less, as off-by-one lengths are.
    fn add(&mut self, input: &mut [u8]) {
        if !input.is_empty() {
            let at = self.random.random_range(0..input.len());
            let by = if self.random.random() { 1 } else { u8::MAX };
            input[at] = input[at].wrapping_add(by);
        }
    }
}
