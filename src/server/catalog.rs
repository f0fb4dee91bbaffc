//! What operators ask of single groups, where there is a catalog: it is told to the catalog, and done
//! by the hosts. What the catalog does not know is done here, as without one.

use std::time::Duration;

use shardhost_groups::{GroupId, NodeId, Requirement};
use shardhost_proto::admin as wire;
use tonic::{Code, Status};

use super::refusals::refusal;
use crate::host::Host;
use crate::policy::catalog::{Label, Name, NewGroup, Operation, Refusal, Subject};
use crate::policy::system::{CatalogError, System};

/// How long a replica may take to come or to go.
const PATIENCE: Duration = Duration::from_secs(10);

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
        R::UnknownGroup { .. } | R::UnknownNode { .. } | R::UnknownZone { .. } => Code::NotFound,
        R::GroupExists { .. } | R::AlreadyDraining { .. } => Code::AlreadyExists,
        R::WrongRevision { .. } | R::StaleAdvert { .. } | R::StaleMembers { .. } => Code::Aborted,
        R::BadName { .. }
        | R::OverLimit { .. }
        | R::Missing { .. }
        | R::Repeated { .. }
        | R::BadTime { .. }
        | R::Malformed { .. } => Code::InvalidArgument,
        _ => Code::FailedPrecondition,
    }
}

/// The groups of a cluster as operators change them on this host.
#[derive(Clone, Debug)]
pub(super) struct Intentions {
    host: Host,
    system: Option<System>,
}

impl Intentions {
    pub(super) fn new(host: &Host, system: Option<&System>) -> Self {
        Self { host: host.clone(), system: system.cloned() }
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
        let created = system.catalog().apply(Operation::CreateGroup(new)).await;
        let refused = created.err().map(|error| {
            let exists = matches!(&error, CatalogError::Refused(Refusal::GroupExists { .. }));
            (exists, of_catalog(&error))
        });
        if let Some((false, status)) = refused {
            return Err(status);
        }
        if !system.await_replica(id, true, PATIENCE).await {
            return Err(Status::deadline_exceeded(format!(
                "group {id} is in the catalog, and its replica on node {} is not there yet; the \
                 log of that host says why",
                self.host.node_id()
            )));
        }
        match refused {
            Some((_, status)) => Err(status),
            None => Ok(true),
        }
    }

    /// Has the end of a group ordered, and waits for that of its replica here. False: the catalog
    /// does not know the group, or there is none.
    pub(super) async fn destroy(&self, group: GroupId) -> Result<bool, Status> {
        let Some(system) = &self.system else { return Ok(false) };
        match system.catalog().apply(Operation::DestroyGroup { group }).await {
            // Ordered before, or gone already everywhere else.
            Ok(_) | Err(CatalogError::Refused(Refusal::Destroying { .. })) => {}
            Err(CatalogError::Refused(Refusal::UnknownGroup { .. })) => return Ok(false),
            Err(error) => return Err(of_catalog(&error)),
        }
        if system.await_replica(group, false, PATIENCE).await {
            return Ok(true);
        }
        Err(Status::deadline_exceeded(format!(
            "the end of group {group} is ordered, and its replica on node {} is still there",
            self.host.node_id()
        )))
    }

    /// Tells the catalog what a group is to require; `None`: it does not know the group, or there
    /// is no catalog. What it intended before is returned, to be put back when the group refuses.
    pub(super) async fn require(
        &self,
        group: GroupId,
        requirement: &Requirement,
    ) -> Result<Option<Requirement>, Status> {
        let Some(system) = &self.system else { return Ok(None) };
        let view = system.view();
        let known = view.as_ref().and_then(|view| view.groups().get(&group));
        let Some(before) = known.map(|group| group.requirement()) else { return Ok(None) };
        let requirement = requirement.clone();
        let operation = Operation::SetRequirement { group, requirement };
        match system.catalog().apply(operation).await {
            Ok(_) => Ok(Some(before)),
            Err(error) => Err(of_catalog(&error)),
        }
    }

    /// Tells the catalog again what it intended before.
    pub(super) async fn put_back(&self, group: GroupId, requirement: Requirement) {
        let Some(system) = &self.system else { return };
        let operation = Operation::SetRequirement { group, requirement };
        if let Err(error) = system.catalog().apply(operation).await {
            tracing::error!(%group, %error, "the catalog intends what the group refused");
        }
    }
}
