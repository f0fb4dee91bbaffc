//! The map of shards: which shards a cluster has, and how a key is given to one of them.
//!
//! A key belongs to the shard with the number `hash(key) % count`. With another count it belongs
//! elsewhere, so all nodes and clients must use one map. It is founded once, from the configuration
//! of the node that founds the cluster; from then on the catalog has it, or without a catalog the data
//! directory of each node. A configuration that differs is refused.

use std::collections::BTreeMap;
use std::fmt;

use crate::hash::xxh64;
use crate::ids::GroupId;

/// Name of the table kind, as groups and the directory of shards spell it.
pub const TABLE_KIND: &str = "table";
/// Name of the queue kind, as groups and the directory of shards spell it.
pub const QUEUE_KIND: &str = "queue";
/// The hash function of maps that this version makes: XXH64 with seed 0.
pub const HASH: &str = "xxh64";
/// Shards of one kind at most.
pub const MAX_SHARDS: u64 = 100_000;
/// Kinds of shard in one map at most.
pub const MAX_KINDS: usize = 16;
/// Longest name of a kind or a hash function, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// The shards of one kind: as many groups as there are shards, with consecutive numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindShards {
    pub count: u64,
    /// The group of the first one.
    pub first_group: GroupId,
}

/// Which shards a cluster has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    /// Grows with every change of the map; from 1.
    pub version: u64,
    /// How many maps the cluster had before that share no key with this one, and this one; from 1.
    pub generation: u64,
    /// The function that hashes keys.
    pub hash: String,
    /// The shards by the name of their kind.
    pub kinds: BTreeMap<String, KindShards>,
}

/// Two maps that should be the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster has {cluster}, the configuration says {configured}; it is fixed when the cluster is \
     founded: put the number of shards back in the configuration of this node"
)]
pub struct MapMismatch {
    pub cluster: Box<ShardMap>,
    pub configured: Box<ShardMap>,
}

impl ShardMap {
    /// The map that a new cluster begins with.
    #[must_use]
    pub fn first(kinds: impl IntoIterator<Item = (String, KindShards)>) -> Self {
        let kinds = kinds.into_iter().collect();
        Self { version: 1, generation: 1, hash: HASH.to_owned(), kinds }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// What is wrong.
    pub fn validate(&self) -> Result<(), &'static str> {
        let is_name = |name: &str| !name.is_empty() && name.len() <= MAX_NAME_BYTES;
        if self.version == 0 || self.generation == 0 {
            return Err("versions and generations of a map of shards start at 1");
        }
        if !is_name(&self.hash) || !self.kinds.keys().all(|kind| is_name(kind)) {
            return Err("a name in a map of shards has 1 to 64 bytes");
        }
        if self.kinds.len() > MAX_KINDS {
            return Err("a map of shards has at most 16 kinds");
        }
        let mut kinds: Vec<&KindShards> = self.kinds.values().collect();
        kinds.sort_by_key(|shards| shards.first_group);
        if kinds.iter().any(|shards| shards.count > MAX_SHARDS) {
            return Err("a kind has at most 100000 shards");
        }
        let end = |shards: &KindShards| shards.first_group.get().checked_add(shards.count);
        let apart =
            |pair: &[&KindShards]| end(pair[0]).is_some_and(|end| end <= pair[1].first_group.get());
        match kinds.windows(2).all(apart) && kinds.iter().all(|shards| end(shards).is_some()) {
            true => Ok(()),
            false => Err("the groups of two kinds of shard overlap"),
        }
    }

    /// How many shards of a kind there are.
    #[must_use]
    pub fn count(&self, kind: &str) -> u64 {
        self.kinds.get(kind).map_or(0, |shards| shards.count)
    }

    /// The groups of the shards of a kind, by the number of the shard.
    pub fn groups(&self, kind: &str) -> impl Iterator<Item = GroupId> + use<> {
        let shards = self.kinds.get(kind).copied();
        let numbers = shards.map_or(0..0, |shards| 0..shards.count);
        let first = shards.map_or(0, |shards| shards.first_group.get());
        numbers.map(move |number| GroupId::new(first.saturating_add(number)))
    }

    /// The kind and the number of the shard that a group is.
    #[must_use]
    pub fn shard_of(&self, group: GroupId) -> Option<(&str, u64)> {
        self.kinds.iter().find_map(|(kind, shards)| {
            let number = group.get().checked_sub(shards.first_group.get())?;
            (number < shards.count).then_some((kind.as_str(), number))
        })
    }

