//! Asking the catalog, from any host: the replica of the system group that leads is found and asked,
//! here or over the network.
//!
//! A command is sent again only when it surely was not taken. On [`CatalogError::Unknown`], read
//! the catalog and decide again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use shardhost_groups::{Group, GroupId, NodeId, ProposeError, ReadMode};
use shardhost_proto::system as wire;
use shardhost_proto::system::catalog_reply::Reply as WireReply;
use shardhost_proto::system::system_client::SystemClient;
use shardhost_security::channel::{Channel, is_not_sent};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use super::SYSTEM_GROUP;
use super::service::MAX_GONE;
use crate::host::Host;
use crate::transport::chain;
use crate::wall_clock::now_ms;
use shardhost_policy::catalog::{
    Answer, Command, Done, Operation, Query, RecordKey, Refusal, Revision, decode_reply,
    encode_reply,
};

/// How long a question to the catalog may take on a host, until it has the answer or knows that there is
/// none: until the last node was asked, and until the host knows what that one said.
pub const ANSWERS_WITHIN: Duration =
    TIMEOUT.saturating_add(ANSWER_TIMEOUT).saturating_add(super::FRESH_WITHIN);
/// How long a command or a question is tried.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long one node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest answer: the report of a node that leads some hundred thousand groups.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two tries, when no leader is known.
const PAUSE: Duration = Duration::from_millis(50);

/// The catalog did not do what it was asked, or could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// It refused, and changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No leader of the system group was found; nothing changed. The groups themselves continue
    /// without it.
    #[error(
        "the catalog does not answer ({last}); it needs a quorum of nodes {founders}: `shardhost \
         group show 0` on one of them says more"
    )]
    Unreachable {
        /// The nodes that hold the system group, as far as is known.
        founders: String,
        /// The answer of the last one.
        last: String,
    },
    /// It may have been carried out, now or later.
    #[error("the outcome is unknown: {message}; read the catalog, and decide again")]
    Unknown { message: String },
}

/// A handle of the catalog. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CatalogClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    host: Host,
    founders: Vec<NodeId>,
    /// The last leader that a node named; 0: not known.
    hint: AtomicU64,
    /// Nodes that did not answer when they were asked last: they are asked after all others. A
    /// process that hangs accepts connections, and its effect on a command is unknown.
    silent: Mutex<BTreeSet<NodeId>>,
    channels: Mutex<BTreeMap<String, SystemClient<Channel>>>,
    /// A caller on this host waits until this revision is known.
    wanted: AtomicU64,
    hurry: Notify,
}

/// The result of asking one node.
enum Asked {
    Answered(Bytes),
    Elsewhere { leader: Option<NodeId>, reason: String },
    Unknown(String),
}

impl CatalogClient {
    pub(super) fn new(host: &Host, founders: impl IntoIterator<Item = NodeId>) -> Self {
        let inner = Inner {
            host: host.clone(),
            founders: founders.into_iter().collect(),
            hint: AtomicU64::new(0),
            silent: Mutex::default(),
            channels: Mutex::default(),
            wanted: AtomicU64::new(0),
            hurry: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Has an operation carried out.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn apply(&self, operation: Operation) -> Result<Done, CatalogError> {
        self.apply_at(now_ms(), operation).await
    }

    /// Has an operation carried out at this time, in Unix milliseconds: what it creates is recognized by it.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn apply_at(&self, now_ms: u64, operation: Operation) -> Result<Done, CatalogError> {
        self.run(&Command::new(now_ms, operation)).await
    }

    /// The revision of the catalog, at least as it is when this is called.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn revision(&self) -> Result<Revision, CatalogError> {
        // At time 0 nothing is due: it changes nothing, and comes after everything before it.
        let done = self.run(&Command::new(0, Operation::Tick)).await;
        Ok(done.map_err(|error| self.not_read(error))?.revision)
    }

    /// What was only to be read has no outcome that is unknown.
    pub(super) fn not_read(&self, error: CatalogError) -> CatalogError {
        match error {
            CatalogError::Unknown { message } => self.unreachable(message),
            known => known,
        }
    }

