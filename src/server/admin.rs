//! What operators ask of a host, over gRPC.

mod metrics;
mod shown;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_groups::latency::LatencySnapshot;
use shardhost_groups::runtime::Destruction;
use shardhost_groups::{
    CaughtUp, Group, GroupId, GroupSpec, LogIndex, Membership, MembershipChange, MembershipError,
    NodeId, OpenGroupError, Requirement, Role, TransferError, Transferred,
};
use shardhost_proto::admin as wire;
use shardhost_proto::admin::admin_server::{Admin, AdminServer};
use shardhost_proto::admin::membership_step::Kind as StepKind;
use shardhost_proto::log;
use shardhost_storage::convert::{membership_to_message, position_to_message};
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};

use super::catalog::Intentions;
use super::explain::{advertisement_to_wire, explanation};
use super::refusals::{
    of_capabilities, of_membership, of_opening, of_snapshot, of_transfer, refusal,
};
use super::replicas::{check_kind, empty_machine_of};
use super::shard_map::CurrentMap;
use super::{RESERVED, is_shard, shard_time, skip};
use crate::shards::StateDb;
use metrics::policy_metrics;
use shardhost::driver::{SYSTEM_GROUP, System, life_of};
use shardhost::host::Host;
use shardhost::transport::TransportStats;
pub(super) use shown::group_status;
use shown::{
    differing_groups, failed_replicas, impairment, leaderless, missing, page_of_groups,
    parked_status, short_voters, stalled,
};

/// Rates and quantiles are of about this much time.
const WINDOW: Duration = Duration::from_secs(5);
/// How long the disk of a parked replica may take to say what it holds.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Times at which the window is looked at, at most.
const SAMPLES: usize = 64;
/// Checksums that are asked for at once. They are computed one by one.
const MAX_CHECKSUMS: usize = 16;
/// A change waits for the one before it for so long, then it looks whether it may begin.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks at least.
const PAUSE: Duration = Duration::from_millis(10);
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
    AdminServer::new(AdminService {
        host,
        intentions,
        state,
        map,
        started,
        samples,
        checksum,
        checksums_waiting,
    })
}

/// See `admin_server`.
#[derive(Debug)]
pub struct AdminService {
    host: Host,
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

    /// What was acknowledged over the last seconds, and how many seconds those are.
    fn window(&self) -> (LatencySnapshot, f64) {
        let now = Instant::now();
        let current = self.host.runtime().latency().snapshot();
        let mut samples = self.samples.lock();
        while samples.len() > 1 && now.duration_since(samples[1].0) >= WINDOW {
            samples.pop_front();
        }
        let since = samples.front().map(|(at, before)| (*at, current.since(before)));
        let fresh = samples.back().is_some_and(|(at, _)| now.duration_since(*at) < WINDOW / 20);
        if !fresh && samples.len() < SAMPLES {
            samples.push_back((now, current.clone()));
        }
        let (at, counts) = since.unwrap_or((now, current));
        (counts, now.duration_since(at).as_secs_f64().max(0.001))
    }

