//! Certificates of the nodes of a benchmark, and of the client that writes to them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use shardhost::NodeId;
use shardhost_client::security::channel::Security;
use shardhost_client::security::{Credentials, Identity, TlsFiles};
use shardhost_proto::grants::Grants;
use shardhost_security::make::{authority, sign};

/// The name that clusters of benchmarks have.
const CLUSTER: &str = "shardhost";
const VALID: Duration = Duration::from_secs(24 * 60 * 60);
const CLIENT: &str = "client";

/// Makes them in a directory.
pub fn make(directory: &Path, nodes: u64) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).context("no room for certificates")?;
    let authority = authority(CLUSTER, VALID)?;
    let client = Identity::of_user(CLUSTER, CLIENT, Grants::ALL)?;
    let mut all = vec![(CLIENT.to_owned(), client)];
    for number in 1..=nodes {
        let node = NodeId::new(number).context("nodes are numbered from 1")?;
        all.push((number.to_string(), Identity::of_node(CLUSTER, node)?));
    }
    std::fs::write(directory.join("ca.pem"), &authority.certificate)?;
    for (name, identity) in all {
        let made = sign(&authority, &identity, VALID)?;
        std::fs::write(directory.join(format!("{name}.pem")), &made.certificate)?;
        std::fs::write(directory.join(format!("{name}.key")), &made.key)?;
    }
    Ok(())
}

/// The files of a node, by its number, or of the client.
fn files(directory: &Path, name: &str) -> TlsFiles {
    let own: (PathBuf, PathBuf) =
        (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
    TlsFiles { ca: directory.join("ca.pem"), own: Some(own) }
}

/// Those of a node.
pub fn of_node(directory: &Path, node: NodeId) -> anyhow::Result<Credentials> {
    Ok(Credentials::load(files(directory, &node.to_string()))?)
}

/// The same, as a server takes them.
pub fn settings_of(directory: &Path, node: NodeId) -> shardhost_server::config::TlsSettings {
    let (ca, name) = (directory.join("ca.pem"), node.to_string());
    let (certificate, key) =
        (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
    shardhost_server::config::TlsSettings { ca, certificate, key }
}

/// The certificate of a client, and its key.
pub fn of_stranger(directory: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    files(directory, CLIENT).own.context("clients have a certificate")
}

/// How the client reaches the nodes.
pub fn of_client(directory: &Path) -> anyhow::Result<Security> {
    let credentials = Some(Credentials::load(files(directory, CLIENT))?);
    Ok(Security { credentials, token: None })
}
