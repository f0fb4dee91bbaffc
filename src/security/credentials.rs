//! Certificates and keys, from PEM files, for both sides of a connection.
//!
//! The files may be replaced while the process runs: [`Credentials::reload`] takes what is new once all of
//! it fits together, and keeps what there was until then. Connections that are open stay as they are.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use shardhost_proto::ids::NodeId;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::{CertificateFacts, Identity, IdentityError};
use super::verify::{Callers, Nodes};

/// The name of the authority in a directory with certificates.
pub(super) const AUTHORITY: &str = "ca";
/// Longest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Between two looks at the files, of those who connect.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What is spoken over TLS.
const PROTOCOL: &[u8] = b"h2";
/// What pages are asked for with, too.
const PAGES_PROTOCOL: &[u8] = b"http/1.1";

/// Where certificates and keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates of the authority of the cluster; several while it is replaced.
    pub ca: PathBuf,
    /// The own certificate, with those between it and the authority behind it, and its key. Nodes have
    /// one; a user with a token needs none.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Where a certificate and its key are in a directory: `NAME.pem` and `NAME.key`.
pub(super) fn pair_in(directory: &Path, name: &str) -> (PathBuf, PathBuf) {
    (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")))
}

impl TlsFiles {
    /// Those of one node or user in a directory with those of many, as [`make`](super::make) writes it.
    #[must_use]
    pub fn in_directory(directory: &Path, name: &str) -> Self {
        let (ca, _) = pair_in(directory, AUTHORITY);
        Self { ca, own: Some(pair_in(directory, name)) }
    }
}

/// Why certificates cannot be used. Each names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    #[error("{} cannot be read: {error}", .path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{} holds no {what} in PEM: {message}", .path.display())]
    Pem { path: PathBuf, what: &'static str, message: String },
    #[error("{}: {error}", .path.display())]
    Identity { path: PathBuf, error: IdentityError },
    #[error("{} was not signed by the authority of {}", .path.display(), .ca.display())]
    OtherAuthority { path: PathBuf, ca: PathBuf },
    #[error("{} expired {}", .path.display(), ago(*.at))]
    Expired { path: PathBuf, at: SystemTime },
    #[error("{} is not valid yet; see that the clock is right", .path.display())]
    NotYet { path: PathBuf },
    #[error("{} cannot be used: {message}", .path.display())]
    Unusable { path: PathBuf, message: String },
    #[error("the key of {} does not belong to the certificate of {}", .key.display(), .certificate.display())]
    OtherKey { key: PathBuf, certificate: PathBuf },
    #[error("{} is for {found}; this is {wanted}", .path.display())]
    OtherIdentity { path: PathBuf, found: Identity, wanted: String },
    #[error("a node needs a certificate and its key")]
    NoCertificate,
}

fn ago(at: SystemTime) -> String {
    match SystemTime::now().duration_since(at).map(|ago| ago.as_secs()) {
        Ok(seconds @ 0..7_200) => format!("{} min ago", seconds / 60),
        Ok(seconds @ 7_200..172_800) => format!("{} h ago", seconds / 3_600),
        Ok(seconds) => format!("{} days ago", seconds / 86_400),
        Err(_) => "now".to_owned(),
    }
}

/// The files as they were read.
#[derive(Clone, PartialEq, Eq)]
struct Contents {
    ca: Vec<u8>,
    own: Option<(Vec<u8>, Vec<u8>)>,
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, CredentialError> {
        let own = files.own.as_ref();
        let own = own.map(|(certificate, key)| Ok((read(certificate)?, read(key)?))).transpose()?;
        Ok(Self { ca: read(&files.ca)?, own })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialError> {
    let fails = |error| CredentialError::Read { path: path.to_owned(), error };
    // A pipe, or a device, would be waited for.
    if !std::fs::metadata(path).map_err(fails)?.is_file() {
        return Err(fails(std::io::Error::other("it is no file")));
    }
    let file = std::fs::File::open(path).map_err(fails)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(fails)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let message = format!("it has more than {MAX_FILE_BYTES} bytes");
        return Err(fails(std::io::Error::other(message)));
    }
    Ok(bytes)
}

/// What is used for new connections.
struct Loaded {
    contents: Contents,
    authorities: Vec<CertificateDer<'static>>,
    facts: Option<CertificateFacts>,
    client: Arc<ClientConfig>,
    /// Nodes accept connections.
    server: Option<Arc<ServerConfig>>,
}

/// Certificates and keys of a process. Cheap to clone; all clones see what is reloaded.
#[derive(Clone)]
pub struct Credentials {
    inner: Arc<Inner>,
    /// Connections that are accepted may speak HTTP/1.1.
    pages: bool,
}

struct Inner {
    files: TlsFiles,
    loaded: ArcSwap<Loaded>,
    /// When the files were read last.
    looked: Mutex<Instant>,
    /// How often an authority was taken out.
    removals: AtomicU64,
}

/// Two are equal if they are clones of one.
impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Eq for Credentials {}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = self.facts();
        f.debug_struct("Credentials")
            .field("files", &self.inner.files)
            .field("own", &facts)
            .finish()
    }
}

