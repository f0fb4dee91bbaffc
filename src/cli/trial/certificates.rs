//! Certificates of a trial: an authority, its hosts, and a user who may do everything. They live as long as
//! its directory.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use shardhost::NodeId;
use shardhost_security::channel::Security;
use shardhost_security::make::whole_cluster;
use shardhost_security::{Credentials, TlsFiles};

/// The name of the cluster of a trial.
pub const CLUSTER: &str = "trial";
/// For so long its certificates are valid: a cluster that is kept is looked at for a while.
const VALID: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const USER: &str = "user";

/// Where the certificates are.
#[derive(Clone, Debug)]
pub struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    /// Makes them for hosts with these numbers.
    pub fn make(directory: PathBuf, nodes: impl IntoIterator<Item = u64>) -> anyhow::Result<Self> {
        let nodes: Option<Vec<_>> = nodes.into_iter().map(NodeId::new).collect();
        let nodes = nodes.context("hosts are numbered from 1")?;
        whole_cluster(&directory, CLUSTER, nodes, USER, VALID)?;
        Ok(Self { directory })
    }

    /// The authority, a certificate and its key.
    fn files(&self, name: &str) -> impl Iterator<Item = String> + use<> {
        let TlsFiles { ca, own } = TlsFiles::in_directory(&self.directory, name);
        let (certificate, key) = own.unzip();
        let all = [Some(ca), certificate, key].into_iter().flatten();
        all.map(|path| path.display().to_string())
    }

    /// The arguments of a host.
    pub fn arguments(&self, node: u64) -> Vec<String> {
        let flags = ["--tls-ca", "--tls-cert", "--tls-key"];
        let files = self.files(&node.to_string());
        flags.into_iter().zip(files).flat_map(|(flag, file)| [flag.to_owned(), file]).collect()
    }

    /// How the user reaches the hosts.
    pub fn security(&self) -> anyhow::Result<Security> {
        let files = TlsFiles::in_directory(&self.directory, USER);
        Ok(Security::without_token(Credentials::load(files)?))
    }

    /// What stands before the commands of the user.
    pub fn environment(&self) -> String {
        let names = ["SHARDHOST_TLS_CA", "SHARDHOST_TLS_CERT", "SHARDHOST_TLS_KEY"];
        let pairs =
            names.into_iter().zip(self.files(USER)).map(|(name, file)| format!("{name}={file}"));
        pairs.collect::<Vec<_>>().join(" ")
    }
}
