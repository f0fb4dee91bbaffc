//! The name that a certificate carries: an alternative name of the kind URI.
//!
//! | certificate | URI |
//! |---|---|
//! | node 3 of cluster shop | `shardhost://shop/node/3` |
//! | user ann, who drains nodes and reads the table | `shardhost://shop/user/ann?grants=operator,table-read` |

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use shardhost_proto::grants::{Grants, UnknownGrant};
use shardhost_proto::ids::NodeId;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const SCHEME: &str = "shardhost://";
/// Longest name of a cluster or a user, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// Who a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    Node { cluster: String, node: NodeId },
    User { cluster: String, name: String, grants: Grants },
}

/// A certificate that names no node and no user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    #[error(
        "the certificate names no node and no user: it has no alternative name like `shardhost://shop/node/3` or \
         `shardhost://shop/user/ann?grants=operator`"
    )]
    Unnamed,
    #[error("the certificate has several names of this kind; it must have one")]
    Several,
    #[error("`{0}` in the certificate is no name of a node or a user")]
    Malformed(String),
    #[error("in the certificate: {0}")]
    Grant(#[from] UnknownGrant),
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    pub identity: Identity,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Identity {
    #[must_use]
    pub fn cluster(&self) -> &str {
        match self {
            Self::Node { cluster, .. } | Self::User { cluster, .. } => cluster,
        }
    }

    /// Whether both are for the same node or user. What a user may do may change.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::User { cluster, name, .. }, Self::User { cluster: there, name: other, .. }) => {
                (cluster, name) == (there, other)
            }
            _ => self == other,
        }
    }

    /// A node of a cluster.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`]: the name of the cluster is not one that a certificate can carry.
    pub fn of_node(cluster: &str, node: NodeId) -> Result<Self, IdentityError> {
        Ok(Self::Node { cluster: name(cluster)?, node })
    }

    /// A user of a cluster.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`]: a name is not one that a certificate can carry, or there are no grants.
    pub fn of_user(cluster: &str, user: &str, grants: Grants) -> Result<Self, IdentityError> {
        if grants.is_empty() {
            return Err(IdentityError::Malformed(format!("{user}, who may do nothing,")));
        }
        Ok(Self::User { cluster: name(cluster)?, name: name(user)?, grants })
    }
}

/// Letters, digits, `.`, `_` and `-`: the names of clusters, too.
fn name(text: &str) -> Result<String, IdentityError> {
    let in_names = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let fits = !text.is_empty() && text.len() <= MAX_NAME_BYTES && text.bytes().all(in_names);
    fits.then(|| text.to_owned()).ok_or_else(|| malformed(text))
}

/// What stands in a certificate may be anything.
fn malformed(text: &str) -> IdentityError {
    let printable = |letter: char| if letter.is_ascii_graphic() { letter } else { '?' };
    IdentityError::Malformed(text.chars().take(2 * MAX_NAME_BYTES).map(printable).collect())
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { cluster, node } => write!(f, "{SCHEME}{cluster}/node/{node}"),
            Self::User { cluster, name, grants } => {
                write!(f, "{SCHEME}{cluster}/user/{name}?grants={grants}")
            }
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let wrong = || malformed(text);
        let parts = text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/'));
        let (cluster, rest) = parts.ok_or_else(wrong)?;
        match rest.split_once('/').ok_or_else(wrong)? {
            ("node", number) => {
                // One way to write a number: what is compared as text elsewhere stays comparable.
                let plain =
                    number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
                let node = number.parse().ok().filter(|_| plain).and_then(NodeId::new);
                Self::of_node(cluster, node.ok_or_else(wrong)?)
            }
            ("user", rest) => {
                let (user, grants) = rest.split_once("?grants=").ok_or_else(wrong)?;
                Self::of_user(cluster, user, grants.parse()?)
            }
            _ => Err(wrong()),
        }
    }
}

impl CertificateFacts {
    /// Reads a certificate (DER). Whether it may be believed is checked elsewhere.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn read(certificate: &[u8]) -> Result<Self, IdentityError> {
        let unreadable = |error: String| IdentityError::Unreadable(error);
        let (rest, read) = X509Certificate::from_der(certificate)
            .map_err(|error| unreadable(error.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable("something stands behind it".to_owned()));
        }
        let names =
            read.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let mut ours = names.filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        });
        let identity = ours.next().ok_or(IdentityError::Unnamed)?.parse()?;
        if ours.next().is_some() {
            return Err(IdentityError::Several);
        }
        let validity = read.validity();
        let time = |seconds: i64| {
            let since = Duration::from_secs(seconds.unsigned_abs());
            let time = match seconds < 0 {
                true => SystemTime::UNIX_EPOCH.checked_sub(since),
                false => SystemTime::UNIX_EPOCH.checked_add(since),
            };
            time.ok_or_else(|| unreadable("it names an impossible time".to_owned()))
        };
        Ok(Self {
            identity,
            not_before: time(validity.not_before.timestamp())?,
            not_after: time(validity.not_after.timestamp())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_anything_else_is_refused() {
        let node = Identity::of_node("shop", NodeId::must(3)).unwrap();
        assert_eq!(node.to_string(), "shardhost://shop/node/3");
        let user =
            Identity::of_user("shop", "ann.b", "reader,table-read".parse().unwrap()).unwrap();
        for identity in [node, user] {
            assert_eq!(identity.to_string().parse(), Ok(identity));
        }
        for wrong in [
            "",
            "shardhost://",
            "shardhost://shop",
            "shardhost://shop/node/",
            "shardhost://shop/node/0",
            "shardhost://shop/node/03",
            "shardhost://shop/node/+3",
            "shardhost://shop/node/3/",
            "shardhost:///node/3",
            "shardhost://shop/node/18446744073709551616",
            "https://shop/node/3",
            "shardhost://a b/node/3",
            "shardhost://shop/user/ann",
            "shardhost://shop/user/ann?grants=",
            "shardhost://shop/user/?grants=admin",
            "shardhost://shop/user/ann?grants=root",
            "shardhost://shop/user/ann?grants=admin&x=1",
            "shardhost://shop/user/a/b?grants=admin",
            "shardhost://shop/client/ann?grants=admin",
        ] {
            assert!(wrong.parse::<Identity>().is_err(), "{wrong}");
        }
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        assert!(Identity::of_node(&long, NodeId::must(1)).is_err());
        let said = "shardhost://\u{1b}[31m/node/1".parse::<Identity>().unwrap_err().to_string();
        assert!(!said.contains('\u{1b}'), "{said}");
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for wrong in [&b""[..], b"x", &[0x30, 0x82, 0xff, 0xff], &[0; 64]] {
            assert!(matches!(CertificateFacts::read(wrong), Err(IdentityError::Unreadable(_))));
        }
    }
}
