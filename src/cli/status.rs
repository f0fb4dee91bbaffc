//! `shardhost status`: the nodes of a cluster in a table.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use shardhost::proto::admin::{HostStatus, PeerStatus, PolicyMetrics};

use super::output::{Column, millis, number, table};
use super::policy_metrics::{policy_json, policy_text};
use super::requirement::{capabilities_text, draining_text};
use super::target::{Node, Target};

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
    let mut silent: BTreeMap<String, u64> = BTreeMap::new();
    let mut nodes = BTreeMap::new();
    for address in addresses(&first, target) {
        match Node::connect(&address).await {
            Ok(node) => drop(nodes.insert(node.status.node, node)),
            Err(_) => drop(silent.insert(address.clone(), number_of(&first, &address))),
        }
    }
    if target.json {
        println!("{}", as_json(&nodes, &silent));
    } else {
        println!("{}", as_table(&nodes, &silent));
        nodes.values().flat_map(|node| doubts(&node.status)).for_each(|line| println!("{line}"));
        nodes.values().flat_map(|node| alarms(&node.status)).for_each(|line| println!("{line}"));
        nodes.values().flat_map(|node| failures(&node.status)).for_each(|line| println!("{line}"));
        nodes.values().flat_map(|node| refusals(&node.status)).for_each(|line| println!("{line}"));
        if arguments.policy {
            println!("\n{}", policy_text(nodes.values().filter_map(counted)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a node waits for before it founds, and what it may have lost, in words.
fn doubts(status: &HostStatus) -> Vec<String> {
    let HostStatus { node, in_doubt, rollback, founding_waits_for, .. } = status;
    let unfounded = (!founding_waits_for.is_empty()).then(|| {
        format!("node {node}: the cluster is not founded by this node: {founding_waits_for}")
    });
    let rolled_back = rollback.as_ref().map(|rollback| {
        format!(
            "node {node}: the data directory was put back from an older copy: node {} saw start {}, \
             the directory knows none after {}; replace its replicas with `shardhost member replace`",
            rollback.by_node, rollback.known_incarnation, rollback.held_incarnation
        )
    });
    let waiting = (*in_doubt > 0).then(|| {
        format!(
            "node {node}: {} replicas may have lost acknowledged writes; each takes part in no \
             election before enough of its peers have said what they hold",
            number(*in_doubt)
        )
    });
    unfounded.into_iter().chain(rolled_back).chain(waiting).collect()
}

/// Of which groups a node knows that the replicas differ, in words.
fn alarms(status: &HostStatus) -> Vec<String> {
    let HostStatus { node, differing, differing_groups, .. } = status;
    let shown = differing_groups.iter().map(|group| {
        format!("node {node}: the replicas of group {group} differ, and there is no majority")
    });
    let hidden = differing.saturating_sub(differing_groups.len() as u64);
    let more = (hidden > 0).then(|| {
        let count = number(hidden);
        format!("node {node}: so do those of {count} more groups; see `shardhost group show`")
    });
    shown.chain(more).collect()
}

/// Which replicas of a node failed, in words.
fn failures(status: &HostStatus) -> Vec<String> {
    let HostStatus { node, failed, failed_replicas, .. } = status;
    let shown = failed_replicas.iter().map(|one| {
        format!("node {node}: the replica of group {} failed: {}", one.group, one.cause)
    });
    let hidden = failed.saturating_sub(failed_replicas.len() as u64);
    let more = (hidden > 0 && !failed_replicas.is_empty())
        .then(|| format!("node {node}: {} more; see `shardhost group list`", number(hidden)));
    shown.chain(more).collect()
}

/// Which processes the node refuses, and who refuses it, in words.
fn refusals(status: &HostStatus) -> Vec<String> {
    let node = status.node;
    let line = |peer: &PeerStatus| {
        let refused = (!peer.refused.is_empty())
            .then(|| format!("node {} is refused by node {node}: {}", peer.node, peer.refused));
        let refused_by = (!peer.refused_by.is_empty())
            .then(|| format!("node {node} is refused by node {}: {}", peer.node, peer.refused_by));
        [refused, refused_by]
    };
    status.peers.iter().flat_map(line).flatten().collect()
}

/// What a node counted, unless it is of an older version.
fn counted(node: &Node) -> Option<(u64, &PolicyMetrics)> {
    node.status.policy.as_ref().map(|metrics| (node.status.node, metrics))
}

/// All addresses to ask; the peers of one node are those of all.
fn addresses(first: &Node, target: &Target) -> BTreeSet<String> {
    let peers = first.status.peers.iter().map(|peer| peer.address.clone());
    let known = peers.filter(|address| !address.is_empty());
    known.chain(target.at.iter().cloned()).collect()
}

fn number_of(node: &Node, address: &str) -> u64 {
    let peer = node.status.peers.iter().find(|peer| peer.address == address);
    peer.map_or(0, |peer| peer.node)
}

const COLUMNS: [Column; 14] = [
    Column::Right("node"),
    Column::Left("address"),
    Column::Right("groups"),
    Column::Right("leaders"),
    Column::Right("caretakers"),
    Column::Right("asleep"),
    Column::Right("failed"),
    Column::Right("acknowledged"),
    Column::Right("ops/s"),
    Column::Right("p50"),
    Column::Right("p99"),
    Column::Right("up"),
    Column::Left("capabilities"),
    Column::Left("draining"),
];

fn as_table(nodes: &BTreeMap<u64, Node>, silent: &BTreeMap<String, u64>) -> String {
    let answered = nodes.values().map(|node| row(&node.address, &node.status));
    let missing = silent.iter().map(|(address, node)| {
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
        address.to_owned(),
        number(status.groups),
        number(status.leaders),
        number(status.caretakers),
        number(status.asleep),
        number(status.failed),
        number(status.proposals),
        number(status.ops_per_second as u64),
        millis(status.p50_us),
        millis(status.p99_us),
        format!("{} s", number(status.uptime_ms / 1_000)),
        capabilities_text(status.advert.as_ref()),
        draining_text(status.advert.as_ref()).to_owned(),
    ]
}

fn as_json(nodes: &BTreeMap<u64, Node>, silent: &BTreeMap<String, u64>) -> Value {
    let nodes: Vec<Value> = nodes.values().map(node_json).collect();
    let silent: Vec<&String> = silent.keys().collect();
    json!({ "nodes": nodes, "no_answer": silent })
}

fn node_json(node: &Node) -> Value {
    let status = &node.status;
    let peers: Vec<Value> = status
        .peers
        .iter()
        .map(|peer| {
            json!({
                "node": peer.node,
                "address": peer.address,
                "connected": peer.connected,
                "live": peer.live,
                "messages_sent": peer.messages_sent,
                "messages_dropped": peer.messages_dropped,
                "frames_sent": peer.frames_sent,
                "reconnects": peer.reconnects,
                "capabilities": peer.advert.as_ref().map(|advert| &advert.capabilities),
                "draining": peer.advert.as_ref().map(|advert| advert.draining),
                "refused": Some(&peer.refused).filter(|cause| !cause.is_empty()),
                "refused_by": Some(&peer.refused_by).filter(|cause| !cause.is_empty()),
            })
        })
        .collect();
    json!({
        "node": status.node,
        "address": node.address,
        "cluster": status.cluster,
        "version": status.version,
        "incarnation": status.incarnation,
        "uptime_ms": status.uptime_ms,
        "groups": status.groups,
        "leaders": status.leaders,
        "caretakers": status.caretakers,
        "capabilities": status.advert.as_ref().map(|advert| &advert.capabilities),
        "draining": status.advert.as_ref().map(|advert| advert.draining),
        "asleep": status.asleep,
        "failed": status.failed,
        "failed_replicas": status.failed_replicas.iter().map(|one| json!({
            "group": one.group,
            "cause": one.cause,
        })).collect::<Vec<_>>(),
        "differing": status.differing,
        "differing_groups": status.differing_groups,
        "in_doubt": status.in_doubt,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_refused_and_whoever_refuses_are_named_with_the_cause() {
        let peer = |node, refused: &str, refused_by: &str| PeerStatus {
            node,
            refused: refused.to_owned(),
            refused_by: refused_by.to_owned(),
            ..PeerStatus::default()
        };
        let peers =
            vec![peer(2, "a later start was seen", ""), peer(3, "", "unknown"), peer(4, "", "")];
        let status = HostStatus { node: 1, peers, ..HostStatus::default() };
        assert_eq!(
            refusals(&status),
            [
                "node 2 is refused by node 1: a later start was seen",
                "node 1 is refused by node 3: unknown",
            ]
        );
    }

    #[test]
    fn groups_whose_replicas_differ_are_named() {
        let status = HostStatus {
            node: 2,
            differing: 12,
            differing_groups: vec![7, 9],
            ..HostStatus::default()
        };
        assert_eq!(
            alarms(&status),
            [
                "node 2: the replicas of group 7 differ, and there is no majority",
                "node 2: the replicas of group 9 differ, and there is no majority",
                "node 2: so do those of 10 more groups; see `shardhost group show`",
            ]
        );
        assert!(alarms(&HostStatus::default()).is_empty());
    }
}
