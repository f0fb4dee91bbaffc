//! Creating, opening, closing and destroying the replicas of a host.

use std::collections::BTreeSet;
use std::sync::Arc;

use shardhost_groups::runtime::{
    AdditionGuard, Destruction, MachineFactory, ParkedReplica, SkipEnd, StoredEntry,
};
use shardhost_groups::selector::GroupSelector;
use shardhost_groups::{Group, GroupSpec, OpenGroupError, StateMachine};
use shardhost_storage::{
    GroupId, GroupMeta, LogError, LogIndex, LogPosition, Membership, NodeId, ReplicaId,
    SnapshotError, Term,
};

use super::Host;

impl Host {
    /// Creates this host's replica of a new group. Every node of the group must do so, with an
    /// equal specification.
    ///
    /// # Errors
    /// [`OpenGroupError`]; nothing was created.
    pub async fn create_group(
        &self,
        spec: GroupSpec,
        machine: impl StateMachine,
    ) -> Result<Group, OpenGroupError> {
        let (groups, join) = (self.inner.groups.clone(), self.joining([&spec]));
        blocking(move || join().and_then(|()| groups.create(spec, Box::new(machine)))).await
    }

    /// The same with a state machine that is made once it is certain that nothing else is done
    /// with the group here and that the log does not hold it: `machine` may remove what an earlier
    /// replica left behind. It may block.
    ///
    /// # Errors
    /// [`OpenGroupError`]; nothing was created.
    pub async fn create_group_with(
        &self,
        spec: GroupSpec,
        machine: MachineFactory,
    ) -> Result<Group, OpenGroupError> {
        let (groups, join) = (self.inner.groups.clone(), self.joining([&spec]));
        blocking(move || join().and_then(|()| groups.create_with(spec, machine))).await
    }

    /// Creates replicas of many groups with one write.
    ///
    /// # Errors
    /// [`OpenGroupError`] of the first that cannot be created; none was.
    pub async fn create_groups(
        &self,
        specs: Vec<(GroupSpec, Box<dyn StateMachine>)>,
    ) -> Result<Vec<Group>, OpenGroupError> {
        let join = self.joining(specs.iter().map(|(spec, _)| spec));
        let groups = self.inner.groups.clone();
        blocking(move || join().and_then(|()| groups.create_many(specs))).await
    }

    /// The same with state machines that are made as in [`Host::create_group_with`].
    ///
    /// # Errors
    /// [`OpenGroupError`] of the first that cannot be created; none was.
    pub async fn create_groups_with(
        &self,
        specs: Vec<(GroupSpec, MachineFactory)>,
    ) -> Result<Vec<Group>, OpenGroupError> {
        let join = self.joining(specs.iter().map(|(spec, _)| spec));
        let groups = self.inner.groups.clone();
        blocking(move || join().and_then(|()| groups.create_many_with(specs))).await
    }

    /// Opens this host's replica of a group that the log holds.
    ///
    /// # Errors
    /// [`OpenGroupError`].
    pub async fn open_group(
        &self,
        id: GroupId,
        machine: impl StateMachine,
    ) -> Result<Group, OpenGroupError> {
        let groups = self.inner.groups.clone();
        blocking(move || groups.open(id, Box::new(machine))).await
    }

    /// The same with a state machine that is made once nothing else is done with the group here.
    ///
    /// # Errors
    /// [`OpenGroupError`].
    pub async fn open_group_with(
        &self,
        id: GroupId,
        machine: MachineFactory,
    ) -> Result<Group, OpenGroupError> {
        let groups = self.inner.groups.clone();
        blocking(move || groups.open_with(id, machine)).await
    }

    /// The same, unless an operator keeps the replica closed ([`Host::park_group`]): `None` then.
    ///
    /// # Errors
    /// [`OpenGroupError`].
    pub async fn reopen_group_with(
        &self,
        id: GroupId,
        machine: MachineFactory,
    ) -> Result<Option<Group>, OpenGroupError> {
        let groups = self.inner.groups.clone();
        blocking(move || groups.reopen_with(id, machine)).await
    }

    /// Creates the group, or opens it if the log holds it already.
    ///
    /// # Errors
    /// [`OpenGroupError`].
    pub async fn create_or_open_group(
        &self,
        spec: GroupSpec,
        machine: impl StateMachine,
    ) -> Result<Group, OpenGroupError> {
        let (groups, join) = (self.inner.groups.clone(), self.joining([&spec]));
        let machine: MachineFactory = Box::new(move || Ok(Box::new(machine)));
        blocking(move || join().and_then(|()| groups.create_or_open(spec, machine))).await
    }

