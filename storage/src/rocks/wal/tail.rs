//! The end of a log file, from the first write on that is not whole: was it cut short, and does
//! another write follow?
//!
//! Clients choose most bytes of a write, so bytes that look like a record prove nothing by
//! themselves: it has to be known that a record starts there. What clients cannot choose is
//!
//! * the headers of the records of a write, the first of which starts where the write before ends,
//!   and the others where blocks start;
//! * the lengths in its batch: they stand in front of the values (see [`batch`]).
//!
//! So an unreadable record ends where its batch does, if its checksum is right for that length:
//! then the length in its header was changed. Otherwise it ends where its header says, if that is a
//! header that can stand there. Only behind that end are records looked for. A write that was cut
//! short ends behind the file, so nothing in it is ever looked at.
//!
//! A header whose checksum is of no use may have a wrong length, too. So a write that follows is also
//! looked for right behind the batch, whatever the header says: at that one place, and nowhere else. A
//! write that was cut short has no such place, because its batch ends behind the file. One that lost
//! bytes has none that a client chose: a batch that was read over lost lengths is none that a store
//! writes, or it ends within what was lost.
//!
//! A header that says nothing, because more was lost than a byte, leaves two ways on. The next
//! block starts with a record. And in the same block there may be writes that reach from one to
//! the next to the end of the file, with the sequence numbers that follow. These a client could
//! imitate if it guessed the sequence number, and the power was lost, and the disk lost the
//! beginning of its write and kept the rest.

use std::iter;

use super::TailShape;
use super::batch::{self, Extent};
use super::record::{self, BLOCK_BYTES, HEADER_BYTES, Header, Kind, record};

/// The bytes from the block on in which the first write starts that is not whole.
#[derive(Debug)]
pub(super) struct Tail<'a> {
    pub bytes: &'a [u8],
    /// Where the write starts.
    pub start: usize,
    /// The sequence number that follows the write before; `None`: not known.
    pub next_sequence: Option<u64>,
}

/// What is known of the end of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    pub shape: TailShape,
    /// A write follows the one that is not whole.
    pub followed: bool,
    /// The write would be whole if one of its records had another length.
    pub wrong_length: bool,
}

/// What is known of the write that a place lies in.
#[derive(Debug)]
enum Within {
    /// A write starts here.
    Nothing,
    /// One with this payload so far.
    Write(Vec<u8>),
    Unknown,
}

/// Where an unreadable record ends.
enum End {
    /// Here; it is taken for one of this kind.
    At(usize, Kind),
    BehindTheFile,
    Unknown,
}

impl Within {
    const fn expects(&self, kind: Kind) -> bool {
        match self {
            Self::Nothing => kind.starts(),
            Self::Write(_) => !kind.starts(),
            Self::Unknown => true,
        }
    }

    fn behind(self, kind: Kind, payload: &[u8]) -> Self {
        match self {
            _ if kind.ends() => Self::Nothing,
            _ if kind.starts() => Self::Write(payload.to_vec()),
            Self::Write(before) => Self::Write([&before, payload].concat()),
            Self::Nothing | Self::Unknown => Self::Unknown,
        }
    }

    /// The payload in front of a record of this kind, if all of it is known.
    fn payload_before(&self, kind: Kind) -> Option<&[u8]> {
        match self {
            _ if kind.starts() => Some(&[]),
            Self::Write(payload) => Some(payload),
            Self::Nothing | Self::Unknown => None,
        }
    }
}

