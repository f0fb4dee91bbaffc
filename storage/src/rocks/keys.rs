//! The keys of the database: fixed width, big endian, so that they sort as their numbers do.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `default` | `identity` | whose store this is |
//! | `replicas` | group, `m` | what the replica knows of itself |
//! | `replicas` | group, `s` | hard state and base |
//! | `replicas` | group, `d` | why its log may have lost something; absent: it did not |
//! | `replicas` | group, `t` | the largest replica id destroyed |
//! | `log` | group, first index | a run of entries |

use crate::ids::{GroupId, LogIndex};

/// Key of the store's identity.
pub(super) const IDENTITY: &[u8] = b"identity";
/// Column family of everything but entries.
pub(super) const REPLICAS: &str = "replicas";
/// Column family of the entries.
pub(super) const LOG: &str = "log";

/// The kind of value under a key of the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Meta,
    State,
    Doubt,
    Tombstone,
}

/// Key of a part of a replica.
pub(super) fn replica(group: GroupId, part: Part) -> [u8; 9] {
    let letter = match part {
        Part::Meta => b'm',
        Part::State => b's',
        Part::Doubt => b'd',
        Part::Tombstone => b't',
    };
    let mut key = [letter; 9];
    key[..8].copy_from_slice(&group.get().to_be_bytes());
    key
}

/// The group and part of a key; `None` when it is not one of ours.
pub(super) fn parse_replica(key: &[u8]) -> Option<(GroupId, Part)> {
    let (group, letter) = key.split_first_chunk::<8>()?;
    let part = match letter {
        b"m" => Part::Meta,
        b"s" => Part::State,
        b"d" => Part::Doubt,
        b"t" => Part::Tombstone,
        _ => return None,
    };
    Some((GroupId::new(u64::from_be_bytes(*group)), part))
}

/// Key of the run that starts at `first`.
pub(super) fn run(group: GroupId, first: LogIndex) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&group.get().to_be_bytes());
    key[8..].copy_from_slice(&first.get().to_be_bytes());
    key
}

/// The group and first index of a key; `None` when it is not one of ours.
pub(super) fn parse_run(key: &[u8]) -> Option<(GroupId, LogIndex)> {
    let (group, first) = key.split_first_chunk::<8>()?;
    let first: [u8; 8] = first.try_into().ok()?;
    let number = u64::from_be_bytes;
    Some((GroupId::new(number(*group)), LogIndex::new(number(first))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BORDERS: [u64; 8] = [0, 1, 254, 255, 256, 257, u64::MAX - 1, u64::MAX];

    #[test]
    fn run_keys_sort_as_their_numbers_and_parse_back() {
        let numbers = || BORDERS.into_iter().flat_map(|g| BORDERS.map(|i| (g, i)));
        let keys: Vec<_> = numbers().map(|(g, i)| run(GroupId::new(g), LogIndex::new(i))).collect();
        assert!(keys.is_sorted());
        for (key, (group, first)) in keys.iter().zip(numbers()) {
            assert_eq!(parse_run(key), Some((GroupId::new(group), LogIndex::new(first))));
        }
    }

    #[test]
    fn replica_keys_sort_by_group_and_parse_back() {
        let parts = [Part::Doubt, Part::Meta, Part::State, Part::Tombstone];
        let names = || BORDERS.into_iter().flat_map(|g| parts.map(|part| (GroupId::new(g), part)));
        let keys: Vec<_> = names().map(|(group, part)| replica(group, part)).collect();
        assert!(keys.is_sorted());
        for (key, name) in keys.iter().zip(names()) {
            assert_eq!(parse_replica(key), Some(name));
        }
    }

    #[test]
    fn keys_of_another_shape_are_not_ours() {
        for key in [&b""[..], b"identity", b"12345678", b"12345678x", b"123456789012345678"] {
            assert_eq!(parse_replica(key), None);
            assert_eq!(parse_run(key), None);
        }
    }
}
