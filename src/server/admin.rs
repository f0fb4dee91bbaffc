//! What operators ask of a host, over gRPC.

mod explain;
mod host_status;
mod membership;
mod metrics;
mod shown;

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_groups::latency::LatencySnapshot;
use shardhost_groups::runtime::Destruction;
use shardhost_groups::{
    Group, GroupId, GroupSpec, LogIndex, MembershipChange, MembershipError, NodeId, OpenGroupError,
    TransferError, Transferred,
};
use shardhost_proto::admin as wire;
use shardhost_proto::admin::admin_server::{Admin, AdminServer};
use shardhost_storage::convert::position_to_message;
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};

use self::explain::explanation;
use self::membership::{after_others, membership_reply, requirement_of, with_step};
use self::shown::{group_status, page_of_groups, parked_status};
use super::catalog::Intentions;
use super::refusals::{of_membership, of_opening, of_snapshot, of_transfer, refusal};
use super::replicas::{check_kind, empty_machine_of};
use super::shard_map::CurrentMap;
use super::{RESERVED, is_shard, nodes, shard_time, skip, versions};
use crate::shards::StateDb;
use shardhost::driver::{SYSTEM_GROUP, System, life_of};
use shardhost::host::Host;
use shardhost::transport::{caller_of, note_asked};

/// Rates and quantiles are of about this much time.
const WINDOW: Duration = Duration::from_secs(5);
/// How long the disk may take to say what it holds of a replica that is not open.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Times at which the window is looked at, at most.
const SAMPLES: usize = 64;
/// Checksums that are asked for at once. They are computed one by one.
const MAX_CHECKSUMS: usize = 16;
/// The default deadline.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The admin service of a host whose shards keep their state in `state`.
pub(super) fn admin_server(
    host: Host,
    state: &Arc<StateDb>,
    system: Option<&System>,
    map: Arc<CurrentMap>,
) -> AdminServer<AdminService> {
    let intentions = Intentions::new(&host, system);
    let started = Instant::now();
    let first = (started, host.runtime().latency().snapshot());
    let samples = Arc::new(Mutex::new(VecDeque::from([first])));
    let state = Arc::downgrade(state);
    let (checksum, checksums_waiting) = (Semaphore::new(1), Semaphore::new(MAX_CHECKSUMS));
    let looks = Arc::new(Semaphore::new(1));
    AdminServer::new(AdminService {
        host,
        system: system.cloned(),
        intentions,
        state,
        map,
        started,
        samples,
        checksum,
        checksums_waiting,
        looks,
    })
}

/// See `admin_server`.
#[derive(Debug)]
pub struct AdminService {
    host: Host,
    /// `None`: the cluster has no catalog.
    system: Option<System>,
    intentions: Intentions,
    /// Streams that outlive the server must not keep its state open.
    state: Weak<StateDb>,
    map: Arc<CurrentMap>,
    started: Instant,
    samples: Arc<Mutex<VecDeque<(Instant, LatencySnapshot)>>>,
    /// Held by the one checksum that is computed.
    checksum: Semaphore,
    /// Held by that one, and those behind it.
    checksums_waiting: Semaphore,
    /// Held by the one look at what the log says of groups that are not here, however long that takes.
    looks: Arc<Semaphore>,
}

fn too_many_checksums() -> Status {
    Status::resource_exhausted(format!(
        "{MAX_CHECKSUMS} checksums are computed or wait on this node already; ask for fewer at once"
    ))
}

impl AdminService {
    /// The keys of a shard belong to its group for good: without it they would be nowhere.
    fn check_no_shard(&self, id: GroupId) -> Result<(), Status> {
        let map = self.map.get();
        let Some((kind, shard)) = map.as_ref().and_then(|map| map.shard_of(id)) else {
            return Ok(());
        };
        let message = format!(
            "group {id} is shard {shard} of the {kind}, whose keys belong to it for good; \
             `shardhost member rebuild NODE --group {id}` gives a node a new replica of it"
        );
        let facts = [("kind", kind.to_owned()), ("shard", shard.to_string())];
        Err(refusal(Code::FailedPrecondition, "IS_A_SHARD", message, facts))
    }

    fn group(&self, id: u64) -> Result<Group, Status> {
        self.host.group(GroupId::new(id)).ok_or_else(|| {
            Status::not_found(format!(
                "group {id} is not on node {}; `shardhost group list` shows those that are",
                self.host.node_id()
            ))
        })
    }

