//! Operators' requests about single groups, where there is a catalog: they are recorded in the
//! catalog, and done by the hosts. A group that the catalog does not know is changed here, as
//! without one.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use shardhost_groups::{GroupId, LogIndex, MembershipError, NodeId, Requirement};
use shardhost_proto::admin as wire;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::refusals::{of_membership, refusal};
use shardhost::driver::{CatalogError, System};
use shardhost::host::Host;
use shardhost_policy::catalog::{Label, Name, NewGroup, Operation, Refusal, Subject, View};

/// How long a replica may take to come or to go.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at a group that is on its way out.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What the catalog answered, as it travels: refusals by their own names.
pub(super) fn of_catalog(error: &CatalogError) -> Status {
    match error {
        CatalogError::Refused(why) => refusal(code_of(why), why.name(), error, []),
        CatalogError::Unreachable { .. } => {
            refusal(Code::Unavailable, "CATALOG_UNREACHABLE", error, [])
        }
        _ => refusal(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", error, []),
    }
}

const fn code_of(refusal: &Refusal) -> Code {
    use Refusal as R;
    match refusal {
        R::UnknownGroup { .. }
        | R::UnknownNode { .. }
        | R::UnknownZone { .. }
        | R::UnknownToken { .. }
        | R::UnknownRule { .. } => Code::NotFound,
        R::GroupExists { .. }
        | R::AlreadyDraining { .. }
        | R::TokenExists { .. }
        | R::SameGroups { .. } => Code::AlreadyExists,
        R::WrongRevision { .. } | R::StaleAdvertisement { .. } | R::StaleMembers { .. } => {
            Code::Aborted
        }
        R::ReservedGroup { .. }
        | R::BadName { .. }
        | R::OverLimit { .. }
        | R::Missing { .. }
        | R::Repeated { .. }
        | R::BadTime { .. }
        | R::BadVoters { .. }
        | R::Malformed { .. } => Code::InvalidArgument,
        _ => Code::FailedPrecondition,
    }
}

/// The groups of a cluster as operators change them on this host.
#[derive(Clone, Debug)]
pub(super) struct Intentions {
    host: Host,
    system: Option<System>,
    requirements: Arc<Turns>,
}

impl Intentions {
    pub(super) fn new(host: &Host, system: Option<&System>) -> Self {
        Self { host: host.clone(), system: system.cloned(), requirements: Arc::default() }
    }

    /// Whether the cluster keeps a catalog.
    pub(super) const fn has_catalog(&self) -> bool {
        self.system.is_some()
    }

    /// The catalog as this host knows it; `None`: there is none, or it was not read yet.
    pub(super) fn view(&self) -> Option<Arc<View>> {
        self.system.as_ref()?.view()
    }

    /// Has a group created, and waits for its replica here. False: there is no catalog.
    pub(super) async fn create(
        &self,
        request: &wire::CreateGroupRequest,
        voters: &[NodeId],
    ) -> Result<bool, Status> {
        let Some(system) = &self.system else { return Ok(false) };
        let refused = |refusal: Refusal| of_catalog(&refusal.into());
        let id = GroupId::new(request.group);
        let kind = Name::new(Subject::Kind, &request.kind).map_err(refused)?;
        let mut new = NewGroup::new(id, kind, voters.iter().copied());
        new.incarnation = (request.incarnation > 0).then_some(request.incarnation);
        for (key, value) in &request.labels {
            let key = Name::new(Subject::Label, key).map_err(refused)?;
            new.labels.push(Label { key, value: value.as_str().into() });
        }
        let refused = match self.create_in_catalog(system, new).await {
            Ok(()) => None,
            Err(error @ CatalogError::Refused(Refusal::GroupExists { .. })) => {
                Some(of_catalog(&error))
            }
            Err(error) => return Err(of_catalog(&error)),
        };
        let is_here = match &refused {
            None => system.await_replica(id, true, TIMEOUT).await,
            Some(refused) => tokio::select! {
                biased;
                () = self.is_elsewhere(system, id) => return Err(refused.clone()),
                is_here = system.await_replica(id, true, TIMEOUT) => is_here,
            },
        };
        if !is_here {
            return Err(Status::deadline_exceeded(format!(
                "group {id} is in the catalog, and its replica on node {} is not there yet; the \
                 log of that host says why",
                self.host.node_id()
            )));
        }
        match refused {
            Some(status) => Err(status),
            None => Ok(true),
        }
    }

    /// Waits until this host knows that a group has no replica to come here: one that moved away is reported to the
    /// catalog a moment later.
    async fn is_elsewhere(&self, system: &System, group: GroupId) {
        let node = self.host.node_id();
        let known = system
            .views()
            .wait_for(|view| {
                let known = view.as_ref().and_then(|view| view.groups().get(&group));
                known.is_some_and(|known| !known.has_member(node))
            })
            .await
            .is_ok();
        if !known {
            std::future::pending::<()>().await;
        }
    }

    /// Has a group recorded; waits while an earlier one of that number is on its way out.
    async fn create_in_catalog(&self, system: &System, new: NewGroup) -> Result<(), CatalogError> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match system.catalog().apply(Operation::CreateGroup(new.clone())).await {
                Err(CatalogError::Refused(Refusal::Destroying { .. }))
                    if Instant::now() < deadline =>
                {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                created => return created.map(drop),
            }
        }
    }

    /// The generation of a group that the catalog knows as it is, if it knows the group with this
    /// configuration; `None`: it knows no such group, or there is no catalog.
    pub(super) async fn generation_of(
        &self,
        group: GroupId,
        expect: Option<u64>,
    ) -> Result<Option<u32>, Status> {
        let Some(system) = &self.system else { return Ok(None) };
        let view = system.fresh_view().await.map_err(|error| of_catalog(&error))?;
        let Some(known) = view.groups().get(&group) else { return Ok(None) };
        // Until another one is reported, it is that of the initial members.
        let told = known.reported.as_ref().map(|members| members.config_index);
        let actual = told.unwrap_or_default();
        if let Some(expected) = expect.map(LogIndex::new).filter(|index| *index != actual) {
            return Err(of_membership(&MembershipError::WrongConfig { group, expected, actual }));
        }
        Ok(Some(known.incarnation))
    }

    /// Has the end of a generation of a group ordered, and waits for that of its replica here.
    /// False: the catalog does not know it, or there is none.
    pub(super) async fn destroy(&self, group: GroupId, generation: u32) -> Result<bool, Status> {
        let Some(system) = &self.system else { return Ok(false) };
        let order = Operation::DestroyGroup { group, generation: Some(generation) };
        match system.catalog().apply(order).await {
            // Ordered before, or gone already everywhere else.
            Ok(_) | Err(CatalogError::Refused(Refusal::Destroying { .. })) => {}
            // What is here of another generation is none of the catalog's.
            Err(CatalogError::Refused(
                Refusal::UnknownGroup { .. } | Refusal::OtherGeneration { .. },
            )) => return Ok(false),
            Err(error) => return Err(of_catalog(&error)),
        }
        if system.await_replica(group, false, TIMEOUT).await {
            return Ok(true);
        }
        Err(Status::deadline_exceeded(format!(
            "the end of group {group} is ordered, and its replica on node {} is still there",
            self.host.node_id()
        )))
    }

    /// One change of a group's requirement after the other, from its record to the answer of the group:
    /// else one that is refused would take back what another one recorded and got.
    pub(super) async fn requirement_turn(
        &self,
        group: GroupId,
        within: Duration,
    ) -> Result<OwnedMutexGuard<()>, Status> {
        let turn = self.requirements.of(group).lock_owned();
        tokio::time::timeout(within, turn).await.map_err(|_| {
            let message = format!("another change of what group {group} requires is under way");
            refusal(Code::Aborted, "CONFIG_CHANGE_PENDING", message, [])
        })
    }

    /// Records the requirement of a group in the catalog, and waits until this host knows it, so
    /// that nothing here acts on the former one; `None`: the catalog does not know the group, or
    /// there is none. The former one is returned, to be put back when the group refuses.
    pub(super) async fn require(
        &self,
        group: GroupId,
        requirement: &Requirement,
    ) -> Result<Option<Before>, Status> {
        let Some(system) = &self.system else { return Ok(None) };
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let view = system.fresh_view().await.map_err(|error| of_catalog(&error))?;
            let Some(known) = view.groups().get(&group) else { return Ok(None) };
            let operation = Operation::SetRequirement { group, requirement: requirement.clone() };
            let done = match system.catalog().apply_expecting(known.revision, operation).await {
                Ok(done) => done,
                // The group was changed by another command: the former value does not apply.
                Err(CatalogError::Refused(Refusal::WrongRevision { .. }))
                    if Instant::now() < deadline =>
                {
                    continue;
                }
                Err(error) => return Err(of_catalog(&error)),
            };
            system.view_at(done.revision).await.map_err(|error| of_catalog(&error))?;
            let former = known.requirement();
            return Ok(Some(Before { group, former, own: requirement.clone() }));
        }
    }

    /// Records the former requirement again, unless another one was recorded since.
    pub(super) async fn put_back(&self, before: Before) {
        let (Some(system), group) = (&self.system, before.group) else { return };
        if let Err(error) = put_back(system, before).await {
            tracing::error!(%group, %error, "the catalog intends what the group refused");
        }
    }
}