impl Credentials {
    /// Reads the files, and sees that they fit together and are valid now.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn load(files: TlsFiles) -> Result<Self, CredentialError> {
        let loaded = Loaded::new(&files, Contents::read(&files)?)?;
        let looked = Mutex::new(Instant::now());
        let loaded = ArcSwap::from_pointee(loaded);
        let inner = Inner { files, loaded, looked, removals: AtomicU64::new(0) };
        Ok(Self { inner: Arc::new(inner), pages: false })
    }

    /// How often an authority was taken out of the files that are in use, whichever look at them noticed it:
    /// connections that one made possible are to end then.
    #[must_use]
    pub fn removals(&self) -> u64 {
        self.inner.removals.load(Ordering::Acquire)
    }

    /// What the own certificate says; `None`: there is none.
    #[must_use]
    pub fn facts(&self) -> Option<CertificateFacts> {
        self.inner.loaded.load().facts.clone()
    }

    /// Sees that they are those of a node of any cluster.
    ///
    /// # Errors
    /// [`CredentialError::OtherIdentity`], [`CredentialError::NoCertificate`].
    pub fn check_any_node(&self) -> Result<(), CredentialError> {
        match self.facts().map(|facts| facts.identity) {
            None => Err(CredentialError::NoCertificate),
            Some(Identity::Node { .. }) => Ok(()),
            Some(user) => Err(self.other_identity(user, "a node".to_owned())),
        }
    }

    /// Sees that they are those of a node.
    ///
    /// # Errors
    /// [`CredentialError::OtherIdentity`], [`CredentialError::NoCertificate`].
    pub fn check_node(&self, cluster: &str, node: NodeId) -> Result<(), CredentialError> {
        let Some(CertificateFacts { identity, .. }) = self.facts() else {
            return Err(CredentialError::NoCertificate);
        };
        match &identity {
            Identity::Node { cluster: named, node: number }
                if named == cluster && *number == node =>
            {
                Ok(())
            }
            _ => Err(self.other_identity(identity, format!("node {node} of cluster {cluster}"))),
        }
    }

    fn other_identity(&self, found: Identity, wanted: String) -> CredentialError {
        let path = self.inner.files.own.as_ref().map(|(path, _)| path.clone()).unwrap_or_default();
        CredentialError::OtherIdentity { path, found, wanted }
    }

    /// Reads the files again, and takes what they hold for new connections if it differs: true. May block
    /// for as long as a disk takes.
    ///
    /// # Errors
    /// [`CredentialError`]; what was there stays.
    pub fn reload(&self) -> Result<bool, CredentialError> {
        *self.inner.looked.lock() = Instant::now();
        let contents = Contents::read(&self.inner.files)?;
        let present = self.inner.loaded.load();
        if contents == present.contents {
            return Ok(false);
        }
        let loaded = Loaded::new(&self.inner.files, contents)?;
        let identity = |loaded: &Loaded| loaded.facts.as_ref().map(|facts| facts.identity.clone());
        if let (Some(before), Some(now)) = (identity(&present), identity(&loaded))
            && !before.is_same(&now)
        {
            return Err(self.other_identity(now, before.to_string()));
        }
        let stays = |authority: &CertificateDer<'_>| loaded.authorities.contains(authority);
        let all_stay = present.authorities.iter().all(stays);
        self.inner.loaded.store(Arc::new(loaded));
        if !all_stay {
            self.inner.removals.fetch_add(1, Ordering::AcqRel);
        }
        Ok(true)
    }

    /// The same, if the last look at the files is [`LOOK_EVERY`] ago: for those who connect now and then. What
    /// is wrong with the files is said by the connection, if what was there does not work any more.
    pub(super) async fn look(&self) {
        if self.inner.looked.lock().elapsed() < LOOK_EVERY {
            return;
        }
        let credentials = self.clone();
        let looked = tokio::task::spawn_blocking(move || credentials.reload()).await;
        match looked {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the certificates are not read again"),
            Err(error) => tracing::error!(%error, "the certificates were not looked at"),
        }
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.inner.loaded.load().client)
    }

    /// The same, for a listener that speaks HTTP/1.1, too.
    #[must_use]
    pub fn for_pages(&self) -> Self {
        Self { pages: true, ..self.clone() }
    }

    pub(super) fn server(&self) -> Option<Arc<ServerConfig>> {
        let server = self.inner.loaded.load().server.clone()?;
        if !self.pages {
            return Some(server);
        }
        let mut pages = ServerConfig::clone(&server);
        pages.alpn_protocols.push(PAGES_PROTOCOL.to_vec());
        Some(Arc::new(pages))
    }
}

