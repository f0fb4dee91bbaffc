//! Speaking with the catalog: through any node, to the one that leads the system group.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use shardhost::wall_clock;
use shardhost_policy::catalog::{
    Answer, Command, Content, Done, Name, Operation, Query, Record, RecordKey, RecordKind,
    Revision, Settings, Subject, decode_reply,
};
use shardhost_proto::system::catalog_reply::Reply;
use shardhost_proto::system::system_client::SystemClient;
use shardhost_proto::system::{CatalogReply, Elsewhere, ProposeRequest, QueryRequest};
use shardhost_security::channel::{Channel, is_not_sent};
use tokio::time::Instant;

use super::change::unconfirmed;
use super::ended::{partly, senseless};
use super::target::{Node, Target, channel, is_elsewhere, promptly, said};

/// Between two tries to find who leads.
const PAUSE: Duration = Duration::from_millis(50);

/// Whether a command changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Change,
    /// It has no outcome that could be unknown.
    Question,
}

impl Kind {
    fn no_answer(self, what: &str) -> anyhow::Error {
        let advice = "`shardhost group show 0` says whether the system group is led";
        match self {
            Self::Change => partly(format!("{what}: whether it takes effect is unknown; {advice}")),
            Self::Question => anyhow::anyhow!("{what}; {advice}"),
        }
    }
}

/// A name as it was typed.
pub fn typed_name(subject: Subject, text: &str) -> anyhow::Result<Name> {
    Name::new(subject, text).map_err(|refusal| senseless(refusal.to_string()))
}

/// The catalog of a cluster.
#[derive(Debug)]
pub struct Catalog<'a> {
    target: &'a Target,
    node: Node,
}

impl<'a> Catalog<'a> {
    /// Reaches a node of the cluster.
    pub async fn reach(target: &'a Target) -> anyhow::Result<Self> {
        Ok(Self { target, node: target.node().await? })
    }

    /// Has an operation carried out; `expected` is the revision that its record must be at.
    pub async fn apply(
        &self,
        expected: Option<Revision>,
        operation: Operation,
    ) -> anyhow::Result<Done> {
        let now_ms = wall_clock::now_ms();
        self.run(&Command { now_ms, expected, operation }, Kind::Change).await
    }

    /// Whether it can be changed: it carries out what changes nothing. Returns its revision, at least as it
    /// was when this was called.
    pub async fn check(&self) -> anyhow::Result<Revision> {
        // At time 0 nothing is due.
        Ok(self.run(&Command::new(0, Operation::Tick), Kind::Question).await?.revision)
    }

