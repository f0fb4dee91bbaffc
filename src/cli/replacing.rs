//! How far the replacement of a member is, by the status of the leader.

use shardhost_proto::admin::GroupStatus;

use super::group_status::role_of;

/// How far a replacement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replacing {
    NotBegun,
    UnderWay,
    Done,
}

impl Replacing {
    /// The leader's status.
    pub fn of(status: &GroupStatus, old: u64, new: u64) -> Self {
        let Some(membership) = &status.membership else { return Self::NotBegun };
        let on = |node| membership.members.iter().find(|member| member.node == node);
        let joint = membership.members.iter().any(|member| member.outgoing_voter);
        let incoming = membership.incoming.as_ref().map(|one| one.replica);
        match (on(old), on(new)) {
            (None, Some(new)) if role_of(new) == "voter" && !joint => Self::Done,
            (_, Some(new)) if joint || incoming == Some(new.replica) => Self::UnderWay,
            _ => Self::NotBegun,
        }
    }
}
