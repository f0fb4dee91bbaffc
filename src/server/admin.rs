//! What operators ask of a host, over gRPC.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_groups::runtime::LatencySnapshot;
use shardhost_groups::{Group, GroupId, NodeId, Role};
use shardhost_proto::admin as wire;
use shardhost_proto::admin::admin_server::{Admin, AdminServer};
use shardhost_proto::log;
use tonic::{Request, Response, Status};

use crate::host::Host;

/// Rates and quantiles are of about this much time.
const WINDOW: Duration = Duration::from_secs(5);
/// Times at which the window is looked at, at most.
const SAMPLES: usize = 64;
/// A deadline that nobody set.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The admin service of a host.
pub fn admin_server(host: Host) -> AdminServer<AdminService> {
    let started = Instant::now();
    let first = (started, host.runtime().latency().snapshot());
    let samples = Arc::new(Mutex::new(VecDeque::from([first])));
    AdminServer::new(AdminService { host, started, samples })
}

/// See [`admin_server`].
#[derive(Debug)]
pub struct AdminService {
    host: Host,
    started: Instant,
    samples: Arc<Mutex<VecDeque<(Instant, LatencySnapshot)>>>,
}

impl AdminService {
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

    fn peers(&self) -> Vec<wire::PeerStatus> {
        let stats = self.host.transport_stats();
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
        });
        peers.collect()
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
        let statuses: Vec<_> = groups.iter().map(Group::status).collect();
        let count = |test: &dyn Fn(&shardhost_groups::GroupStatus) -> bool| {
            statuses.iter().filter(|status| test(status)).count() as u64
        };
        let stats = self.host.stats();
        let (window, seconds) = self.window();
        Ok(Response::new(wire::HostStatus {
            node: self.host.node_id().get(),
            cluster: self.host.config().cluster.clone(),
            incarnation: self.host.incarnation(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            groups: groups.len() as u64,
            leaders: count(&|status| status.is_leader()),
            asleep: count(&|status| status.asleep),
            failed: count(&|status| matches!(status.role, Role::Failed(_))),
            proposals: stats.acknowledged,
            log_writes: stats.log_writes,
            log_groups_written: stats.log_group_writes,
            log_bytes: stats.log_bytes,
            rounds: stats.workers.rounds,
            peers: self.peers(),
            ops_per_second: window.count() as f64 / seconds,
            p50_us: window.quantile_us(500),
            p99_us: window.quantile_us(990),
            counters: self.counters(),
        }))
    }

    async fn list_groups(
        &self,
        _: Request<wire::ListGroupsRequest>,
    ) -> Result<Response<wire::GroupList>, Status> {
        let groups = self.host.groups().iter().map(group_status).collect();
        Ok(Response::new(wire::GroupList { groups }))
    }

    async fn show_group(
        &self,
        request: Request<wire::ShowGroupRequest>,
    ) -> Result<Response<wire::GroupStatus>, Status> {
        Ok(Response::new(group_status(&self.group(request.into_inner().group)?)))
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
        let within = timeout_of(request.timeout_ms);
        let moved = tokio::time::timeout(within, group.transfer_leadership(to)).await;
        let moved = moved
            .map_err(|_| Status::deadline_exceeded("the transfer goes on; its outcome is unknown"))?
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(wire::TransferLeaderReply {
            to_node: moved.to.get(),
            term: moved.term.get(),
            took_us: u64::try_from(moved.took.as_micros()).unwrap_or(u64::MAX),
        }))
    }

    async fn checksum(
        &self,
        request: Request<wire::ChecksumRequest>,
    ) -> Result<Response<wire::ChecksumReply>, Status> {
        let request = request.into_inner();
        let group = self.group(request.group)?;
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

const fn timeout_of(millis: u64) -> Duration {
    match millis {
        0 => DEFAULT_TIMEOUT,
        millis => Duration::from_millis(millis),
    }
}

fn group_status(group: &Group) -> wire::GroupStatus {
    let status = group.status();
    let fault = match &status.role {
        Role::Failed(fault) => fault.to_string(),
        _ => String::new(),
    };
    let peers = status.peers.iter().map(|peer| wire::PeerProgress {
        replica: peer.replica.get(),
        node: peer.node.get(),
        matched: peer.matched.get(),
        next: peer.next.get(),
        state: peer.state.to_owned(),
        recently_active: peer.recently_active,
    });
    wire::GroupStatus {
        group: status.id.get(),
        replica: status.replica.get(),
        kind: group.kind().to_owned(),
        role: status.role.name().to_owned(),
        term: status.term.get(),
        leader_node: status.leader.map_or(0, |leader| leader.node.get()),
        first_index: status.first.get(),
        last_index: status.last.get(),
        committed: status.committed.get(),
        applied: status.applied.get(),
        snapshot: status.snapshot.map(|position| log::LogPosition {
            term: position.term.get(),
            index: position.index.get(),
        }),
        membership: Some(shardhost_storage::convert::membership_to_message(&status.membership)),
        asleep: status.asleep,
        fault,
        transferring_to_node: status.transferring_to.map_or(0, NodeId::get),
        peers: peers.collect(),
    }
}
