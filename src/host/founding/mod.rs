//! Founding: who may create the first replicas of a cluster, and when.
//!
//! `decide` decides, `record` keeps what is decided on, `wire` and the service here carry reports
//! between initial members; `joined` keeps the cluster that a node without a part in that belongs
//! to. Nothing here creates a group: creators wait for the decision.

pub(crate) mod decide;
mod joined;
mod record;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use shardhost_groups::Groups;
use shardhost_proto::peer as proto;
use shardhost_proto::peer::founding_client::FoundingClient;
use shardhost_proto::peer::founding_server::{Founding as FoundingRpc, FoundingServer};
use shardhost_security::Caller;
use shardhost_security::channel::Security;
use shardhost_storage::NodeId;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

use self::decide::{Agreement, Cause, Phase, Record, Report, StoreId, Verdict, list};
use self::joined::Joined;
use self::record::RecordFile;
pub use self::wire::Scope;
use crate::transport::{FoundedBy, MapTag, PeerDirectory, caller_of, chain, check_map};

/// How long a connection to a founder may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a founder may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two rounds of asking at first,
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Between two log lines that name the nodes that this node waits for.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How the wait of a founder ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The groups are to be created here.
    Found,
    /// The log holds them: this node was added to them.
    Held,
}

/// Who founds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Founders {
    /// As the configuration names them.
    pub nodes: BTreeSet<NodeId>,
    /// Those that are not waited for, by an operator's decision.
    pub without: BTreeSet<NodeId>,
    /// What the shards follow from, where they are founded.
    pub shard_map: Option<MapTag>,
}

/// The founding of one scope on this host. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Founding {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    scope: Scope,
    node: NodeId,
    cluster: String,
    store: StoreId,
    security: Security,
    directory: PeerDirectory,
    file: RecordFile,
    /// Held while the record is written.
    state: Mutex<State>,
    /// A founder reported something new.
    changed: Notify,
    /// Notified when the cluster is created.
    founded: OnceLock<FoundedBy>,
}

#[derive(Debug)]
struct State {
    /// What the directory held when the host started.
    stored: Option<Record>,
    /// Set when this node takes part.
    agreement: Option<Agreement>,
    /// It is waited for a decision.
    waiting: bool,
    shard_map: Option<MapTag>,
    /// Why initial members did not answer the last time.
    silent: BTreeMap<NodeId, String>,
}

/// What the founding of a host needs to know of it.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub node: NodeId,
    pub cluster: String,
    pub store_id: u64,
    /// How the others are reached.
    pub security: Security,
}

