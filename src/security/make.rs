//! Makes certificates for a test or a small cluster: an authority of its own, and what it signs.
//!
//! Keys are ECDSA on P-256. Who holds the key of the authority can be any node and any user: keep it
//! away from the nodes.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use shardhost_proto::grants::Grants;
use shardhost_proto::ids::NodeId;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::credentials;
use super::credentials::pair_in;
use super::identity::{Identity, IdentityError};

/// Longest name by which a node is reached.
const MAX_SUBJECT_BYTES: usize = 253;
/// A certificate that was made begins so much earlier: clocks differ.
const EARLIER: Duration = Duration::from_secs(3_600);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Made {
    pub certificate: String,
    pub key: String,
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Why no certificate is made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MakeError {
    #[error(transparent)]
    Name(#[from] IdentityError),
    #[error("the certificate or the key of the authority cannot be used: {0}")]
    Authority(String),
    #[error("the certificate cannot be made: {0}")]
    Failed(String),
    #[error("a name by which a node is reached is a DNS name or an IP address, without a port")]
    NoName,
    #[error("{} is there; move it away first, it is not replaced", .0.display())]
    Exists(PathBuf),
    #[error("{} cannot be written: {error}", .path.display())]
    Write { path: PathBuf, error: io::Error },
}

impl Made {
    /// Writes both into a directory, which is created when missing: `NAME.pem`, and `NAME.key`, which only
    /// its owner may read. Returns where they are.
    ///
    /// # Errors
    /// [`MakeError::Exists`]: one of them is there, and nothing was written. [`MakeError::Write`].
    pub fn keep(&self, directory: &Path, name: &str) -> Result<(PathBuf, PathBuf), MakeError> {
        let (certificate, key) = pair_in(directory, name);
        if let Some(there) = [&certificate, &key].into_iter().find(|path| path.exists()) {
            return Err(MakeError::Exists(there.clone()));
        }
        keep_text(&key, 0o600, &self.key)?;
        self.keep_certificate(directory, name)?;
        Ok((certificate, key))
    }

    /// Writes the certificate alone.
    fn keep_certificate(&self, directory: &Path, name: &str) -> Result<(), MakeError> {
        keep_text(&pair_in(directory, name).0, 0o644, &self.certificate)
    }
}

fn keep_text(path: &Path, mode: u32, text: &str) -> Result<(), MakeError> {
    let write = || {
        std::fs::create_dir_all(path.parent().unwrap_or(path))?;
        let mut file = new_file(path, mode)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| MakeError::Write { path: path.to_owned(), error })
}

fn new_file(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

/// A new file for a secret, which only its owner may read.
///
/// # Errors
/// It is there, or cannot be created.
pub fn private_file(path: &Path) -> io::Result<File> {
    new_file(path, 0o600)
}

fn failed(error: impl fmt::Display) -> MakeError {
    MakeError::Failed(error.to_string())
}

/// From when on something is valid, and until when.
fn valid(
    params: &mut CertificateParams,
    from: SystemTime,
    valid: Duration,
) -> Result<(), MakeError> {
    // A certificate names years of four digits.
    let longest = Duration::from_secs(100 * 366 * 24 * 60 * 60);
    if valid > longest {
        return Err(failed("it would be valid for more than a hundred years"));
    }
    params.not_before = from.into();
    params.not_after = (from + valid).into();
    Ok(())
}

/// From a little before now.
fn now() -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(EARLIER).unwrap_or(now)
}

fn named(name: String) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

const AUTHORITY: &str = "authority of shardhost cluster ";

/// The first certificate in a text, as bytes.
///
/// # Errors
/// [`MakeError::Authority`]: there is none.
pub fn first_in_pem(text: &[u8]) -> Result<Vec<u8>, MakeError> {
    let first = CertificateDer::from_pem_slice(text);
    first.map(|found| found.to_vec()).map_err(|error| MakeError::Authority(error.to_string()))
}

/// The cluster for which [`authority`] made an authority.
///
/// # Errors
/// [`MakeError::Authority`]: it was made by something else.
pub fn cluster_of(certificate: &str) -> Result<String, MakeError> {
    let read = first_in_pem(certificate.as_bytes())?;
    let (_, read) = X509Certificate::from_der(&read)
        .map_err(|error| MakeError::Authority(error.to_string()))?;
    let names = read.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let cluster = names.filter_map(|name| name.strip_prefix(AUTHORITY)).next();
    cluster.map(str::to_owned).ok_or_else(|| {
        MakeError::Authority("it does not name the cluster that it signs for".to_owned())
    })
}

/// An authority for one cluster.
///
/// # Errors
/// [`MakeError`].
pub fn authority(cluster: &str, validity: Duration) -> Result<Made, MakeError> {
    // The same names as for nodes.
    let node = NodeId::must(1);
    Identity::of_node(cluster, node)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
    valid(&mut params, now(), validity.saturating_add(EARLIER))?;
    params.distinguished_name = named(format!("{AUTHORITY}{cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Made { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A certificate of a node or a user, signed by an authority.
///
/// # Errors
/// [`MakeError`].
pub fn sign(authority: &Made, identity: &Identity, validity: Duration) -> Result<Made, MakeError> {
    sign_named(authority, identity, &[], validity)
}

/// The same, of a node that browsers and other programs reach by these names or IP addresses: they compare a
/// certificate with what they asked for, where nodes and clients of shardhost take the number of the node.
///
/// # Errors
/// [`MakeError`], also for what is no name.
pub fn sign_named(
    authority: &Made,
    identity: &Identity,
    names: &[String],
    validity: Duration,
) -> Result<Made, MakeError> {
    let names = names.iter().map(|name| subject(name)).collect::<Result<_, _>>()?;
    sign_with(authority, identity, names, now(), validity.saturating_add(EARLIER))
}

fn subject(name: &str) -> Result<SanType, MakeError> {
    if let Ok(address) = name.parse() {
        return Ok(SanType::IpAddress(address));
    }
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-.*".contains(letter);
    let is_name = !name.is_empty() && name.len() <= MAX_SUBJECT_BYTES && name.chars().all(allowed);
    let name = is_name.then(|| name.try_into().ok()).flatten();
    name.map(SanType::DnsName).ok_or(MakeError::NoName)
}

/// A certificate as of [`sign`], valid from some time on.
///
/// # Errors
/// [`MakeError`].
pub fn sign_from(
    authority: &Made,
    identity: &Identity,
    from: SystemTime,
    validity: Duration,
) -> Result<Made, MakeError> {
    sign_with(authority, identity, Vec::new(), from, validity)
}

fn sign_with(
    authority: &Made,
    identity: &Identity,
    names: Vec<SanType>,
    from: SystemTime,
    validity: Duration,
) -> Result<Made, MakeError> {
    let unusable = |error: rcgen::Error| MakeError::Authority(error.to_string());
    let signing = KeyPair::from_pem(&authority.key).map_err(unusable)?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, signing).map_err(unusable)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
    valid(&mut params, from, validity)?;
    let (name, is_node) = match identity {
        Identity::Node { cluster, node } => (format!("node {node} of {cluster}"), true),
        Identity::User { cluster, name, .. } => (format!("{name} of {cluster}"), false),
    };
    params.distinguished_name = named(name);
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().map_err(failed)?)];
    params.subject_alt_names.extend(names);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if is_node {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    Ok(Made { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Certificates of a whole cluster, in a directory: of its nodes, each under its number, and of one user, who
/// may do everything. The key of the authority is not kept, so there will be no others.
///
/// # Errors
/// [`MakeError`].
pub fn whole_cluster(
    directory: &Path,
    cluster: &str,
    nodes: impl IntoIterator<Item = NodeId>,
    user: &str,
    validity: Duration,
) -> Result<(), MakeError> {
    let authority = authority(cluster, validity)?;
    authority.keep_certificate(directory, credentials::AUTHORITY)?;
    let identity = Identity::of_user(cluster, user, Grants::ALL)?;
    sign(&authority, &identity, validity)?.keep(directory, user)?;
    for node in nodes {
        let identity = Identity::of_node(cluster, node)?;
        sign(&authority, &identity, validity)?.keep(directory, &node.to_string())?;
    }
    Ok(())
}
