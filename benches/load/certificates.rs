//! Certificates of the nodes of a benchmark, and of the client that writes to them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use shardhost::NodeId;
use shardhost_client::security::channel::Security;
use shardhost_client::security::{Credentials, TlsFiles};
use shardhost_security::make::whole_cluster;
use shardhost_server::config::TlsSettings;

/// The name that clusters of benchmarks have.
const CLUSTER: &str = "shardhost";
const VALID: Duration = Duration::from_secs(24 * 60 * 60);
const CLIENT: &str = "client";

/// Makes them in a directory.
pub fn make(directory: &Path, nodes: u64) -> anyhow::Result<()> {
    let nodes: Option<Vec<_>> = (1..=nodes).map(NodeId::new).collect();
    let nodes = nodes.context("nodes are numbered from 1")?;
    Ok(whole_cluster(directory, CLUSTER, nodes, CLIENT, VALID)?)
}

/// Those of a node.
pub fn of_node(directory: &Path, node: NodeId) -> anyhow::Result<Credentials> {
    Ok(Credentials::load(TlsFiles::in_directory(directory, &node.to_string()))?)
}

/// The same, as a server takes them.
pub fn settings_of(directory: &Path, node: NodeId) -> Option<TlsSettings> {
    TlsSettings::of(TlsFiles::in_directory(directory, &node.to_string()))
}

/// The certificate of a client, and its key.
pub fn of_stranger(directory: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    TlsFiles::in_directory(directory, CLIENT).own.context("clients have a certificate")
}

/// How the client reaches the nodes.
pub fn of_client(directory: &Path) -> anyhow::Result<Security> {
    let credentials = Credentials::load(TlsFiles::in_directory(directory, CLIENT))?;
    Ok(Security::without_token(credentials))
}
