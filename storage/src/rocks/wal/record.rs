//! The records of a log file: how bytes are divided into them.

use super::super::crc32c;

pub(super) const BLOCK_BYTES: usize = 32 * 1024;
pub(super) const HEADER_BYTES: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Full,
    First,
    Middle,
    Last,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Full, Self::First, Self::Middle, Self::Last];

    pub const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Full),
            2 => Some(Self::First),
            3 => Some(Self::Middle),
            4 => Some(Self::Last),
            _ => None,
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Full => 1,
            Self::First => 2,
            Self::Middle => 3,
            Self::Last => 4,
        }
    }

    /// Whether a write starts with such a record.
    pub const fn starts(self) -> bool {
        matches!(self, Self::Full | Self::First)
    }

    /// Whether a write ends with such a record.
    pub const fn ends(self) -> bool {
        matches!(self, Self::Full | Self::Last)
    }
}

/// The header of a record as it is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    crc: u32,
    pub length: usize,
    /// `None`: a kind that is never written.
    pub kind: Option<Kind>,
}

impl Header {
    /// The header that starts here; `None` when the bytes end within it.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let [c0, c1, c2, c3, l0, l1, kind] = *bytes.first_chunk::<HEADER_BYTES>()?;
        Some(Self {
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
            length: usize::from(u16::from_le_bytes([l0, l1])),
            kind: Kind::of(kind),
        })
    }

    /// Whether the checksum is that of this kind and payload. It does not cover the length.
    pub fn fits(&self, kind: Kind, payload: &[u8]) -> bool {
        crc32c::mask(crc32c::checksum([&[kind.byte()], payload])) == self.crc
    }
}

/// The readable record that starts here: its kind and its payload.
pub(super) fn record(bytes: &[u8]) -> Option<(Kind, &[u8])> {
    let header = Header::of(bytes)?;
    let kind = header.kind?;
    let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + header.length)?;
    header.fits(kind, payload).then_some((kind, payload))
}

/// No record starts in the last bytes of a block. At the end of a file, where the block is
/// short, they are the beginning of a header that was cut.
pub(super) fn is_padding(block: &[u8], at: usize) -> bool {
    at >= block.len() || (block.len() == BLOCK_BYTES && block.len() - at < HEADER_BYTES)
}
