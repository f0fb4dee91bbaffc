//! The last bytes of a snapshot file: what it is of, how long, and its checksum.
//!
//! ```text
//! magic, 8 bytes | version, 4 | group, 8 | term, 8 | index, 8 | size, 8 | CRC-32 of the bytes, 4
//! | CRC-32 of the trailer up to here, 4
//! ```

use bytes::{Buf, BufMut};

use super::Name;
use crate::ids::{GroupId, LogPosition};

pub(super) const BYTES: usize = 52;

const MAGIC: &[u8; 8] = b"shrdsnap";
const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub name: Name,
    pub size: u64,
    pub crc: u32,
}

impl Trailer {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BYTES);
        out.put_slice(MAGIC);
        out.put_u32(VERSION);
        out.put_u64(self.name.group.get());
        out.put_u64(self.name.position.term.get());
        out.put_u64(self.name.position.index.get());
        out.put_u64(self.size);
        out.put_u32(self.crc);
        out.put_u32(crc32fast::hash(&out));
        out
    }

    /// Reads a trailer, or returns its error.
    pub fn decode(bytes: &[u8; BYTES]) -> Result<Self, String> {
        let (mut rest, mut crc) = bytes.split_at(BYTES - 4);
        if !rest.starts_with(MAGIC) {
            return Err("its end is missing".to_owned());
        }
        if crc.get_u32() != crc32fast::hash(rest) {
            return Err("the checksum of its trailer is wrong".to_owned());
        }
        rest.advance(MAGIC.len());
        let version = rest.get_u32();
        if version != VERSION {
            return Err(format!("it is of format {version}, known is {VERSION}"));
        }
        let group = GroupId::new(rest.get_u64());
        let (term, index) = (rest.get_u64(), rest.get_u64());
        let name = Name { group, position: LogPosition::new(term, index) };
        Ok(Self { name, size: rest.get_u64(), crc: rest.get_u32() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailer() -> Trailer {
        let name = Name { group: GroupId::new(7), position: LogPosition::new(2, 300) };
        Trailer { name, size: 12345, crc: 0xdead_beef }
    }

    fn encoded() -> [u8; BYTES] {
        trailer().encode().try_into().expect("a trailer's length")
    }

    #[test]
    fn a_trailer_survives_the_round_trip() {
        assert_eq!(Trailer::decode(&encoded()), Ok(trailer()));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for bit in 0..BYTES * 8 {
            let mut bytes = encoded();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Trailer::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_trailer_of_another_format_is_refused_with_both_versions() {
        let mut bytes = encoded().to_vec();
        bytes[11] = 9;
        bytes.truncate(BYTES - 4);
        bytes.put_u32(crc32fast::hash(&bytes));
        let bytes = bytes.try_into().expect("a trailer's length");
        assert_eq!(Trailer::decode(&bytes), Err("it is of format 9, known is 1".to_owned()));
    }
}
