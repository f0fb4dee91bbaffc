//! Tokens and their messages.

use shardhost_proto::grants::Grants;

use super::super::command::NewToken;
use super::super::error::{Refusal, Subject};
use super::super::name::Name;
use super::super::record::{Revision, Token, TokenDigest};
use super::super::wire;
use super::malformed;

pub(super) fn token_to(token: &Token) -> wire::Token {
    wire::Token {
        token: token.id,
        revision: token.revision.get(),
        name: token.name.as_str().to_owned(),
        grants: token.grants.bits().into(),
        digest: digest_to(token.digest),
        made_ms: token.made_ms,
        expires_ms: token.expires_ms,
    }
}

pub(super) fn token_of(message: &wire::Token) -> Result<Token, Refusal> {
    Ok(Token {
        id: message.token,
        revision: Revision::new(message.revision),
        name: Name::new(Subject::Token, &message.name)?,
        grants: grants_from(message.grants)?,
        digest: digest_from(&message.digest)?,
        made_ms: message.made_ms,
        expires_ms: message.expires_ms,
    })
}

pub(super) fn new_token_to(new: &NewToken) -> wire::PutToken {
    wire::PutToken {
        token: new.id,
        name: new.name.as_str().to_owned(),
        grants: new.grants.bits().into(),
        digest: digest_to(new.digest),
        expires_ms: new.expires_ms,
    }
}

pub(super) fn new_token_from(message: &wire::PutToken) -> Result<NewToken, Refusal> {
    Ok(NewToken {
        id: message.token,
        name: Name::new(Subject::Token, &message.name)?,
        grants: grants_from(message.grants)?,
        digest: digest_from(&message.digest)?,
        expires_ms: message.expires_ms,
    })
}

fn grants_from(bits: u32) -> Result<Grants, Refusal> {
    Grants::from_bits(bits).map_err(malformed)
}

fn digest_to(digest: TokenDigest) -> bytes::Bytes {
    digest.as_bytes().to_vec().into()
}

/// Names the length and not the bytes: a refusal is shown.
fn digest_from(bytes: &[u8]) -> Result<TokenDigest, Refusal> {
    let sha256 = bytes.try_into().map_err(|_| {
        let (actual, needed) = (bytes.len(), TokenDigest::BYTES);
        malformed(format_args!("the digest of a token has {actual} bytes, not {needed}"))
    })?;
    Ok(TokenDigest::new(sha256))
}