/// The turns of groups. As many as have a change under way or waiting.
#[derive(Debug, Default)]
struct Turns(Mutex<HashMap<GroupId, Weak<AsyncMutex<()>>>>);

impl Turns {
    fn of(&self, group: GroupId) -> Arc<AsyncMutex<()>> {
        let mut turns = self.0.lock();
        if let Some(turn) = turns.get(&group).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(group, Arc::downgrade(&turn));
        turn
    }
}

async fn put_back(system: &System, before: Before) -> Result<(), CatalogError> {
    let Before { group, former, own } = before;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let view = system.fresh_view().await?;
        let Some(known) = view.groups().get(&group) else { return Ok(()) };
        if known.requirement() != own {
            tracing::info!(%group, "what the group is to require was changed meanwhile");
            return Ok(());
        }
        let operation = Operation::SetRequirement { group, requirement: former.clone() };
        match system.catalog().apply_expecting(known.revision, operation).await {
            // Something else of its record was changed.
            Err(CatalogError::Refused(Refusal::WrongRevision { .. }))
                if Instant::now() < deadline => {}
            done => return done.map(drop),
        }
    }
}

/// What the catalog intended of a group before it was changed.
#[derive(Debug)]
pub(super) struct Before {
    group: GroupId,
    former: Requirement,
    /// What was recorded instead: only that is taken back.
    own: Requirement,
}

#[cfg(test)]
mod tests;
