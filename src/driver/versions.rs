//! The version of the cluster: which ones its nodes know, and when it is raised.
//!
//! Two steps, so that no program meets what it does not know. First every node is *prepared*: its data
//! directory is opened no more by a program that does not know the version. That is asked for by an operator,
//! and is so from the start for a directory that this program made. Then, when all are, the leader of the
//! system group raises the version in the catalog.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shardhost_groups::NodeId;
use shardhost_proto::system as wire;
use shardhost_proto::version::ClusterVersion;
use tonic::Code;

use super::SYSTEM_GROUP;
use super::client::{CatalogClient, CatalogError};
use crate::host::Host;
use shardhost_policy::catalog::{Operation, Refusal, UNKNOWN_STORE, View};

/// Between two times that all nodes are asked whether the version may be raised.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// What a node says of versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeVersions {
    /// The latest version that it takes part in.
    pub newest: ClusterVersion,
    /// What its data directory notes: no program opens it that does not know this version.
    pub prepared: ClusterVersion,
    /// The version of its program; empty: a program without versions of clusters.
    pub program: String,
    /// The disk that this is about; 0: not said.
    pub store: u64,
}

/// What each node said; an error: why it did not.
pub type Said = BTreeMap<NodeId, Result<NodeVersions, String>>;

/// The nodes that must know a version before the cluster is raised to it: those that were seen, and the
/// members of the system group, as far as this host knows them.
#[must_use]
pub fn concerned(host: &Host, view: &View) -> BTreeSet<NodeId> {
    let seen = view.nodes().values().filter(|node| node.store != UNKNOWN_STORE);
    let seen = seen.map(|node| node.id);
    let group = host.group(SYSTEM_GROUP).map(|group| Arc::clone(&group.status().membership));
    let members = group.iter().flat_map(|membership| membership.members.values());
    seen.chain(members.map(|member| member.node)).collect()
}

/// Asks nodes which versions they know; with `prepare` they prepare for that one first.
pub async fn ask_all(
    host: &Host,
    client: &CatalogClient,
    nodes: BTreeSet<NodeId>,
    prepare: Option<ClusterVersion>,
) -> Said {
    let asks = nodes.into_iter().map(|node| async move {
        let said = match node == host.node_id() {
            true => versions_here(host, prepare).await,
            false => client.versions(node, prepare).await,
        };
        (node, said)
    });
    futures::future::join_all(asks).await.into_iter().collect()
}

/// What this node says, and prepares for.
pub(super) async fn versions_here(
    host: &Host,
    prepare: Option<ClusterVersion>,
) -> Result<NodeVersions, String> {
    if let Some(version) = prepare {
        host.prepare_for(version).await.map_err(|error| error.to_string())?;
    }
    let (newest, prepared) = (host.versions().newest(), host.prepared_version());
    let program = env!("CARGO_PKG_VERSION").to_owned();
    Ok(NodeVersions { newest, prepared, program, store: host.store_id() })
}

impl CatalogClient {
    async fn versions(
        &self,
        node: NodeId,
        prepare: Option<ClusterVersion>,
    ) -> Result<NodeVersions, String> {
        let (mut client, address) = self.connect(node).await?;
        let founding = self.host().founded().get();
        let prepare = prepare.map_or(0, ClusterVersion::get);
        match client.versions(wire::VersionsRequest { prepare, founding }).await {
            Ok(reply) => read(node, reply.into_inner()),
            Err(status) if status.code() == Code::Unimplemented => Ok(NodeVersions {
                newest: ClusterVersion::FIRST,
                prepared: ClusterVersion::FIRST,
                program: String::new(),
                store: 0,
            }),
            Err(status) => {
                self.forget(&address);
                Err(status.message().to_owned())
            }
        }
    }
}

fn read(node: NodeId, reply: wire::VersionsReply) -> Result<NodeVersions, String> {
    if reply.node != node.get() {
        return Err(format!("node {} answers at its address", reply.node));
    }
    Ok(NodeVersions {
        newest: ClusterVersion::new(reply.newest),
        prepared: ClusterVersion::new(reply.prepared),
        program: reply.program,
        store: reply.store,
    })
}

/// The cluster is at this version. The data directory is prepared for it first: it may have been made or put
/// back since the cluster was raised.
pub(super) async fn take(host: &Host, version: ClusterVersion) {
    if host.prepared_version() < version
        && let Err(error) = host.prepare_for(version).await
    {
        tracing::error!(%version, %error, "the data directory is not prepared for the version of the cluster");
    }
    host.versions().learn(version);
}

/// The version for which all of these are prepared; `None`: not all of them answer.
#[must_use]
pub fn common(said: &Said, of: impl Fn(&NodeVersions) -> ClusterVersion) -> Option<ClusterVersion> {
    let all = said.values().map(|said| said.as_ref().ok().map(&of));
    all.collect::<Option<Vec<_>>>()?.into_iter().min()
}

