//! Each alert fires when it should, and none does while all is well.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};

use super::exporter::Exporter;
use super::machine;
use super::prometheus::{Prometheus, alerts, document, is_installed};
use super::servers::Servers;

/// What is said while all is well.
const CALM: &[(&str, f64)] = &[
    ("shardhost_host_serving", 1.0),
    ("shardhost_host_impaired", 0.0),
    ("shardhost_founding_waiting", 0.0),
    ("shardhost_data_rolled_back", 0.0),
    ("shardhost_groups_leaderless", 0.0),
    ("shardhost_caretakers", 0.0),
    ("shardhost_groups_short", 0.0),
    ("shardhost_replicas_failed", 0.0),
    ("shardhost_replicas_stalled", 0.0),
    ("shardhost_replicas_in_doubt", 0.0),
    ("shardhost_groups_differing", 0.0),
    ("shardhost_state_damaged_parts", 0.0),
    ("shardhost_database_background_errors{database=\"log\"}", 0.0),
    ("shardhost_database_write_stops{database=\"log\"}", 0.0),
    ("shardhost_disk_free_bytes", 2e10),
    ("shardhost_disk_size_bytes", 1e11),
    ("shardhost_disk_low_bytes", 1e9),
    ("shardhost_apply_backlog_largest_entries", 10.0),
    ("shardhost_peer_live{peer=\"2\"}", 1.0),
    ("shardhost_peer_refused{peer=\"2\"}", 0.0),
    ("shardhost_clock_disagrees", 0.0),
    ("shardhost_client_memory_bytes", 1e6),
    ("shardhost_client_memory_limit_bytes", 1e8),
    ("shardhost_certificate_expiry_timestamp_seconds", 4e9),
    ("process_open_fds", 100.0),
    ("process_max_fds", 1000.0),
    ("shardhost_catalog_known", 1.0),
    ("shardhost_planner_runs", 1.0),
    ("shardhost_planner_stopped", 0.0),
    ("shardhost_planner_stuck_groups", 0.0),
    ("shardhost_allocator_stuck_groups", 0.0),
];

/// What grows with each scrape while all is well.
const CALM_GROWTH: &[(&str, f64)] = &[
    ("shardhost_log_write_duration_seconds_bucket{le=\"0.001\"}", 100.0),
    ("shardhost_log_write_duration_seconds_bucket{le=\"1\"}", 100.0),
    ("shardhost_log_write_duration_seconds_bucket{le=\"+Inf\"}", 100.0),
    ("shardhost_worker_round_duration_seconds_bucket{le=\"0.001\"}", 100.0),
    ("shardhost_worker_round_duration_seconds_bucket{le=\"1\"}", 100.0),
    ("shardhost_worker_round_duration_seconds_bucket{le=\"+Inf\"}", 100.0),
    ("shardhost_snapshots_not_made_total", 0.0),
    ("shardhost_snapshots_not_sent_total{reason=\"broken\"}", 0.0),
    ("shardhost_snapshots_not_received_total{reason=\"broken\"}", 0.0),
    ("shardhost_requests_total{kind=\"table\",access=\"write\",outcome=\"answered\"}", 100.0),
    ("shardhost_requests_total{kind=\"table\",access=\"write\",outcome=\"not-leader\"}", 50.0),
    ("shardhost_requests_total{kind=\"table\",access=\"write\",outcome=\"overloaded\"}", 0.0),
    ("shardhost_connections_refused_total", 0.0),
    ("shardhost_handshakes_refused_total", 0.0),
    ("shardhost_user_code_problems_total{code=\"hook\",problem=\"panicked\"}", 0.0),
];

/// What is wrong where an alert should fire: a value, or by how much a counter grows.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Value(&'static str, f64),
    Growth(&'static str, f64),
}

use Wrong::{Growth, Value};