    /// Has an operation applied, unless the record changed since `revision`.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn apply_expecting(
        &self,
        revision: Revision,
        operation: Operation,
    ) -> Result<Done, CatalogError> {
        self.run(&Command::new(now_ms(), operation).expecting(revision)).await
    }

    /// A caller waits until the view has this revision, which a reply named.
    pub(super) fn want(&self, revision: Revision) {
        self.inner.wanted.fetch_max(revision.get(), Ordering::Relaxed);
        self.inner.hurry.notify_one();
    }

    /// The latest revision that a caller waits for.
    pub(super) fn wanted(&self) -> Revision {
        Revision::new(self.inner.wanted.load(Ordering::Relaxed))
    }

    /// Resolves when a caller waits for a revision.
    pub(super) async fn hurried(&self) {
        self.inner.hurry.notified().await;
    }

    async fn run(&self, command: &Command) -> Result<Done, CatalogError> {
        // What makes no sense anywhere needs no round.
        command.check()?;
        let bytes = command.encode();
        let answer = self.until_answered(|node| self.propose_to(node, bytes.clone())).await?;
        Ok(decode_reply(&answer)?)
    }

    /// Asks the catalog as some node has it, which may be a little behind.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn query(&self, query: &Query) -> Result<Answer, CatalogError> {
        self.query_since(query, Revision::default()).await
    }

    /// The same of a node that has everything up to this revision.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn query_since(
        &self,
        query: &Query,
        least: Revision,
    ) -> Result<Answer, CatalogError> {
        let bytes = query.encode();
        let ask = |node| {
            let asked = self.query_at(node, bytes.clone());
            async move { not_behind(asked.await, least) }
        };
        let answer = self.until_answered(ask).await?;
        Ok(Answer::decode(&answer)?)
    }

    /// The latest revision of the replicas of other nodes, of those that answer: a replica that hears no
    /// leader may lack what they have.
    pub(super) async fn known_elsewhere(&self) -> Revision {
        let host = &self.inner.host;
        let members = host.group(SYSTEM_GROUP).map(|group| group.membership());
        let members = members.iter().flat_map(|membership| membership.members.values());
        let live = host.live_nodes();
        let others: BTreeSet<NodeId> = members
            .map(|member| member.node)
            .filter(|node| *node != host.node_id() && live.contains(node))
            .collect();
        let query = Query::Get(RecordKey::Settings).encode();
        let asked = others.into_iter().map(|node| self.query_at(node, query.clone()));
        let answers = futures::future::join_all(asked).await.into_iter();
        let revisions = answers.filter_map(|asked| match asked {
            Asked::Answered(bytes) => Answer::decode(&bytes).ok().map(|answer| answer.revision),
            Asked::Elsewhere { .. } | Asked::Unknown(_) => None,
        });
        revisions.max().unwrap_or_default()
    }

    /// Asks one node after another, beginning with this one and the reported leader.
    async fn until_answered<F: Future<Output = Asked>>(
        &self,
        ask: impl Fn(NodeId) -> F,
    ) -> Result<Bytes, CatalogError> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            for node in self.candidates() {
                match ask(node).await {
                    Asked::Answered(bytes) => return Ok(bytes),
                    Asked::Unknown(message) => return Err(CatalogError::Unknown { message }),
                    Asked::Elsewhere { leader, reason } => {
                        self.inner.hint.store(leader.map_or(0, NodeId::get), Ordering::Relaxed);
                        if Instant::now() > deadline {
                            return Err(self.unreachable(format!("node {node}: {reason}")));
                        }
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn unreachable(&self, last: String) -> CatalogError {
        let founders = self.inner.founders.iter().map(ToString::to_string);
        CatalogError::Unreachable { founders: founders.collect::<Vec<_>>().join(", "), last }
    }

    /// The order of nodes to ask: the leader as far as known, this host, the initial members, and
    /// then all others. Silent nodes come last.
    fn candidates(&self) -> Vec<NodeId> {
        let host = &self.inner.host;
        let local = host.group(SYSTEM_GROUP).and_then(|group| group.status().leader);
        let hinted = NodeId::new(self.inner.hint.load(Ordering::Relaxed));
        let others = host.directory().addresses();
        let all = local
            .map(|leader| leader.node)
            .into_iter()
            .chain(hinted)
            .chain([host.node_id()])
            .chain(self.inner.founders.iter().copied())
            .chain(others.keys().copied());
        let mut distinct = Vec::new();
        for node in all {
            if !distinct.contains(&node) {
                distinct.push(node);
            }
        }
        let silent = self.inner.silent.lock();
        // Stable: each part keeps its order.
        distinct.sort_by_key(|node| silent.contains(node));
        distinct
    }

    /// A node answered, or did not.
    fn note_answer(&self, node: NodeId, answered: bool) {
        let mut silent = self.inner.silent.lock();
        if answered {
            silent.remove(&node);
        } else {
            silent.insert(node);
        }
    }

    async fn propose_to(&self, node: NodeId, command: Bytes) -> Asked {
        if node == self.inner.host.node_id() {
            return match propose_here(&self.inner.host, command).await {
                Ok(answer) => Asked::Answered(answer),
                Err(NotHere::Elsewhere { leader, reason }) => Asked::Elsewhere { leader, reason },
                Err(NotHere::Unknown(message)) => Asked::Unknown(message),
            };
        }
        let (mut client, address) = match self.connect(node).await {
            Ok(client) => client,
            Err(reason) => return self.not_connected(node, reason),
        };
        let founding = self.inner.host.founded().get();
        let answer = client.propose(wire::ProposeRequest { command, founding }).await;
        self.note_answer(node, answer.is_ok());
        match answer {
            Ok(reply) => read_proposed(reply.into_inner()),
            Err(status) => {
                self.forget(&address);
                let reason = status.message().to_owned();
                match was_not_taken(&status) {
                    true => Asked::Elsewhere { leader: None, reason },
                    false => Asked::Unknown(reason),
                }
            }
        }
    }

    async fn query_at(&self, node: NodeId, query: Bytes) -> Asked {
        if node == self.inner.host.node_id() {
            return match query_here(&self.inner.host, query).await {
                Ok(answer) => Asked::Answered(answer),
                Err(reason) => Asked::Elsewhere { leader: None, reason },
            };
        }
        let (mut client, address) = match self.connect(node).await {
            Ok(client) => client,
            Err(reason) => return self.not_connected(node, reason),
        };
        let founding = self.inner.host.founded().get();
        let answer = client.query(wire::QueryRequest { query, founding }).await;
        self.note_answer(node, answer.is_ok());
        match answer {
            Ok(reply) => read_reply(reply.into_inner()),
            Err(status) => {
                self.forget(&address);
                Asked::Elsewhere { leader: None, reason: status.message().to_owned() }
            }
        }
    }

    fn not_connected(&self, node: NodeId, reason: String) -> Asked {
        self.note_answer(node, false);
        Asked::Elsewhere { leader: None, reason }
    }

    /// Those of these groups of which a node holds no replica.
    pub(super) async fn gone(
        &self,
        node: NodeId,
        groups: &[GroupId],
    ) -> Result<Vec<GroupId>, String> {
        let (mut client, address) = self.connect(node).await?;
        let mut gone = Vec::new();
        for part in groups.chunks(MAX_GONE) {
            let groups = part.iter().map(|group| group.get()).collect();
            match client.gone(wire::GoneRequest { groups }).await {
                Ok(reply) => gone.extend(reply.into_inner().groups.into_iter().map(GroupId::new)),
                Err(status) => {
                    self.forget(&address);
                    return Err(status.message().to_owned());
                }
            }
        }
        Ok(gone)
    }

    /// An established connection to a node, so that a failure before it means that nothing was
    /// sent.
    pub(super) async fn connect(
        &self,
        node: NodeId,
    ) -> Result<(SystemClient<Channel>, String), String> {
        let address = self.inner.host.directory().address(node);
        let address = address.ok_or_else(|| "its address is not known".to_owned())?;
        if let Some(client) = self.inner.channels.lock().get(&address) {
            return Ok((client.clone(), address));
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| error.to_string())?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .tcp_nodelay(true);
        let channel = self.inner.host.security().now(&endpoint, Some(node)).await;
        let channel = channel.map_err(|error| format!("{address}: {}", chain(&error)))?;
        let client = SystemClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        self.inner.channels.lock().insert(address.clone(), client.clone());
        Ok((client, address))
    }

    pub(super) fn host(&self) -> &Host {
        &self.inner.host
    }

    /// The connection to this address is not used again.
    pub(super) fn forget(&self, address: &str) {
        self.inner.channels.lock().remove(address);
    }
}

const WITHOUT_CONTENT: &str = "an answer without content";

fn read_reply(reply: wire::CatalogReply) -> Asked {
    match reply.reply {
        Some(WireReply::Answer(answer)) => Asked::Answered(answer),
        Some(WireReply::Elsewhere(elsewhere)) => Asked::Elsewhere {
            leader: NodeId::new(elsewhere.leader_node),
            reason: elsewhere.reason,
        },
        None => Asked::Elsewhere { leader: None, reason: WITHOUT_CONTENT.to_owned() },
    }
}

/// The same of a command: what an answer says that is not known here may be that it was taken.
fn read_proposed(reply: wire::CatalogReply) -> Asked {
    match reply.reply {
        Some(_) => read_reply(reply),
        None => Asked::Unknown(WITHOUT_CONTENT.to_owned()),
    }
}

/// Whether a node surely did nothing with a request: it was not sent, or it came to an address where only
/// clients are served, or to a node without such a service. The cause of an error of the connection is not among
/// these, whatever its code.
pub(super) fn was_not_taken(status: &Status) -> bool {
    let refused = matches!(status.code(), Code::FailedPrecondition | Code::Unimplemented);
    is_not_sent(status) || refused && std::error::Error::source(status).is_none()
}

/// Why this host's replica did not carry a command out.
pub(super) enum NotHere {
    Elsewhere {
        /// Who leads, as far as it knows.
        leader: Option<NodeId>,
        reason: String,
    },
    Unknown(String),
}

/// An answer counts if it is of this revision or a later one.
fn not_behind(asked: Asked, least: Revision) -> Asked {
    let Asked::Answered(bytes) = asked else { return asked };
    match Answer::decode(&bytes) {
        Ok(answer) if answer.revision < least => Asked::Elsewhere {
            leader: None,
            reason: format!("it has revision {}, {least} is known", answer.revision),
        },
        _ => Asked::Answered(bytes),
    }
}

/// Proposes a command to this host's replica of the system group.
pub(super) async fn propose_here(host: &Host, command: Bytes) -> Result<Bytes, NotHere> {
    let Some(group) = host.group(SYSTEM_GROUP) else {
        let reason = "it holds no replica of the system group".to_owned();
        return Err(NotHere::Elsewhere { leader: None, reason });
    };
    if let Some(refusal) = of_own_members(&group, &command) {
        return Ok(encode_reply(&Err(refusal)));
    }
    match group.propose(command).within(ANSWER_TIMEOUT).await {
        Ok(applied) => Ok(applied.response),
        Err(error @ ProposeError::NotLeader { .. }) => {
            let leader = error.leader_hint().map(|hint| hint.node);
            Err(NotHere::Elsewhere { leader, reason: error.to_string() })
        }
        Err(error) if error.is_definite() => {
            Err(NotHere::Elsewhere { leader: None, reason: error.to_string() })
        }
        Err(error) => Err(NotHere::Unknown(error.to_string())),
    }
}

/// The catalog does not name its own group: that a member of it is not removed is checked where its
/// members are known. Another replica than the leader's may know too few of them, and gets no command
/// into the log.
fn of_own_members(group: &Group, command: &Bytes) -> Option<Refusal> {
    let Ok(Command { operation: Operation::RemoveNode { node }, .. }) = Command::decode(command)
    else {
        return None;
    };
    let members = &group.status().membership.members;
    let is_member = members.values().any(|member| member.node == node);
    is_member.then(|| Refusal::NodeInUse { node, groups: vec![SYSTEM_GROUP], total: 1 })
}

/// Asks this host's replica of the system group.
pub(super) async fn query_here(host: &Host, query: Bytes) -> Result<Bytes, String> {
    let group = host.group(SYSTEM_GROUP);
    let group = group.ok_or_else(|| "it holds no replica of the system group".to_owned())?;
    group.query(ReadMode::Stale, query).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::service::Routes;
    use tonic::transport::Server;

    use super::*;
    use crate::transport::{Served, only};

    /// So another node is asked, although this one has an address that is for clients.
    #[tokio::test]
    async fn a_command_that_is_sent_where_only_clients_are_served_was_not_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = Served::Clients { others_at: "o:1".to_owned() };
        let server = Server::builder().add_routes(only(Routes::default(), served));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let mut client = SystemClient::new(endpoint.connect().await.unwrap());
        let refused = client.propose(wire::ProposeRequest::default()).await.unwrap_err();
        assert!(refused.message().contains("o:1") && was_not_taken(&refused), "{refused:?}");
    }

    #[test]
    fn an_outcome_that_may_be_an_effect_stays_unknown() {
        let mut of_the_connection = Status::failed_precondition("it broke");
        of_the_connection.set_source(Arc::new(std::io::Error::other("a reset")));
        for status in [
            Status::unknown("h2 protocol error"),
            Status::cancelled("the connection ended"),
            Status::deadline_exceeded("the change continues"),
            Status::unavailable("it stops"),
            of_the_connection,
        ] {
            assert!(!was_not_taken(&status), "{status:?}");
        }
        let empty = wire::CatalogReply::default();
        assert!(matches!(read_proposed(empty), Asked::Unknown(_)));
    }
}
