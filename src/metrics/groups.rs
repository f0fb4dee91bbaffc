//! Groups, their replicas here, and the threads that serve them.

use std::fmt;
use std::sync::Arc;

use shardhost::host::Host;
use shardhost_groups::runtime::GroupsStats;
use shardhost_groups::{GroupStatus, Role};

use super::families::{Families, Labels};

pub(crate) fn write(
    families: &mut Families<'_>,
    host: &Host,
    stats: &GroupsStats,
    statuses: &[Arc<GroupStatus>],
) -> fmt::Result {
    write_replicas(families, host, statuses)?;
    families.gauge("groups_awake", "Groups that are ticked.", stats.awake as u64)?;
    families.counter(
        "proposals_acknowledged",
        "Proposals that were acknowledged.",
        stats.acknowledged,
    )?;
    let proposals = [(Labels::new(), host.runtime().latency().snapshot())];
    families.durations(
        "proposal_duration_seconds",
        "From submitted to acknowledged, of proposals at the leader.",
        proposals,
    )?;
    write_backlog(families, statuses)?;
    write_workers(families, host, stats)?;
    families.counter(
        "checksums",
        "Checksums of state machines that were computed to compare replicas.",
        stats.checksums,
    )?;
    families.counter(
        "checksums_skipped",
        "Checksums that were not computed, for the host was busy.",
        stats.checksums_skipped,
    )
}

fn write_replicas(
    families: &mut Families<'_>,
    host: &Host,
    statuses: &[Arc<GroupStatus>],
) -> fmt::Result {
    let parked = host.parked_replicas();
    let wrong = parked.iter().filter(|parked| !parked.ordered && !parked.reopens).count();
    let count = |test: &dyn Fn(&GroupStatus) -> bool| {
        statuses.iter().filter(|status| test(status)).count() as u64
    };
    let open = statuses.len() as u64;
    families.gauge(
        "replicas",
        "Replicas here, those that are closed too.",
        open + parked.len() as u64,
    )?;
    families.gauge("leaders", "Groups that are led here.", count(&|status| status.is_leader()))?;
    families.gauge(
        "leaders_serving",
        "Groups that are led here and take proposals.",
        count(&|status| status.serving),
    )?;
    families.gauge(
        "caretakers",
        "Groups that are led here and serve no users.",
        count(&|status| status.caretaker.is_some()),
    )?;
    families.gauge(
        "groups_hibernating",
        "Groups that are not ticked.",
        count(&|status| status.hibernating),
    )?;
    families.gauge(
        "groups_leaderless",
        "Groups here of which this node knows no leader.",
        count(&|status| status.leader.is_none() && is_open(status)),
    )?;
    let failed = count(&|status| matches!(status.role, Role::Failed(_)));
    families.gauge(
        "replicas_failed",
        "Replicas that stopped after a fault, or cannot be opened.",
        failed + wrong as u64,
    )?;
    families.gauge(
        "replicas_parked",
        "Replicas that are not opened, for whatever reason.",
        parked.len() as u64,
    )?;
    families.gauge(
        "replicas_in_doubt",
        "Replicas whose log may have lost something.",
        count(&|status| status.doubt.is_some()),
    )?;
    families.gauge(
        "replicas_stalled",
        "Replicas whose state machine does not go on.",
        count(&|status| status.stalled.is_some()),
    )?;
    families.gauge(
        "groups_differing",
        "Groups whose replicas differ, with no majority that agrees.",
        count(&|status| status.differs.is_some()),
    )?;
    families.gauge(
        "groups_short",
        "Groups that are led here and have a voter that does not answer.",
        count(&|status| is_short(status)),
    )
}

const fn is_open(status: &GroupStatus) -> bool {
    !matches!(status.role, Role::Failed(_) | Role::Stopped | Role::Removed)
}

/// Whether a voter answered nothing for an election timeout. Of a group that hibernates it is not known.
fn is_short(status: &GroupStatus) -> bool {
    let silent = |peer: &shardhost_groups::PeerProgress| {
        let member = status.membership.members.get(&peer.replica);
        !peer.recently_active && member.is_some_and(|member| member.voter)
    };
    status.serving && !status.hibernating && status.peers.iter().any(silent)
}

fn write_backlog(families: &mut Families<'_>, statuses: &[Arc<GroupStatus>]) -> fmt::Result {
    let backlogs = || statuses.iter().map(|status| status.apply_backlog());
    families.gauge(
        "apply_backlog_entries",
        "Entries that are committed and not applied here, of all groups.",
        backlogs().sum(),
    )?;
    families.gauge(
        "apply_backlog_largest_entries",
        "Entries that are committed and not applied here, of the group with most of them.",
        backlogs().max().unwrap_or(0),
    )?;
    let behind = |status: &Arc<GroupStatus>| {
        let last = status.last.get();
        status.peers.iter().map(|peer| last.saturating_sub(peer.matched.get())).max().unwrap_or(0)
    };
    families.gauge(
        "replication_lag_largest_entries",
        "Entries of a leader here that the last of its followers is not known to have, of the group with most of them.",
        statuses.iter().map(behind).max().unwrap_or(0),
    )
}

fn write_workers(families: &mut Families<'_>, host: &Host, stats: &GroupsStats) -> fmt::Result {
    let workers = &stats.workers;
    let rounds = [(Labels::new(), host.runtime().rounds().snapshot())];
    families.durations(
        "worker_round_duration_seconds",
        "Rounds of the threads of Raft, from the first input to the last effect.",
        rounds,
    )?;
    families.counter(
        "messages_handled",
        "Messages of Raft that reached their group.",
        workers.messages,
    )?;
    families.counter(
        "messages_unknown_group",
        "Messages for groups that are not here.",
        workers.unknown_group,
    )?;
    let refused: Vec<(String, u64)> =
        workers.refused.iter().map(|(refusal, count)| (refusal.to_string(), *count)).collect();
    let refused = refused.iter().map(|(why, count)| (vec![("reason", why.as_str())], *count));
    families.counters("messages_refused", "Messages that break a rule, by the rule.", refused)?;
    families.counter(
        "notifications_stale",
        "Notifications that came for an earlier opening of a replica.",
        workers.stale,
    )?;
    families.counter(
        "replica_failures",
        "Replicas that stopped after a fault.",
        workers.failures,
    )?;
    let users = [
        ("hook", "panicked", stats.hook_panics),
        ("hook", "slow", stats.slow_inline_hooks),
        ("policy", "panicked", stats.policy_panics),
        ("policy", "slow", stats.slow_policies),
    ];
    let users =
        users.map(|(code, problem, count)| (vec![("code", code), ("problem", problem)], count));
    families.counters(
        "user_code_problems",
        "Hooks and policies that panicked or took too long.",
        users,
    )
}
