//! Creating, opening, closing and destroying replicas.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use shardhost_storage::{
    EntryKind, GroupId, GroupMeta, GroupWrite, HardState, LogBatch, LogIndex, LogPosition,
    PersistedGroup, ReplicaId, SnapshotError, Term,
};
use tokio::sync::oneshot;

use super::{Groups, Mailbox, RuntimeShared};
use crate::apply::{Applier, restore_machine};
use crate::core::{GroupCore, Opened, ReplicaStart};
use crate::error::{GroupFault, OpenGroupError};
use crate::handle::{Group, GroupShared, GroupSpec, LeaseCell};
use crate::leadership::LossCause;
use crate::logging;
use crate::machine::{ApplyBatch, Command, StateMachine};
use crate::waiter::Budget;
use crate::worker::Input;

/// Any state machine.
pub type StateMachineBox = Box<dyn StateMachine>;

impl Groups {
    /// Creates this host's replica of a new group. Blocks until that is durable.
    ///
    /// # Errors
    /// [`OpenGroupError`]; nothing was created.
    pub fn create(
        &self,
        spec: GroupSpec,
        machine: StateMachineBox,
    ) -> Result<Group, OpenGroupError> {
        let group = spec.id;
        let mut made = self.create_many(vec![(spec, machine)])?;
        made.pop().ok_or(OpenGroupError::Unknown { group })
    }

    /// Creates this host's replicas of many groups with one write. Blocks until it is durable.
    ///
    /// # Errors
    /// [`OpenGroupError`] of the first that cannot be created; none was.
    pub fn create_many(
        &self,
        specs: Vec<(GroupSpec, StateMachineBox)>,
    ) -> Result<Vec<Group>, OpenGroupError> {
        let shared = self.shared();
        let mut batch = LogBatch::default();
        let mut seen = BTreeSet::new();
        for (spec, _) in &specs {
            self.check_new(spec)?;
            if !seen.insert(spec.id) {
                return Err(OpenGroupError::AlreadyOpen { group: spec.id });
            }
            batch.writes.push(self.first_write(spec)?);
        }
        if let Some((spec, _)) = specs.first() {
            let group = spec.id;
            shared.log.write(batch).map_err(|error| log_error(group, error))?;
        }
        specs.into_iter().map(|(spec, machine)| self.open(spec.id, machine)).collect()
    }

    fn check_new(&self, spec: &GroupSpec) -> Result<(), OpenGroupError> {
        let (shared, group) = (self.shared(), spec.id);
        if shared.is_stopping() {
            return Err(OpenGroupError::Stopping);
        }
        if shared.registry.contains_key(&group) {
            return Err(OpenGroupError::AlreadyOpen { group });
        }
        let known = load(shared, group)?;
        if known.is_some() {
            return Err(OpenGroupError::Exists { group });
        }
        if !spec.membership.members.values().any(|member| member.voter) {
            let message = "it has no voter".to_owned();
            return Err(OpenGroupError::Invalid { group, message });
        }
        Ok(())
    }

    fn first_write(&self, spec: &GroupSpec) -> Result<GroupWrite, OpenGroupError> {
        let (shared, group) = (self.shared(), spec.id);
        let node = shared.config.node;
        let Some(replica) = spec.membership.replica_on(node) else {
            let message = format!("node {node} is none of its members");
            return Err(OpenGroupError::Invalid { group, message });
        };
        let buried = shared
            .store()
            .and_then(|store| store.tombstone(group))
            .map_err(|error| log_error(group, error))?;
        if buried.is_some_and(|buried| buried >= replica) {
            let message = format!(
                "replica {replica} of it was destroyed here before; a group that is created again \
                 takes a higher `GroupSpec::incarnation` on every node"
            );
            return Err(OpenGroupError::Invalid { group, message });
        }
        let mut write = GroupWrite::new(group);
        write.meta = Some(GroupMeta {
            group,
            replica,
            membership: spec.membership.clone(),
            snapshot: None,
            labels: spec.labels.clone(),
            kind: spec.kind.clone(),
        });
        // A group at term 0 makes raft panic when a voter refuses a candidate of term 0.
        let term = Term::new(1);
        write.hard_state = Some(HardState { term, vote: None, commit: LogIndex::default() });
        write.reset = Some(LogPosition::default());
        Ok(write)
    }