/// All alerts but the one of a node that does not answer.
const WRONG: &[(&str, Wrong)] = &[
    ("ShardhostNotServing", Value("shardhost_host_serving", 0.0)),
    ("ShardhostImpaired", Value("shardhost_host_impaired", 1.0)),
    ("ShardhostFoundingWaits", Value("shardhost_founding_waiting", 1.0)),
    ("ShardhostDataRolledBack", Value("shardhost_data_rolled_back", 1.0)),
    ("ShardhostGroupsLeaderless", Value("shardhost_groups_leaderless", 3.0)),
    ("ShardhostCaretakers", Value("shardhost_caretakers", 1.0)),
    ("ShardhostGroupsShort", Value("shardhost_groups_short", 1.0)),
    ("ShardhostReplicasFailed", Value("shardhost_replicas_failed", 1.0)),
    ("ShardhostReplicasStalled", Value("shardhost_replicas_stalled", 1.0)),
    ("ShardhostReplicasInDoubt", Value("shardhost_replicas_in_doubt", 1.0)),
    ("ShardhostReplicasDiffer", Value("shardhost_groups_differing", 1.0)),
    ("ShardhostStateDamaged", Value("shardhost_state_damaged_parts", 1.0)),
    ("ShardhostDatabaseErrors", Value("shardhost_database_write_stops{database=\"log\"}", 1.0)),
    ("ShardhostDiskFull", Value("shardhost_disk_free_bytes", 5e8)),
    ("ShardhostDiskFillsUp", Growth("shardhost_disk_free_bytes", -1e8)),
    ("ShardhostLogSlow", Growth("shardhost_log_write_duration_seconds_bucket{le=\"0.001\"}", 0.0)),
    (
        "ShardhostWorkerSlow",
        Growth("shardhost_worker_round_duration_seconds_bucket{le=\"0.001\"}", 0.0),
    ),
    ("ShardhostApplyBehind", Value("shardhost_apply_backlog_largest_entries", 2e5)),
    ("ShardhostPeerLost", Value("shardhost_peer_live{peer=\"2\"}", 0.0)),
    ("ShardhostPeerRefused", Value("shardhost_peer_refused{peer=\"2\"}", 1.0)),
    ("ShardhostClockDisagrees", Value("shardhost_clock_disagrees", 1.0)),
    (
        "ShardhostSnapshotsFail",
        Growth("shardhost_snapshots_not_sent_total{reason=\"broken\"}", 5.0),
    ),
    (
        "ShardhostClientsFail",
        Growth(
            "shardhost_requests_total{kind=\"table\",access=\"write\",outcome=\"overloaded\"}",
            50.0,
        ),
    ),
    ("ShardhostClientMemoryFull", Value("shardhost_client_memory_bytes", 9.5e7)),
    ("ShardhostConnectionsRefused", Growth("shardhost_connections_refused_total", 1.0)),
    ("ShardhostHandshakesRefused", Growth("shardhost_handshakes_refused_total", 10.0)),
    ("ShardhostCertificateEnds", Value("shardhost_certificate_expiry_timestamp_seconds", 1e9)),
    ("ShardhostFilesRunOut", Value("process_open_fds", 950.0)),
    ("ShardhostCatalogUnknown", Value("shardhost_catalog_known", 0.0)),
    ("ShardhostPlannerMissing", Value("shardhost_planner_runs", 0.0)),
    ("ShardhostPlannerStopped", Value("shardhost_planner_stopped", 1.0)),
    ("ShardhostGroupsCannotMove", Value("shardhost_allocator_stuck_groups", 1.0)),
    (
        "ShardhostUserCodeFails",
        Growth("shardhost_user_code_problems_total{code=\"hook\",problem=\"panicked\"}", 1.0),
    ),
];

