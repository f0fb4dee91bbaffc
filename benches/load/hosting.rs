//! The host that a child runs: its log, timed, its groups, and their state machines.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use parking_lot::Mutex;
use shardhost::groups::GroupSpec;
use shardhost::groups::runtime::CreateRequest;
use shardhost::host::ReplicaFactory;
use shardhost::storage::{Identity, LogBatch, LogError, LogStore, RocksStore};
use shardhost::{Group, GroupId, Host, HostConfig, NodeId, StateMachine};
use shardhost_server::shards::{StateDb, StateDbOptions};
use tonic::service::Routes;

use super::arguments::MachineKind;
use super::certificates;
use super::machine::Counter;
use super::member::Role;
use super::nodes::Setup;
use super::restart::{Watch, Watched};
use super::tally::{Counted, Tally};

/// A running host.
pub struct Hosted {
    pub host: Host,
    pub groups: Vec<Group>,
    pub machines: Arc<Machines>,
    pub log: Arc<TimedLog>,
}

/// Starts the host, and creates its groups or opens those that its log holds.
pub async fn start(role: Role, setup: &Setup) -> anyhow::Result<Hosted> {
    let addresses = setup.addresses.clone().into_iter();
    let peers = addresses.filter_map(|(id, address)| Some((NodeId::new(id)?, address)));
    let mut config = HostConfig::new(role.node, role.directory.join("data")).peers(peers);
    let credentials = |all: PathBuf| certificates::of_node(&all, role.node);
    config.credentials = role.certificates.clone().map(credentials).transpose()?;
    config.workers = role.workers;
    config.apply_threads = role.apply_threads;
    let listener = role.listener.context("no listener")?;
    let log = Arc::new(TimedLog::open(&config)?);
    let machines = Arc::new(Machines::open(setup, &role.directory)?);
    let host = Host::builder(config)
        .listener(listener)
        .log_store(Arc::clone(&log) as _)
        .replica_factory(Arc::clone(&machines) as _)
        .start()
        .await?;
    host.serve(Routes::default());
    host.set_draining(setup.leader.is_some_and(|leader| leader != host.node_id().get()));
    let groups = create_or_open(&host, setup, &machines).await?;
    Ok(Hosted { host, groups, machines, log })
}

async fn create_or_open(
    host: &Host,
    setup: &Setup,
    machines: &Machines,
) -> anyhow::Result<Vec<Group>> {
    let stored = host.stored_groups()?;
    if stored.is_empty() {
        let voters: Vec<NodeId> = (1..=setup.voters).filter_map(NodeId::new).collect();
        let own = if voters.contains(&host.node_id()) { setup.groups } else { 0 };
        let specs = (1..=own)
            .map(GroupId::new)
            .map(|id| (GroupSpec::new(id, voters.iter().copied()), machines.make(id)));
        return Ok(host.create_groups(specs.collect()).await?);
    }
    let runtime = host.runtime().clone();
    let machines: Vec<_> = stored.iter().map(|m| (m.group, machines.make(m.group))).collect();
    let open = move || {
        let opened = machines.into_iter().map(|(id, machine)| runtime.open(id, machine));
        opened.collect::<Result<Vec<_>, _>>()
    };
    Ok(tokio::task::spawn_blocking(open).await??)
}

/// Makes the state machines of a host.
pub struct Machines {
    state: Option<Arc<StateDb>>,
    watch: Option<Arc<Watch>>,
}

impl Machines {
    fn open(setup: &Setup, directory: &Path) -> anyhow::Result<Self> {
        let state = match setup.machine {
            MachineKind::Table => {
                Some(StateDb::open(directory.join("state"), StateDbOptions::default())?)
            }
            MachineKind::Trivial => None,
        };
        Ok(Self { state, watch: setup.watched.then(Arc::default) })
    }

    /// What the machines were given, if they are watched.
    pub const fn watch(&self) -> Option<&Arc<Watch>> {
        self.watch.as_ref()
    }

    /// Makes the state of machines on disk durable; returns whether there are any. Blocks.
    pub fn make_durable(&self) -> anyhow::Result<bool> {
        self.state.as_ref().map(|state| state.flush_now()).transpose()?;
        Ok(self.state.is_some())
    }

    fn make(&self, group: GroupId) -> Box<dyn StateMachine> {
        let machine: Box<dyn StateMachine> = match &self.state {
            Some(state) => Box::new(state.table(group)),
            None => Box::new(Counter::default()),
        };
        match &self.watch {
            Some(watch) => Box::new(Watched::new(machine, Arc::clone(watch))),
            None => machine,
        }
    }
}

impl fmt::Debug for Machines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Machines")
    }
}

impl ReplicaFactory for Machines {
    fn machine(&self, create_request: &CreateRequest) -> Result<Box<dyn StateMachine>, String> {
        if let Some(state) = &self.state {
            state.make_empty(create_request.group).map_err(|error| error.to_string())?;
        }
        Ok(self.make(create_request.group))
    }
}

/// The log of a host, with the duration of its writes.
pub struct TimedLog {
    inner: RocksStore,
    writes: Mutex<Tally>,
}

impl TimedLog {
    fn open(config: &HostConfig) -> anyhow::Result<Self> {
        let identity = Identity { cluster: config.cluster.clone(), node: config.node };
        std::fs::create_dir_all(&config.data_dir)?;
        let inner = RocksStore::open(&config.data_dir.join("log"), identity, config.log.clone())?;
        Ok(Self { inner, writes: Mutex::new(Tally::new()?) })
    }

    /// How long the writes took since the last time, each with its sync.
    pub fn take_writes(&self) -> Counted {
        self.writes.lock().take()
    }
}

impl fmt::Debug for TimedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl shardhost_storage::LogLayer for TimedLog {
    fn below(&self) -> &dyn LogStore {
        &self.inner
    }
    fn write(&self, batch: &LogBatch) -> Result<(), LogError> {
        let began = Instant::now();
        let outcome = self.inner.write(batch);
        self.writes.lock().count(outcome.is_ok(), began.elapsed());
        outcome
    }
}
