//! Leaders that serve no users.

use std::sync::Arc;
use std::time::Duration;

use super::Unfit;

/// Why a replica that leads serves no users. It keeps the group together: members and the
/// requirement can be changed, and leadership transferred.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Caretaker {
    /// The node should not lead the group, and no eligible node has taken over.
    #[error("{0}")]
    Unfit(Unfit),
    /// A policy declined the leadership; another leader is looked for.
    #[error("a policy declined the leadership: {reason}")]
    Declined { reason: Arc<str> },
    /// A policy wants the group to be led here and not to be served.
    #[error("a policy keeps the group from its users: {reason}")]
    Held { reason: Arc<str> },
    /// No policy that was asked has answered yet. If it still does, that counts.
    #[error("no policy has answered within {after:?}")]
    NoAnswer { after: Duration },
    /// A policy panicked when it was asked.
    #[error("the policy {policy:?} panicked when it was asked; the log of the host says where")]
    Panicked { policy: &'static str },
}