impl Tail<'_> {
    pub fn judge(&self) -> Judgement {
        let (broken, within) = self.readable_part();
        let shape = self.shape(broken, &within);
        let wrong_length = record(self.rest_of_block(broken)).is_none()
            && self.end_by_batch(broken, &within).is_some();
        Judgement { shape, followed: self.is_followed(broken, within), wrong_length }
    }

    /// The records of the write that can be read: where they end, and their payload.
    fn readable_part(&self) -> (usize, Within) {
        let (mut at, mut within) = (self.start, Within::Nothing);
        loop {
            at = self.next_record(at);
            match record(self.rest_of_block(at)) {
                Some((kind, payload)) if within.expects(kind) && !kind.ends() => {
                    at += HEADER_BYTES + payload.len();
                    within = within.behind(kind, payload);
                }
                _ => return (at, within),
            }
        }
    }

    /// A dying process leaves the beginning of a write: its headers and its batch reach behind the
    /// end of the file.
    fn shape(&self, broken: usize, within: &Within) -> TailShape {
        let rest = self.rest_of_block(broken);
        let before = within.payload_before(Kind::Last).unwrap_or(&[]);
        let parts = [before, rest.get(HEADER_BYTES..).unwrap_or(&[])];
        let is_beginning = matches!(self.end_by_header(broken, within), End::BehindTheFile)
            && batch::extent(parts) == Extent::Unfinished
            && self.is_next(&parts.concat());
        if is_beginning { TailShape::CutShort } else { TailShape::Garbled }
    }

    /// Whether a batch is not older than the write before.
    fn is_next(&self, payload: &[u8]) -> bool {
        batch::Header::of(payload)
            .zip(self.next_sequence)
            .is_none_or(|(header, next)| header.sequence >= next)
    }

    /// Looks for a write behind the record that cannot be read, or does not belong there.
    fn is_followed(&self, broken: usize, mut within: Within) -> bool {
        let mut at = broken;
        loop {
            at = self.next_record(at);
            if at >= self.bytes.len() {
                return false;
            }
            let rest = self.rest_of_block(at);
            if let Some((kind, payload)) = record(rest) {
                if kind.starts() && self.follows(at, kind, payload) {
                    return true;
                }
                at += HEADER_BYTES + payload.len();
                within = within.behind(kind, payload);
                continue;
            }
            if self.is_followed_behind_its_batch(at, &within) {
                return true;
            }
            match self.end(at, &within) {
                End::At(end, kind) => {
                    within = within.behind(kind, &self.bytes[at + HEADER_BYTES..end]);
                    at = end;
                }
                End::BehindTheFile => return false,
                End::Unknown => {
                    if self.has_writes_to_the_end(at) {
                        return true;
                    }
                    within = Within::Unknown;
                    at = end_of_block(at);
                }
            }
        }
    }

    /// Whether a write starts where the batch ends in the unreadable record at this place, whatever
    /// length and checksum its header has.
    fn is_followed_behind_its_batch(&self, at: usize, within: &Within) -> bool {
        let Some(end) = self.end_of_batch(at, within) else { return false };
        let next = self.next_record(end);
        record(self.rest_of_block(next))
            .is_some_and(|(kind, payload)| kind.starts() && self.follows(next, kind, payload))
    }

    /// Where the batch ends whose last part is in the record at this place. One without changes is what
    /// zeros look like.
    fn end_of_batch(&self, at: usize, within: &Within) -> Option<usize> {
        let before = match within {
            Within::Nothing => &[],
            Within::Write(payload) => payload.as_slice(),
            Within::Unknown => return None,
        };
        let payload = self.rest_of_block(at).get(HEADER_BYTES..)?;
        match batch::extent([before, payload]) {
            Extent::Whole(length) if length > batch::HEADER_BYTES => {
                Some(at + HEADER_BYTES + length.checked_sub(before.len())?)
            }
            Extent::Whole(_) | Extent::Unfinished | Extent::Malformed => None,
        }
    }

    /// Whether a record that starts a write is of one behind the broken one.
    fn follows(&self, at: usize, kind: Kind, payload: &[u8]) -> bool {
        match batch::Header::of(&self.payload_from(at)) {
            Some(header) => self.is_behind(at, header.sequence),
            // Before the end of a block a write may start with less.
            None => !kind.ends() && at + HEADER_BYTES + payload.len() == end_of_block(at),
        }
    }

    /// Whether a sequence number can be that of a write here. Each takes at least a byte.
    fn is_behind(&self, at: usize, sequence: u64) -> bool {
        let bytes = (at - self.start) as u64;
        self.next_sequence.is_none_or(|next| sequence >= next && sequence - next <= bytes)
    }

    /// The payload of a write, as far as it can be read and as is needed for its header.
    fn payload_from(&self, at: usize) -> Vec<u8> {
        let mut payload = Vec::new();
        for (kind, part, _) in self.records_of_write(at) {
            payload.extend_from_slice(part);
            if kind.ends() || payload.len() >= batch::HEADER_BYTES {
                break;
            }
        }
        payload
    }

    /// The readable records of the write that starts here, with where each ends.
    fn records_of_write(&self, start: usize) -> impl Iterator<Item = (Kind, &[u8], usize)> {
        let mut next = Some(start);
        iter::from_fn(move || {
            let at = self.next_record(next.take()?);
            let (kind, payload) = record(self.rest_of_block(at))?;
            let end = at + HEADER_BYTES + payload.len();
            next = (!kind.ends()).then_some(end);
            (kind.starts() == (at == start)).then_some((kind, payload, end))
        })
    }

    /// Where the unreadable record at this place ends.
    fn end(&self, at: usize, within: &Within) -> End {
        let known = self.end_by_batch(at, within).or_else(|| self.end_by_other_kind(at, within));
        known.unwrap_or_else(|| self.end_by_header(at, within))
    }

    /// Where it ends if only its length is wrong. A record that does not end a write ends with its
    /// block; another one where the batch does.
    fn end_by_batch(&self, at: usize, within: &Within) -> Option<End> {
        let rest = self.rest_of_block(at);
        let header = Header::of(rest)?;
        let kind = header.kind.filter(|kind| within.expects(*kind))?;
        let payload = &rest[HEADER_BYTES..];
        let length = if kind.ends() {
            let before = within.payload_before(kind)?;
            match batch::extent([before, payload]) {
                Extent::Whole(length) => length.checked_sub(before.len())?,
                Extent::Unfinished | Extent::Malformed => return None,
            }
        } else {
            end_of_block(at) - at - HEADER_BYTES
        };
        let fits = length != header.length && header.fits(kind, payload.get(..length)?);
        fits.then_some(End::At(at + HEADER_BYTES + length, kind))
    }

    /// Where it ends if only its kind is wrong.
    fn end_by_other_kind(&self, at: usize, within: &Within) -> Option<End> {
        let rest = self.rest_of_block(at);
        let header = Header::of(rest)?;
        let payload = rest.get(HEADER_BYTES..HEADER_BYTES + header.length)?;
        let mut kinds = Kind::ALL.into_iter().filter(|kind| within.expects(*kind));
        let kind = kinds.find(|kind| header.fits(*kind, payload))?;
        Some(End::At(at + HEADER_BYTES + header.length, kind))
    }

    /// Where it ends according to its header, if such a header can stand there.
    fn end_by_header(&self, at: usize, within: &Within) -> End {
        let Some(header) = Header::of(self.rest_of_block(at)) else { return End::BehindTheFile };
        let end = at + HEADER_BYTES + header.length;
        let can_stand = |kind: &Kind| {
            let (block, length) = (end_of_block(at), header.length);
            let place = kind.starts() || at.is_multiple_of(BLOCK_BYTES);
            let extent = match kind {
                Kind::Full => length >= batch::HEADER_BYTES && end <= block,
                Kind::Last => length > 0 && end <= block,
                Kind::First | Kind::Middle => end == block,
            };
            within.expects(*kind) && place && extent
        };
        match header.kind.filter(can_stand) {
            None => End::Unknown,
            Some(_) if end > self.bytes.len() => End::BehindTheFile,
            Some(kind) => End::At(end, kind),
        }
    }

    /// Whether anywhere behind this place in its block writes start that reach, one behind the
    /// other, to the end of the file.
    fn has_writes_to_the_end(&self, at: usize) -> bool {
        let mut from = at + 1;
        while from < end_of_block(at).min(self.bytes.len()) {
            let end = self.writes_from(from);
            if end > from && (end >= self.bytes.len() || self.is_cut(end)) {
                return true;
            }
            // Where one of these writes starts, no others that reach further do.
            from = end.max(from + 1);
        }
        false
    }

    /// Where the consecutive writes end that start here.
    fn writes_from(&self, start: usize) -> usize {
        let (mut at, mut expected) = (start, None);
        while let Some((header, end)) = self.write(at, expected) {
            expected = Some(header.next_sequence());
            at = self.next_record(end);
        }
        at
    }

    /// The write that starts here and has the expected sequence number: the header of its batch,
    /// and where it ends.
    fn write(&self, at: usize, expected: Option<u64>) -> Option<(batch::Header, usize)> {
        let is_expected = |header: &batch::Header| match expected {
            Some(sequence) => header.sequence == sequence,
            None => self.is_behind(at, header.sequence),
        };
        // Before any checksum, because most places are none of a record.
        let raw = self.rest_of_block(at);
        let head = Header::of(raw)?;
        if head.kind == Some(Kind::Full) && head.length <= raw.len() - HEADER_BYTES {
            batch::Header::of(&raw[HEADER_BYTES..]).filter(is_expected)?;
        }
        let (mut payload, mut last) = (Vec::new(), None);
        for (kind, part, end) in self.records_of_write(at) {
            payload.extend_from_slice(part);
            last = Some((kind, end));
        }
        let (_, end) = last.filter(|(kind, _)| kind.ends())?;
        let header = batch::Header::of(&payload).filter(is_expected)?;
        let whole = batch::extent([&payload, &[]]) == Extent::Whole(payload.len());
        whole.then_some((header, end))
    }

    fn is_cut(&self, at: usize) -> bool {
        matches!(self.end_by_header(at, &Within::Nothing), End::BehindTheFile)
    }

    /// The bytes from here to the end of the block or the file.
    fn rest_of_block(&self, at: usize) -> &[u8] {
        let end = end_of_block(at).min(self.bytes.len());
        self.bytes.get(at..end).unwrap_or(&[])
    }

    /// Where the next record starts, here or behind the padding of the block.
    fn next_record(&self, at: usize) -> usize {
        let block = at - at % BLOCK_BYTES;
        let bytes =
            &self.bytes[block.min(self.bytes.len())..end_of_block(at).min(self.bytes.len())];
        let padded = bytes.len() == BLOCK_BYTES && record::is_padding(bytes, at - block);
        if padded { end_of_block(at) } else { at }
    }
}

const fn end_of_block(at: usize) -> usize {
    at - at % BLOCK_BYTES + BLOCK_BYTES
}
