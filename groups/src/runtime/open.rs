//! Bringing replicas to life from what the log holds.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use shardhost_storage::{EntryKind, GroupId, LogPosition, PersistedGroup};

use super::skip::unfinished;
use super::stored::load;
use super::{Groups, Mailbox, RuntimeShared, apply_pool};
use crate::apply::{AfterRestore, Applier, ApplyWork, contain, restore_from};
use crate::completion::Budget;
use crate::core::{GroupCore, Opened, ReplicaStart, has_another_voter};
use crate::error::{GroupFault, GroupStep, OpenGroupError};
use crate::lives::{OpenId, StartGuard};
use crate::logging;
use crate::machine::{ApplyBatch, ApplyFault, Command, FaultKind, Progress, StateMachine};
use crate::runtime::{Group, GroupShared, LeaseCell};
use crate::worker::{GroupEvent, Input};

/// Any state machine.
pub type StateMachineBox = Box<dyn StateMachine>;

/// Makes the state machine of one replica, while nothing else is done with its group on this host.
/// May block. What it answers instead of a machine becomes [`OpenGroupError::Invalid`].
pub type MachineFactory = Box<dyn FnOnce() -> Result<StateMachineBox, String> + Send>;

/// The position of a state machine, from itself.
type Standing = Result<Option<LogPosition>, ApplyFault>;

/// A replica that only waits to be registered: nothing of it can fail any more.
pub(super) struct Prepared {
    open: OpenId,
    core: Box<GroupCore>,
    handle: Group,
    labels: BTreeMap<String, String>,
    /// Why its machine is not restored yet.
    waits: Option<ApplyFault>,
    /// It is created, and founded on the disk that the node has.
    on_known_disk: bool,
}

impl Prepared {
    pub(super) const fn on_known_disk(&self) -> bool {
        self.on_known_disk
    }

    pub(super) fn founded_on_known_disk(mut self) -> Self {
        self.on_known_disk = true;
        self
    }

    pub(super) fn group(&self) -> GroupId {
        self.core.id()
    }

    pub(super) fn core_mut(&mut self) -> &mut GroupCore {
        &mut self.core
    }
}

/// Why a replica that the log holds is not opened.
#[derive(Debug)]
pub(super) enum NotOpened {
    /// It notes the skip of a command.
    Unfinished(OpenGroupError),
    Refused(OpenGroupError),
}

impl From<OpenGroupError> for NotOpened {
    fn from(error: OpenGroupError) -> Self {
        Self::Refused(error)
    }
}

/// Makes a state machine; a panic concerns its group only.
pub(super) fn make(
    group: GroupId,
    factory: MachineFactory,
) -> Result<StateMachineBox, OpenGroupError> {
    let made = contain(factory).map_err(|fault| OpenGroupError::Faulted { group, fault })?;
    made.map_err(|message| OpenGroupError::Invalid { group, message })
}

impl Groups {
    /// Opens this host's replica of a group from the log. Blocks while the state machine is
    /// restored, if it must be.
    ///
    /// The machine is asked where it stands before the group is held, so that a slow one keeps
    /// no other caller from the group; it is asked again when another replica of the group ran
    /// meanwhile. One that shares its state with other machines of the group is better made in
    /// [`Groups::open_with`].
    ///
    /// # Errors
    /// [`OpenGroupError`].
    pub fn open(&self, group: GroupId, machine: StateMachineBox) -> Result<Group, OpenGroupError> {
        let lives = &self.shared().lives;
        let look = lives.look(group)?;
        let standing = contain(|| machine.applied());
        let held = lives.start(vec![group], GroupStep::Opening)?;
        let standing = look.is_current(&held).then_some(standing);
        let prepared = standing
            .transpose()
            .map_err(|fault| faulted(group, fault).into())
            .and_then(|standing| self.prepare_stored(&held, group, machine, standing));
        self.open_or_park(held, group, prepared)
    }

    /// The same with a state machine that is made once nothing else is done with the group.
    ///
    /// # Errors
    /// [`OpenGroupError`].
    pub fn open_with(
        &self,
        group: GroupId,
        machine: MachineFactory,
    ) -> Result<Group, OpenGroupError> {
        let held = self.shared().lives.start(vec![group], GroupStep::Opening)?;
        let prepared = self.prepare_made(&held, group, machine);
        self.open_or_park(held, group, prepared)
    }

    /// The same, unless an operator keeps the replica closed ([`Groups::park`]): `None` then. For
    /// code that closed replicas and opens them again.
    ///
    /// # Errors
    /// [`OpenGroupError`].
    pub fn reopen_with(
        &self,
        group: GroupId,
        machine: MachineFactory,
    ) -> Result<Option<Group>, OpenGroupError> {
        let held = self.shared().lives.start(vec![group], GroupStep::Opening)?;
        if self.shared().parked.is_kept_closed(group) {
            return Ok(None);
        }
        let prepared = self.prepare_made(&held, group, machine);
        self.open_or_park(held, group, prepared).map(Some)
    }

