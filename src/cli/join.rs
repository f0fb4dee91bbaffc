//! `shardhost serve --join`: a node with an empty disk asks a running cluster for its number and for the
//! addresses of the others.
//!
//! The answer is kept in the data directory before anything else is written there: every later start is
//! the same node, whether it is started with `--join` or without.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use shardhost::data_dir::DataDir;
use shardhost::storage::replace_file;
use shardhost_proto::admin::{JoinReply, JoinRequest};
use shardhost_server::ServerConfig;
use shardhost_server::config::check_reachable;
use tonic::Code;

use super::ended::senseless;
use super::target::{admin, said};

/// The file in the data directory.
const NAME: &str = "joined";
/// Between two rounds of all seeds.
const PAUSE: Duration = Duration::from_secs(1);
/// How long one of them may take: the catalog may have to be reached.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a node learned when it joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Membership {
    cluster: String,
    node: u64,
    /// Where the nodes were reached then, this one too.
    nodes: BTreeMap<String, String>,
    tables: u64,
    queues: u64,
}

/// How a node joins.
#[derive(Debug)]
pub struct Joining<'a> {
    /// Nodes of the cluster.
    pub seeds: &'a [String],
    /// Where the others reach this node.
    pub advertise: Option<&'a str>,
    /// The name of the cluster, if it must be that one.
    pub cluster: Option<&'a str>,
}

impl Membership {
    /// What the data directory knows; `None`: the node never joined.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn read(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = data_dir.join(NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let known = serde_json::from_str(&text);
        known.map(Some).with_context(|| format!("{} is damaged", path.display()))
    }

    fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        let path = data_dir.join(NAME);
        let text = serde_json::to_vec(self)?;
        replace_file(&path, &text).with_context(|| path.display().to_string())
    }

    /// The configuration of this node.
    ///
    /// # Errors
    /// It contradicts the file or the flags.
    pub fn configure(
        &self,
        config: &mut ServerConfig,
        joining: &Joining<'_>,
    ) -> anyhow::Result<()> {
        let Self { cluster, node, nodes, tables, queues } = self;
        if let Some(asked) = joining.cluster.filter(|asked| asked != cluster) {
            bail!(
                "the data directory belongs to node {node} of cluster {cluster:?}, not of {asked:?}"
            );
        }
        if config.node > 0 && config.node != *node {
            bail!(
                "the data directory belongs to node {node} of {cluster:?}, not to node {}",
                config.node
            );
        }
        config.cluster.clone_from(cluster);
        (config.node, config.alone) = (*node, false);
        config.nodes.clone_from(nodes);
        let own = own_address(config.listen, joining.advertise)?;
        config.nodes.insert(node.to_string(), own);
        config.shards.voters = nodes.keys().filter_map(|node| node.parse().ok()).collect();
        config.shards.voters.retain(|voter| voter != node);
        (config.shards.tables, config.shards.queues) = (*tables, *queues);
        Ok(())
    }

    fn of(reply: JoinReply) -> Self {
        let JoinReply { node, cluster, nodes, tables, queues } = reply;
        let nodes = nodes.into_iter().map(|one| (one.node.to_string(), one.address)).collect();
        Self { cluster, node, nodes, tables, queues }
    }
}

