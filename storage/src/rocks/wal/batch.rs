//! The payload of a write: a batch of RocksDB, whose content says where it ends.
//!
//! A batch is a sequence number (8 bytes), a count (4 bytes) and as many changes; a change is a
//! kind, a column family, a key and a value, the last two behind their lengths. So no batch is the
//! beginning of another one: a write that was cut never looks whole, whatever the values in it
//! hold, because their lengths stand in front of them.

pub(super) const HEADER_BYTES: usize = 12;

/// Kinds of changes that a store writes.
const PUT: u8 = 1;
const DELETE_IN_FAMILY: u8 = 4;
const PUT_IN_FAMILY: u8 = 5;

/// How far a batch reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// It ends behind so many bytes.
    Whole(usize),
    /// The bytes end before it does.
    Unfinished,
    /// A store does not write such a batch.
    Malformed,
}

/// What stands at the beginning of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub sequence: u64,
    pub count: u32,
}

impl Header {
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let (sequence, rest) = bytes.split_first_chunk()?;
        let count = rest.first_chunk()?;
        let (sequence, count) = (u64::from_le_bytes(*sequence), u32::from_le_bytes(*count));
        Some(Self { sequence, count })
    }

    /// The sequence number of the batch that follows.
    pub const fn next_sequence(&self) -> u64 {
        self.sequence.saturating_add(self.count as u64)
    }
}

/// How far the batch reaches that starts with these bytes, which lie in two pieces.
pub(super) fn extent(parts: [&[u8]; 2]) -> Extent {
    match (Reader { parts, at: 0 }).batch() {
        Ok(length) => Extent::Whole(length),
        Err(other) => other,
    }
}

struct Reader<'a> {
    parts: [&'a [u8]; 2],
    at: usize,
}

impl Reader<'_> {
    fn batch(&mut self) -> Result<usize, Extent> {
        self.skip(HEADER_BYTES - size_of::<u32>())?;
        let mut count = [0; size_of::<u32>()];
        for byte in &mut count {
            *byte = self.byte()?;
        }
        for _ in 0..u32::from_le_bytes(count) {
            self.change()?;
        }
        Ok(self.at)
    }

    fn change(&mut self) -> Result<(), Extent> {
        let (in_family, has_value) = match self.byte()? {
            PUT => (false, true),
            PUT_IN_FAMILY => (true, true),
            DELETE_IN_FAMILY => (true, false),
            _ => return Err(Extent::Malformed),
        };
        if in_family {
            self.varint()?;
        }
        self.string()?;
        if has_value { self.string() } else { Ok(()) }
    }

    fn string(&mut self) -> Result<(), Extent> {
        let length = self.varint()?;
        self.skip(length)
    }

    fn varint(&mut self) -> Result<usize, Extent> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            value |= usize::from(byte & 0x7f) << shift;
            match byte {
                // One of more bytes than it takes is never written: the end of it was lost.
                0 if shift > 0 => return Err(Extent::Malformed),
                0..0x80 => return Ok(value),
                _ => {}
            }
        }
        Err(Extent::Malformed)
    }

    fn byte(&mut self) -> Result<u8, Extent> {
        let [first, second] = self.parts;
        let byte = first.get(self.at).or_else(|| second.get(self.at - first.len()));
        self.at += 1;
        byte.copied().ok_or(Extent::Unfinished)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), Extent> {
        self.at += bytes;
        let length = self.parts[0].len() + self.parts[1].len();
        if self.at > length { Err(Extent::Unfinished) } else { Ok(()) }
    }
}
