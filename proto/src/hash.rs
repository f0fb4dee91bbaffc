//! Hashes that are the same on every machine and in every version: XXH64 of bytes, and one of a number.

use xxhash_rust::xxh64::xxh64 as digest;

/// The XXH64 of `data`.
#[must_use]
pub fn xxh64(data: &[u8], seed: u64) -> u64 {
    digest(data, seed)
}

/// What [`mix`] adds to its input: a sequence of inputs this far apart is a generator, splitmix64.
pub const MIX_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads every bit of a number over the result: one step of splitmix64.
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(MIX_STEP);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A checksum over a sequence of byte strings; their order and their borders count.
#[derive(Clone, Copy, Debug, Default)]
pub struct SequenceSum(u64);

impl SequenceSum {
    /// Adds a byte string; its length counts.
    pub fn add(&mut self, bytes: &[u8]) {
        // The sum of what came before is the seed, and XXH64 mixes the length in.
        self.0 = xxh64(bytes, self.0);
    }

    /// Adds a number.
    pub fn add_number(&mut self, number: u64) {
        self.add(&number.to_le_bytes());
    }

    /// The checksum of all that was added.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{MIX_STEP, SequenceSum, mix, xxh64};

    #[test]
    fn the_published_values_come_out() {
        assert_eq!(xxh64(b"", 0), 0xEF46_DB37_51D8_E999);
        assert_eq!(xxh64(b"a", 0), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(xxh64(b"abc", 0), 0x44BC_2CF5_AD77_0999);
        assert_eq!(xxh64(b"Nobody inspects the spammish repetition", 0), 0xFBCE_A83C_8A37_8BF1);
    }

    #[test]
    fn splitmix64_comes_out() {
        let published = [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F];
        let drawn = (0..3u64).map(|step| mix(step.wrapping_mul(MIX_STEP)));
        assert!(drawn.eq(published));
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
}