    /// A number that differs where maps differ; never 0.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut bytes = Vec::new();
        let mut add = |part: &[u8]| {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part);
        };
        add(&self.version.to_le_bytes());
        add(&self.generation.to_le_bytes());
        add(self.hash.as_bytes());
        for (kind, shards) in &self.kinds {
            add(kind.as_bytes());
            add(&shards.count.to_le_bytes());
            add(&shards.first_group.get().to_le_bytes());
        }
        xxh64(&bytes, 0).max(1)
    }

    /// Compares the map of a cluster with that of a configuration, which knows neither version nor
    /// generation.
    ///
    /// # Errors
    /// [`MapMismatch`] with both.
    pub fn check(&self, configured: &Self) -> Result<(), MapMismatch> {
        if self.hash == configured.hash && self.kinds == configured.kinds {
            return Ok(());
        }
        let (cluster, configured) = (Box::new(self.clone()), Box::new(configured.clone()));
        Err(MapMismatch { cluster, configured })
    }
}

impl fmt::Display for ShardMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (kind, shards)) in self.kinds.iter().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            write!(f, "{comma}{} {kind} shards", shards.count)?;
        }
        if self.kinds.is_empty() {
            f.write_str("no shards")?;
        }
        match self.hash.as_str() {
            HASH => Ok(()),
            other => write!(f, " (hash {other})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(tables: u64) -> ShardMap {
        let shards = |count, first| KindShards { count, first_group: GroupId::new(first) };
        ShardMap::first([
            ("table".to_owned(), shards(tables, 1_000)),
            ("queue".to_owned(), shards(2, 2_000)),
        ])
    }

    #[test]
    fn a_configuration_that_says_otherwise_is_refused_with_both_numbers() {
        map(8).check(&map(8)).unwrap();
        let refused = map(8).check(&map(16)).unwrap_err().to_string();
        assert!(refused.contains("the cluster has 2 queue shards, 8 table shards"), "{refused}");
        assert!(refused.contains("the configuration says 2 queue shards, 16 table"), "{refused}");
        // Later versions of the same shards are no contradiction.
        let later = ShardMap { version: 7, generation: 2, ..map(8) };
        later.check(&map(8)).unwrap();
        let other = ShardMap { hash: "other".to_owned(), ..map(8) };
        assert!(other.check(&map(8)).unwrap_err().to_string().contains("(hash other)"));
    }

    #[test]
    fn a_fingerprint_differs_where_maps_differ() {
        let mut maps = vec![map(8), map(16), map(0)];
        maps.push(ShardMap { version: 2, ..map(8) });
        maps.push(ShardMap { generation: 2, ..map(8) });
        maps.push(ShardMap { hash: "other".to_owned(), ..map(8) });
        maps.push(ShardMap::first([]));
        let mut moved = map(8);
        moved
            .kinds
            .insert("table".to_owned(), KindShards { count: 8, first_group: GroupId::new(1_001) });
        maps.push(moved);
        let distinct: std::collections::BTreeSet<u64> =
            maps.iter().map(ShardMap::fingerprint).collect();
        assert_eq!(distinct.len(), maps.len());
        assert_eq!(map(8).fingerprint(), map(8).fingerprint());
    }

    #[test]
    fn a_map_that_makes_no_sense_is_refused() {
        type Spoil = fn(&mut ShardMap);
        let cases: [(Spoil, &str); 6] = [
            (|map| map.version = 0, "start at 1"),
            (|map| map.hash = String::new(), "1 to 64 bytes"),
            (|map| map.hash = "x".repeat(65), "1 to 64 bytes"),
            (|map| map.kinds.get_mut("table").unwrap().count = 1_001, "overlap"),
            (|map| map.kinds.get_mut("table").unwrap().count = MAX_SHARDS + 1, "at most 100000"),
            (
                |map| map.kinds.get_mut("queue").unwrap().first_group = GroupId::new(u64::MAX),
                "overlap",
            ),
        ];
        map(8).validate().unwrap();
        for (spoil, words) in cases {
            let mut map = map(8);
            spoil(&mut map);
            assert!(map.validate().unwrap_err().contains(words), "{map:?}");
        }
    }

    #[test]
    fn the_groups_of_a_kind_follow_one_another() {
        let groups: Vec<u64> = map(3).groups("table").map(GroupId::get).collect();
        assert_eq!(groups, [1_000, 1_001, 1_002]);
        assert_eq!(map(3).groups("other").count(), 0);
    }
}
