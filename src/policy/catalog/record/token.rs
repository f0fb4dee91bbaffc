//! Tokens: what a caller may do that shows a secret.

use std::fmt;

use shardhost_proto::grants::Grants;

use super::super::name::Name;
use super::Revision;

/// The SHA-256 of a token's secret. It is not printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenDigest([u8; Self::BYTES]);

impl TokenDigest {
    /// Length in bytes.
    pub const BYTES: usize = 32;

    #[must_use]
    pub const fn new(sha256: [u8; Self::BYTES]) -> Self {
        Self(sha256)
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// What a caller may do that shows the secret of this digest.
///
/// The record stays after it has expired, until an operator removes it: the catalog keeps no time of day, and
/// time passes in it for drains only. A host that checks a token compares [`Token::expires_ms`] with its own
/// clock ([`Token::is_expired`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Chosen at random by the program that made it.
    pub id: u64,
    pub revision: Revision,
    /// For operators. Several tokens may have the same one.
    pub name: Name,
    pub grants: Grants,
    pub digest: TokenDigest,
    /// The time of the command that created it, in milliseconds since 1970.
    pub made_ms: u64,
    /// From this time on it admits no caller, in milliseconds since 1970; `None`: it does not expire.
    pub expires_ms: Option<u64>,
}

impl Token {
    /// Whether it admits no caller at this time, in milliseconds since 1970.
    #[must_use]
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires_ms| now_ms >= expires_ms)
    }
}
