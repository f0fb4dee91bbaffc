//! XXH64 after its published definition: fast, and the same on every machine and in every version.

const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const PRIME_3: u64 = 0x1656_67B1_9E37_79F9;
const PRIME_4: u64 = 0x85EB_CA77_C2B2_AE63;
const PRIME_5: u64 = 0x27D4_EB2F_1656_67C5;

const STRIPE_BYTES: usize = 32;

/// The XXH64 of `data`.
pub(crate) fn xxh64(data: &[u8], seed: u64) -> u64 {
    let (stripes, tail) = data.split_at(data.len() - data.len() % STRIPE_BYTES);
    let start = if stripes.is_empty() { seed.wrapping_add(PRIME_5) } else { fold(stripes, seed) };
    avalanche(finish_tail(start.wrapping_add(data.len() as u64), tail))
}

fn fold(stripes: &[u8], seed: u64) -> u64 {
    let mut lanes = [
        seed.wrapping_add(PRIME_1).wrapping_add(PRIME_2),
        seed.wrapping_add(PRIME_2),
        seed,
        seed.wrapping_sub(PRIME_1),
    ];
    for stripe in stripes.chunks_exact(STRIPE_BYTES) {
        for (lane, word) in lanes.iter_mut().zip(stripe.chunks_exact(8)) {
            *lane = round(*lane, little_endian(word));
        }
    }
    let [a, b, c, d] = lanes;
    let sum = a
        .rotate_left(1)
        .wrapping_add(b.rotate_left(7))
        .wrapping_add(c.rotate_left(12))
        .wrapping_add(d.rotate_left(18));
    lanes.iter().fold(sum, |sum, &lane| merge(sum, lane))
}

fn finish_tail(mut sum: u64, mut tail: &[u8]) -> u64 {
    while let Some((word, rest)) = tail.split_at_checked(8) {
        sum ^= round(0, little_endian(word));
        sum = sum.rotate_left(27).wrapping_mul(PRIME_1).wrapping_add(PRIME_4);
        tail = rest;
    }
    if let Some((word, rest)) = tail.split_at_checked(4) {
        sum ^= little_endian(word).wrapping_mul(PRIME_1);
        sum = sum.rotate_left(23).wrapping_mul(PRIME_2).wrapping_add(PRIME_3);
        tail = rest;
    }
    for &byte in tail {
        sum ^= u64::from(byte).wrapping_mul(PRIME_5);
        sum = sum.rotate_left(11).wrapping_mul(PRIME_1);
    }
    sum
}

const fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(PRIME_2)).rotate_left(31).wrapping_mul(PRIME_1)
}

const fn merge(sum: u64, lane: u64) -> u64 {
    (sum ^ round(0, lane)).wrapping_mul(PRIME_1).wrapping_add(PRIME_4)
}

const fn avalanche(mut sum: u64) -> u64 {
    sum = (sum ^ (sum >> 33)).wrapping_mul(PRIME_2);
    sum = (sum ^ (sum >> 29)).wrapping_mul(PRIME_3);
    sum ^ (sum >> 32)
}

/// Up to eight bytes as a little endian number.
fn little_endian(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// A checksum over a sequence of byte strings; their order and their borders count.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SequenceSum(u64);

impl SequenceSum {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        // The sum of what came before is the seed, and XXH64 mixes the length in.
        self.0 = xxh64(bytes, self.0);
    }

    pub(crate) fn add_number(&mut self, number: u64) {
        self.add(&number.to_le_bytes());
    }

    pub(crate) const fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{SequenceSum, xxh64};

    #[test]
    fn the_published_values_come_out() {
        assert_eq!(xxh64(b"", 0), 0xEF46_DB37_51D8_E999);
        assert_eq!(xxh64(b"a", 0), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(xxh64(b"abc", 0), 0x44BC_2CF5_AD77_0999);
        assert_eq!(xxh64(b"Nobody inspects the spammish repetition", 0), 0xFBCE_A83C_8A37_8BF1);
    }

    #[test]
    fn order_and_borders_count_in_a_sequence() {
        let sum = |parts: &[&str]| {
            let mut sum = SequenceSum::default();
            parts.iter().for_each(|part| sum.add(part.as_bytes()));
            sum.value()
        };
        let all = [&["ab", "c"][..], &["a", "bc"], &["c", "ab"], &["ab", "c", ""], &["abc"], &[]];
        let sums: std::collections::BTreeSet<u64> = all.into_iter().map(sum).collect();
        assert_eq!(sums.len(), all.len());
    }

    #[test]
    fn every_length_and_seed_gives_another_value() {
        let data = [7; 100];
        let values: std::collections::BTreeSet<u64> = (0..=data.len())
            .flat_map(|length| [xxh64(&data[..length], 0), xxh64(&data[..length], 1)])
            .collect();
        assert_eq!(values.len(), 2 * (data.len() + 1));
    }
}
