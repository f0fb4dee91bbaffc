//! Following the catalog: every host keeps a view of it, as fresh as its replica of the system
//! group, or as often as it asks a node that has one.
//!
//! A replica here that hears no leader may be cut off from it alone, as when both nodes moved at the same
//! time: other replicas may have what it lacks, where the leader is reached now among it. They are asked for
//! their revision, and for what is new while it lags behind theirs.
//!
//! When no node answers, the view stays as it is: intentions do not end because they cannot be
//! read. **The view never goes back**, whichever node answers: a request names the known revision,
//! an answer of an earlier one does not count, and another node is asked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shardhost_groups::{LogIndex, ReadMode, Role};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{CatalogClient, CatalogError};
use super::{CatalogView, SYSTEM_GROUP};
use crate::host::Host;
use shardhost_policy::catalog::{Answer, Content, Query, Record, RecordKind, Revision, View};

/// Between two questions, for a host without a replica of the system group that answers.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Between two questions at least, so that a burst of changes makes a few views. A change that
/// comes alone is read at once.
const GATHER: Duration = Duration::from_millis(30);
/// After a request without an answer.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long the replica here hears no leader before others are asked for what they have.
const LEADERLESS_FOR: Duration = Duration::from_secs(1);
/// How long the replica here may take to answer. It may hang.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Keeps `view` up to date until `stop`.
pub(super) async fn follow(
    host: Host,
    client: CatalogClient,
    view: watch::Sender<CatalogView>,
    stop: CancellationToken,
) {
    let source = Replicas { host, client, trouble: None, leaderless_since: None };
    let follower = Follower { source, view, reader: Reader::default() };
    stop.run_until_cancelled(follower.run()).await;
}

/// Does something with the catalog as this host knows it, and with each later view, until `stop`. Views
/// that are followed by others meanwhile are left out.
pub async fn with_each_view(
    mut views: watch::Receiver<CatalogView>,
    stop: CancellationToken,
    take: impl AsyncFn(&View),
) {
    let follow = async {
        loop {
            let known = views.borrow_and_update().clone();
            if let Some(view) = known {
                take(&view).await;
            }
            if views.changed().await.is_err() {
                return;
            }
        }
    };
    stop.run_until_cancelled(follow).await;
}

struct Follower {
    source: Replicas,
    view: watch::Sender<CatalogView>,
    reader: Reader,
}

