//! Who sent a request, and what that one may do.

use std::fmt;

use shardhost_proto::grants::{Grant, Grants};
use shardhost_proto::ids::NodeId;

use super::identity::Identity;

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The listener has no TLS: it is not known, and may do everything.
    Unchecked,
    /// Over TLS, without a certificate.
    Unknown,
    /// A node of this cluster.
    Node(NodeId),
    User(User),
}

/// A user, by a certificate or a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub grants: Grants,
}

/// A caller may not do what it asked for. Ask with a certificate or a token that has the grant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    #[error("this node wants a certificate or a token, and the request has neither")]
    Unknown,
    #[error("{who} lacks the grant {}", .needed.name())]
    Lacks { who: String, needed: Grant },
    #[error("{who} is no node of this cluster, and this is said between nodes alone")]
    NotANode { who: String },
    #[error("no caller has a right to call {0}: it is not known here")]
    UnknownCall(String),
}

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Anyone may call it, known or not.
    Nothing,
    /// Any user or node.
    Known,
    /// A node of the cluster.
    Node,
    /// A node, or a user with this grant.
    NodeOr(Grant),
    /// A user with this grant.
    User(Grant),
    /// The service decides by what is asked.
    ByContent,
}

impl Caller {
    /// The caller behind a certificate.
    #[must_use]
    pub fn of(identity: Identity) -> Self {
        match identity {
            Identity::Node { node, .. } => Self::Node(node),
            Identity::User { name, grants, .. } => Self::User(User { name, grants }),
        }
    }

    /// Whether it may do this.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn check(&self, need: Need) -> Result<(), Denied> {
        match (need, self) {
            (Need::Nothing, _) | (_, Self::Unchecked) => Ok(()),
            (_, Self::Unknown) => Err(Denied::Unknown),
            (Need::Known | Need::ByContent, _) | (Need::Node | Need::NodeOr(_), Self::Node(_)) => {
                Ok(())
            }
            (Need::User(grant) | Need::NodeOr(grant), Self::User(user)) => {
                match user.grants.allow(grant) {
                    true => Ok(()),
                    false => Err(Denied::Lacks { who: self.to_string(), needed: grant }),
                }
            }
            (Need::User(grant), Self::Node(_)) => {
                Err(Denied::Lacks { who: self.to_string(), needed: grant })
            }
            (Need::Node, Self::User(_)) => Err(Denied::NotANode { who: self.to_string() }),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchecked => f.write_str("not checked"),
            Self::Unknown => f.write_str("not known"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::User(user) => write!(f, "user {} ({})", user.name, user.grants),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(grants: &str) -> Caller {
        Caller::User(User { name: "ann".to_owned(), grants: grants.parse().unwrap() })
    }

    #[test]
    fn each_caller_may_do_what_it_was_granted() {
        use Need::{ByContent, Known, Node, NodeOr, Nothing, User};
        let node = Caller::Node(NodeId::must(3));
        let cases = [
            (Caller::Unknown, vec![Nothing]),
            (node, vec![Nothing, Known, ByContent, Node, NodeOr(Grant::Operator)]),
            (
                user("operator"),
                vec![
                    Nothing,
                    Known,
                    ByContent,
                    NodeOr(Grant::Operator),
                    User(Grant::Operator),
                    User(Grant::Reader),
                ],
            ),
            (user("table-read"), vec![Nothing, Known, ByContent, User(Grant::TableRead)]),
            (
                user("admin"),
                vec![
                    Nothing,
                    Known,
                    ByContent,
                    NodeOr(Grant::Operator),
                    User(Grant::Operator),
                    User(Grant::Reader),
                    User(Grant::TableRead),
                    User(Grant::Admin),
                ],
            ),
        ];
        let all = [
            Nothing,
            Known,
            ByContent,
            Node,
            NodeOr(Grant::Operator),
            User(Grant::Operator),
            User(Grant::Reader),
            User(Grant::TableRead),
            User(Grant::Admin),
        ];
        for (caller, may) in cases {
            for need in all {
                assert_eq!(caller.check(need).is_ok(), may.contains(&need), "{caller} {need:?}");
            }
        }
        assert!(all.into_iter().all(|need| Caller::Unchecked.check(need).is_ok()));
    }
}
