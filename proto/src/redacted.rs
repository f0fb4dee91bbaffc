//! `Debug` of messages that hold digests of secrets: without the digests, so that no log has them.

use std::fmt;

use crate::catalog::{PutToken, Token};

/// In the place of bytes that are not shown.
struct Redacted;

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, revision, name, grants, digest: _, made_ms, expires_ms } = self;
        f.debug_struct("Token")
            .field("token", token)
            .field("revision", revision)
            .field("name", name)
            .field("grants", grants)
            .field("digest", &Redacted)
            .field("made_ms", made_ms)
            .field("expires_ms", expires_ms)
            .finish()
    }
}

impl fmt::Debug for PutToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, name, grants, digest: _, expires_ms } = self;
        f.debug_struct("PutToken")
            .field("token", token)
            .field("name", name)
            .field("grants", grants)
            .field("digest", &Redacted)
            .field("expires_ms", expires_ms)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_digest_is_shown() {
        let digest = vec![0xab; 32];
        let put = PutToken { token: 7, digest: digest.clone().into(), ..PutToken::default() };
        let token = Token { token: 7, digest: digest.into(), ..Token::default() };
        for shown in [format!("{put:?}"), format!("{token:?}"), format!("{token:#?}")] {
            assert!(shown.contains("token: 7") && shown.contains("<redacted>"), "{shown}");
            assert!(!shown.contains("ab") && !shown.contains("171"), "{shown}");
        }
    }
}