    /// Opens this host's replica of a group from the log. Blocks while the state machine is
    /// restored, if it must be.
    ///
    /// # Errors
    /// [`OpenGroupError`].
    pub fn open(
        &self,
        group: GroupId,
        mut machine: StateMachineBox,
    ) -> Result<Group, OpenGroupError> {
        let shared = self.shared();
        if shared.is_stopping() {
            return Err(OpenGroupError::Stopping);
        }
        if shared.registry.contains_key(&group) {
            return Err(OpenGroupError::AlreadyOpen { group });
        }
        let persisted = load(shared, group)?;
        let persisted = persisted.ok_or(OpenGroupError::Unknown { group })?;
        let faulted = |fault| OpenGroupError::Faulted { group, fault };
        let applied = bring_level(shared, &mut machine, &persisted).map_err(faulted)?;
        replay_volatile(shared, &mut machine, &persisted, applied).map_err(faulted)?;
        let meta = persisted.meta.clone();
        let epoch = shared.epochs.fetch_add(1, Ordering::Relaxed) + 1;
        let durable = machine.durable_index();
        let policies = shared.policies.clone();
        let start = ReplicaStart { persisted, applied, durable, epoch, policies };
        let logger = logging::logger(group.get());
        let store = shared.store().map_err(|error| log_error(group, error))?;
        let core =
            GroupCore::open(Arc::clone(&shared.config), store, &logger, start).map_err(faulted)?;
        shared.hub.set_labels(group, meta.labels);
        let snapshots = Arc::clone(&shared.snapshots);
        let applier = Applier::new(group, machine, snapshots, applied)
            .with_latency(Arc::clone(&shared.latency));
        let handle = self.handle_of(&core, applier, &meta.kind);
        if let dashmap::Entry::Vacant(vacant) = shared.registry.entry(group) {
            vacant.insert(handle.clone());
        } else {
            return Err(OpenGroupError::AlreadyOpen { group });
        }
        let worker = handle.shared().worker;
        shared.inboxes[worker].complete(Input::Open(Box::new(core)));
        self.catch_up_with_doubt(group, worker);
        Ok(handle)
    }

    fn handle_of(&self, core: &GroupCore, applier: Applier, kind: &str) -> Group {
        let shared = self.shared();
        let limit = shared.config.max_inflight_bytes_per_group;
        Group::from_shared(Arc::new(GroupShared {
            id: core.id(),
            epoch: core.epoch(),
            worker: shared.worker_of(core.id()),
            status: ArcSwap::new(Arc::clone(core.status())),
            lease: LeaseCell::default(),
            position: applier.position(),
            watchers: OnceLock::new(),
            budget: Arc::new(Budget::new(limit, Some(Arc::clone(&shared.budget)))),
            runtime: Arc::clone(shared),
            mailbox: Mailbox::new(applier),
            kind: kind.into(),
        }))
    }

    /// Whether the log holds a replica of the group, open or not.
    ///
    /// # Errors
    /// [`OpenGroupError::Faulted`] when the log cannot be read.
    pub fn is_stored(&self, group: GroupId) -> Result<bool, OpenGroupError> {
        Ok(load(self.shared(), group)?.is_some())
    }

    /// The largest replica id of the group that was destroyed here.
    ///
    /// # Errors
    /// [`OpenGroupError::Faulted`] when the log cannot be read.
    pub fn tombstone(&self, group: GroupId) -> Result<Option<ReplicaId>, OpenGroupError> {
        let store = self.shared().store().map_err(|error| log_error(group, error))?;
        store.tombstone(group).map_err(|error| log_error(group, error))
    }

