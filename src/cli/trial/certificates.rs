//! Certificates of a trial: an authority, its hosts, and a user who may do everything. They live as long as
//! its directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use shardhost::NodeId;
use shardhost_proto::grants::Grants;
use shardhost_security::channel::Security;
use shardhost_security::make::{Made, authority, sign};
use shardhost_security::{Credentials, Identity, TlsFiles};

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
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("{} cannot be created", directory.display()))?;
        let certificates = Self { directory };
        let authority = authority(CLUSTER, VALID)?;
        write(&certificates.path("ca.pem"), &authority.certificate)?;
        let user = Identity::of_user(CLUSTER, USER, Grants::ALL)?;
        certificates.keep(USER, &sign(&authority, &user, VALID)?)?;
        for number in nodes {
            let node = NodeId::new(number).context("hosts are numbered from 1")?;
            let node = Identity::of_node(CLUSTER, node)?;
            certificates.keep(&number.to_string(), &sign(&authority, &node, VALID)?)?;
        }
        Ok(certificates)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn keep(&self, name: &str, made: &Made) -> anyhow::Result<()> {
        write(&self.path(&format!("{name}.key")), &made.key)?;
        write(&self.path(&format!("{name}.pem")), &made.certificate)
    }

    /// The authority, a certificate and its key.
    fn files(&self, name: &str) -> [PathBuf; 3] {
        ["ca.pem".to_owned(), format!("{name}.pem"), format!("{name}.key")]
            .map(|name| self.path(&name))
    }

    /// The arguments of a host.
    pub fn arguments(&self, node: u64) -> Vec<String> {
        let flags = ["--tls-ca", "--tls-cert", "--tls-key"];
        let files = self.files(&node.to_string()).map(|path| path.display().to_string());
        flags.into_iter().zip(files).flat_map(|(flag, file)| [flag.to_owned(), file]).collect()
    }

    /// How the user reaches the hosts.
    pub fn security(&self) -> anyhow::Result<Security> {
        let [ca, certificate, key] = self.files(USER);
        let credentials = Credentials::load(TlsFiles { ca, own: Some((certificate, key)) })?;
        Ok(Security { credentials: Some(credentials), token: None })
    }

    /// What stands before the commands of the user.
    pub fn environment(&self) -> String {
        let names = ["SHARDHOST_TLS_CA", "SHARDHOST_TLS_CERT", "SHARDHOST_TLS_KEY"];
        let files = self.files(USER).map(|path| path.display().to_string());
        let pairs = names.into_iter().zip(files).map(|(name, file)| format!("{name}={file}"));
        pairs.collect::<Vec<_>>().join(" ")
    }
}

/// Only for this user: most of them are keys.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("{} cannot be written", path.display()))
}
