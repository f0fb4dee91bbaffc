//! The tokens of the catalog, as the listener asks for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use shardhost::driver::CatalogView;
use shardhost::transport::{TokenHolder, Tokens};
use shardhost::wall_clock::now_ms;
use shardhost_policy::catalog::{Token, View};
use shardhost_security::User;
use shardhost_security::token::TokenText;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two looks for tokens that expired.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The tokens that this host knows, each with what ends when the token does.
#[derive(Debug, Default)]
pub(super) struct KnownHere {
    known: RwLock<BTreeMap<u64, (Arc<Token>, CancellationToken)>>,
}

impl KnownHere {
    /// Follows the catalog until `stop`.
    pub(super) async fn follow(
        self: Arc<Self>,
        mut views: watch::Receiver<CatalogView>,
        stop: CancellationToken,
    ) {
        let follow = async {
            loop {
                if let Some(view) = &*views.borrow_and_update() {
                    self.take(view);
                }
                self.end_expired(now_ms());
                let changed = tokio::time::timeout(LOOK_EVERY, views.changed()).await;
                if changed.is_ok_and(|changed| changed.is_err()) {
                    return;
                }
            }
        };
        stop.run_until_cancelled(follow).await;
    }

    /// The catalog has these tokens now.
    fn take(&self, view: &View) {
        let mut known = self.known.write();
        known.retain(|id, (token, ended)| {
            let stays = view.tokens().get(id).is_some_and(|now| now.revision == token.revision);
            if !stays {
                ended.cancel();
            }
            stays
        });
        for (id, token) in view.tokens() {
            known.entry(*id).or_insert_with(|| (Arc::clone(token), CancellationToken::new()));
        }
    }

    fn end_expired(&self, now_ms: u64) {
        for (token, ended) in self.known.write().values_mut() {
            match token.is_expired(now_ms) {
                true => ended.cancel(),
                // The clock was ahead.
                false if ended.is_cancelled() => *ended = CancellationToken::new(),
                false => {}
            }
        }
    }
}

impl Tokens for KnownHere {
    fn holder(&self, token: &str) -> Result<TokenHolder, &'static str> {
        let token = TokenText::parse(token).ok_or("the token is none of shardhost's")?;
        let known = self.known.read();
        let unknown = "the token is not known here: it was removed, made a moment ago, or made for another cluster";
        let (record, ended) = known.get(&token.id()).ok_or(unknown)?;
        if *record.digest.as_bytes() != token.sha256() {
            return Err(unknown);
        }
        if record.is_expired(now_ms()) || ended.is_cancelled() {
            return Err("the token expired");
        }
        let user = User { name: record.name.to_string(), grants: record.grants };
        Ok(TokenHolder { user, ended: ended.clone() })
    }
}

#[cfg(test)]
mod tests {
    use shardhost_policy::catalog::{
        Catalog, Command, Name, NewToken, Operation, Subject, TOKENS_KNOWN, TokenDigest,
    };

    use super::*;

    fn apply(catalog: &mut Catalog, operation: Operation) {
        catalog.apply(&Command::new(1, operation)).unwrap();
    }

    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        let prepared = BTreeMap::new();
        apply(&mut catalog, Operation::RaiseVersion { version: TOKENS_KNOWN, prepared });
        catalog
    }

    fn put(catalog: &mut Catalog, token: &TokenText, expires_ms: Option<u64>) {
        let name = Name::new(Subject::Token, "ann").unwrap();
        let digest = TokenDigest::new(token.sha256());
        let grants = "operator".parse().unwrap();
        let new = NewToken { id: token.id(), name, grants, digest, expires_ms };
        apply(catalog, Operation::PutToken(new));
    }

    #[test]
    fn a_token_counts_until_it_is_removed() {
        let (mut catalog, known) = (catalog(), KnownHere::default());
        let token = TokenText::make().unwrap();
        assert!(known.holder(&token.text()).is_err());
        put(&mut catalog, &token, None);
        known.take(catalog.view());
        let holder = known.holder(&token.text()).unwrap();
        assert_eq!(holder.user.name, "ann");
        // The number is no secret.
        let guess = format!("{}{}", &token.text()[..27], "0".repeat(64));
        assert!(known.holder(&guess).is_err());
        known.take(catalog.view());
        assert!(!holder.ended.is_cancelled());
        apply(&mut catalog, Operation::RemoveToken { id: token.id() });
        known.take(catalog.view());
        assert!(holder.ended.is_cancelled() && known.holder(&token.text()).is_err());
    }

    #[test]
    fn a_token_ends_when_it_expires() {
        let (mut catalog, known) = (catalog(), KnownHere::default());
        let (soon, later) = (TokenText::make().unwrap(), TokenText::make().unwrap());
        let end = now_ms() + 60_000;
        put(&mut catalog, &soon, Some(2));
        put(&mut catalog, &later, Some(end));
        known.take(catalog.view());
        assert_eq!(known.holder(&soon.text()).unwrap_err(), "the token expired");
        let holder = known.holder(&later.text()).unwrap();
        known.end_expired(end - 1);
        assert!(!holder.ended.is_cancelled());
        known.end_expired(end);
        assert!(holder.ended.is_cancelled());
        assert_eq!(known.holder(&later.text()).unwrap_err(), "the token expired");
        // The clock was ahead, and is back.
        known.end_expired(end - 1);
        assert!(!known.holder(&later.text()).unwrap().ended.is_cancelled());
    }
}