    /// A replica that the log holds begins to run, or is parked with the cause. Either is known before
    /// another step with its group begins.
    pub(super) fn open_or_park(
        &self,
        held: StartGuard,
        group: GroupId,
        prepared: Result<Prepared, NotOpened>,
    ) -> Result<Group, OpenGroupError> {
        match prepared {
            Ok(prepared) => {
                let mut opened = self.open_prepared(held, vec![prepared])?;
                opened.pop().ok_or(OpenGroupError::Unknown { group })
            }
            Err(NotOpened::Unfinished(error)) => {
                self.shared().parked.skip_unfinished(group, error.clone());
                Err(error)
            }
            Err(NotOpened::Refused(error)) => {
                self.shared().parked.not_opened(group, &error);
                Err(error)
            }
        }
    }

    pub(super) fn prepare_made(
        &self,
        held: &StartGuard,
        group: GroupId,
        machine: MachineFactory,
    ) -> Result<Prepared, NotOpened> {
        if load(self.shared(), group)?.is_none() {
            return Err(OpenGroupError::Unknown { group }.into());
        }
        self.prepare_stored(held, group, make(group, machine)?, None)
    }

    fn prepare_stored(
        &self,
        held: &StartGuard,
        group: GroupId,
        machine: StateMachineBox,
        standing: Option<Standing>,
    ) -> Result<Prepared, NotOpened> {
        let persisted = load(self.shared(), group)?.ok_or(OpenGroupError::Unknown { group })?;
        if let Some(entry) = persisted.meta.skipping {
            return Err(NotOpened::Unfinished(unfinished(group, entry)));
        }
        Ok(self.prepare(held, persisted, machine, standing)?)
    }

    /// Does everything about a replica that may fail.
    pub(super) fn prepare(
        &self,
        held: &StartGuard,
        persisted: PersistedGroup,
        machine: StateMachineBox,
        standing: Option<Standing>,
    ) -> Result<Prepared, OpenGroupError> {
        let group = persisted.meta.group;
        let open = held.next_open_id();
        let prepared = contain(|| self.prepare_unguarded(open, persisted, machine, standing));
        prepared.and_then(|prepared| prepared).map_err(|fault| faulted(group, fault))
    }

    fn prepare_unguarded(
        &self,
        open: OpenId,
        persisted: PersistedGroup,
        mut machine: StateMachineBox,
        standing: Option<Standing>,
    ) -> Result<Prepared, GroupFault> {
        let shared = self.shared();
        let standing = standing.unwrap_or_else(|| machine.applied())?;
        let Level { applied, state } = bring_level(shared, &mut machine, &persisted, standing)?;
        let lost = matches!(state, State::Lost);
        if matches!(state, State::Whole) {
            replay_volatile(shared, &mut *machine, &persisted, applied)?;
        }
        let meta = persisted.meta.clone();
        let start = ReplicaStart {
            persisted,
            applied,
            durable: machine.durable_index(),
            lost,
            open_id: open.get(),
            policies: shared.policies.clone(),
        };
        let (group, store) = (meta.group, shared.store().map_err(GroupFault::Log)?);
        let logger = logging::logger(group.get());
        let core = GroupCore::open(Arc::clone(&shared.config), store, &logger, start)?;
        let applier = Applier::new(group, machine, Arc::clone(&shared.snapshots), applied)
            .with_latency(Arc::clone(&shared.latency));
        let (applier, waits) = match state {
            State::Whole => (applier, None),
            State::Lost => (applier.lost(), None),
            State::Waits(fault, after) => (applier.unrestored(after), Some(fault)),
        };
        let handle = self.handle_of(&core, applier, &meta.kind);
        if waits.is_some() {
            handle.shared().mailbox.begins_with(ApplyWork::Restore { position: applied });
        }
        let (core, labels) = (Box::new(core), meta.labels);
        Ok(Prepared { open, core, handle, labels, waits, on_known_disk: false })
    }

    /// The replicas begin to run.
    ///
    /// # Errors
    /// [`OpenGroupError::Stopping`].
    fn open_prepared(
        &self,
        held: StartGuard,
        prepared: Vec<Prepared>,
    ) -> Result<Vec<Group>, OpenGroupError> {
        let shared = self.shared();
        let (opened, handles) = self.register(prepared);
        if shared.is_stopping() {
            handles.iter().for_each(|handle| shared.forget(handle.shared()));
            return Err(OpenGroupError::Stopping);
        }
        self.settle(held, &opened);
        Ok(handles)
    }

    /// Replicas that are in the log from here on begin to run. A host that stops waits for that.
    pub(super) fn open_created(&self, held: StartGuard, prepared: Vec<Prepared>) -> Vec<Group> {
        let (opened, handles) = self.register(prepared);
        self.settle(held, &opened);
        handles
    }

