//! What each call needs. A call that is not listed is refused to all: the table is compared with the calls
//! of all services by a test.

use shardhost_proto::grants::Grant::{Admin, Operator, Reader};

use super::caller::{Caller, Denied, Need};

/// Calls by their path, and what each needs.
const RIGHTS: &[(&str, Need)] = &[
    ("/grpc.health.v1.Health/Check", Need::Nothing),
    ("/grpc.health.v1.Health/Watch", Need::Nothing),
    // Pages.
    ("/healthz", Need::Nothing),
    ("/readyz", Need::Nothing),
    ("/metrics", Need::NodeOr(Reader)),
    ("/shardhost.peer.v1.Peer/Exchange", Need::Node),
    ("/shardhost.peer.v1.Peer/Snapshot", Need::Node),
    ("/shardhost.peer.v1.Founding/Exchange", Need::Node),
    ("/shardhost.system.v1.System/Propose", Need::ByContent),
    ("/shardhost.system.v1.System/Query", Need::NodeOr(Reader)),
    ("/shardhost.system.v1.System/Gone", Need::Node),
    ("/shardhost.system.v1.System/Report", Need::Node),
    ("/shardhost.system.v1.System/Replace", Need::Node),
    ("/shardhost.system.v1.System/Versions", Need::Node),
    ("/shardhost.system.v1.System/Move", Need::Node),
    ("/shardhost.admin.v1.Admin/Status", Need::User(Reader)),
    ("/shardhost.admin.v1.Admin/ListGroups", Need::User(Reader)),
    ("/shardhost.admin.v1.Admin/ShowGroup", Need::User(Reader)),
    ("/shardhost.admin.v1.Admin/ExplainLeader", Need::User(Reader)),
    ("/shardhost.admin.v1.Admin/ListSnapshots", Need::User(Reader)),
    ("/shardhost.admin.v1.Admin/ListNodes", Need::User(Reader)),
    ("/shardhost.admin.v1.Admin/GetVersion", Need::User(Reader)),
    ("/shardhost.admin.v1.Admin/TransferLeader", Need::User(Operator)),
    ("/shardhost.admin.v1.Admin/TransferLeaderToFit", Need::User(Operator)),
    ("/shardhost.admin.v1.Admin/TakeSnapshot", Need::User(Operator)),
    // It keeps an applying thread busy.
    ("/shardhost.admin.v1.Admin/Checksum", Need::User(Operator)),
    ("/shardhost.admin.v1.Admin/ChangeMembership", Need::User(Admin)),
    ("/shardhost.admin.v1.Admin/ReplaceMember", Need::User(Admin)),
    ("/shardhost.admin.v1.Admin/CancelAddition", Need::User(Admin)),
    ("/shardhost.admin.v1.Admin/ChangeRequirement", Need::User(Admin)),
    // An entry may be a client's data.
    ("/shardhost.admin.v1.Admin/LookAtEntry", Need::User(Admin)),
    ("/shardhost.admin.v1.Admin/BeginSkip", Need::User(Admin)),
    ("/shardhost.admin.v1.Admin/SkipEntry", Need::User(Admin)),
    ("/shardhost.admin.v1.Admin/AbandonSkip", Need::User(Admin)),
    ("/shardhost.admin.v1.Admin/OpenReplica", Need::User(Admin)),
    ("/shardhost.admin.v1.Admin/AdvanceTime", Need::User(Admin)),
    ("/shardhost.admin.v1.Admin/CreateGroup", Need::User(Admin)),
    ("/shardhost.admin.v1.Admin/DestroyGroup", Need::User(Admin)),
    ("/shardhost.admin.v1.Admin/Join", Need::NodeOr(Admin)),
    ("/shardhost.admin.v1.Admin/RemoveNode", Need::User(Admin)),
    ("/shardhost.admin.v1.Admin/RaiseVersion", Need::User(Admin)),
    ("/shardhost.balance.v1.Balance/Drain", Need::User(Operator)),
    ("/shardhost.balance.v1.Balance/Undrain", Need::User(Operator)),
    ("/shardhost.balance.v1.Balance/GetDrain", Need::User(Reader)),
    ("/shardhost.balance.v1.Balance/View", Need::User(Reader)),
    ("/shardhost.balance.v1.Balance/Planner", Need::User(Reader)),
    ("/shardhost.balance.v1.Balance/Allocator", Need::User(Reader)),
    ("/shardhost.balance.v1.Balance/SwitchLocally", Need::User(Operator)),
    ("/shardhost.client.v1.Directory/Shards", Need::Known),
    ("/shardhost.client.v1.Table/Pipeline", Need::ByContent),
    ("/shardhost.client.v1.Queue/Pipeline", Need::ByContent),
];

/// What a call needs.
///
/// # Errors
/// [`Denied::UnknownCall`].
pub fn need(path: &str) -> Result<Need, Denied> {
    let found = RIGHTS.iter().find(|(known, _)| *known == path);
    found.map(|(_, need)| *need).ok_or_else(|| Denied::UnknownCall(path.to_owned()))
}

/// Whether a caller may make a call.
///
/// # Errors
/// [`Denied`].
pub fn check(caller: &Caller, path: &str) -> Result<(), Denied> {
    match caller {
        // Without TLS, services answer as they do.
        Caller::Unchecked => Ok(()),
        known => known.check(need(path)?),
    }
}

/// Calls that change something, or show clients' data: they are recorded with who made them.
#[must_use]
pub fn is_recorded(path: &str) -> bool {
    let recorded = |need| matches!(need, Need::User(Operator | Admin) | Need::NodeOr(Admin));
    need(path).is_ok_and(recorded)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use shardhost_proto::methods::METHODS;

    use super::*;

    /// Those of health are of another crate.
    #[test]
    fn each_call_of_each_service_has_a_right_and_nothing_else_has() {
        let listed: BTreeSet<&str> = RIGHTS.iter().map(|(path, _)| *path).collect();
        assert_eq!(listed.len(), RIGHTS.len(), "a call stands twice");
        let own: BTreeSet<&str> =
            listed.into_iter().filter(|path| path.starts_with("/shardhost.")).collect();
        assert_eq!(own, METHODS.iter().copied().collect());
    }

    #[test]
    fn who_is_not_known_gets_an_answer_about_health_and_nothing_else() {
        for (path, _) in RIGHTS {
            let health =
                ["/grpc.health.", "/healthz", "/readyz"].iter().any(|of| path.starts_with(of));
            assert_eq!(check(&Caller::Unknown, path).is_ok(), health, "{path}");
        }
        let unlisted = check(&Caller::Unknown, "/shardhost.admin.v1.Admin/Shell");
        assert!(matches!(unlisted, Err(Denied::UnknownCall(_))), "{unlisted:?}");
    }
}
