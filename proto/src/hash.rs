//! XXH64: fast, and the same on every machine and in every version.

use xxhash_rust::xxh64::xxh64 as digest;

/// The XXH64 of `data`.
#[must_use]
pub fn xxh64(data: &[u8], seed: u64) -> u64 {
    digest(data, seed)
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
}
