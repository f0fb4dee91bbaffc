//! Who may do what in a cluster: certificates of nodes and users, and what a caller may do.
//!
//! | where | what |
//! |---|---|
//! | [`identity`] | the name that a certificate carries: a node or a user of a cluster |
//! | [`caller`] | who sent a request, and what that one may do |
//! | [`rights`] | what each call needs |
//! | [`credentials`] | certificates and keys from files, read anew when the files change |
//! | [`token`] | tokens of users |
//! | [`connect`], [`accept`] | TLS on a connection, from either side |
//! | [`channel`] | channels of gRPC to nodes (feature `channel`) |
//! | [`make`] | certificates for a test or a small cluster (feature `make`) |
//!
//! Nothing here knows hosts or groups. All nodes and users of a cluster have certificates of one
//! authority, which signs for that cluster alone. A node is recognized by the number in its certificate and
//! not by a host name, so that it may move; a user is recognized by a certificate, or by a token, which
//! other crates know.
//!
//! TLS is version 1.3 only. Sessions are not resumed: each connection shows that its certificate is valid.

#![forbid(unsafe_code)]
#![warn(clippy::unwrap_used)]

pub mod accept;
pub mod caller;
#[cfg(feature = "channel")]
pub mod channel;
pub mod connect;
pub mod credentials;
pub mod identity;
#[cfg(feature = "make")]
pub mod make;
pub mod rights;
#[cfg(test)]
mod tests;
pub mod token;
mod verify;

pub use caller::{Caller, Denied, User};
pub use credentials::{CredentialError, Credentials, TlsFiles};
pub use identity::{CertificateFacts, Identity, IdentityError};
