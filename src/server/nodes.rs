//! The nodes of the cluster as the catalog knows them, and the registration of one that joins.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shardhost_groups::NodeId;
use shardhost_proto::admin as wire;
use shardhost_proto::shard_map::{QUEUE_KIND, TABLE_KIND};
use shardhost_proto::version::ClusterVersion;
use shardhost_security::Caller;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::catalog::of_catalog;
use super::refusals::refusal;
use shardhost::driver::{CatalogError, System};
use shardhost::host::Host;
use shardhost::transport::address::check_reachable;
use shardhost_policy::catalog::{
    Name, NewNode, NodeRecord, Operation, Refusal, Revision, Subject, UNKNOWN_STORE, View,
};

/// How long the catalog may take to learn of the last change of a group's members.
const REPORTED_WITHIN: Duration = Duration::from_secs(5);
const REPORT_LOOK: Duration = Duration::from_millis(200);
/// How often another number is tried when another node was faster.
const ATTEMPTS: usize = 64;

/// The catalog's nodes, and how long each has been silent here.
pub(super) async fn list(host: &Host, system: Option<&System>) -> Result<wire::NodeList, Status> {
    let system = system.ok_or_else(no_catalog)?;
    let view = system.fresh_view().await.map_err(|error| of_catalog(&error))?;
    let mut nodes = known_nodes(&view);
    let mut silent = BTreeMap::from([(host.node_id().get(), Duration::ZERO)]);
    for peer in host.transport_stats().peers {
        silent.extend(peer.silent_for.map(|silent_for| (peer.node.get(), silent_for)));
    }
    for node in &mut nodes {
        let silent_for = silent.get(&node.node).map(Duration::as_millis);
        node.silent_ms = silent_for.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX));
        let Some(id) = NodeId::new(node.node) else { continue };
        node.client_address = host.own_client_address(id).unwrap_or_default();
        node.admin_address = host.own_admin_address(id).unwrap_or_default();
    }
    Ok(wire::NodeList { nodes, revision: view.revision().get() })
}

/// Forgets a node for good. At the first version of the cluster the number is not remembered; it is removed
/// all the same, because the version is not raised while the node is there and does not answer.
pub(super) async fn remove(
    host: &Host,
    system: Option<&System>,
    node: NodeId,
) -> Result<wire::NodeList, Status> {
    let system = system.ok_or_else(no_catalog)?;
    let view = system.fresh_view().await.map_err(|error| of_catalog(&error))?;
    if view.settings().removed_nodes.contains(&node) {
        let message = format!("node {node} was removed before");
        return Err(refusal(Code::NotFound, "NODE_REMOVED", message, []));
    }
    if !view.nodes().contains_key(&node) {
        return Err(of_catalog(&Refusal::UnknownNode { node }.into()));
    }
    if host.hears(node) {
        let message = format!(
            "node {node} runs; move its replicas away (`shardhost node decommission {node}`) and stop it first"
        );
        return Err(refusal(Code::FailedPrecondition, "NODE_RUNS", message, []));
    }
    let deadline = Instant::now() + REPORTED_WITHIN;
    let removed = loop {
        match system.catalog().apply(Operation::RemoveNode { node }).await {
            Ok(done) => break done,
            // Leaders report the members of their groups a moment after a change.
            Err(CatalogError::Refused(Refusal::NodeInUse { .. })) if Instant::now() < deadline => {
                tokio::time::sleep(REPORT_LOOK).await;
            }
            Err(error) => return Err(of_catalog(&error)),
        }
    };
    let view = system.view_at(removed.revision).await.map_err(|error| of_catalog(&error))?;
    Ok(wire::NodeList { nodes: known_nodes(&view), revision: view.revision().get() })
}

/// The request of a node whose certificate names its number: it joins as that one.
pub(super) fn as_certified(
    mut request: wire::JoinRequest,
    caller: &Caller,
) -> Result<wire::JoinRequest, Status> {
    let Caller::Node(certified) = caller else { return Ok(request) };
    if request.node > 0 && request.node != certified.get() {
        let message = format!(
            "node {} is to join, and its certificate is for node {certified}; give it one with its number",
            request.node
        );
        return Err(refusal(Code::PermissionDenied, "OTHER_CERTIFICATE", message, []));
    }
    request.node = certified.get();
    Ok(request)
}