    /// The snapshots of a group that stand here, ascending.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn snapshots(&self, group: GroupId) -> Result<Vec<LogPosition>, SnapshotError> {
        self.shared().snapshots.list(group)
    }

    /// What the log's replica of one group knows of itself, open or not.
    ///
    /// # Errors
    /// [`OpenGroupError::Faulted`] when the log cannot be read.
    pub fn stored_group(&self, group: GroupId) -> Result<Option<GroupMeta>, OpenGroupError> {
        Ok(load(self.shared(), group)?.map(|persisted| persisted.meta))
    }

    /// The groups that the log holds, with what each replica knows of itself.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn stored(&self) -> Result<Vec<GroupMeta>, shardhost_storage::LogError> {
        let store = self.shared().store()?;
        let mut stored = Vec::new();
        for group in store.groups()? {
            stored.extend(store.load(group)?.map(|persisted| persisted.meta));
        }
        Ok(stored)
    }

    /// Closes a replica and keeps its data; it can be opened again. Waits until its state machine
    /// was let go. `false`: it was not open.
    pub async fn close(&self, group: GroupId) -> bool {
        self.end(group, LossCause::Stopped).await
    }

    /// Closes a replica and removes its log and snapshots. Its replica id is remembered and never
    /// used again.
    ///
    /// # Errors
    /// [`OpenGroupError`] when the log cannot be written or holds no such replica.
    pub async fn destroy(&self, group: GroupId) -> Result<(), OpenGroupError> {
        self.end(group, LossCause::Removed).await;
        let shared = Arc::clone(self.shared());
        let bury = move || {
            let known = load(&shared, group)?;
            let known = known.ok_or(OpenGroupError::Unknown { group })?;
            let mut write = GroupWrite::new(group);
            write.destroy = Some(known.meta.replica);
            let batch = LogBatch { writes: vec![write] };
            shared.log.write(batch).map_err(|error| log_error(group, error))?;
            if let Err(error) = shared.snapshots.remove_below(group, None) {
                tracing::warn!(%group, %error, "snapshots of a destroyed replica stay");
            }
            Ok(())
        };
        tokio::task::spawn_blocking(bury).await.unwrap_or(Err(OpenGroupError::Stopping))
    }

    async fn end(&self, group: GroupId, cause: LossCause) -> bool {
        let Some(handle) = self.group(group) else { return false };
        let (done, ended) = oneshot::channel();
        let shared = handle.shared();
        shared.runtime.inboxes[shared.worker].complete(Input::Close {
            group,
            cause,
            done: Some(done),
        });
        if ended.await.is_err() {
            tracing::debug!(%group, "the worker ended before the group was closed");
        }
        self.shared().registry.remove(&group);
        shared.mailbox.close();
        true
    }
}

/// Restores the state machine if the log no longer reaches back to where it stands.
fn bring_level(
    shared: &RuntimeShared,
    machine: &mut StateMachineBox,
    persisted: &PersistedGroup,
) -> Result<LogPosition, GroupFault> {
    match Opened::decide(persisted, machine.applied()?)? {
        Opened::Continue(position) => Ok(position),
        Opened::Restore(position) => {
            let group = persisted.meta.group;
            restore_machine(&mut **machine, &*shared.snapshots, group, position)?;
            Ok(position)
        }
    }
}

/// Bytes of the log that are read at a time for commands to be replayed.
const REPLAY_BYTES: u64 = 1 << 20;

/// Gives the machine again what it held in memory only.
fn replay_volatile(
    shared: &RuntimeShared,
    machine: &mut StateMachineBox,
    persisted: &PersistedGroup,
    applied: LogPosition,
) -> Result<(), GroupFault> {
    if !machine.is_partly_volatile() {
        return Ok(());
    }
    let (group, store) = (persisted.meta.group, shared.store().map_err(GroupFault::Log)?);
    let mut next = persisted.base.index.next();
    while next <= applied.index {
        let mut entries = Vec::new();
        let end = applied.index.next();
        store.entries(group, next, end, REPLAY_BYTES, &mut entries).map_err(GroupFault::Log)?;
        let last = entries.last().map(|entry| LogPosition { term: entry.term, index: entry.index });
        let Some(last) = last else { break };
        next = last.index.next();
        let kept = entries.into_iter().filter(|entry| {
            entry.kind == EntryKind::Command
                && !entry.data.is_empty()
                && machine.is_volatile(&entry.data)
        });
        let mut commands: Vec<Command> = kept
            .map(|entry| {
                let position = LogPosition { term: entry.term, index: entry.index };
                Command::new(position, entry.data)
            })
            .collect();
        if !commands.is_empty() {
            machine.replay(&mut ApplyBatch::new(group, last, &mut commands))?;
        }
    }
    Ok(())
}

/// What the log knows of this host's replica of a group.
fn load(shared: &RuntimeShared, group: GroupId) -> Result<Option<PersistedGroup>, OpenGroupError> {
    let known = shared.store().and_then(|store| store.load(group));
    known.map_err(|error| log_error(group, error))
}

fn log_error(group: GroupId, error: shardhost_storage::LogError) -> OpenGroupError {
    OpenGroupError::Faulted { group, fault: GroupFault::Log(error) }
}
