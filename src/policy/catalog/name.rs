//! Names: of kinds, zones, capabilities, keys of labels and words to spread by. All of one shape.

use std::fmt;

use shardhost_storage::requirement::MAX_CAPABILITY_BYTES;

use super::error::{Refusal, Subject};

/// Bytes of a name at most.
pub const MAX_NAME_BYTES: usize = MAX_CAPABILITY_BYTES;

/// A well-formed name: 1 to [`MAX_NAME_BYTES`] of a-z, 0-9, `.`, `_`, `-` and `/`, as the names of
/// capabilities.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// A name of the kind `subject`.
    ///
    /// # Errors
    /// [`Refusal::BadName`].
    pub fn new(subject: Subject, text: &str) -> Result<Self, Refusal> {
        if is_well_formed(text) {
            return Ok(Self(text.into()));
        }
        // Only as much of it as is worth showing: the answer is bounded whatever was asked.
        let given = text.chars().take(MAX_NAME_BYTES + 1).collect();
        Err(Refusal::BadName { subject, given })
    }

    /// The name's letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_well_formed(text: &str) -> bool {
    let known = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/');
    (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(known)
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