    async fn run(&self, command: &Command, kind: Kind) -> anyhow::Result<Done> {
        command.check()?;
        let command = command.encode();
        let deadline = Instant::now() + self.target.timeout();
        let mut address = self.node.address.clone();
        loop {
            let mut client = client(&address)?;
            let answer = client.propose(ProposeRequest { command: command.clone(), founding: 0 });
            let Ok(answer) = tokio::time::timeout_at(deadline, answer).await else {
                let within = self.target.timeout();
                return Err(kind.no_answer(&format!("{address} gives no answer within {within:?}")));
            };
            let answer = match answer {
                Ok(answer) => answer.into_inner(),
                // It surely was not taken: another one is asked.
                Err(status)
                    if (is_not_sent(&status) || is_elsewhere(&status))
                        && Instant::now() < deadline =>
                {
                    address = self.node.address_after(&address, 0);
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(status) => {
                    return Err(match kind {
                        Kind::Change => unconfirmed(&address, &status),
                        Kind::Question => kind.no_answer(&said(&address, &status).to_string()),
                    });
                }
            };
            match self.read(answer)? {
                Ok(bytes) => return Ok(decode_reply(&bytes)?),
                Err(Elsewhere { reason, .. }) if Instant::now() > deadline => {
                    bail!(
                        "the system group has no leader after {:?} ({reason}); `shardhost group show \
                         0` says which of its nodes are missing",
                        self.target.timeout()
                    )
                }
                Err(elsewhere) => {
                    address = self.node.address_after(&address, elsewhere.leader_node)
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A record as it is now; `None`: there is none.
    pub async fn record(&self, key: RecordKey) -> anyhow::Result<Option<Record>> {
        let now = self.check().await?;
        self.record_since(key, now).await
    }

    /// The settings of the cluster as they are now.
    pub async fn settings(&self) -> anyhow::Result<Arc<Settings>> {
        match self.record(RecordKey::Settings).await? {
            Some(Record::Settings(settings)) => Ok(settings),
            _ => bail!("the catalog has no settings"),
        }
    }

    /// All records of a kind, as they are now or became while they were read.
    pub async fn list(&self, kind: RecordKind) -> anyhow::Result<Vec<Record>> {
        let now = self.check().await?;
        let (mut records, mut after) = (Vec::new(), None);
        loop {
            let query = Query::List { kind, after, limit: 0 };
            let content = self.query_since(&query, now).await?.content;
            let Content::Page { records: page, more } = content else {
                bail!("the catalog answers something else: {content:?}");
            };
            after = page.last().map(|record: &Record| record.key().id()).or(after);
            records.extend(page);
            if !more {
                return Ok(records);
            }
        }
    }

    /// A record as it was at a revision that a reply named, or later. A node that has not applied that one
    /// yet is not believed.
    pub async fn record_since(
        &self,
        key: RecordKey,
        revision: Revision,
    ) -> anyhow::Result<Option<Record>> {
        match self.query_since(&Query::Get(key), revision).await?.content {
            Content::Found(record) => Ok(record),
            other => bail!("the catalog answers something else: {other:?}"),
        }
    }

    /// Asks the nodes that hold the system group until one has applied the revision.
    async fn query_since(&self, query: &Query, revision: Revision) -> anyhow::Result<Answer> {
        let query = query.encode();
        let deadline = Instant::now() + self.target.timeout();
        loop {
            let mut last = String::new();
            for address in self.node.all_addresses() {
                match self.query_at(&address, &query).await {
                    Ok(answer) if answer.revision >= revision => return Ok(answer),
                    Ok(_) => last = format!("{address} has not caught up with revision {revision}"),
                    Err(error) => last = format!("{error:#}"),
                }
            }
            if Instant::now() > deadline {
                bail!("no node that answers has the catalog as it is ({last})");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn query_at(&self, address: &str, query: &Bytes) -> anyhow::Result<Answer> {
        let request = QueryRequest { query: query.clone(), founding: 0 };
        let answer = promptly(address, client(address)?.query(request)).await?;
        match self.read(answer)? {
            Ok(bytes) => Ok(Answer::decode(&bytes)?),
            Err(elsewhere) => bail!("{address}: {}", elsewhere.reason),
        }
    }

    fn read(&self, reply: CatalogReply) -> anyhow::Result<Result<Bytes, Elsewhere>> {
        match reply.reply.context("an answer without content")? {
            Reply::Answer(bytes) => Ok(Ok(bytes)),
            Reply::Elsewhere(elsewhere) => Ok(Err(elsewhere)),
        }
    }
}

fn client(address: &str) -> anyhow::Result<SystemClient<Channel>> {
    Ok(SystemClient::new(channel(address)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ended::{PARTLY, code_of};

    #[test]
    fn only_a_change_has_an_outcome_that_is_unknown() {
        let change = Kind::Change.no_answer("n1 gives no answer within 1s");
        assert_eq!(code_of(&change), PARTLY);
        assert!(change.to_string().contains("whether it takes effect is unknown"), "{change}");
        let question = Kind::Question.no_answer("n1 gives no answer within 1s");
        assert_eq!(code_of(&question), 1);
        assert!(!question.to_string().contains("takes effect"), "{question}");
    }
}