impl Follower {
    async fn run(mut self) {
        loop {
            let (seen, asked) = (self.source.applied_here(), Instant::now());
            let known = self.view.borrow().as_ref().map(Arc::clone);
            if seen.is_none() {
                // The node that is asked may be behind a revision that a caller here knows of.
                self.reader.least = self.reader.least.max(self.source.client.wanted());
            } else if known.is_some() {
                self.reader.least = self.reader.least.max(self.source.known_elsewhere().await);
            }
            match self.reader.catch_up(known, &mut self.source).await {
                Ok(news) => {
                    if let Some(view) = news {
                        self.view.send_replace(Some(Arc::new(view)));
                    }
                    self.source.until_something_may_have_changed(seen).await;
                    tokio::time::sleep_until(asked + GATHER).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "the catalog cannot be followed");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }
}

trait Source {
    /// The answer of a replica of the catalog that has everything up to `least`.
    fn ask(
        &mut self,
        query: &Query,
        least: Revision,
    ) -> impl Future<Output = Result<Answer, CatalogError>> + Send;
}

/// The replica of this host, or others.
struct Replicas {
    host: Host,
    client: CatalogClient,
    /// Why the replica here is not asked; logged once.
    trouble: Option<String>,
    /// Since when the replica here hears no leader.
    leaderless_since: Option<Instant>,
}

impl Replicas {
    /// How far the replica here is; `None`: there is none that answers.
    fn applied_here(&self) -> Option<LogIndex> {
        let group = self.host.group(SYSTEM_GROUP).filter(|_| self.trouble.is_none());
        group.map(|group| group.status().applied)
    }

    /// With a replica here: until it applied something beyond `seen`. Without one: for a while.
    async fn until_something_may_have_changed(&self, seen: Option<LogIndex>) {
        let group = self.host.group(SYSTEM_GROUP).filter(|_| self.trouble.is_none());
        let (Some(group), Some(seen)) = (group, seen) else {
            return tokio::select! {
                () = tokio::time::sleep(ASK_EVERY) => {}
                () = self.client.hurried() => {}
            };
        };
        // One that was closed meanwhile is looked up anew.
        let moved = |status: &shardhost_groups::GroupStatus| {
            status.applied != seen || matches!(status.role, Role::Failed(_))
        };
        let longest = match group.status().leader {
            Some(_) => ASK_EVERY * 5,
            None => ASK_EVERY,
        };
        group.wait_for(moved, longest).await;
    }

    /// What the replicas of other nodes have, once the one here has heard no leader for a while.
    async fn known_elsewhere(&mut self) -> Revision {
        let group = self.host.group(SYSTEM_GROUP);
        if group.is_none_or(|group| group.status().leader.is_some()) {
            self.leaderless_since = None;
            return Revision::default();
        }
        let since = *self.leaderless_since.get_or_insert_with(Instant::now);
        match since.elapsed() < LEADERLESS_FOR {
            true => Revision::default(),
            false => self.client.known_elsewhere().await,
        }
    }

    /// Asks the replica here; `None`: there is none. An error: why it does not answer.
    async fn ask_here(&self, query: &Query) -> Option<Result<Answer, String>> {
        let group = self.host.group(SYSTEM_GROUP)?;
        if let Role::Failed(fault) = &group.status().role {
            return Some(Err(fault.to_string()));
        }
        let bytes: Bytes = query.encode();
        let asked = group.query(ReadMode::Stale, bytes);
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(answer)) => Answer::decode(&answer).map_err(|refusal| refusal.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it does not answer within {ANSWER_TIMEOUT:?}")),
        };
        Some(answer)
    }

    fn tell(&mut self, trouble: Option<String>) {
        match (&trouble, &self.trouble) {
            (Some(reason), known) if known.as_ref() != Some(reason) => {
                tracing::warn!(
                    reason,
                    "the replica of the system group here does not answer; others are asked for \
                     the catalog"
                );
            }
            (None, Some(_)) => tracing::info!("the replica of the system group here answers again"),
            _ => {}
        }
        self.trouble = trouble;
    }
}

impl Source for Replicas {
    async fn ask(&mut self, query: &Query, least: Revision) -> Result<Answer, CatalogError> {
        match self.ask_here(query).await {
            Some(Ok(answer)) if answer.revision >= least => {
                self.tell(None);
                return Ok(answer);
            }
            // It catches up; until then others know more.
            Some(Ok(answer)) => self.tell(Some(format!("it lags at revision {}", answer.revision))),
            Some(Err(reason)) => self.tell(Some(reason)),
            None => self.trouble = None,
        }
        self.client.query_since(query, least).await
    }
}

/// Memory of the answers so far.
#[derive(Debug, Default)]
struct Reader {
    /// Changes up to this one are in the view that was handed out last: not those of a page behind
    /// which another one failed.
    since: Revision,
    /// A node answered that had everything up to this one. The pages are complete only when the
    /// changes up to there are applied.
    least: Revision,
}

impl Reader {
    /// The view with all changes; `None`: there are none. Answers are never older than the known
    /// revision.
    async fn catch_up(
        &mut self,
        known: CatalogView,
        source: &mut impl Source,
    ) -> Result<Option<View>, CatalogError> {
        let mut listed = known.is_none();
        let (mut view, mut since) = match known {
            Some(known) => (View::clone(&known), self.since),
            None => self.list(source).await?,
        };
        let mut news = listed;
        loop {
            let query = Query::Changes { since, limit: 0 };
            let answer = source.ask(&query, self.least).await?;
            let Content::Changes { changes, through, more } = answer.content else {
                if listed {
                    let message = format!("changes since revision {since} are not kept");
                    return Err(CatalogError::Unknown { message });
                }
                (view, since) = self.list(source).await?;
                (listed, news) = (true, true);
                continue;
            };
            news |= through > since;
            for change in changes {
                match change.record {
                    Some(record) => view.put(record),
                    None => view.remove(change.key),
                }
            }
            view.advance(through);
            (since, self.least) = (through, self.least.max(through));
            if !more {
                self.since = since;
                return Ok(news.then_some(view));
            }
        }
    }

    /// Reads everything, and returns the revision to continue from. Each page is at least of the
    /// revision of the first, whichever node answers: later changes come with the changes, and
    /// until they are applied the view is incomplete.
    async fn list(&mut self, source: &mut impl Source) -> Result<(View, Revision), CatalogError> {
        let (mut view, mut first) = (View::default(), None);
        for kind in RecordKind::ALL {
            // Settings come first. At an earlier version a node may run a program that refuses to list the
            // kind.
            if kind.since() > view.settings().cluster_version {
                continue;
            }
            let mut after = None;
            loop {
                let query = Query::List { kind, after, limit: 0 };
                let answer = source.ask(&query, first.unwrap_or(self.least)).await?;
                first.get_or_insert(answer.revision);
                self.least = self.least.max(answer.revision);
                let Content::Page { records, more } = answer.content else { break };
                after = records.last().map(|record: &Record| record.key().id());
                records.into_iter().for_each(|record| view.put(record));
                if !more {
                    break;
                }
            }
        }
        Ok((view, first.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests;
