//! How commands, answers and stored records are written down: a version byte, then fields.
//!
//! Numbers are varints (seven bits a byte, lowest first, at most ten bytes); byte strings carry
//! their length in front. Reading checks everything and borrows: nothing is copied, no length is
//! believed before the bytes are there.

use bytes::Bytes;
use prost::Message;

/// Leading byte of everything that is written by this version.
pub(crate) const VERSION: u8 = 1;

/// Longest varint of a `u64`.
const MAX_VARINT_BYTES: usize = 10;

/// Bytes are not what they should be. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end before the value does.
    #[error("the bytes end early")]
    Truncated,
    /// Bytes follow the value.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// A number is not written as it should be.
    #[error("a number is malformed")]
    BadNumber,
    /// Written by another version.
    #[error("version {0} is unknown; this one writes {VERSION}")]
    Version(u8),
    /// Not one of the kinds that exist.
    #[error("the kind {0} is unknown")]
    Kind(u8),
    /// A value is over its limit.
    #[error("the {what} is {actual}, the limit is {limit}")]
    Limit { what: &'static str, actual: u64, limit: u64 },
    /// A value makes no sense.
    #[error("the {0} is invalid")]
    Invalid(&'static str),
}

/// Reads fields from borrowed bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    data: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(data: &'a [u8]) -> Self {
        Self { data }
    }

    /// A reader behind the version byte, and the kind byte that follows it.
    pub(crate) fn versioned(data: &'a [u8]) -> Result<(Self, u8), DecodeError> {
        let mut reader = Self::new(data);
        match reader.byte()? {
            VERSION => {
                let kind = reader.byte()?;
                Ok((reader, kind))
            }
            other => Err(DecodeError::Version(other)),
        }
    }

    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&first, rest) = self.data.split_first().ok_or(DecodeError::Truncated)?;
        self.data = rest;
        Ok(first)
    }

    pub(crate) fn number(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for place in 0..MAX_VARINT_BYTES {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if place == MAX_VARINT_BYTES - 1 && byte > 1 {
                return Err(DecodeError::BadNumber);
            }
            value |= bits << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::BadNumber)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = usize::try_from(self.number()?).map_err(|_| DecodeError::Truncated)?;
        let (head, rest) = self.data.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.data = rest;
        Ok(head)
    }

    pub(crate) const fn rest(self) -> &'a [u8] {
        self.data
    }

    /// Checks that nothing is left.
    pub(crate) const fn finish(self) -> Result<(), DecodeError> {
        match self.data.len() {
            0 => Ok(()),
            extra => Err(DecodeError::Trailing(extra)),
        }
    }
}

/// Starts a versioned value of `kind`, with room for `capacity` more bytes.
pub(crate) fn start(kind: u8, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + capacity);
    out.extend_from_slice(&[VERSION, kind]);
    out
}

pub(crate) fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a byte string with its length in front.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A versioned value of `kind` that is a message.
pub(crate) fn message(kind: u8, message: &impl Message) -> Bytes {
    let mut out = start(kind, message.encoded_len());
    message.encode(&mut out).expect("a vector grows as needed");
    out.into()
}

/// Reads the message of a versioned value, whose bytes are the last ones of `data`.
pub(crate) fn read_message<M: Message + Default>(
    data: &Bytes,
    reader: Reader<'_>,
) -> Result<M, DecodeError> {
    M::decode(data.slice_ref(reader.rest())).map_err(|_| DecodeError::Invalid("message"))
}

/// Refuses a length or number over its limit.
pub(crate) fn check_limit(what: &'static str, actual: u64, limit: u64) -> Result<(), DecodeError> {
    if actual > limit { Err(DecodeError::Limit { what, actual, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fields_are_read_as_they_were_written(
            number: u64, bytes: Vec<u8>, rest: Vec<u8>,
        ) {
            let mut out = start(7, 0);
            put_number(&mut out, number);
            put_bytes(&mut out, &bytes);
            out.extend_from_slice(&rest);
            let (mut reader, kind) = Reader::versioned(&out).unwrap();
            prop_assert_eq!(kind, 7);
            prop_assert_eq!(reader.number(), Ok(number));
            prop_assert_eq!(reader.bytes(), Ok(&bytes[..]));
            prop_assert_eq!(reader.rest(), &rest[..]);
        }

        #[test]
        fn garbage_is_an_error_and_not_a_panic(data: Vec<u8>) {
            let mut reader = Reader::new(&data);
            while reader.bytes().is_ok() && !reader.rest().is_empty() {}
        }
    }

    #[test]
    fn numbers_over_64_bits_are_refused() {
        let too_long = [0xff; 11];
        assert_eq!(Reader::new(&too_long).number(), Err(DecodeError::BadNumber));
        let mut too_large = [0xff; 10];
        too_large[9] = 2;
        assert_eq!(Reader::new(&too_large).number(), Err(DecodeError::BadNumber));
        too_large[9] = 1;
        assert_eq!(Reader::new(&too_large).number(), Ok(u64::MAX));
    }

    #[test]
    fn a_length_beyond_the_bytes_is_refused() {
        let mut out = Vec::new();
        put_number(&mut out, u64::MAX);
        assert_eq!(Reader::new(&out).bytes(), Err(DecodeError::Truncated));
    }
}