    fn state(&self) -> Result<Arc<StateDb>, Status> {
        self.state.upgrade().ok_or_else(|| Status::unavailable("the server is stopping"))
    }

    /// A group as it is asked for, if this node can hold it.
    fn spec_of(&self, request: &wire::CreateGroupRequest) -> Result<GroupSpec, Status> {
        let id = GroupId::new(request.group);
        if is_shard(id) || id == SYSTEM_GROUP {
            return Err(reserved(format_args!(
                "groups 0 and {RESERVED} belong to the cluster and the shards of its configuration; \
                 take another number"
            )));
        }
        check_kind(&request.kind)
            .map_err(|message| refusal(Code::InvalidArgument, "UNKNOWN_KIND", &message, []))?;
        let voters: Result<Vec<_>, _> = request.voters.iter().map(|node| node_id(*node)).collect();
        let voters = voters?;
        for node in &voters {
            if self.host.directory().address(*node).is_none() {
                return Err(Status::invalid_argument(format!(
                    "node {node} is not in the directory of node {}",
                    self.host.node_id()
                )));
            }
        }
        let mut spec = GroupSpec::new(id, voters).kind(&*request.kind);
        for (key, value) in &request.labels {
            spec = spec.label(key, value);
        }
        Ok(spec.incarnation(request.incarnation))
    }

    /// The generation of the replica here, or of what remains of it, if it has this configuration;
    /// `None`: there is none, or its id cannot be read.
    fn generation_here(&self, id: GroupId, expect: Option<u64>) -> Result<Option<u32>, Status> {
        if let Some(parked) = self.host.parked_replica(id)
            && parked.meta.is_none()
        {
            // It can be destroyed, but its configuration is unknown.
            return Ok(parked.replica.map(life_of));
        }
        let Some(meta) = self.host.stored_group(id).map_err(|error| of_opening(&error))? else {
            let left = self.host.has_remains(id).then(|| self.host.tombstone(id)).transpose();
            let left = left.map_err(|error| of_opening(&error))?;
            return Ok(left.flatten().map(life_of));
        };
        let membership = self.host.group(id).map(|group| group.membership());
        let actual = membership.map_or(meta.membership.config_index, |known| known.config_index);
        if let Some(expected) = expect.map(LogIndex::new).filter(|index| *index != actual) {
            let group = id;
            return Err(of_membership(&MembershipError::WrongConfig { group, expected, actual }));
        }
        Ok(Some(life_of(meta.replica)))
    }