/// A node that says that all is well, but for this.
async fn node(wrong: Option<Wrong>) -> (Exporter, String) {
    let exporter = Exporter::default();
    for (series, value) in CALM {
        exporter.set(series, *value);
    }
    for (series, by) in CALM_GROWTH {
        exporter.grow(series, *by);
    }
    match wrong {
        Some(Value(series, value)) => exporter.set(series, value),
        Some(Growth(series, by)) => {
            let begins = CALM.iter().find(|(calm, _)| *calm == series).map(|(_, value)| *value);
            exporter.change(series, begins, by);
        }
        None => {}
    }
    let address = exporter.listen().await;
    (exporter, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_alert_fires_for_what_it_is_about_and_for_nothing_else() {
    const TEST: &str = "each_alert_fires_for_what_it_is_about_and_for_nothing_else";
    let named: BTreeSet<String> = WRONG.iter().map(|(alert, _)| (*alert).to_owned()).collect();
    let without = alerts().into_iter().filter(|alert| alert != "ShardhostNodeDown").collect();
    assert_eq!(named, without, "each alert has its case here");
    let what_to_do = document("../monitoring.md");
    for alert in alerts() {
        assert!(what_to_do.contains(&format!("| `{alert}` |")), "{alert} in docs/monitoring.md");
    }
    if !is_installed() {
        return machine::skipped(TEST, "`prometheus` is not installed");
    }
    let (calm, calm_at) = node(None).await;
    let prometheus = Prometheus::start(&[calm_at]).await;
    prometheus.settle().await;
    assert_eq!(prometheus.firing().await, BTreeSet::new(), "all is well");
    assert!(calm.scrapes() > 2, "{} scrapes", calm.scrapes());
    drop(prometheus);
    for cases in WRONG.chunks(6) {
        // Side by side, each beside a Prometheus of its own: one alert looks at all nodes together.
        let fire = cases.iter().map(|(alert, wrong)| async move {
            let (_exporter, address) = node(Some(*wrong)).await;
            let prometheus = Prometheus::start(&[address]).await;
            let fires = async || prometheus.firing().await.contains(*alert);
            prometheus.until(&format!("{alert} fires"), fires).await;
            let mut others = prometheus.firing().await;
            others.remove(*alert);
            assert_eq!(others, BTreeSet::new(), "beside {alert}");
        });
        futures::future::join_all(fire).await;
    }
    machine::ran(TEST);
}

/// The alerts that fire and are not about how fast and how full the machine of the test is.
async fn firing_of_cluster(prometheus: &Prometheus) -> BTreeSet<String> {
    let mut firing = prometheus.firing().await;
    for of_machine in ["ShardhostDiskFillsUp", "ShardhostLogSlow", "ShardhostWorkerSlow"] {
        firing.remove(of_machine);
    }
    firing
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_well_is_silent_and_one_that_loses_nodes_says_what_is_lost() {
    const TEST: &str =
        "a_cluster_that_is_well_is_silent_and_one_that_loses_nodes_says_what_is_lost";
    if !is_installed() {
        return machine::skipped(TEST, "`prometheus` is not installed");
    }
    let (mut servers, targets) = three().await;
    let prometheus = Prometheus::start(&targets).await;
    prometheus.settle().await;
    let silent = async || firing_of_cluster(&prometheus).await.is_empty();
    prometheus.until("no alert fires while all is well", silent).await;
    servers.kill(3).await;
    let writes = async || {
        let put = servers.run(1, &["table", "put", "color", "red", "--timeout", "5"]).await;
        let firing = prometheus.firing().await;
        let expected = ["ShardhostNodeDown", "ShardhostPeerLost", "ShardhostGroupsShort"];
        put.code == 0 && expected.iter().all(|alert| firing.contains(*alert))
    };
    prometheus.until("the alerts of a lost node fire", writes).await;
    servers.kill(2).await;
    let lost = async || prometheus.firing().await.contains("ShardhostGroupsLeaderless");
    prometheus.until("groups without a leader are noticed", lost).await;
    servers.start(2, &["--http-listen", &targets[1]]);
    servers.start(3, &["--http-listen", &targets[2]]);
    prometheus.until("all alerts are over", silent).await;
    machine::ran(TEST);
}

/// Three nodes that are well, and where each answers over HTTP.
pub async fn three() -> (Servers, Vec<String>) {
    let mut servers = Servers::new(3, "", "tables = 3\nqueues = 1");
    let free = |node: u64| {
        let own: SocketAddr = servers.address(node).parse().unwrap();
        TcpListener::bind((own.ip(), 0)).unwrap().local_addr().unwrap().to_string()
    };
    let targets: Vec<String> = (1..=3).map(free).collect();
    for (node, target) in (1..).zip(&targets) {
        servers.start(node, &["--http-listen", target]);
    }
    let well = || async { servers.run(1, &["status"]).await.code == 0 };
    servers.until("a cluster without problems", well).await;
    servers.run(1, &["table", "put", "color", "red"]).await.ok();
    (servers, targets)
}