/// Raises the version when all nodes are prepared, on the leader of the system group.
///
/// What a node said once holds for its disk for ever, whether it answers now or not.
#[derive(Debug, Default)]
pub(super) struct Raising {
    asked: Option<Instant>,
    prepared: BTreeMap<NodeId, (u64, ClusterVersion)>,
}

impl Raising {
    pub(super) async fn look(
        &mut self,
        host: &Host,
        client: &CatalogClient,
        view: &View,
    ) -> Result<(), CatalogError> {
        let (present, newest) = (view.settings().cluster_version, host.versions().newest());
        let lately = self.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY);
        if present >= newest.min(host.prepared_version()) || lately {
            return Ok(());
        }
        self.asked = Some(Instant::now());
        let concerned = concerned(host, view);
        // One that is down is not waited for, again and again.
        let asked = concerned.intersection(&host.live_nodes()).copied().collect();
        for (node, said) in ask_all(host, client, asked, None).await {
            if let Ok(said) = said {
                self.prepared.insert(node, (said.store, said.prepared.min(said.newest)));
            }
        }
        let common = common_to(&concerned, view, &self.prepared);
        let Some(version) = common.filter(|version| *version > present) else { return Ok(()) };
        // The catalog compares the disks with those that it knows by then.
        let disks = self.prepared.iter().filter(|(node, _)| concerned.contains(node));
        let prepared = disks.map(|(node, (store, _))| (*node, *store)).collect();
        let raise = Operation::RaiseVersion { version, prepared };
        match client.apply_expecting(view.settings().revision, raise).await {
            Ok(_) => {
                tracing::info!(from = %present, to = %version, "the cluster uses a later version");
                Ok(())
            }
            // Another node came, or the settings changed: it is looked again.
            Err(CatalogError::Refused(
                Refusal::WrongRevision { .. } | Refusal::NotPrepared { .. },
            )) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The version for which the disks of all these nodes are prepared, as they said at some time; `None`: not
/// all of them did, or one has another disk since.
fn common_to(
    nodes: &BTreeSet<NodeId>,
    view: &View,
    said: &BTreeMap<NodeId, (u64, ClusterVersion)>,
) -> Option<ClusterVersion> {
    let of = |node: &NodeId| {
        let (store, prepared) = said.get(node)?;
        let registered = view.nodes().get(node).map_or(UNKNOWN_STORE, |record| record.store);
        [UNKNOWN_STORE, *store].contains(&registered).then_some(*prepared)
    };
    nodes.iter().map(of).collect::<Option<Vec<_>>>()?.into_iter().min()
}

#[cfg(test)]
mod tests {
    use shardhost_policy::catalog::{Catalog, Command, NewNode};

    use super::*;

    #[test]
    fn a_node_that_does_not_answer_leaves_the_common_version_unknown() {
        let versions = |prepared: u32| NodeVersions {
            newest: ClusterVersion::NEWEST,
            prepared: ClusterVersion::new(prepared),
            program: String::new(),
            store: 1,
        };
        let said = |list: &[Result<u32, ()>]| -> Said {
            let one = |(number, said): (u64, &Result<u32, ()>)| {
                (NodeId::must(number), said.map(versions).map_err(|()| "silent".to_owned()))
            };
            (1..).zip(list).map(one).collect()
        };
        let least = |list: &[Result<u32, ()>]| common(&said(list), |versions| versions.prepared);
        assert_eq!(least(&[Ok(2), Ok(1), Ok(2)]), Some(ClusterVersion::new(1)));
        assert_eq!(least(&[Ok(2), Ok(2)]), Some(ClusterVersion::new(2)));
        assert_eq!(least(&[Ok(2), Err(()), Ok(2)]), None);
        assert_eq!(least(&[]), None);
    }

    /// The version never goes back on a disk, so the node need not answer at the moment.
    #[test]
    fn what_a_node_said_of_its_disk_holds_until_it_has_another_one() {
        let mut catalog = Catalog::default();
        for number in 1..=2 {
            let (id, address) = (NodeId::must(number), format!("n{number}:1"));
            let new = NewNode { id, address, zone: None, weight: 1, store: 10 + number };
            catalog.apply(&Command::new(1_000, Operation::PutNode(new))).unwrap();
        }
        // The third is a member of the system group and not registered yet.
        let nodes: BTreeSet<NodeId> = (1..=3).map(NodeId::must).collect();
        let version = ClusterVersion::new;
        let mut said: BTreeMap<NodeId, (u64, ClusterVersion)> = BTreeMap::new();
        said.insert(NodeId::must(1), (11, version(2)));
        said.insert(NodeId::must(2), (12, version(3)));
        assert_eq!(common_to(&nodes, catalog.view(), &said), None);
        said.insert(NodeId::must(3), (13, version(2)));
        assert_eq!(common_to(&nodes, catalog.view(), &said), Some(version(2)));
        said.insert(NodeId::must(2), (99, version(3)));
        assert_eq!(common_to(&nodes, catalog.view(), &said), None, "it is another disk");
    }
}
