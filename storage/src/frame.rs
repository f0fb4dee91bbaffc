//! The frame around every value of the log: its length and its CRC-32, so that damage is noticed.
//!
//! ```text
//! length of the payload, 4 bytes big endian | CRC-32 of group id and payload, 4 bytes | payload
//! ```
//!
//! The group id is part of the checksum but not of the frame: a value that turns up under the
//! key of another group is damage too. The frame does not know what it carries.

use bytes::Bytes;

use crate::ids::GroupId;

pub(crate) const HEADER_BYTES: usize = 8;

/// The frame does not hold what was put into it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct FrameDamage(String);

/// Fills `out` with the frame of what `payload` appends to it. The payload must stay below 4 GiB,
/// which the bounds of a run see to.
pub(crate) fn seal(group: GroupId, out: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) {
    out.clear();
    out.resize(HEADER_BYTES, 0);
    payload(out);
    let length = u32::try_from(out.len() - HEADER_BYTES).unwrap_or(u32::MAX);
    let crc = checksum(group, &out[HEADER_BYTES..]);
    out[..4].copy_from_slice(&length.to_be_bytes());
    out[4..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
}

/// The payload of a frame, without copying it.
pub(crate) fn open(group: GroupId, frame: &Bytes) -> Result<Bytes, FrameDamage> {
    let Some((header, payload)) = frame.split_first_chunk::<HEADER_BYTES>() else {
        return Err(FrameDamage(format!("{} bytes are too few for a frame", frame.len())));
    };
    let [l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    if u32::try_from(payload.len()) != Ok(length) {
        return Err(FrameDamage(format!(
            "{length} bytes were written, {} are there",
            payload.len()
        )));
    }
    let (written, found) = (u32::from_be_bytes([c0, c1, c2, c3]), checksum(group, payload));
    if written != found {
        return Err(FrameDamage(format!("checksum {written:08x} was written, it is {found:08x}")));
    }
    Ok(frame.slice(HEADER_BYTES..))
}

fn checksum(group: GroupId, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&group.get().to_be_bytes());
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId::new(7);

    fn sealed(payload: &[u8]) -> Vec<u8> {
        let mut out = b"left over".to_vec();
        seal(GROUP, &mut out, |out| out.extend_from_slice(payload));
        out
    }

    #[test]
    fn a_frame_gives_back_its_payload() {
        for payload in [&b""[..], b"x", &[9; 5000]] {
            assert_eq!(open(GROUP, &sealed(payload).into()).as_deref(), Ok(payload));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let frame = sealed(b"some payload");
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(GROUP, &damaged.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_other_length_is_noticed() {
        let frame = sealed(b"some payload");
        for length in 0..frame.len() {
            assert!(open(GROUP, &frame[..length].to_vec().into()).is_err(), "cut at {length}");
        }
        let longer = [frame.as_slice(), b"x"].concat();
        assert!(open(GROUP, &longer.into()).is_err());
    }

    #[test]
    fn the_frame_of_another_group_is_noticed() {
        assert!(open(GroupId::new(8), &sealed(b"some payload").into()).is_err());
    }
}