/// The own certificate with its key.
struct Own {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    facts: CertificateFacts,
}

impl Own {
    fn parse(certificate: (&Path, &[u8]), key: (&Path, &[u8])) -> Result<Self, CredentialError> {
        let chain = certificates(certificate)?;
        let (path, text) = key;
        let key = PrivateKeyDer::from_pem_slice(text).map_err(|error| CredentialError::Pem {
            path: path.to_owned(),
            what: "private key",
            message: error.to_string(),
        })?;
        let path = certificate.0.to_owned();
        let facts = CertificateFacts::read(&chain[0]);
        let facts = facts.map_err(|error| CredentialError::Identity { path, error })?;
        Ok(Self { chain, key, facts })
    }
}

/// The authorities that are valid now, at least one. A certificate of something else signs for no other.
fn authorities(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let mut expired = None;
    let mut valid = Vec::new();
    for certificate in certificates((path, text))? {
        let until = authority_until(&certificate).map_err(|message| unusable(path, message))?;
        match until < SystemTime::now() {
            true => expired = Some(until),
            false => valid.push(certificate),
        }
    }
    match expired {
        Some(at) if valid.is_empty() => Err(CredentialError::Expired { path: path.to_owned(), at }),
        _ => Ok(valid),
    }
}

/// Until when an authority is valid.
fn authority_until(certificate: &[u8]) -> Result<SystemTime, &'static str> {
    const UNREADABLE: &str = "a certificate in it cannot be read";
    let (_, read) = X509Certificate::from_der(certificate).map_err(|_| UNREADABLE)?;
    let constraints = read.basic_constraints().map_err(|_| UNREADABLE)?;
    let usage = read.key_usage().map_err(|_| UNREADABLE)?;
    let signs = usage.is_none_or(|usage| usage.value.key_cert_sign());
    if !constraints.is_some_and(|constraints| constraints.value.ca) || !signs {
        return Err(
            "a certificate in it is none of an authority; there are authorities in it alone",
        );
    }
    let seconds = u64::try_from(read.validity().not_after.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(UNREADABLE)
}

/// At least one.
fn certificates(
    (path, text): (&Path, &[u8]),
) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let wrong = |message: String| CredentialError::Pem {
        path: path.to_owned(),
        what: "certificate",
        message,
    };
    let all = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| wrong(error.to_string()))?;
    if all.is_empty() { Err(wrong("there is none".to_owned())) } else { Ok(all) }
}

