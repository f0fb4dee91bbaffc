//! Where the state of a group stands: eight bytes of group id, a kind byte, and the rest.
//!
//! Big endian, so that a group's keys are contiguous and sequences sort as numbers. No key of a
//! group starts where another group's does, whatever the ids.

use shardhost_storage::GroupId;

/// The store's own record of its format. Shorter than any group's key.
pub(crate) const FORMAT_KEY: &[u8] = b"format";

/// Kind byte of the applied position of a group.
pub(crate) const APPLIED: u8 = 0x01;

/// Bytes in front of the rest of every key of a group.
pub(crate) const PREFIX_BYTES: usize = 9;

/// The keys of one group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    group: GroupId,
}

impl Space {
    pub(crate) const fn new(group: GroupId) -> Self {
        Self { group }
    }

    pub(crate) const fn group(self) -> GroupId {
        self.group
    }

    /// The first bytes of all keys of `kind`.
    pub(crate) fn prefix(self, kind: u8) -> [u8; PREFIX_BYTES] {
        let mut prefix = [kind; PREFIX_BYTES];
        prefix[..8].copy_from_slice(&self.group.get().to_be_bytes());
        prefix
    }

    /// The key of `rest` under `kind`.
    pub(crate) fn key(self, kind: u8, rest: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(PREFIX_BYTES + rest.len());
        key.extend_from_slice(&self.prefix(kind));
        key.extend_from_slice(rest);
        key
    }

    /// The key of a number under `kind`.
    pub(crate) fn number_key(self, kind: u8, number: u64) -> [u8; PREFIX_BYTES + 8] {
        let mut key = [0; PREFIX_BYTES + 8];
        key[..PREFIX_BYTES].copy_from_slice(&self.prefix(kind));
        key[PREFIX_BYTES..].copy_from_slice(&number.to_be_bytes());
        key
    }

    /// Where the keys of `kind` end, exclusive. No kind is `u8::MAX`.
    pub(crate) fn end_of(self, kind: u8) -> [u8; PREFIX_BYTES] {
        self.prefix(kind.saturating_add(1))
    }

    /// First and, exclusive, last key of the whole group.
    pub(crate) fn whole(self) -> ([u8; PREFIX_BYTES], [u8; PREFIX_BYTES]) {
        (self.prefix(0), self.prefix(u8::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_neighbouring_groups_do_not_overlap() {
        for id in [0, 1, 255, 256, 257, u64::from(u32::MAX), u64::MAX - 1] {
            let (space, next) = (Space::new(GroupId::new(id)), Space::new(GroupId::new(id + 1)));
            let (first, end) = space.whole();
            let longest = space.key(0xfe, &[0xff; 4096]);
            assert!(first <= space.prefix(APPLIED) && longest[..] < end[..]);
            assert!(end < next.whole().0);
        }
    }

    #[test]
    fn numbers_sort_as_numbers() {
        let space = Space::new(GroupId::new(7));
        assert!(space.number_key(1, 255) < space.number_key(1, 256));
        assert!(space.number_key(1, u64::MAX)[..] < space.end_of(1)[..]);
    }

    #[test]
    fn the_format_record_is_in_no_groups_way() {
        assert!(FORMAT_KEY.len() < PREFIX_BYTES);
        let shadowed = GroupId::new(u64::from_be_bytes(*b"format\0\0"));
        assert!(*FORMAT_KEY < Space::new(shadowed).whole().0[..]);
    }
}