    /// A request for another machine than the one in the directory is refused with the kind.
    fn check_address(&self, step: &wire::MembershipStep) -> Result<(), Status> {
        let known = NodeId::new(step.node).and_then(|node| self.host.directory().address(node));
        match known {
            Some(known) if !step.address.is_empty() && known != step.address => {
                Err(Status::failed_precondition(format!(
                    "node {} is at {known}, not at {}; correct the directory first",
                    step.node, step.address
                )))
            }
            _ => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(
        &self,
        _: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::HostStatus>, Status> {
        Ok(Response::new(self.host_status().await))
    }

    async fn list_groups(
        &self,
        request: Request<wire::ListGroupsRequest>,
    ) -> Result<Response<wire::GroupList>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        let page = tokio::task::spawn_blocking(move || page_of_groups(&host, &request)).await;
        page.map(Response::new).map_err(|error| Status::internal(error.to_string()))
    }

    async fn show_group(
        &self,
        request: Request<wire::ShowGroupRequest>,
    ) -> Result<Response<wire::GroupStatus>, Status> {
        let id = request.into_inner().group;
        if let Some(parked) = self.host.parked_replica(GroupId::new(id)) {
            let mut status = parked_status(&parked);
            let state = self.state()?;
            let asked = skip::applied_of_closed(&self.host, &state, parked.group);
            match tokio::time::timeout(LOOK_TIMEOUT, asked).await {
                Ok(Ok(applied)) => (status.applied, status.closed) = (applied.get(), true),
                // As it is, it could not be opened, whatever keeps it closed.
                Ok(Err(OpenGroupError::Faulted { .. })) => status.unopenable = true,
                // The cause says why it is parked; it may be opened just now.
                Ok(Err(error)) => {
                    tracing::debug!(group = id, %error, "where its state is, is unknown")
                }
                Err(_) => tracing::debug!(group = id, "its state is not read in time"),
            }
            return Ok(Response::new(status));
        }
        Ok(Response::new(group_status(&self.group(id)?)))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderReply>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        let group = self.group(request.group)?;
        let to = match request.to_node {
            0 => None,
            node => NodeId::new(node),
        };
        transferred(request.timeout_ms, group.transfer_leadership(to)).await
    }

    async fn transfer_leader_to_fit(
        &self,
        request: Request<wire::TransferLeaderToFitRequest>,
    ) -> Result<Response<wire::TransferLeaderReply>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        let group = self.group(request.group)?;
        let nodes: Result<Vec<_>, _> = request.nodes.iter().map(|node| node_id(*node)).collect();
        let transfer = group.transfer_to_first_fit(nodes?, request.max_lag);
        transferred(request.timeout_ms, transfer).await
    }

    async fn explain_leader(
        &self,
        request: Request<wire::ExplainLeaderRequest>,
    ) -> Result<Response<wire::LeaderExplanation>, Status> {
        let group = self.group(request.into_inner().group)?;
        Ok(Response::new(explanation(&self.host, &group).await))
    }

    async fn change_requirement(
        &self,
        request: Request<wire::ChangeRequirementRequest>,
    ) -> Result<Response<wire::MembershipReply>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        let group = self.group(request.group)?;
        let requirement = requirement_of(request.requirement.unwrap_or_default())?;
        let expect = request.expect.map(LogIndex::new);
        // The leader is asked: the status of others may be old.
        if !group.status().is_leader() {
            let require = || group.require(requirement.clone(), expect);
            return membership_reply(request.timeout_ms, after_others(&group, require)).await;
        }
        let (intentions, within) = (self.intentions.clone(), request.timeout_ms);
        let unchecked = request.even_if_ineligible;
        // Also when the caller goes away: the catalog must not intend what the group refused.
        let changed = tokio::spawn(async move {
            let _turn = intentions.requirement_turn(group.id(), timeout_of(within)).await?;
            let before = intentions.require(group.id(), &requirement).await?;
            let changed = if unchecked {
                let require = || group.require_unchecked(requirement.clone(), expect);
                membership_reply(within, after_others(&group, require)).await
            } else {
                let require = || group.require(requirement.clone(), expect);
                membership_reply(within, after_others(&group, require)).await
            };
            if let (Err(error), Some(before)) = (&changed, before)
                && error.code() != Code::DeadlineExceeded
                && group.membership().requirement != requirement
            {
                intentions.put_back(before).await;
            }
            changed
        });
        changed.await.map_err(|error| Status::internal(error.to_string()))?
    }