impl Founding {
    /// Reads the record in the data directory.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub(super) fn open(
        data_dir: &Path,
        scope: Scope,
        identity: Identity,
        directory: PeerDirectory,
    ) -> io::Result<Self> {
        let name = match scope {
            Scope::System => "founding-system",
            Scope::Shards => "founding-shards",
        };
        let file = RecordFile::new(data_dir.join(name));
        let stored = file.read().map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", file.path().display()))
        })?;
        let (agreement, shard_map, silent) = (None, None, BTreeMap::new());
        let state = State { stored, agreement, waiting: false, shard_map, silent };
        let inner = Inner {
            scope,
            node: identity.node,
            cluster: identity.cluster,
            store: StoreId::new(identity.store_id),
            directory,
            security: identity.security,
            file,
            state: Mutex::new(state),
            changed: Notify::new(),
            founded: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes part: from here on this founder answers the others. `holds`: the log has, or had, the
    /// groups. Returns whether the groups are to be created here, as far as is known without asking.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub async fn begin(&self, founders: Founders, holds: bool) -> io::Result<bool> {
        let inner = Arc::clone(&self.inner);
        let begun = move || {
            let mut state = inner.state.lock();
            let Founders { nodes, without, shard_map } = founders;
            state.shard_map = shard_map;
            let stored = state.stored.clone();
            let mut agreement = Agreement::new(inner.node, inner.store, nodes, without, stored);
            if holds {
                agreement.holds_groups();
            }
            inner.keep(&mut state, agreement)?;
            let decided = |one: &Agreement| one.verdict() == Verdict::Found;
            Ok(state.agreement.as_ref().is_some_and(decided))
        };
        blocking(begun).await
    }

    /// Asks the initial members until the groups may be created here, or until `held` returns that
    /// the log holds them. Cancel-safe.
    pub async fn await_decision(&self, held: impl Fn() -> bool) -> Outcome {
        self.inner.state.lock().waiting = true;
        let mut log = WaitLog::default();
        let mut pause = FIRST_PAUSE;
        let outcome = loop {
            if held() {
                break Outcome::Held;
            }
            self.ask_all().await;
            match self.verdict() {
                Some(Verdict::Found) => break Outcome::Found,
                Some(Verdict::Wait(causes)) => log.tell(self, &causes),
                // It did not begin to take part, so it never founds.
                None => {}
            }
            let changed = self.inner.changed.notified();
            if tokio::time::timeout(pause, changed).await.is_err() {
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        if outcome == Outcome::Held
            && let Err(error) = self.change(|agreement| agreement.holds_groups()).await
        {
            tracing::error!(%error, "the founding is over, which cannot be written down");
        }
        self.inner.state.lock().waiting = false;
        outcome
    }

    /// The nodes that this node waits for, as text; `None`: it does not wait.
    pub fn waiting(&self) -> Option<String> {
        let state = self.inner.state.lock();
        let agreement = state.agreement.as_ref().filter(|_| state.waiting)?;
        match agreement.verdict() {
            Verdict::Found => None,
            Verdict::Wait(causes) => Some(in_words(&causes, &state.silent)),
        }
    }

    fn verdict(&self) -> Option<Verdict> {
        self.inner.state.lock().agreement.as_ref().map(Agreement::verdict)
    }

    async fn ask_all(&self) {
        let founders: Vec<NodeId> = {
            let state = self.inner.state.lock();
            state.agreement.iter().flat_map(Agreement::others).collect()
        };
        let asked = join_all(
            founders.into_iter().map(|node| async move { (node, self.ask(node).await.err()) }),
        );
        let silent = asked.await.into_iter().filter_map(|(node, error)| Some((node, error?)));
        self.inner.state.lock().silent = silent.collect();
    }

    /// Reports to a founder and takes in its report.
    async fn ask(&self, node: NodeId) -> Result<(), String> {
        let inner = &self.inner;
        let address = inner.directory.address(node);
        let address = address.ok_or_else(|| "its address is not known".to_owned())?;
        let report = inner.report(node).map_err(|status| status.message().to_owned())?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| error.to_string())?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT);
        let channel = inner.security.now(&endpoint, Some(node)).await;
        let channel = channel.map_err(|error| format!("{address}: {}", chain(&error)))?;
        let answered = FoundingClient::new(channel).exchange(report).await;
        let answer = answered.map_err(|status| format!("{address}: {}", status.message()))?;
        let report = inner.read(&answer.into_inner())?;
        if report.node != node {
            return Err(format!("{address}: node {} is there", report.node));
        }
        let received = self.change(move |agreement| agreement.receive(report)).await;
        received.map_err(|error| format!("what it reports cannot be kept: {error}"))
    }

    /// Changes the agreement; its record is durable when this returns.
    async fn change(&self, change: impl FnOnce(&mut Agreement) + Send + 'static) -> io::Result<()> {
        let inner = Arc::clone(&self.inner);
        let changed = move || {
            let mut state = inner.state.lock();
            let Some(mut agreement) = state.agreement.clone() else { return Ok(()) };
            change(&mut agreement);
            if state.agreement.as_ref() == Some(&agreement) {
                return Ok(());
            }
            inner.keep(&mut state, agreement)?;
            inner.changed.notify_one();
            Ok(())
        };
        blocking(changed).await
    }
}

impl Inner {
    fn tell_founded(&self, record: &Record) {
        // A log that was replaced since belongs to no founding.
        if record.store == self.store
            && let (Some(founding), Some(founded)) = (record.founding(), self.founded.get())
        {
            founded.set(founding);
        }
    }

    /// Makes the record durable before it is visible.
    fn keep(&self, state: &mut State, agreement: Agreement) -> io::Result<()> {
        let record = agreement.record();
        if state.stored.as_ref() != Some(record) {
            self.file.write(record)?;
            state.stored = Some(record.clone());
            if record.phase == Phase::Decided {
                let founders = list(&record.stores.keys().copied().collect());
                tracing::info!(scope = ?self.scope, founders, "every founder has a new disk: the \
                    cluster is founded");
                self.tell_founded(record);
            }
        }
        state.agreement = Some(agreement);
        Ok(())
    }

    /// Reads a report of a founder that means the same cluster and shards.
    fn read(&self, message: &proto::FounderReport) -> Result<Report, String> {
        let ours = self.state.lock().shard_map.clone();
        let same = check_map(ours.as_ref(), message.shard_map.as_ref());
        same.map_err(|refusal| refusal.to_string())?;
        wire::from_wire(message, &self.cluster, self.node)
    }

    fn report(&self, to: NodeId) -> Result<proto::FounderReport, Status> {
        let state = self.state.lock();
        let report = match (&state.agreement, &state.stored) {
            (Some(agreement), _) => agreement.report(),
            (None, Some(record)) => Report { node: self.node, record: record.clone() },
            (None, None) => {
                return Err(Status::unavailable(format!(
                    "node {} is starting, or is no founder",
                    self.node
                )));
            }
        };
        let mut message = wire::to_wire(&report, &self.cluster, to, self.scope);
        message.shard_map = state.shard_map.as_ref().map(MapTag::to_wire);
        Ok(message)
    }
}