    fn peers(&self, stats: &TransportStats) -> Vec<wire::PeerStatus> {
        let address = |node: NodeId| self.host.directory().address(node).unwrap_or_default();
        let peers = stats.peers.iter().map(|peer| wire::PeerStatus {
            node: peer.node.get(),
            address: address(peer.node),
            connected: peer.bulk.connected,
            live: peer.live,
            incarnation: peer.incarnation.unwrap_or(0),
            messages_sent: peer.bulk.messages + peer.urgent.messages,
            messages_dropped: peer.bulk.dropped + peer.urgent.dropped,
            frames_sent: peer.bulk.frames + peer.urgent.frames,
            reconnects: peer.reconnects,
            advertisement: peer.advertisement.as_ref().map(advertisement_to_wire),
            refused: peer.refused.clone().unwrap_or_default(),
            refused_by: peer.refused_by.clone().unwrap_or_default(),
        });
        peers.collect()
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

    /// What is damaged of the state and not recovered, for people.
    fn unrecovered(&self) -> Vec<String> {
        let cells = self.state.upgrade().map(|state| state.unrecovered()).unwrap_or_default();
        cells.into_iter().map(|(cell, why)| format!("part {cell}: {why}")).collect()
    }

    fn counters(&self) -> HashMap<String, u64> {
        let stats = self.host.stats();
        let mut counters = HashMap::from([
            ("messages_received".to_owned(), stats.workers.messages),
            ("messages_for_unknown_groups".to_owned(), stats.workers.unknown_group),
            ("stale_notifications".to_owned(), stats.workers.stale),
            ("replica_failures".to_owned(), stats.workers.failures),
            ("log_entries".to_owned(), stats.log_entries),
            ("awake_groups".to_owned(), stats.awake as u64),
            ("hook_panics".to_owned(), stats.hook_panics),
            ("slow_inline_hooks".to_owned(), stats.slow_inline_hooks),
            ("policy_panics".to_owned(), stats.policy_panics),
            ("slow_policies".to_owned(), stats.slow_policies),
            (
                "refused_advertisements".to_owned(),
                self.host.transport_stats().refused_advertisements,
            ),
        ]);
        for (refusal, count) in stats.workers.refused {
            let name = format!("refused: {refusal}");
            counters.insert(name, count);
        }
        counters
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(
        &self,
        _: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::HostStatus>, Status> {
        let groups = self.host.groups();
        let parked = self.host.parked_replicas();
        let statuses: Vec<_> = groups.iter().map(Group::status).collect();
        let count = |test: &dyn Fn(&shardhost_groups::GroupStatus) -> bool| {
            statuses.iter().filter(|status| test(status)).count() as u64
        };
        let stats = self.host.stats();
        let (window, seconds) = self.window();
        let in_doubt = count(&|status| status.doubt.is_some());
        let transport = self.host.transport_stats();
        let clock = transport.clock_alarm();
        let peers = self.peers(&transport);
        let live = peers.iter().filter(|peer| peer.live).filter_map(|peer| NodeId::new(peer.node));
        let live: BTreeSet<NodeId> = live.chain([self.host.node_id()]).collect();
        let view = self.intentions.view();
        Ok(Response::new(wire::HostStatus {
            node: self.host.node_id().get(),
            cluster: self.host.config().cluster.clone(),
            incarnation: self.host.incarnation(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            groups: (groups.len() + parked.len()) as u64,
            leaders: count(&|status| status.is_leader()),
            hibernating: count(&|status| status.hibernating),
            failed: count(&|status| matches!(status.role, Role::Failed(_))) + parked.len() as u64,
            failed_replicas: failed_replicas(&statuses, &parked),
            proposals: stats.acknowledged,
            log_writes: stats.log_writes,
            log_groups_written: stats.log_group_writes,
            log_bytes: stats.log_bytes,
            rounds: stats.workers.rounds,
            peers,
            ops_per_second: window.count() as f64 / seconds,
            p50_us: window.quantile_us(500),
            p99_us: window.quantile_us(990),
            counters: self.counters(),
            advertisement: Some(advertisement_to_wire(&self.host.advertisement())),
            caretakers: count(&|status| status.caretaker.is_some()),
            differing: count(&|status| status.differs.is_some()),
            differing_groups: differing_groups(&statuses),
            in_doubt,
            // Once no replica is in doubt nothing is to be done about it any more.
            rollback: self.host.rollback().filter(|_| in_doubt > 0).map(|rollback| {
                wire::Rollback {
                    by_node: rollback.by.get(),
                    known_incarnation: rollback.known,
                    held_incarnation: rollback.held,
                }
            }),
            policy: Some(policy_metrics(&stats.workers.policy, self.host.runtime().freezes())),
            founding_waits_for: self.host.founding_waits_for().unwrap_or_default(),
            leaderless: Some(leaderless(&statuses)),
            impaired: impairment(&self.host),
            clock: clock.map(|alarm| alarm.to_string()).unwrap_or_default(),
            stalled: stalled(&statuses),
            short: short_voters(&statuses, &live),
            missing: view.as_deref().map(|view| missing(&self.host, view)),
            has_catalog: self.intentions.has_catalog(),
            catalog_known: view.is_some(),
            unrecovered: self.unrecovered(),
        }))
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
        let request = request.into_inner();
        let group = self.group(request.group)?;
        let requirement = requirement_of(request.requirement.unwrap_or_default())?;
        let expect = request.expect.map(LogIndex::new);
        // The leader is asked: the status of others may be old.
        if !group.status().is_leader() {
            let require = || group.require(requirement.clone(), expect);
            return membership_reply(request.timeout_ms, after_others(&group, require)).await;
        }
        let before = self.intentions.require(group.id(), &requirement).await?;
        let changed = if request.even_if_ineligible {
            let require = || group.require_unchecked(requirement.clone(), expect);
            membership_reply(request.timeout_ms, after_others(&group, require)).await
        } else {
            let require = || group.require(requirement.clone(), expect);
            membership_reply(request.timeout_ms, after_others(&group, require)).await
        };
        if let (Err(_), Some(before)) = (&changed, before) {
            self.intentions.put_back(before).await;
        }
        changed
    }

    async fn change_membership(
        &self,
        request: Request<wire::ChangeMembershipRequest>,
    ) -> Result<Response<wire::MembershipReply>, Status> {
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
        let request = request.into_inner();
        let group = self.group(request.group)?;
        let cancel = || group.cancel_addition(request.expect.map(LogIndex::new));
        membership_reply(request.timeout_ms, after_others(&group, cancel)).await
    }

    async fn take_snapshot(
        &self,
        request: Request<wire::TakeSnapshotRequest>,
    ) -> Result<Response<wire::SnapshotReply>, Status> {
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
        let entry = skip::look(&self.host, &self.state()?, request.into_inner()).await?;
        Ok(Response::new(entry))
    }

    async fn begin_skip(
        &self,
        request: Request<wire::BeginSkipRequest>,
    ) -> Result<Response<wire::BeginSkipReply>, Status> {
        skip::begin(&self.host, &self.state()?, request.into_inner()).await?;
        Ok(Response::new(wire::BeginSkipReply {}))
    }

    async fn abandon_skip(
        &self,
        request: Request<wire::AbandonSkipRequest>,
    ) -> Result<Response<wire::AbandonSkipReply>, Status> {
        skip::abandon(&self.host, &self.state()?, request.into_inner()).await?;
        Ok(Response::new(wire::AbandonSkipReply {}))
    }

    async fn skip_entry(
        &self,
        request: Request<wire::SkipEntryRequest>,
    ) -> Result<Response<wire::SkipEntryReply>, Status> {
        skip::skip(&self.host, &self.state()?, request.into_inner()).await?;
        Ok(Response::new(wire::SkipEntryReply {}))
    }

    async fn open_replica(
        &self,
        request: Request<wire::OpenReplicaRequest>,
    ) -> Result<Response<wire::OpenReplicaReply>, Status> {
        skip::open(&self.host, &self.state()?, request.into_inner()).await?;
        Ok(Response::new(wire::OpenReplicaReply {}))
    }

    async fn advance_time(
        &self,
        request: Request<wire::AdvanceTimeRequest>,
    ) -> Result<Response<wire::AdvanceTimeReply>, Status> {
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

    async fn checksum(
        &self,
        request: Request<wire::ChecksumRequest>,
    ) -> Result<Response<wire::ChecksumReply>, Status> {
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

/// Makes a change when those before it are applied: only one can be under way. When that takes too
/// long, what was refused last is still known.
struct AfterOthers<F> {
    change: F,
    refused: Arc<Mutex<Option<MembershipError>>>,
}

fn after_others<M, C>(
    group: &Group,
    make: M,
) -> AfterOthers<impl Future<Output = Result<Arc<Membership>, MembershipError>>>
where
    M: Fn() -> C,
    C: Future<Output = Result<Arc<Membership>, MembershipError>>,
{
    let (group, refused) = (group.clone(), Arc::new(Mutex::new(None)));
    let last = Arc::clone(&refused);
    let change = async move {
        loop {
            match make().await {
                Err(error @ MembershipError::ConfigChangePending { .. }) => {
                    *last.lock() = Some(error);
                }
                changed => return changed,
            }
            group.wait_for(|status| status.pending_change.is_none(), LOOK_AGAIN).await;
            // What the status says may be of a moment ago.
            tokio::time::sleep(PAUSE).await;
            last.lock().take();
        }
    };
    AfterOthers { change, refused }
}

async fn membership_reply(
    timeout_ms: u64,
    after: AfterOthers<impl Future<Output = Result<Arc<Membership>, MembershipError>>>,
) -> Result<Response<wire::MembershipReply>, Status> {
    let changed = tokio::time::timeout(timeout_of(timeout_ms), after.change).await;
    let membership = changed
        .map_err(|_| match after.refused.lock().take() {
            Some(error) => of_membership(&error),
            None => Status::deadline_exceeded("the change continues; look at the members"),
        })?
        .map_err(|error| of_membership(&error))?;
    let membership = Some(membership_to_message(&membership));
    Ok(Response::new(wire::MembershipReply { membership }))
}

fn node_id(node: u64) -> Result<NodeId, Status> {
    NodeId::new(node).ok_or_else(|| Status::invalid_argument("nodes are numbered from 1"))
}

fn requirement_of(message: log::Requirement) -> Result<Requirement, Status> {
    let names = message.capabilities;
    let asked = match message.soft {
        true if !names.is_empty() => Requirement::soft(names),
        _ => Requirement::hard(names),
    };
    asked.map_err(|error| of_capabilities(&error))
}

fn with_step(
    change: MembershipChange,
    step: &wire::MembershipStep,
) -> Result<MembershipChange, Status> {
    let node = node_id(step.node)?;
    Ok(match step.kind() {
        StepKind::AddVoter => change.add_voter(node),
        StepKind::AddLearner => change.add_learner(node),
        StepKind::Promote => change.promote(node, caught_up(step)),
        StepKind::Demote => change.demote(node),
        StepKind::Remove => change.remove(node),
        StepKind::Unspecified => {
            let message = format!("this node knows no membership step {}", step.kind);
            return Err(Status::invalid_argument(message));
        }
    })
}

/// Entries that a learner may lack when nothing else is said.
const DEFAULT_MAX_LAG: u64 = 1_024;

fn caught_up(step: &wire::MembershipStep) -> CaughtUp {
    use wire::membership_step::CaughtUp as Wire;
    match step.caught_up {
        Some(Wire::AtLeast(index)) => CaughtUp::AtLeast(LogIndex::new(index)),
        Some(Wire::Unchecked(true)) => CaughtUp::Unchecked,
        Some(Wire::MaxLag(lag)) => CaughtUp::MaxLag(lag),
        _ => CaughtUp::MaxLag(DEFAULT_MAX_LAG),
    }
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
