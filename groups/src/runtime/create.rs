//! Creating replicas: everything that can be refused is, before anything is written.

use std::collections::BTreeSet;

use shardhost_storage::{
    Certainty, Doubt, GroupId, GroupMeta, GroupWrite, HardState, LogBatch, LogIndex, LogPosition,
    PersistedGroup, ReplicaId, Term,
};

use super::Groups;
use super::open::{MachineFactory, Prepared, StateMachineBox, make};
use super::stored::load;
use crate::error::{GroupStep, OpenGroupError};
use crate::lives::{StartGuard, is_of_unreadable, log_error};
use crate::runtime::{Group, GroupSpec};

impl Groups {
    /// Creates this host's replica of a new group. Blocks until that is durable.
    ///
    /// # Errors
    /// [`OpenGroupError`]; nothing was created. Of a log whose write failed that is unknown, and the host stops.
    pub fn create(
        &self,
        spec: GroupSpec,
        machine: StateMachineBox,
    ) -> Result<Group, OpenGroupError> {
        self.create_with(spec, Box::new(move || Ok(machine)))
    }

    /// The same with a state machine that is made once it is certain that nothing else is done
    /// with the group and that the log does not hold it: `machine` may remove what an earlier
    /// replica left behind.
    ///
    /// # Errors
    /// [`OpenGroupError`]; nothing was created.
    pub fn create_with(
        &self,
        spec: GroupSpec,
        machine: MachineFactory,
    ) -> Result<Group, OpenGroupError> {
        let group = spec.id;
        let mut made = self.create_many_with(vec![(spec, machine)])?;
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
        let made = |machine| Box::new(move || Ok(machine)) as MachineFactory;
        self.create_many_with(specs.into_iter().map(|(spec, one)| (spec, made(one))).collect())
    }

    /// The same with state machines that are made as in [`Groups::create_with`].
    ///
    /// # Errors
    /// [`OpenGroupError`] of the first that cannot be created; none was. Other machines may have
    /// been made.
    pub fn create_many_with(
        &self,
        specs: Vec<(GroupSpec, MachineFactory)>,
    ) -> Result<Vec<Group>, OpenGroupError> {
        let groups: Vec<GroupId> = specs.iter().map(|(spec, _)| spec.id).collect();
        let mut seen = BTreeSet::new();
        if let Some(group) = groups.iter().find(|group| !seen.insert(**group)).copied() {
            return Err(OpenGroupError::AlreadyOpen { group });
        }
        let held = self.shared().lives.start(groups, GroupStep::Creating)?;
        self.create_held(held, specs)
    }

    /// Creates the replica, or opens it if the log holds it already. Blocks until it is durable,
    /// or the state machine is restored.
    ///
    /// # Errors
    /// [`OpenGroupError`].
    pub fn create_or_open(
        &self,
        spec: GroupSpec,
        machine: MachineFactory,
    ) -> Result<Group, OpenGroupError> {
        let (shared, group) = (self.shared(), spec.id);
        let held = shared.lives.start(vec![group], GroupStep::Opening)?;
        if load(shared, group)?.is_some() {
            let prepared = self.prepare_made(&held, group, machine);
            return self.open_or_park(held, group, prepared);
        }
        let mut made = self.create_held(held, vec![(spec, machine)])?;
        made.pop().ok_or(OpenGroupError::Unknown { group })
    }

    fn create_held(
        &self,
        held: StartGuard,
        specs: Vec<(GroupSpec, MachineFactory)>,
    ) -> Result<Vec<Group>, OpenGroupError> {
        let firsts = specs.iter().map(|(spec, _)| self.first_state(spec));
        let firsts: Vec<PersistedGroup> = firsts.collect::<Result<_, _>>()?;
        let batch = LogBatch { writes: firsts.iter().map(first_write).collect() };
        self.shared().lives.before_creation(&held);
        let machines = specs.into_iter().zip(firsts);
        let prepared = machines.map(|((spec, machine), first)| {
            let prepared = self.prepare(&held, first, make(spec.id, machine)?, None)?;
            Ok(if spec.on_known_disk { prepared.founded_on_known_disk() } else { prepared })
        });
        let prepared: Vec<Prepared> = prepared.collect::<Result<_, _>>()?;
        if self.shared().is_stopping() {
            return Err(OpenGroupError::Stopping);
        }
        if let Some(first) = prepared.first() {
            let group = first.group();
            self.shared().log.write(batch).map_err(|error| log_error(group, error))?;
        }
        self.shared().lives.created(&held);
        Ok(self.open_created(held, prepared))
    }

    /// What the log holds of a replica that was just created.
    fn first_state(&self, spec: &GroupSpec) -> Result<PersistedGroup, OpenGroupError> {
        let (group, invalid) = (spec.id, |message| invalid(spec.id, message));
        if load(self.shared(), group)?.is_some() {
            return Err(OpenGroupError::Exists { group });
        }
        if !spec.membership.members.values().any(|member| member.voter) {
            return Err(invalid("it has no voter".to_owned()));
        }
        let node = self.shared().config.node;
        let replica = spec.membership.replica_on(node);
        let replica =
            replica.ok_or_else(|| invalid(format!("node {node} is none of its members")))?;
        let tombstone = self.tombstone(group)?;
        if tombstone.is_some_and(|destroyed| destroyed >= replica) {
            return Err(invalid(format!(
                "replica {replica} of it was destroyed here before; a group that is created again \
                 takes a higher `GroupSpec::incarnation` on every node"
            )));
        }
        let (labels, kind) = (spec.labels.clone(), spec.kind.clone());
        let membership = spec.membership.clone();
        Ok(PersistedGroup {
            meta: GroupMeta {
                group,
                replica,
                membership,
                snapshot: None,
                labels,
                kind,
                skipping: None,
            },
            // A group at term 0 makes raft panic when a voter refuses a candidate of term 0.
            hard_state: HardState { term: Term::new(1), vote: None, commit: LogIndex::default() },
            base: LogPosition::default(),
            last: LogPosition::default(),
            certainty: self.certainty_of_first(spec, tombstone),
        })
    }
}

impl Groups {
    /// On a data directory that was put back from an older copy, or that replaces a lost one, or where a
    /// replica was destroyed that could not be read, a replica that seems to be the first may have been
    /// there before: its peers know. Without peers it would never be known.
    fn certainty_of_first(&self, spec: &GroupSpec, tombstone: Option<ReplicaId>) -> Certainty {
        let voters = spec.membership.members.values().filter(|member| member.voter).count();
        let raised = self.shared().doubts.of_creation(spec.on_known_disk);
        let unread = tombstone.is_some_and(is_of_unreadable).then_some(Doubt::Unreadable);
        let raised = raised.or(unread);
        raised.filter(|_| voters > 1).map_or(Certainty::Sure, Certainty::InDoubt)
    }
}

fn first_write(first: &PersistedGroup) -> GroupWrite {
    let mut write = GroupWrite::new(first.meta.group);
    write.meta = Some(first.meta.clone());
    write.hard_state = Some(first.hard_state);
    write.certainty = first.certainty.is_in_doubt().then_some(first.certainty);
    write.reset = Some(first.base);
    write
}

const fn invalid(group: GroupId, message: String) -> OpenGroupError {
    OpenGroupError::Invalid { group, message }
}
