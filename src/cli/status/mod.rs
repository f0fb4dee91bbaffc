//! `shardhost status`: the nodes of a cluster in a table, and whether all is well with them.

mod findings;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use shardhost_proto::admin::{HostStatus, PolicyMetrics};

use self::findings::{certificate_left, days, findings};
use super::catalog::Catalog;
use super::output::{Column, address_for, by_count, counted, millis, number, reached_at, table};
use super::policy_metrics::{policy_json, policy_text};
use super::requirement::{capabilities_text, draining_text};
use super::shown::shown;
use super::target::{Node, Target};

/// How long the catalog may take to answer.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(3);

/// What to show.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// Show what became of leaderships, too: transfers, refusals by reason, how long users waited.
    #[arg(long)]
    policy: bool,
    #[command(flatten)]
    target: Target,
}

/// Shows the nodes that the arguments name and those that they know of.
pub async fn run(arguments: &StatusArguments) -> anyhow::Result<ExitCode> {
    let target = &arguments.target;
    let first = target.node().await?;
    let (mut nodes, mut silent) = (BTreeMap::new(), BTreeMap::new());
    // Side by side: one that hangs keeps the others from nothing.
    let asked = addresses(&first, target).into_iter().map(|address| async move {
        let answer = Node::connect(&address).await;
        (address, answer)
    });
    let (answers, catalog) =
        futures::future::join(futures::future::join_all(asked), catalog_trouble(&first, target))
            .await;
    for (address, answer) in answers {
        match answer {
            Ok(node) => drop(nodes.insert(node.status.node, node)),
            Err(error) => {
                let number = number_of(&first, &address);
                silent.insert(address, (number, format!("{error:#}")));
            }
        }
    }
    let findings = findings(nodes.values().map(|node| &node.status), &silent, catalog);
    if target.json {
        println!("{}", as_json(&nodes, &silent, &findings));
    } else {
        println!("{}", as_table(&nodes, &silent));
        findings.iter().for_each(|line| println!("{}", shown(line)));
        println!("{}", verdict(nodes.len(), &findings));
        if arguments.policy {
            println!("\n{}", policy_text(nodes.values().filter_map(policy_of)));
        }
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Nodes that did not answer, by address: their number, if it is known, and why.
type Silent = BTreeMap<String, (u64, String)>;

/// Why the catalog cannot be changed; `None`: it can, or there is none.
async fn catalog_trouble(first: &Node, target: &Target) -> Option<String> {
    if !first.status.has_catalog {
        return None;
    }
    let asked = async { Catalog::reach(target).await?.check().await };
    match tokio::time::timeout(CATALOG_TIMEOUT, asked).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(format!("the catalog does not answer: {error:#}")),
        Err(_) => Some(format!(
            "the catalog does not answer within {} s: nothing is created, destroyed or planned; \
             `shardhost group show 0` says more",
            CATALOG_TIMEOUT.as_secs()
        )),
    }
}

fn verdict(nodes: usize, findings: &[String]) -> String {
    let answer = by_count(nodes as u64, "answers", "answer");
    let nodes = counted(nodes as u64, "node");
    match findings.len() as u64 {
        0 => format!("all is well: {nodes} {answer}, and every group has a leader"),
        more => format!("NOT WELL: {}; {nodes} {answer}", counted(more, "finding")),
    }
}

/// What a node counted, unless it is of an older version.
fn policy_of(node: &Node) -> Option<(u64, &PolicyMetrics)> {
    node.status.policy.as_ref().map(|metrics| (node.status.node, metrics))
}

/// All addresses to ask; the peers of one node are those of all.
fn addresses(first: &Node, target: &Target) -> BTreeSet<String> {
    let peers = first.peers().map(|(_, address)| address.to_owned());
    let known = peers.filter(|address| !address.is_empty());
    known.chain(target.at.iter().cloned()).collect()
}

fn number_of(node: &Node, address: &str) -> u64 {
    node.peers().find(|(_, at)| *at == address).map_or(0, |(peer, _)| peer)
}

const COLUMNS: [Column; 14] = [
    Column::Right("node"),
    Column::Left("address"),
    Column::Right("groups"),
    Column::Right("leaders"),
    Column::Right("caretakers"),
    Column::Right("hibernating"),
    Column::Right("failed"),
    Column::Right("acknowledged"),
    Column::Right("ops/s"),
    Column::Right("p50"),
    Column::Right("p99"),
    Column::Right("up"),
    Column::Left("capabilities"),
    Column::Left("draining"),
];

fn as_table(nodes: &BTreeMap<u64, Node>, silent: &Silent) -> String {
    let answered = nodes.values().map(|node| row(node.address_of_nodes(), &node.status));
    let missing = silent.iter().map(|(address, (node, _))| {
        let mut row = vec!["-".to_owned(); COLUMNS.len()];
        row[0] = if *node == 0 { "?".to_owned() } else { node.to_string() };
        row[1] = format!("{address} (no answer)");
        row
    });
    table(&COLUMNS, answered.chain(missing))
}

fn row(address: &str, status: &HostStatus) -> Vec<String> {
    vec![
        status.node.to_string(),
        reached_at(address, &status.admin_address, &status.client_address),
        number(status.groups),
        number(status.leaders),
        number(status.caretakers),
        number(status.hibernating),
        number(status.failed),
        number(status.proposals),
        number(status.ops_per_second as u64),
        millis(status.p50_us),
        millis(status.p99_us),
        format!("{} s", number(status.uptime_ms / 1_000)),
        capabilities_text(status.advertisement.as_ref()),
        draining_text(status.advertisement.as_ref()).to_owned(),
    ]
}

fn as_json(nodes: &BTreeMap<u64, Node>, silent: &Silent, findings: &[String]) -> Value {
    let nodes: Vec<Value> = nodes.values().map(node_json).collect();
    let silent: Vec<&String> = silent.keys().collect();
    json!({
        "nodes": nodes,
        "no_answer": silent,
        "healthy": findings.is_empty(),
        "findings": findings,
    })
}

fn node_json(node: &Node) -> Value {
    let (status, address) = (&node.status, node.address_of_nodes());
    let peers: Vec<Value> = status
        .peers
        .iter()
        .map(|peer| {
            json!({
                "node": peer.node,
                "address": peer.address,
                "admin_address": address_for(&peer.address, &peer.admin_address),
                "client_address": address_for(&peer.address, &peer.client_address),
                "connected": peer.connected,
                "live": peer.live,
                "messages_sent": peer.messages_sent,
                "messages_dropped": peer.messages_dropped,
                "frames_sent": peer.frames_sent,
                "reconnects": peer.reconnects,
                "capabilities": peer.advertisement.as_ref().map(|advertisement| &advertisement.capabilities),
                "draining": peer.advertisement.as_ref().map(|advertisement| advertisement.draining),
                "refused": Some(&peer.refused).filter(|cause| !cause.is_empty()),
                "refused_by": Some(&peer.refused_by).filter(|cause| !cause.is_empty()),
            })
        })
        .collect();
    json!({
        "node": status.node,
        "address": address,
        "admin_address": address_for(address, &status.admin_address),
        "client_address": address_for(address, &status.client_address),
        "cluster": status.cluster,
        "version": status.version,
        "incarnation": status.incarnation,
        "uptime_ms": status.uptime_ms,
        "certificate_days": certificate_left(status).map(days),
        "groups": status.groups,
        "leaders": status.leaders,
        "caretakers": status.caretakers,
        "capabilities": status.advertisement.as_ref().map(|advertisement| &advertisement.capabilities),
        "draining": status.advertisement.as_ref().map(|advertisement| advertisement.draining),
        "hibernating": status.hibernating,
        "failed": status.failed,
        "failed_replicas": status.failed_replicas.iter().map(|one| json!({
            "group": one.group,
            "cause": one.cause,
        })).collect::<Vec<_>>(),
        "differing": status.differing,
        "differing_groups": status.differing_groups,
        "in_doubt": status.in_doubt,
        "leaderless": status.leaderless.as_ref().map_or(0, |groups| groups.count),
        "shrunk": status.shrunk.as_ref().map_or(0, |groups| groups.count),
        "missing": status.missing.as_ref().map_or(0, |groups| groups.count),
        "founding_waits_for": Some(&status.founding_waits_for).filter(|text| !text.is_empty()),
        "rollback": status.rollback.as_ref().map(|rollback| json!({
            "by_node": rollback.by_node,
            "known_incarnation": rollback.known_incarnation,
            "held_incarnation": rollback.held_incarnation,
        })),
        "acknowledged": status.proposals,
        "ops_per_second": status.ops_per_second,
        "p50_us": status.p50_us,
        "p99_us": status.p99_us,
        "log_writes": status.log_writes,
        "log_groups_written": status.log_groups_written,
        "log_bytes": status.log_bytes,
        "counters": status.counters,
        "policy": status.policy.as_ref().map(policy_json),
        "peers": peers,
    })
}