/// Asks the seeds in turn until one has registered this node, and keeps the answer. Waits as long as none
/// answers.
///
/// # Errors
/// The cluster refuses the node, or the data directory cannot be used.
pub async fn join(config: &ServerConfig, joining: &Joining<'_>) -> anyhow::Result<Membership> {
    let data_dir = &config.data_dir;
    let request = JoinRequest {
        cluster: joining.cluster.unwrap_or_default().to_owned(),
        node: config.node,
        address: own_address(config.listen, joining.advertise)?,
        zone: config.zone.clone().unwrap_or_default(),
        weight: config.weight,
        newest_version: config.newest_version().get(),
    };
    if let Some(seed) = joining.seeds.iter().find(|seed| **seed == request.address) {
        return Err(senseless(format!(
            "--join names this node itself, {seed}; name nodes of the cluster that it is to join"
        )));
    }
    let path = data_dir.clone();
    let lock = tokio::task::spawn_blocking(move || lock_empty(&path)).await??;
    if let Some(known) = Membership::read(data_dir)? {
        // Another process with this directory was faster, and is gone.
        return Ok(known);
    }
    let mut complained = String::new();
    loop {
        let mut unanswered = Vec::new();
        for seed in joining.seeds {
            match ask(seed, &request).await {
                Ok(reply) => return keep(config, joining, reply, lock),
                Err(Asked::Refused(error)) => {
                    return Err(error.context("the cluster refuses this node"));
                }
                Err(Asked::Later(why)) => unanswered.push(why),
            }
        }
        let waits = unanswered.join("; ");
        if waits != complained {
            tracing::warn!("waits for a node of the cluster: {waits}");
            complained = waits;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn keep(
    config: &ServerConfig,
    joining: &Joining<'_>,
    reply: JoinReply,
    lock: std::fs::File,
) -> anyhow::Result<Membership> {
    let membership = Membership::of(reply);
    // What a node cannot start with is not kept.
    let mut configured = config.clone();
    membership.configure(&mut configured, joining)?;
    configured.validate().context("the cluster answers what this node cannot start with")?;
    membership.write(&config.data_dir)?;
    drop(lock);
    let (node, cluster) = (membership.node, &membership.cluster);
    tracing::info!(node, cluster, "this node joined");
    Ok(membership)
}

/// Locks a data directory that no node was ever started with.
fn lock_empty(path: &Path) -> anyhow::Result<std::fs::File> {
    let lock = DataDir::lock(path).with_context(|| path.display().to_string())?;
    if DataDir::was_started(path) {
        bail!(
            "{} belongs to a node that was started without --join; start it as before, or give the new node \
             a data directory of its own",
            path.display()
        );
    }
    Ok(lock)
}

/// Why a seed did not register this node.
enum Asked {
    /// It never will.
    Refused(anyhow::Error),
    /// It may later, or another one may.
    Later(String),
}

async fn ask(seed: &str, request: &JoinRequest) -> Result<JoinReply, Asked> {
    let mut admin = admin(seed).map_err(Asked::Refused)?;
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, admin.join(request.clone())).await;
    let answer = answer.map_err(|_| Asked::Later(format!("{seed} does not answer")))?;
    answer.map(tonic::Response::into_inner).map_err(|status| {
        let error = said(seed, &status);
        match status.code() {
            Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted => Asked::Refused(error),
            Code::Unimplemented => {
                Asked::Refused(error.context("the node is of a version that registers no others"))
            }
            _ => Asked::Later(format!("{error:#}")),
        }
    })
}

/// Where the others reach this node.
fn own_address(listen: SocketAddr, advertise: Option<&str>) -> anyhow::Result<String> {
    match advertise {
        Some(address) => match check_reachable(address) {
            Ok(()) => Ok(address.to_owned()),
            Err(error) => Err(senseless(format!("--advertise: {error}"))),
        },
        None if listen.ip().is_unspecified() => Err(senseless(format!(
            "{listen} is not where others reach this node; name that with --advertise HOST:PORT"
        ))),
        None => Ok(listen.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let nodes = [("1", "10.0.0.1:7400"), ("4", "10.0.0.4:7400")];
        let nodes = nodes.map(|(node, address)| (node.to_owned(), address.to_owned())).into();
        Membership { cluster: "shop".to_owned(), node: 4, nodes, tables: 8, queues: 2 }
    }

    const JOINING: Joining<'static> = Joining { seeds: &[], advertise: None, cluster: None };

    #[test]
    fn a_node_that_joined_is_the_same_one_at_every_start() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Membership::read(directory.path()).unwrap(), None);
        membership().write(directory.path()).unwrap();
        let known = Membership::read(directory.path()).unwrap().unwrap();
        assert_eq!(known, membership());
        let mut config = ServerConfig::alone(directory.path());
        config.node = 0;
        config.listen = "10.0.0.4:7411".parse().unwrap();
        config.insecure = true;
        known.configure(&mut config, &JOINING).unwrap();
        assert_eq!((config.node, &*config.cluster, config.alone), (4, "shop", false));
        assert_eq!(config.nodes["4"], "10.0.0.4:7411", "it may have moved");
        assert_eq!((config.shards.voters.as_slice(), config.shards.tables), (&[1][..], 8));
        config.validate().unwrap();
    }

    #[test]
    fn another_number_or_cluster_is_refused_with_both() {
        let mut config = ServerConfig::alone("data");
        config.listen = "10.0.0.4:7400".parse().unwrap();
        config.node = 5;
        let refused = membership().configure(&mut config, &JOINING).unwrap_err().to_string();
        assert!(refused.contains("node 4") && refused.contains("node 5"), "{refused}");
        config.node = 0;
        let joining = Joining { cluster: Some("farm"), ..JOINING };
        let refused = membership().configure(&mut config, &joining).unwrap_err().to_string();
        assert!(refused.contains("shop") && refused.contains("farm"), "{refused}");
    }

    #[test]
    fn a_damaged_file_is_no_other_node() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(NAME), "{\"node\":").unwrap();
        let error = Membership::read(directory.path()).unwrap_err();
        assert!(format!("{error:#}").contains("is damaged"), "{error:#}");
    }

    #[test]
    fn an_address_that_others_cannot_reach_must_be_named() {
        let everywhere = "0.0.0.0:7400".parse().unwrap();
        assert!(own_address(everywhere, None).is_err());
        assert_eq!(own_address(everywhere, Some("a:7400")).unwrap(), "a:7400");
        let refused = own_address(everywhere, Some("0.0.0.0:7400")).unwrap_err().to_string();
        assert!(
            refused.starts_with("--advertise") && refused.contains("all addresses"),
            "{refused}"
        );
    }
}
