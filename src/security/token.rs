//! Tokens of users: a number, by which the catalog finds the record, and a secret of 256 bits, of which it
//! keeps the SHA-256.

use std::fmt;

use rand::TryRngCore;
use rand::rngs::OsRng;
use ring::digest::{SHA256, digest};

const PREFIX: &str = "shardhost-";
const SECRET_BYTES: usize = 32;

/// A token as it is handed out. Its holder is the user: it is shown once, when it is made.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText {
    id: u64,
    secret: [u8; SECRET_BYTES],
}

impl TokenText {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn make() -> Result<Self, String> {
        let mut bytes = [0; 8 + SECRET_BYTES];
        OsRng.try_fill_bytes(&mut bytes).map_err(|error| format!("no random bytes: {error}"))?;
        let (mut id, mut secret) = ([0; 8], [0; SECRET_BYTES]);
        id.copy_from_slice(&bytes[..8]);
        secret.copy_from_slice(&bytes[8..]);
        Ok(Self { id: u64::from_be_bytes(id), secret })
    }

    /// What [`TokenText::text`] gave; `None`: no token looks so.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('-')?;
        let hexadecimal = |text: &str, length| {
            let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            text.len() == length && text.bytes().all(digits)
        };
        if !hexadecimal(id, 16) || !hexadecimal(secret, 2 * SECRET_BYTES) {
            return None;
        }
        let mut bytes = [0; SECRET_BYTES];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(secret.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Self { id: u64::from_str_radix(id, 16).ok()?, secret: bytes })
    }

    /// The number of its record.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// What the catalog keeps of the secret.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest(&SHA256, &self.secret).as_ref());
        sum
    }

    /// The text that the user keeps.
    #[must_use]
    pub fn text(&self) -> String {
        use fmt::Write;
        let mut text = format!("{PREFIX}{:016x}-", self.id);
        for byte in self.secret {
            // Writing to a string does not fail.
            let _written = write!(text, "{byte:02x}");
        }
        text
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenText").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_nothing_else_is() {
        let (one, other) = (TokenText::make().unwrap(), TokenText::make().unwrap());
        assert_ne!(one.sha256(), other.sha256());
        let text = one.text();
        assert_eq!(TokenText::parse(&text), Some(one.clone()));
        assert!(!format!("{one:?}").contains(&text[27..]));
        let (short, long) = (text[..text.len() - 1].to_owned(), format!("{text}0"));
        let upper = text.to_uppercase();
        let odd = text.replacen("shardhost-", "shardhost-é", 1);
        for wrong in ["", "shardhost-", "shardhost-1-2", &short, &long, &upper, &odd, &text[1..]] {
            assert_eq!(TokenText::parse(wrong), None, "{wrong}");
        }
    }

    /// The number in the text and the secret are independent: who sees a list of tokens knows none.
    #[test]
    fn the_sum_is_that_of_the_secret() {
        let known = format!("shardhost-{:016x}-{}", 7, "00".repeat(32));
        let token = TokenText::parse(&known).unwrap();
        assert_eq!(token.id(), 7);
        // SHA-256 of 32 zero bytes.
        assert_eq!(token.sha256()[..4], [0x66, 0x68, 0x7a, 0xad]);
    }
}