async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(run).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn in_words(causes: &[Cause], silent: &BTreeMap<NodeId, String>) -> String {
    let one = |cause: &Cause| match cause {
        Cause::NoAnswer { node } => match silent.get(node) {
            Some(why) => format!("{cause} ({why})"),
            None => cause.to_string(),
        },
        _ => cause.to_string(),
    };
    causes.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Logs which nodes an initial member waits for: when that changes, and from time to time.
#[derive(Default)]
struct WaitLog {
    told: Vec<Cause>,
    at: Option<Instant>,
}

impl WaitLog {
    fn tell(&mut self, founding: &Founding, causes: &[Cause]) {
        let now = Instant::now();
        let due = self.at.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL);
        // Founders that come one after the other make no line each.
        let serious = causes.iter().any(Cause::needs_operator) && self.told != causes;
        if !due && !serious {
            return;
        }
        self.told = causes.to_vec();
        self.at = Some(now);
        let inner = &founding.inner;
        let waits_for = in_words(causes, &inner.state.lock().silent);
        let scope = inner.scope;
        match causes.iter().any(Cause::needs_operator) {
            true => tracing::error!(?scope, waits_for, "the cluster is not founded by this node"),
            false => tracing::warn!(
                ?scope,
                waits_for,
                "the cluster is not founded yet: every founder has to say that its disk is new"
            ),
        }
    }
}

/// The founding of both scopes, as the others ask for it.
#[derive(Clone, Debug)]
pub(super) struct Foundings {
    pub system: Founding,
    pub shards: Founding,
    joined: Arc<Joined>,
}

impl Foundings {
    /// Reads both records, and which founding was joined.
    ///
    /// # Errors
    /// When one cannot be read, or is damaged.
    pub fn open(data_dir: &Path, identity: &Identity, at: &PeerDirectory) -> io::Result<Self> {
        let open = |scope| Founding::open(data_dir, scope, identity.clone(), at.clone());
        let store = StoreId::new(identity.store_id);
        let joined = Arc::new(Joined::open(data_dir.join("founding-joined"), store)?);
        Ok(Self { system: open(Scope::System)?, shards: open(Scope::Shards)?, joined })
    }

    /// Publishes the bootstrap of this scope that the cluster comes from, now and when it is
    /// created or joined. The other scope does not count: it may be decided on some nodes only,
    /// where the cluster got or lost its catalog since.
    pub fn bind(&self, scope: Scope, founded: &FoundedBy) {
        let inner = &self.of(scope).inner;
        if inner.founded.set(founded.clone()).is_err() {
            tracing::error!("a founding was bound twice");
        }
        let state = inner.state.lock();
        if let Some(record) = &state.stored {
            inner.tell_founded(record);
        }
        self.joined.bind(scope, founded);
    }

    /// Before this node creates a replica among nodes that reported this bootstrap (0: they do not
    /// know).
    ///
    /// # Errors
    /// When what follows from it cannot be written down: the replica must not be created.
    pub fn before_creation(&self, groups: &Groups, said: u64) -> io::Result<()> {
        self.joined.before_creation(groups, said)
    }

    pub const fn of(&self, scope: Scope) -> &Founding {
        match scope {
            Scope::System => &self.system,
            Scope::Shards => &self.shards,
        }
    }

    /// The service that founders ask.
    pub fn service(&self) -> FoundingServer<FoundingService> {
        FoundingServer::new(FoundingService { foundings: self.clone() })
    }
}

#[derive(Debug)]
pub(super) struct FoundingService {
    foundings: Foundings,
}

#[tonic::async_trait]
impl FoundingRpc for FoundingService {
    async fn exchange(
        &self,
        request: Request<proto::FounderReport>,
    ) -> Result<Response<proto::FounderReport>, Status> {
        let caller = caller_of(&request);
        let message = request.into_inner();
        let founding =
            self.foundings.of(wire::scope_of(&message).map_err(Status::invalid_argument)?);
        let inner = &founding.inner;
        let report = inner.read(&message).map_err(Status::failed_precondition)?;
        if !matches!(caller, Caller::Unchecked) && caller != Caller::Node(report.node) {
            let node = report.node;
            return Err(Status::permission_denied(format!(
                "node {node} reports, and {caller} sent it"
            )));
        }
        if inner.directory.address(report.node).is_none() {
            let (node, by) = (report.node, inner.node);
            return Err(Status::failed_precondition(format!(
                "node {node} is not in the directory of node {by}"
            )));
        }
        let asker = report.node;
        let received = founding.change(move |agreement| agreement.receive(report)).await;
        received.map_err(|error| {
            tracing::error!(%error, "the report of a founder cannot be kept");
            Status::unavailable(format!("the report cannot be kept: {error}"))
        })?;
        inner.report(asker).map(Response::new)
    }
}
