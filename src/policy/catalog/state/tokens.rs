//! Tokens: created and removed, never changed.
//!
//! Their expiry is not decided here: see [`Token`].

use std::sync::Arc;

use super::super::command::NewToken;
use super::super::error::{Refusal, Subject};
use super::super::record::{Record, RecordKey, Revision, Token};
use super::super::reply::{Done, Reply};
use super::super::{MAX_TIME_MS, MAX_TOKENS, TOKENS_KNOWN};
use super::{Catalog, check_limit};

impl Catalog {
    pub(super) fn put_token(&mut self, new: &NewToken, now_ms: u64) -> Reply {
        self.check_version(TOKENS_KNOWN)?;
        if let Some(known) = self.view.token(new.id) {
            return match *new == content_of(known) {
                true => Ok(Done::unchanged(known.revision)),
                false => Err(Refusal::TokenExists { token: new.id, made: known.revision }),
            };
        }
        check_limit(Subject::Tokens, self.view.tokens().len() + 1, MAX_TOKENS)?;
        // A clock that is wrong makes no token that is useless from the start.
        let (subject, from, to) = (Subject::Expiry, now_ms + 1, MAX_TIME_MS);
        if let Some(given) = new.expires_ms.filter(|given| !(from..=to).contains(given)) {
            return Err(Refusal::BadTime { subject, given, from, to });
        }
        let NewToken { id, name, grants, digest, expires_ms } = new.clone();
        let (revision, made_ms) = (Revision::default(), now_ms);
        let token = Token { id, revision, name, grants, digest, made_ms, expires_ms };
        self.store(Record::Token(Arc::new(token)))
    }

    pub(super) fn remove_token(&mut self, token: u64) -> Reply {
        if self.view.token(token).is_none() {
            return Err(Refusal::UnknownToken { token });
        }
        Ok(Done::changed(self.remove(RecordKey::Token(token))))
    }
}

/// What the command says that creates this token.
fn content_of(token: &Token) -> NewToken {
    NewToken {
        id: token.id,
        name: token.name.clone(),
        grants: token.grants,
        digest: token.digest,
        expires_ms: token.expires_ms,
    }
}