/// Registers a node that joins.
pub(super) async fn join(
    host: &Host,
    system: Option<&System>,
    request: &wire::JoinRequest,
) -> Result<wire::JoinReply, Status> {
    let system = system.ok_or_else(no_catalog)?;
    check_request(host, request)?;
    for _ in 0..ATTEMPTS {
        let view = system.fresh_view().await.map_err(|error| of_catalog(&error))?;
        check_version(&view, request)?;
        let id = match reserved(&view, request)? {
            Some(id) => return reply(host, &view, id),
            None => number_for(host, &view, request)?,
        };
        let new = new_node(id, request).map_err(|refused| of_catalog(&refused.into()))?;
        let done = system.catalog().apply_expecting(Revision::default(), Operation::PutNode(new));
        match done.await {
            Ok(done) => {
                let view = system.view_at(done.revision).await;
                return reply(host, &*view.map_err(|error| of_catalog(&error))?, id);
            }
            // Another one took the number.
            Err(CatalogError::Refused(Refusal::WrongRevision { .. })) => {}
            Err(error) => return Err(of_catalog(&error)),
        }
    }
    let message = "other nodes join all the time; try again";
    Err(refusal(Code::Aborted, "NODES_JOIN", message, []))
}

pub(super) fn no_catalog() -> Status {
    let message = "this cluster keeps no catalog, in which nodes are registered; name the nodes in the \
                   configuration of each";
    refusal(Code::FailedPrecondition, "NO_CATALOG", message, [])
}

fn check_request(host: &Host, request: &wire::JoinRequest) -> Result<(), Status> {
    let own = &host.config().cluster;
    if !request.cluster.is_empty() && request.cluster != *own {
        let theirs: String = request.cluster.chars().take(64).collect();
        let message = format!("this is cluster {own:?}, the node is to join {theirs:?}");
        return Err(refusal(Code::FailedPrecondition, "OTHER_CLUSTER", message, []));
    }
    check_reachable(&request.address)
        .map_err(|error| refusal(Code::InvalidArgument, "BAD_ADDRESS", error, []))
}

fn check_version(view: &View, request: &wire::JoinRequest) -> Result<(), Status> {
    let (theirs, present) =
        (ClusterVersion::new(request.newest_version), view.settings().cluster_version);
    if theirs >= present {
        return Ok(());
    }
    let message = format!(
        "the cluster is at version {present}, the node takes part up to version {theirs}; start a later program"
    );
    Err(refusal(Code::FailedPrecondition, "CLUSTER_VERSION", message, []))
}

/// The number that the nodes' configuration gives to this address, of a node that the catalog does not
/// know.
fn configured(host: &Host, view: &View, address: &str) -> Option<NodeId> {
    let all = host.directory().addresses();
    let mut at_address = all.iter().filter(|(node, at)| {
        at.as_str() == address && !view.nodes().contains_key(*node) && **node != host.node_id()
    });
    at_address.next().map(|(node, _)| *node)
}

/// The number that an earlier request from this address got, whose node was never seen.
fn reserved(view: &View, request: &wire::JoinRequest) -> Result<Option<NodeId>, Status> {
    let mut nodes = view.nodes().values();
    let Some(there) = nodes.find(|node| *node.address == *request.address) else { return Ok(None) };
    let fits = request.node == 0 || there.id.get() == request.node;
    if there.store == UNKNOWN_STORE && fits {
        return Ok(Some(there.id));
    }
    let (id, address) = (there.id, &request.address);
    let message = match there.store == UNKNOWN_STORE {
        true => {
            format!("{address} was given to node {id}, which did not come yet; join as that one")
        }
        false => format!(
            "node {id} is reached at {address}: if this is that node with an empty disk, start it with \
             its number and its configuration, and give it its replicas by `shardhost member rebuild {id}`"
        ),
    };
    Err(refusal(Code::AlreadyExists, "ADDRESS_TAKEN", message, []))
}

