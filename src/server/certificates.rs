//! Certificates that are replaced while the node runs, and those that were forgotten.

use std::time::{Duration, SystemTime};

use shardhost::host::Host;
use shardhost_security::{CredentialError, Credentials};
use tokio_util::sync::CancellationToken;

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A certificate that is valid for less is warned of,
const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// so often.
const WARN_EVERY: Duration = Duration::from_secs(6 * 60 * 60);

/// Takes new certificates when the files change, until `stop`.
pub(super) async fn follow(host: Host, credentials: Credentials, stop: CancellationToken) {
    let follow = async {
        let (mut complained, mut warned, mut removals) = (None, None, credentials.removals());
        loop {
            let read = credentials.clone();
            let looked = tokio::task::spawn_blocking(move || read.reload());
            match looked.await {
                Ok(outcome) => {
                    // A connection may have looked at the files first.
                    if credentials.removals() != removals {
                        removals = credentials.removals();
                        tracing::info!(
                            "an authority is not believed any more: all connections are made anew"
                        );
                        host.renew_connections();
                    }
                    note(&credentials, outcome, &mut complained);
                }
                Err(error) => tracing::error!(%error, "the certificates were not looked at"),
            }
            warn_of_end(&credentials, &mut warned);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    stop.run_until_cancelled(follow).await;
}

/// Logs a problem when it begins or changes, and not while it lasts: files are replaced one after the other.
fn note(
    credentials: &Credentials,
    outcome: Result<bool, CredentialError>,
    complained: &mut Option<String>,
) {
    match outcome {
        Ok(changed) => {
            let was_wrong = complained.take().is_some();
            if let Some(facts) = credentials.facts().filter(|_| changed || was_wrong) {
                let left = left(facts.not_after).as_secs() / 3_600;
                tracing::info!(own = %facts.identity, hours_left = left, "the certificates are in use");
            }
        }
        Err(error) => {
            let error = error.to_string();
            if complained.as_ref() != Some(&error) {
                tracing::warn!(error, "the certificates on disk cannot be used; those before are");
            }
            *complained = Some(error);
        }
    }
}

fn left(until: SystemTime) -> Duration {
    until.duration_since(SystemTime::now()).unwrap_or_default()
}

fn warn_of_end(credentials: &Credentials, warned: &mut Option<std::time::Instant>) {
    let Some(facts) = credentials.facts() else { return };
    let left = left(facts.not_after);
    if left < WARN_BEFORE && warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
        *warned = Some(std::time::Instant::now());
        let hours = left.as_secs() / 3_600;
        tracing::warn!(
            own = %facts.identity, hours_left = hours,
            "the certificate of this node ends soon; without another one, no other node connects to it then"
        );
    }
}