    /// The workers and callers know the replicas.
    fn register(&self, prepared: Vec<Prepared>) -> (Vec<OpenId>, Vec<Group>) {
        let shared = self.shared();
        let opened: Vec<OpenId> = prepared.iter().map(|one| one.open).collect();
        let run = |Prepared { core, handle, labels, waits, .. }: Prepared| {
            if !labels.is_empty() {
                shared.hub.set_labels(core.id(), labels);
            }
            shared.registry.insert(core.id(), handle.clone());
            shared.parked.forget(core.id());
            let group = handle.shared();
            shared.inboxes[group.worker].complete(Input::Open(core));
            if let Some(fault) = waits {
                apply_pool::tell(
                    shared,
                    group,
                    GroupEvent::Stalled(Some(fault.to_string().into())),
                );
                shared.apply.begin(group);
            }
            handle
        };
        let handles: Vec<Group> = shared.doubts.in_order(|| {
            prepared.into_iter().map(|one| shared.with_present_doubt(one)).map(run).collect()
        });
        (opened, handles)
    }

    /// The workers know the replicas: they can be closed from here on.
    fn settle(&self, held: StartGuard, opened: &[OpenId]) {
        for ending in held.opened(opened) {
            self.shared().end_released(ending);
        }
    }

    fn handle_of(&self, core: &GroupCore, applier: Applier, kind: &str) -> Group {
        let shared = self.shared();
        let limit = shared.config.max_inflight_bytes_per_group;
        Group::from_shared(Arc::new(GroupShared {
            id: core.id(),
            open_id: core.open_id(),
            worker: shared.worker_of(core.id()),
            status: ArcSwap::new(Arc::clone(core.status())),
            lease: LeaseCell::default(),
            position: applier.position(),
            progress: applier.progress(),
            watchers: OnceLock::new(),
            budget: Arc::new(Budget::new(limit, Some(Arc::clone(&shared.budget)))),
            runtime: Arc::clone(shared),
            mailbox: Mailbox::new(applier),
            life: Arc::default(),
            kind: kind.into(),
        }))
    }
}

impl RuntimeShared {
    /// The replica is not open any more. Its state machine is dropped.
    fn forget(&self, group: &GroupShared) {
        group.mailbox.close();
        drop(self.unregister(group));
    }

    /// Removes the replica from the registry.
    pub(super) fn unregister(&self, group: &GroupShared) -> Option<(GroupId, Group)> {
        self.registry.remove_if(&group.id, |_, known| known.shared().open_id == group.open_id)
    }
}

const fn faulted(group: GroupId, fault: GroupFault) -> OpenGroupError {
    OpenGroupError::Faulted { group, fault }
}

/// Where a state machine stands when its replica is opened.
struct Level {
    applied: LogPosition,
    state: State,
}

/// What a state machine holds when its replica is opened.
enum State {
    Whole,
    /// It is lost: others are asked for it.
    Lost,
    /// It is in the snapshot where it stands, which could not be restored yet, for a reason that
    /// passes; and what comes after that.
    Waits(ApplyFault, AfterRestore),
}

/// Restores the state machine if the log no longer reaches back to where it stands.
fn bring_level(
    shared: &Arc<RuntimeShared>,
    machine: &mut StateMachineBox,
    persisted: &PersistedGroup,
    standing: Option<LogPosition>,
) -> Result<Level, GroupFault> {
    match Opened::decide(persisted, standing)? {
        Opened::Continue(applied) => {
            machine.begin()?;
            Ok(Level { applied, state: State::Whole })
        }
        Opened::Lost(applied) => Ok(Level { applied, state: State::Lost }),
        Opened::Restore(position) => {
            let group = persisted.meta.group;
            let (from, progress) = ((group, position), Progress::default());
            let restored = restore_from(&mut **machine, &*shared.snapshots, from, &progress);
            let others = has_another_voter(persisted);
            let (applied, state) = match restored {
                Ok(()) => (position, State::Whole),
                Err(fault) if fault.kind == FaultKind::Passing => {
                    tracing::warn!(%group, %fault, "the snapshot here cannot be restored yet");
                    (position, State::Waits(fault, after_restore(shared, persisted, position)))
                }
                Err(error) if others => {
                    tracing::error!(%group, %error, "the snapshot here cannot be used");
                    (persisted.base, State::Lost)
                }
                Err(fault) => return Err(fault.into()),
            };
            Ok(Level { applied, state })
        }
    }
}

/// Bytes of the log that are read at a time for commands to be replayed.
const REPLAY_BYTES: u64 = 1 << 20;

/// What a machine that is restored later is given again.
fn after_restore(
    shared: &Arc<RuntimeShared>,
    persisted: &PersistedGroup,
    applied: LogPosition,
) -> AfterRestore {
    let (shared, persisted) = (Arc::clone(shared), persisted.clone());
    Box::new(move |machine| replay_volatile(&shared, machine, &persisted, applied))
}

/// Gives the machine again what it held in memory only.
fn replay_volatile(
    shared: &RuntimeShared,
    machine: &mut dyn StateMachine,
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

#[cfg(test)]
mod tests;
