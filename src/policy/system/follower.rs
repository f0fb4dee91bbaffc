//! Following the catalog: every host keeps a view of it, as fresh as its replica of the system
//! group, or as often as it asks somebody who has one.
//!
//! When nobody answers, the view stays as it is: intentions do not end because they cannot be read.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shardhost_groups::{LogIndex, ReadMode};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{CatalogClient, CatalogError};
use super::{CatalogView, SYSTEM_GROUP};
use crate::host::Host;
use crate::policy::catalog::{Answer, Content, Query, Record, RecordKind, Revision, View};

/// Between two questions, for a host without a replica of the system group.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Between two questions at least, so that a burst of changes makes a few views. A change that
/// comes alone is read at once.
const GATHER: Duration = Duration::from_millis(30);
/// After a question that nobody answered.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Keeps `view` up to date until `stop`.
pub(super) async fn follow(
    host: Host,
    client: CatalogClient,
    view: watch::Sender<CatalogView>,
    stop: CancellationToken,
) {
    let follower = Follower { host, client, view, since: Revision::default() };
    stop.run_until_cancelled(follower.run()).await;
}

struct Follower {
    host: Host,
    client: CatalogClient,
    view: watch::Sender<CatalogView>,
    /// Changes up to this one are in the view.
    since: Revision,
}

impl Follower {
    async fn run(mut self) {
        loop {
            let (seen, asked) = (self.applied_here(), Instant::now());
            match self.catch_up().await {
                Ok(()) => {
                    self.until_something_may_have_changed(seen).await;
                    tokio::time::sleep_until(asked + GATHER).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "the catalog cannot be followed");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    /// How far the replica here is; `None`: there is none.
    fn applied_here(&self) -> Option<LogIndex> {
        self.host.group(SYSTEM_GROUP).map(|group| group.status().applied)
    }

    /// With a replica here: until it applied something beyond `seen`. Without one: for a while.
    async fn until_something_may_have_changed(&self, seen: Option<LogIndex>) {
        let (Some(group), Some(seen)) = (self.host.group(SYSTEM_GROUP), seen) else {
            return tokio::time::sleep(ASK_EVERY).await;
        };
        // One that was closed meanwhile is looked up anew.
        group.wait_for(|status| status.applied != seen, ASK_EVERY * 5).await;
    }

    async fn catch_up(&mut self) -> Result<(), CatalogError> {
        let known = self.view.borrow().as_ref().map(Arc::clone);
        let (mut view, mut listed) = match known {
            Some(known) => (View::clone(&known), false),
            None => (self.list().await?, true),
        };
        let mut news = listed;
        loop {
            let answer = self.ask(&Query::Changes { since: self.since, limit: 0 }).await?;
            let Content::Changes { changes, through, more } = answer.content else {
                if listed {
                    // Whoever answers is behind whoever answered before.
                    let message = format!("changes since revision {} are not told", self.since);
                    return Err(CatalogError::Unknown { message });
                }
                (view, listed, news) = (self.list().await?, true, true);
                continue;
            };
            news |= through > self.since;
            for change in changes {
                match change.record {
                    Some(record) => view.put(record),
                    None => view.remove(change.key),
                }
            }
            view.advance(through);
            self.since = through;
            if !more {
                if news {
                    self.view.send_replace(Some(Arc::new(view)));
                }
                return Ok(());
            }
        }
    }

    /// Reads everything. What changes meanwhile is told by the changes since the first page, and
    /// until they are taken over the view is of no moment.
    async fn list(&mut self) -> Result<View, CatalogError> {
        let (mut view, mut first) = (View::default(), None);
        for kind in RecordKind::ALL {
            let mut after = None;
            loop {
                let answer = self.ask(&Query::List { kind, after, limit: 0 }).await?;
                first.get_or_insert(answer.revision);
                let Content::Page { records, more } = answer.content else { break };
                after = records.last().map(|record: &Record| record.key().id());
                records.into_iter().for_each(|record| view.put(record));
                if !more {
                    break;
                }
            }
        }
        self.since = first.unwrap_or_default();
        Ok(view)
    }

    async fn ask(&self, query: &Query) -> Result<Answer, CatalogError> {
        let Some(group) = self.host.group(SYSTEM_GROUP) else {
            return self.client.query(query).await;
        };
        let bytes: Bytes = query.encode();
        match group.query(ReadMode::Stale, bytes).await {
            Ok(answer) => Ok(Answer::decode(&answer)?),
            Err(error) => Err(CatalogError::Unknown { message: error.to_string() }),
        }
    }
}