    /// What precedes the creation of replicas: where they are the first ones here, this node belongs to
    /// the cluster of the other members from here on, as far as they said of one.
    fn joining<'a>(
        &self,
        specs: impl IntoIterator<Item = &'a GroupSpec>,
    ) -> impl FnOnce() -> Result<(), OpenGroupError> + Send + 'static {
        let (inner, mut nodes) = (Arc::clone(&self.inner), BTreeSet::new());
        let mut group = None;
        if self.founded().get() == 0 {
            for spec in specs {
                group.get_or_insert(spec.id);
                nodes.extend(spec.membership.members.values().map(|member| member.node));
            }
        }
        move || {
            let Some(group) = group else { return Ok(()) };
            let said = nodes.iter().map(|node| inner.transport.founding_of(*node));
            let said: BTreeSet<u64> = said.filter(|said| *said != 0).collect();
            // Where they disagree, the intended cluster is unknown.
            let said = said.first().copied().filter(|_| said.len() == 1).unwrap_or(0);
            inner.foundings.before_creation(&inner.groups, said).map_err(|error| {
                let message = format!("which cluster is joined cannot be written down: {error}");
                OpenGroupError::Invalid { group, message }
            })
        }
    }

    /// What stands at an index of the log of this host's replica, open or not; `None`: nothing yet.
    ///
    /// # Errors
    /// [`OpenGroupError`] when the log cannot be read, or begins behind the index.
    pub async fn stored_entry(
        &self,
        id: GroupId,
        index: LogIndex,
    ) -> Result<Option<StoredEntry>, OpenGroupError> {
        let groups = self.inner.groups.clone();
        blocking(move || groups.stored_entry(id, index)).await
    }

    /// Where the state machine of a replica stands that is closed. Of a process that ended only what it
    /// had made durable counts.
    ///
    /// # Errors
    /// [`OpenGroupError::AlreadyOpen`], [`OpenGroupError::Busy`] while it is being opened. Else as
    /// [`Host::open_group`].
    pub async fn applied_of_closed(
        &self,
        id: GroupId,
        machine: MachineFactory,
    ) -> Result<Option<LogPosition>, OpenGroupError> {
        let groups = self.inner.groups.clone();
        blocking(move || groups.applied_of_closed(id, machine)).await
    }

    /// Notes that a command is being skipped: the replica, which must be closed, is not opened before
    /// [`Host::finish_skip`], also after a restart.
    ///
    /// # Errors
    /// As [`Host::skip_entry`].
    pub async fn begin_skip(
        &self,
        id: GroupId,
        entry: StoredEntry,
        machine: MachineFactory,
    ) -> Result<(), OpenGroupError> {
        let groups = self.inner.groups.clone();
        blocking(move || groups.begin_skip(id, entry, machine)).await
    }

    /// Removes the note of [`Host::begin_skip`] of the entry at an index: every member has skipped the command,
    /// or has abandoned that.
    ///
    /// # Errors
    /// [`OpenGroupError::Invalid`] when the note is of another entry, or the log does not hold what `end` says,
    /// or the command may still come; nothing changed. Else as [`Host::open_group`].
    pub async fn finish_skip(
        &self,
        id: GroupId,
        index: LogIndex,
        end: SkipEnd,
    ) -> Result<(), OpenGroupError> {
        let groups = self.inner.groups.clone();
        blocking(move || groups.finish_skip(id, index, end)).await
    }

    /// From here on the entry at an index is not skipped here before [`Host::begin_skip`] comes again, as long as
    /// this host runs. The replica stays closed until [`Host::finish_skip`].
    ///
    /// # Errors
    /// [`OpenGroupError::Invalid`] when the entry is skipped already, or the note is of another one. Else as
    /// [`Host::open_group`].
    pub async fn abandon_skip(&self, id: GroupId, index: LogIndex) -> Result<(), OpenGroupError> {
        let groups = self.inner.groups.clone();
        blocking(move || groups.abandon_skip(id, index)).await
    }

    /// The term of this host's replica, open or not, as far as it is durable.
    ///
    /// # Errors
    /// [`OpenGroupError`] when the log cannot be read or holds no such replica.
    pub async fn stored_term(&self, id: GroupId) -> Result<Term, OpenGroupError> {
        let groups = self.inner.groups.clone();
        blocking(move || groups.stored_term(id)).await
    }

    /// Replaces a command in the log of this host's replica by nothing, after [`Host::begin_skip`] at every
    /// member. The replica enters `term`, which must be later than that of any member: see
    /// [`shardhost_groups::Groups::skip_entry`].
    ///
    /// # Errors
    /// [`OpenGroupError::Invalid`]: another entry stands there, or it is applied;
    /// [`OpenGroupError::Faulted`]: what is applied cannot be read. Nothing changed. Else as
    /// [`Host::open_group`].
    pub async fn skip_entry(
        &self,
        id: GroupId,
        entry: StoredEntry,
        term: Term,
        machine: MachineFactory,
    ) -> Result<(), OpenGroupError> {
        let groups = self.inner.groups.clone();
        blocking(move || groups.skip_entry(id, entry, term, machine)).await
    }

    /// Has a closed replica enter a term, unless it is in a later one: see
    /// [`shardhost_groups::Groups::enter_term`].
    ///
    /// # Errors
    /// As [`Host::open_group`].
    pub async fn enter_term(&self, id: GroupId, term: Term) -> Result<(), OpenGroupError> {
        let groups = self.inner.groups.clone();
        blocking(move || groups.enter_term(id, term)).await
    }

    /// What the log holds of one group.
    ///
    /// # Errors
    /// [`OpenGroupError`] when the log cannot be read.
    pub fn stored_group(&self, id: GroupId) -> Result<Option<GroupMeta>, OpenGroupError> {
        self.inner.groups.stored_group(id)
    }

    /// The largest id of a replica of the group that was destroyed on this node.
    ///
    /// # Errors
    /// [`OpenGroupError`] when the log cannot be read.
    pub fn tombstone(&self, id: GroupId) -> Result<Option<ReplicaId>, OpenGroupError> {
        self.inner.groups.tombstone(id)
    }

    /// Asks `hook` before this host adds a node to one of these groups; what it refuses is not
    /// proposed. A node that is not in the directory is refused anyway.
    #[must_use = "dropping the guard removes the hook"]
    pub fn before_addition<F>(&self, groups: GroupSelector, hook: F) -> AdditionGuard
    where
        F: Fn(GroupId, NodeId, &Membership) -> Result<(), String> + Send + Sync + 'static,
    {
        self.inner.groups.before_addition(groups, hook)
    }

    /// The snapshots of a group that this node holds, ascending.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn snapshots(&self, id: GroupId) -> Result<Vec<LogPosition>, SnapshotError> {
        self.inner.groups.snapshots(id)
    }

    /// The replicas that the log holds and that could not be opened, with the cause of each.
    #[must_use]
    pub fn parked_replicas(&self) -> Vec<ParkedReplica> {
        self.inner.groups.parked()
    }

    /// This host's replica of a group, if it could not be opened.
    #[must_use]
    pub fn parked_replica(&self, id: GroupId) -> Option<ParkedReplica> {
        self.inner.groups.parked_replica(id)
    }

    /// The groups of which a replica was destroyed here and its state remains: to be destroyed again.
    #[must_use]
    pub fn remains(&self) -> Vec<GroupId> {
        self.inner.groups.remains()
    }

    /// Whether a replica of the group was destroyed here and its state remains.
    #[must_use]
    pub fn has_remains(&self, id: GroupId) -> bool {
        self.inner.groups.has_remains(id)
    }

    /// What the log holds, open or not. Replicas that cannot be read are left out, and are parked.
    ///
    /// # Errors
    /// When the log as a whole cannot be read.
    pub fn stored_groups(&self) -> Result<Vec<GroupMeta>, LogError> {
        self.inner.groups.stored()
    }

    /// Leaves a replica that the log holds closed, and says why: see [`Host::parked_replica`]. Opening
    /// it ends that.
    pub fn park_group(&self, id: GroupId, why: &str) {
        self.inner.groups.park(id, why);
    }

    /// Closes a replica that the caller opens again with [`Host::reopen_group_with`]. Until then it is parked
    /// with this reason.
    pub async fn close_to_reopen(&self, id: GroupId, why: &str) -> bool {
        self.inner.groups.close_to_reopen(id, why).await
    }

    /// The same, for a step of the skip of a command.
    pub async fn close_for_skip(&self, id: GroupId) -> bool {
        self.inner.groups.close_for_skip(id).await
    }

    /// Whether a replica was closed by [`Host::close_to_reopen`] and is neither open nor noted otherwise.
    #[must_use]
    pub fn is_to_be_reopened(&self, id: GroupId) -> bool {
        self.inner.groups.is_to_be_reopened(id)
    }

    /// Closes a group's replica here and keeps its data.
    pub async fn close_group(&self, id: GroupId) -> bool {
        self.inner.groups.close(id).await
    }

    /// Closes a group's replica here and removes its data.
    ///
    /// # Errors
    /// [`OpenGroupError`].
    pub async fn destroy_group(&self, id: GroupId) -> Result<(), OpenGroupError> {
        self.inner.groups.destroy(id).await
    }

    /// Destroys a replica under the conditions of `destruction`: of which generation, and what is
    /// removed with it.
    ///
    /// # Errors
    /// [`OpenGroupError`].
    pub async fn destroy_replica(&self, destruction: Destruction) -> Result<(), OpenGroupError> {
        self.inner.groups.destroy_replica(destruction).await
    }
}

async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, OpenGroupError> + Send + 'static,
) -> Result<T, OpenGroupError> {
    tokio::task::spawn_blocking(run).await.unwrap_or(Err(OpenGroupError::Stopping))
}