impl Loaded {
    fn new(files: &TlsFiles, contents: Contents) -> Result<Self, CredentialError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let authorities = authorities(&files.ca, &contents.ca)?;
        for certificate in &authorities {
            let added = roots.add(certificate.clone());
            added.map_err(|error| unusable(&files.ca, &error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let own = match (&files.own, &contents.own) {
            (Some((certificate, key)), Some((chain, secret))) => {
                let own = Own::parse((certificate, chain), (key, secret))?;
                check(&own, files, &roots, &provider)?;
                Some((own, certificate, key))
            }
            _ => None,
        };
        let client = client_config(own.as_ref(), &roots, &provider)?;
        let server = match &own {
            Some((own, certificate, _)) => match &own.facts.identity {
                Identity::Node { cluster, .. } => {
                    Some(server_config(own, certificate, cluster, &roots, &provider)?)
                }
                Identity::User { .. } => None,
            },
            None => None,
        };
        let facts = own.map(|(own, ..)| own.facts);
        let (client, server) = (Arc::new(client), server.map(Arc::new));
        Ok(Self { contents, authorities, facts, client, server })
    }
}

fn unusable(path: &Path, message: &str) -> CredentialError {
    CredentialError::Unusable { path: path.to_owned(), message: message.to_owned() }
}

/// Sees that others of the cluster will believe the certificate.
fn check(
    own: &Own,
    files: &TlsFiles,
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<(), CredentialError> {
    let path = files.own.as_ref().map(|(path, _)| path.clone()).unwrap_or_default();
    let signed =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider));
    let signed = signed.build().map_err(|error| unusable(&files.ca, &error.to_string()))?;
    let (leaf, behind) = (&own.chain[0], &own.chain[1..]);
    let as_client = signed.verify_client_cert(leaf, behind, UnixTime::now()).map(drop);
    let as_server = || match &own.facts.identity {
        Identity::Node { cluster, .. } => {
            let (roots, provider) = (Arc::clone(roots), Arc::clone(provider));
            Nodes { roots, provider, cluster: Some(cluster.clone()) }.check(leaf, behind)
        }
        Identity::User { .. } => Ok(()),
    };
    let Err(error) = as_client.and_then(|()| as_server()) else { return Ok(()) };
    Err(match error {
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => CredentialError::Expired { path, at: own.facts.not_after },
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => CredentialError::NotYet { path },
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => CredentialError::OtherAuthority { path, ca: files.ca.clone() },
        error => CredentialError::Unusable { path, message: error.to_string() },
    })
}

fn keys_differ(error: &rustls::Error, certificate: &Path, key: &Path) -> CredentialError {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            CredentialError::OtherKey { key: key.to_owned(), certificate: certificate.to_owned() }
        }
        error => unusable(key, &error.to_string()),
    }
}

fn client_config(
    own: Option<&(Own, &PathBuf, &PathBuf)>,
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<ClientConfig, CredentialError> {
    let cluster = own.map(|(own, ..)| own.facts.identity.cluster().to_owned());
    let (roots, verified_by) = (Arc::clone(roots), Arc::clone(provider));
    let nodes = Nodes { roots, provider: verified_by, cluster };
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unusable(Path::new("TLS 1.3"), &error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(nodes));
    let mut config = match own {
        Some((own, certificate, key)) => builder
            .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
            .map_err(|error| keys_differ(&error, certificate, key))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = Resumption::disabled();
    // What is connected to is recognized by its certificate.
    config.enable_sni = false;
    Ok(config)
}

fn server_config(
    own: &Own,
    path: &Path,
    cluster: &str,
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<ServerConfig, CredentialError> {
    let wrong = |error: String| unusable(path, &error);
    let signed =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider));
    let signed = signed.build().map_err(|error| wrong(error.to_string()))?;
    let callers = Callers { signed, cluster: cluster.to_owned() };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| wrong(error.to_string()))?
        .with_client_cert_verifier(Arc::new(callers))
        .with_single_cert(own.chain.clone(), own.key.clone_key())
        .map_err(|error| wrong(error.to_string()))?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
