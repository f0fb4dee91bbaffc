//! Walks over the fields of an encoded message without decoding it.
//!
//! A field of two bytes may take a hundred times that once it is decoded. Who takes bytes from outside
//! counts fields first, and refuses what holds too many.

/// Bytes that are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedField {
    /// Groups, which are not used any more, or a number without a meaning.
    #[error("wire type {0}")]
    WireType(u64),
    /// The content ends behind the bytes.
    #[error("a field is longer than the bytes that are there")]
    Truncated,
    /// A variable-length integer of more than ten bytes, or one that the bytes end in.
    #[error("a number has no end")]
    UnendingNumber,
}

/// Splits the next field off `bytes`: its number and, if it is length-delimited or of fixed size, its
/// content. `None` at the end.
///
/// # Errors
/// [`MalformedField`]; `bytes` is then left somewhere in the field.
pub fn next_field<'a>(bytes: &mut &'a [u8]) -> Result<Option<(u64, &'a [u8])>, MalformedField> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let key = varint(bytes)?;
    let length = match key & 7 {
        0 => {
            varint(bytes)?;
            0
        }
        1 => 8,
        2 => varint(bytes)?,
        5 => 4,
        other => return Err(MalformedField::WireType(other)),
    };
    let length = usize::try_from(length).map_err(|_| MalformedField::Truncated)?;
    let (content, rest) = bytes.split_at_checked(length).ok_or(MalformedField::Truncated)?;
    *bytes = rest;
    Ok(Some((key >> 3, content)))
}

fn varint(bytes: &mut &[u8]) -> Result<u64, MalformedField> {
    let mut value = 0;
    for (place, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (place * 7);
        if byte & 0x80 == 0 {
            *bytes = &bytes[place + 1..];
            return Ok(value);
        }
    }
    Err(MalformedField::UnendingNumber)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::{MalformedField, next_field};
    use crate::client::Put;

    #[test]
    fn the_fields_of_a_message_come_one_after_the_other() {
        let put = Put { key: "key".into(), value: "value".into() };
        let encoded = put.encode_to_vec();
        let mut bytes = &encoded[..];
        assert_eq!(next_field(&mut bytes), Ok(Some((1, &b"key"[..]))));
        assert_eq!(next_field(&mut bytes), Ok(Some((2, &b"value"[..]))));
        assert_eq!(next_field(&mut bytes), Ok(None));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let refused = |mut bytes: &[u8]| next_field(&mut bytes).unwrap_err();
        assert_eq!(refused(&[0x0b]), MalformedField::WireType(3));
        assert_eq!(refused(&[0x0a, 2, 0]), MalformedField::Truncated);
        assert_eq!(refused(&[0x09, 0]), MalformedField::Truncated);
        assert_eq!(refused(&[0x80; 11]), MalformedField::UnendingNumber);
        assert_eq!(refused(&[0x08, 0x80]), MalformedField::UnendingNumber);
    }
}
