//! Which shard a key belongs to.
//!
//! Clients and tools compute it themselves, so it is part of the public format and never changes:
//! the XXH64 of the key with seed 0, modulo the number of shards of the kind. The number of
//! shards is fixed when they are created; with another number the keys lie elsewhere.

use std::num::NonZeroUsize;

use crate::hash::xxh64;

/// The stable hash of a table key or a partition key: XXH64 with seed 0.
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    xxh64(key, 0)
}

/// The number of the shard that `key` belongs to, below `shards`.
#[must_use]
pub fn shard_of(key: &[u8], shards: NonZeroUsize) -> usize {
    // The remainder is below `shards`, which is a usize.
    (key_hash(key) % shards.get() as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(count: usize) -> NonZeroUsize {
        NonZeroUsize::new(count).unwrap()
    }

    #[test]
    fn keys_lie_where_they_always_lay() {
        // Golden values: changing one loses every key of every cluster.
        assert_eq!(key_hash(b""), 0xEF46_DB37_51D8_E999);
        assert_eq!(key_hash(b"a"), 0xD24E_C4F1_A98C_6E5B);
        let keys = ["", "a", "abc", "Nobody inspects the spammish repetition"];
        let placed = keys.map(|key| shard_of(key.as_bytes(), shards(48)));
        assert_eq!(placed, [9, 11, 9, 1]);
    }

    #[test]
    fn one_shard_takes_everything() {
        assert_eq!(shard_of(b"anything", shards(1)), 0);
    }

    #[test]
    fn keys_spread_evenly() {
        let count = 32;
        let mut held = vec![0u32; count];
        for number in 0..32_000u32 {
            held[shard_of(format!("key-{number}").as_bytes(), shards(count))] += 1;
        }
        // 1,000 expected each; six standard deviations are about 190.
        assert!(held.iter().all(|&keys| (800..1_200).contains(&keys)), "{held:?}");
    }
}
