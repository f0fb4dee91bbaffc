//! What a host says of itself and of all its replicas together.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

use shardhost::transport::TransportStats;
use shardhost_groups::latency::LatencySnapshot;
use shardhost_groups::{Group, NodeId, Role};
use shardhost_proto::admin as wire;
use shardhost_security::Credentials;

use super::metrics::policy_metrics;
use super::shown::{
    absent, advertisement_to_wire, count_of, differing_groups, failed_replicas, impairment,
    leaderless, missing, short_voters, shrunk, stalled,
};
use super::{AdminService, LOOK_TIMEOUT, SAMPLES, WINDOW};

impl AdminService {
    pub(super) async fn host_status(&self) -> wire::HostStatus {
        wire::HostStatus { missing: self.missing().await, ..self.known_status() }
    }

    /// The groups of which a replica should be here; `None`: the catalog was not read. While the log hangs it is
    /// not known which of them were removed here: all are named then.
    async fn missing(&self) -> Option<wire::GroupCount> {
        let absent = absent(&self.host, self.intentions.view().as_deref()?);
        let all = count_of(absent.iter().map(|(group, _)| *group));
        if absent.is_empty() {
            return Some(all);
        }
        let (host, looks) = (self.host.clone(), Arc::clone(&self.looks));
        let look = async move {
            let turn = looks.acquire_owned().await.ok()?;
            let look = tokio::task::spawn_blocking(move || (missing(&host, absent), turn));
            look.await.ok().map(|(missing, _)| missing)
        };
        Some(tokio::time::timeout(LOOK_TIMEOUT, look).await.ok().flatten().unwrap_or(all))
    }

    fn known_status(&self) -> wire::HostStatus {
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
        wire::HostStatus {
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
            certificate_ends_ms: self.certificate_ends_ms(),
            client_address: self.client_address(self.host.node_id()),
            admin_address: self.admin_address(self.host.node_id()),
            address: self.address(self.host.node_id()),
            clock: clock.map(|alarm| alarm.to_string()).unwrap_or_default(),
            stalled: stalled(&statuses),
            short: short_voters(&statuses, &live),
            shrunk: view.as_deref().map(|view| shrunk(&statuses, view)),
            // Asked apart: the log is read for it.
            missing: None,
            has_catalog: self.intentions.has_catalog(),
            catalog_known: view.is_some(),
            unrecovered: self.unrecovered(),
        }
    }

    /// Where nodes reach a node.
    fn address(&self, node: NodeId) -> String {
        self.host.directory().address(node).unwrap_or_default()
    }

    /// Where clients reach a node; empty: where nodes do.
    fn client_address(&self, node: NodeId) -> String {
        self.host.own_client_address(node).unwrap_or_default()
    }

    /// Where operators reach a node; empty: where nodes do.
    fn admin_address(&self, node: NodeId) -> String {
        self.host.own_admin_address(node).unwrap_or_default()
    }

    /// When the certificate of the node ends, in Unix milliseconds; 0: it has none.
    fn certificate_ends_ms(&self) -> u64 {
        let facts = self.host.config().credentials.as_ref().and_then(Credentials::facts);
        let ends = facts.and_then(|facts| facts.not_after.duration_since(UNIX_EPOCH).ok());
        ends.map_or(0, |ends| u64::try_from(ends.as_millis()).unwrap_or(u64::MAX))
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
        let peers = stats.peers.iter().map(|peer| wire::PeerStatus {
            node: peer.node.get(),
            address: self.address(peer.node),
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
            client_address: self.client_address(peer.node),
            admin_address: self.admin_address(peer.node),
        });
        peers.collect()
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