    async fn change_membership(
        &self,
        request: Request<wire::ChangeMembershipRequest>,
    ) -> Result<Response<wire::MembershipReply>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        let group = self.group(request.group)?;
        let mut change = MembershipChange::new();
        for step in &request.steps {
            self.check_address(step)?;
            change = with_step(change, step)?;
        }
        if let Some(index) = request.expect {
            change = change.expecting(LogIndex::new(index));
        }
        let make = || group.change_membership(change.clone());
        membership_reply(request.timeout_ms, after_others(&group, make)).await
    }

    async fn replace_member(
        &self,
        request: Request<wire::ReplaceMemberRequest>,
    ) -> Result<Response<wire::MembershipReply>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        let group = self.group(request.group)?;
        let (old, new) = (node_id(request.old_node)?, node_id(request.new_node)?);
        let expect = request.expect.map(LogIndex::new);
        let make = || group.replace_member(old, new, expect);
        membership_reply(request.timeout_ms, after_others(&group, make)).await
    }

    async fn cancel_addition(
        &self,
        request: Request<wire::CancelAdditionRequest>,
    ) -> Result<Response<wire::MembershipReply>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        let group = self.group(request.group)?;
        let cancel = || group.cancel_addition(request.expect.map(LogIndex::new));
        membership_reply(request.timeout_ms, after_others(&group, cancel)).await
    }

    async fn take_snapshot(
        &self,
        request: Request<wire::TakeSnapshotRequest>,
    ) -> Result<Response<wire::SnapshotReply>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        let group = self.group(request.group)?;
        let taken = tokio::time::timeout(timeout_of(request.timeout_ms), group.snapshot()).await;
        let position = taken
            .map_err(|_| Status::deadline_exceeded("the snapshot is still being written"))?
            .map_err(|error| of_snapshot(&error))?;
        let position = Some(position_to_message(position));
        Ok(Response::new(wire::SnapshotReply { position }))
    }

    async fn list_snapshots(
        &self,
        request: Request<wire::ListSnapshotsRequest>,
    ) -> Result<Response<wire::SnapshotList>, Status> {
        let group = self.group(request.into_inner().group)?;
        let listed = self.host.snapshots(group.id());
        let positions = listed.map_err(|error| Status::internal(error.to_string()))?;
        let positions = positions.into_iter().map(position_to_message).collect();
        Ok(Response::new(wire::SnapshotList { positions }))
    }

    async fn look_at_entry(
        &self,
        request: Request<wire::LookAtEntryRequest>,
    ) -> Result<Response<wire::EntryReply>, Status> {
        note_asked(&request);
        let entry = skip::look(&self.host, &self.state()?, request.into_inner()).await?;
        Ok(Response::new(entry))
    }

    async fn begin_skip(
        &self,
        request: Request<wire::BeginSkipRequest>,
    ) -> Result<Response<wire::BeginSkipReply>, Status> {
        note_asked(&request);
        skip::begin(&self.host, &self.state()?, request.into_inner()).await?;
        Ok(Response::new(wire::BeginSkipReply {}))
    }

    async fn abandon_skip(
        &self,
        request: Request<wire::AbandonSkipRequest>,
    ) -> Result<Response<wire::AbandonSkipReply>, Status> {
        note_asked(&request);
        skip::abandon(&self.host, &self.state()?, request.into_inner()).await?;
        Ok(Response::new(wire::AbandonSkipReply {}))
    }

    async fn skip_entry(
        &self,
        request: Request<wire::SkipEntryRequest>,
    ) -> Result<Response<wire::SkipEntryReply>, Status> {
        note_asked(&request);
        skip::skip(&self.host, &self.state()?, request.into_inner()).await?;
        Ok(Response::new(wire::SkipEntryReply {}))
    }

    async fn open_replica(
        &self,
        request: Request<wire::OpenReplicaRequest>,
    ) -> Result<Response<wire::OpenReplicaReply>, Status> {
        note_asked(&request);
        skip::open(&self.host, &self.state()?, request.into_inner()).await?;
        Ok(Response::new(wire::OpenReplicaReply {}))
    }

    async fn advance_time(
        &self,
        request: Request<wire::AdvanceTimeRequest>,
    ) -> Result<Response<wire::AdvanceTimeReply>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        let (group, state) = (self.group(request.group)?, self.state()?);
        let advanced = shard_time::advance(&group, state.times(), request.by_ms);
        let time_ms =
            tokio::time::timeout(timeout_of(request.timeout_ms), advanced).await.map_err(
                |_| Status::deadline_exceeded("it is not known whether the time was moved"),
            )??;
        Ok(Response::new(wire::AdvanceTimeReply { time_ms }))
    }

    async fn create_group(
        &self,
        request: Request<wire::CreateGroupRequest>,
    ) -> Result<Response<wire::GroupStatus>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        let spec = self.spec_of(&request)?;
        let group = spec.id;
        let voters: Vec<NodeId> = spec.membership.voters().map(|(_, node)| node).collect();
        if self.intentions.create(&request, &voters).await? {
            return Ok(Response::new(group_status(&self.group(request.group)?)));
        }
        let (state, kind) = (self.state()?, request.kind);
        let machine = move || empty_machine_of(&state, group, &kind);
        let created = self.host.create_group_with(spec, Box::new(machine)).await;
        let created = created.map_err(|error| of_opening(&error))?;
        Ok(Response::new(group_status(&created)))
    }

    async fn destroy_group(
        &self,
        request: Request<wire::DestroyGroupRequest>,
    ) -> Result<Response<wire::DestroyGroupReply>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        let id = GroupId::new(request.group);
        if id == SYSTEM_GROUP {
            return Err(reserved(format_args!(
                "group 0 is the catalog of the cluster and cannot be destroyed; a member of it is \
                 replaced with `shardhost member replace 0`"
            )));
        }
        self.check_no_shard(id)?;
        let here = self.generation_here(id, request.expect)?;
        let asked = match request.generation.or(here) {
            Some(generation) => Some(generation),
            None => self.intentions.generation_of(id, request.expect).await?,
        };
        let unknown = || of_opening(&OpenGroupError::Unknown { group: id });
        let generation = asked.ok_or_else(unknown)?;
        if self.intentions.destroy(id, generation).await? {
            return Ok(Response::new(wire::DestroyGroupReply {}));
        }
        if here.is_none() && !self.host.has_remains(id) {
            return Err(unknown());
        }
        let state = self.state()?;
        let clear = move || state.destroy(id).map_err(|error| error.to_string());
        let destruction = Destruction::new(id).generation(generation).clear(clear);
        self.host.destroy_replica(destruction).await.map_err(|error| of_opening(&error))?;
        Ok(Response::new(wire::DestroyGroupReply {}))
    }

    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinReply>, Status> {
        note_asked(&request);
        let caller = caller_of(&request);
        let request = nodes::as_certified(request.into_inner(), &caller)?;
        nodes::join(&self.host, self.system.as_ref(), &request).await.map(Response::new)
    }

    async fn list_nodes(
        &self,
        _: Request<wire::ListNodesRequest>,
    ) -> Result<Response<wire::NodeList>, Status> {
        nodes::list(&self.host, self.system.as_ref()).await.map(Response::new)
    }

    async fn remove_node(
        &self,
        request: Request<wire::RemoveNodeRequest>,
    ) -> Result<Response<wire::NodeList>, Status> {
        note_asked(&request);
        let node = node_id(request.into_inner().node)?;
        nodes::remove(&self.host, self.system.as_ref(), node).await.map(Response::new)
    }

    async fn get_version(
        &self,
        _: Request<wire::GetVersionRequest>,
    ) -> Result<Response<wire::VersionReport>, Status> {
        versions::show(&self.host, self.system.as_ref()).await.map(Response::new)
    }

    async fn raise_version(
        &self,
        request: Request<wire::RaiseVersionRequest>,
    ) -> Result<Response<wire::VersionReport>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        versions::raise(&self.host, self.system.as_ref(), &request).await.map(Response::new)
    }

    async fn checksum(
        &self,
        request: Request<wire::ChecksumRequest>,
    ) -> Result<Response<wire::ChecksumReply>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        let group = self.group(request.group)?;
        // Each reads a whole shard, on a thread that others need, too.
        let waiting = self.checksums_waiting.try_acquire();
        let _waiting = waiting.map_err(|_| too_many_checksums())?;
        let _alone = self.checksum.acquire().await;
        let within = timeout_of(request.timeout_ms);
        let reached =
            |status: &shardhost_groups::GroupStatus| status.applied.get() >= request.min_applied;
        let Some(before) = group.wait_for(reached, within).await else {
            return Err(Status::deadline_exceeded(format!(
                "group {} applied {} on this node, {} was asked for",
                request.group,
                group.status().applied,
                request.min_applied
            )));
        };
        let (at, sum) =
            group.checksum().await.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::ChecksumReply {
            // Entries without a command do not reach the state machine: it stands before them and
            // its state is theirs.
            applied: at.index.max(before.applied).get(),
            checksum: sum.checksum,
            items: sum.items,
        }))
    }
}

async fn transferred(
    timeout_ms: u64,
    transfer: impl Future<Output = Result<Transferred, TransferError>>,
) -> Result<Response<wire::TransferLeaderReply>, Status> {
    let moved = tokio::time::timeout(timeout_of(timeout_ms), transfer).await;
    let moved = moved
        .map_err(|_| Status::deadline_exceeded("the transfer continues; its outcome is unknown"))?
        .map_err(|error| of_transfer(&error))?;
    Ok(Response::new(wire::TransferLeaderReply {
        to_node: moved.to.get(),
        term: moved.term.get(),
        took_us: u64::try_from(moved.took.as_micros()).unwrap_or(u64::MAX),
    }))
}

fn node_id(node: u64) -> Result<NodeId, Status> {
    NodeId::new(node).ok_or_else(|| Status::invalid_argument("nodes are numbered from 1"))
}

const fn timeout_of(millis: u64) -> Duration {
    match millis {
        0 => DEFAULT_TIMEOUT,
        millis => Duration::from_millis(millis),
    }
}

/// A number that no operator's group can have.
fn reserved(message: std::fmt::Arguments<'_>) -> Status {
    refusal(Code::InvalidArgument, "RESERVED_GROUP", message, [])
}