/// A number that no node has, nor had as far as is known here.
fn number_for(host: &Host, view: &View, request: &wire::JoinRequest) -> Result<NodeId, Status> {
    if let Some(id) = configured(host, view, &request.address) {
        if request.node > 0 && request.node != id.get() {
            let message = format!(
                "{} is that of node {id} in the configuration of node {}; join as that one",
                request.address,
                host.node_id()
            );
            return Err(refusal(Code::AlreadyExists, "ADDRESS_TAKEN", message, []));
        }
        return Ok(id);
    }
    if request.node > 0 {
        let removed = &view.settings().removed_nodes;
        if let Some(id) = removed.iter().find(|id| id.get() == request.node) {
            return Err(of_catalog(&Refusal::NodeRemoved { node: *id }.into()));
        }
        let Some(id) = NodeId::new(request.node).filter(|id| !is_known(host, view, *id)) else {
            let message = format!(
                "there is a node {} already; join without a number, or with another one",
                request.node
            );
            return Err(refusal(Code::AlreadyExists, "NODE_EXISTS", message, []));
        };
        return Ok(id);
    }
    let configured = host.directory().addresses();
    let members =
        view.groups().values().flat_map(|group| group.founders.iter().chain(group.members()));
    let removed = view.settings().removed_nodes.iter();
    let known = view.nodes().keys().chain(configured.keys()).chain(members).chain(removed);
    let newest = known.map(|node| node.get()).max().unwrap_or(0);
    newest.checked_add(1).and_then(NodeId::new).ok_or_else(|| {
        refusal(Code::ResourceExhausted, "NO_NUMBER", "all numbers of nodes are taken", [])
    })
}

fn is_known(host: &Host, view: &View, id: NodeId) -> bool {
    view.nodes().contains_key(&id) || host.directory().address(id).is_some()
}

fn new_node(id: NodeId, request: &wire::JoinRequest) -> Result<NewNode, Refusal> {
    let zone = (!request.zone.is_empty()).then(|| Name::new(Subject::Zone, &request.zone));
    let (address, weight) = (request.address.clone(), request.weight);
    Ok(NewNode { id, address, zone: zone.transpose()?, weight, store: UNKNOWN_STORE })
}

fn reply(host: &Host, view: &View, id: NodeId) -> Result<wire::JoinReply, Status> {
    let map = view.settings().shard_map.clone().ok_or_else(|| {
        let message = "the shards of the cluster are not recorded yet; try again";
        refusal(Code::Unavailable, "NOT_FOUNDED", message, [])
    })?;
    let count = |kind: &str| map.kinds.get(kind).map_or(0, |shards| shards.count);
    let mut nodes = known_nodes(view);
    // Those that are configured and were not seen yet. No two nodes have one address.
    let taken: BTreeSet<&str> = view.nodes().values().map(|node| &*node.address).collect();
    for (node, address) in host.directory().addresses().iter() {
        if !view.nodes().contains_key(node) && !taken.contains(address.as_str()) {
            let (node, address) = (node.get(), address.clone());
            nodes.push(wire::KnownNode { node, address, ..wire::KnownNode::default() });
        }
    }
    let cluster = host.config().cluster.clone();
    let (tables, queues) = (count(TABLE_KIND), count(QUEUE_KIND));
    Ok(wire::JoinReply { node: id.get(), cluster, nodes, tables, queues })
}

fn known_nodes(view: &View) -> Vec<wire::KnownNode> {
    let mut replicas: BTreeMap<NodeId, u64> = BTreeMap::new();
    for node in view.groups().values().flat_map(|group| group.members()) {
        *replicas.entry(*node).or_default() += 1;
    }
    let count = |node: NodeId| replicas.get(&node).copied().unwrap_or(0);
    view.nodes().values().map(|node| known_node(view, node, count(node.id))).collect()
}

fn known_node(view: &View, node: &NodeRecord, replicas: u64) -> wire::KnownNode {
    let advertised = node.advertisement.iter().flat_map(|one| one.capabilities.iter());
    wire::KnownNode {
        node: node.id.get(),
        address: node.address.to_string(),
        zone: node.zone.as_ref().map(ToString::to_string).unwrap_or_default(),
        weight: node.weight,
        seen: node.store != UNKNOWN_STORE,
        replicas,
        draining: view.drains().contains_key(&node.id),
        silent_ms: None,
        client_address: String::new(),
        admin_address: String::new(),
        capabilities: advertised.map(ToString::to_string).collect(),
    }
}
