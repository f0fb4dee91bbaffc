//! `shardhost member rebuild`: every replica of a node is replaced by a new one on the same node, which
//! gets everything from the others: the node lost its disk, was put back from an older copy, or holds
//! what differs.
//!
//! A node holds one replica of a group, so the old one is removed before the new one is added. What is
//! under way is recorded in the group; only between the two steps nothing is.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use futures::{StreamExt, stream};
use serde_json::json;
use shardhost::proto::admin::membership_step::Kind;
use shardhost::proto::admin::{ChangeMembershipRequest, GroupStatus, MembershipStep};
use shardhost::proto::log::Member;

use super::group::role_of;
use super::output::number;
use super::reached::{REQUEST_MS, Reached, hand_over};
use super::target::{Node, Target, all_groups, in_time, said};

/// Troubles that are shown.
const SHOWN: usize = 20;
/// Replicas that are rebuilt at a time.
const WINDOW: usize = 16;

/// Which replicas are rebuilt.
#[derive(Clone, Debug, Args)]
pub struct RebuildArguments {
    /// The node whose replicas are replaced.
    node: u64,
    /// Only these groups.
    #[arg(long = "group", value_name = "GROUP", value_delimiter = ',')]
    groups: Vec<u64>,
    /// Show which groups that are, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
}

impl RebuildArguments {
    /// One replica.
    pub fn of_group(node: u64, group: u64, target: &Target) -> Self {
        Self { node, groups: vec![group], dry_run: false, target: target.clone() }
    }
}

/// Rebuilds the replicas of a node, or shows which that would be.
pub async fn run(arguments: &RebuildArguments) -> anyhow::Result<ExitCode> {
    let RebuildArguments { node, groups, dry_run, target } = arguments;
    let cluster = Reached::all(target).await?;
    cluster.require(*node)?;
    let mut replicas = replicas_on(&cluster, *node).await?;
    if !groups.is_empty() {
        let wanted: BTreeSet<u64> = groups.iter().copied().collect();
        if let Some(group) = wanted.iter().find(|group| !replicas.contains_key(group)) {
            bail!(
                "node {node} is no member of group {group}; `member add {group} {node}` makes it one"
            );
        }
        replicas.retain(|group, _| wanted.contains(group));
    }
    if *dry_run {
        show(*node, &replicas, target.json);
        return Ok(ExitCode::SUCCESS);
    }
    let failed = rebuild_all(&cluster, *node, &replicas, target.patience()).await;
    report(*node, replicas.len() - failed.len(), &failed, target.json);
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A replica that is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Old {
    replica: u64,
    /// It has no vote, and its successor gets none.
    learns: bool,
}

/// The replicas that a node has by the newest configuration that anybody knows, by group.
async fn replicas_on(cluster: &Reached, node: u64) -> anyhow::Result<BTreeMap<u64, Old>> {
    let mut newest: BTreeMap<u64, (u64, Option<Old>)> = BTreeMap::new();
    for one in cluster.nodes().values() {
        let mut admin = one.admin.clone();
        let listed = in_time(&one.address, all_groups(&mut admin)).await;
        let listed = listed.context("which groups there are is asked of every node")?;
        for group in listed {
            let Some(membership) = &group.membership else { continue };
            let here = member_on(&group, node).map(|member| Old {
                replica: member.replica,
                learns: role_of(member) == "learner",
            });
            let index = membership.config_index;
            let known = newest.entry(group.group).or_insert((index, here));
            if index > known.0 {
                *known = (index, here);
            }
        }
    }
    let held = newest.into_iter().filter_map(|(group, (_, replica))| Some((group, replica?)));
    Ok(held.collect())
}

fn member_on(status: &GroupStatus, node: u64) -> Option<&Member> {
    status.membership.iter().flat_map(|all| &all.members).find(|member| member.node == node)
}

async fn rebuild_all(
    cluster: &Reached,
    node: u64,
    replicas: &BTreeMap<u64, Old>,
    within: Duration,
) -> BTreeMap<u64, String> {
    let rebuild = |(group, old): (&u64, &Old)| {
        let (group, old) = (*group, *old);
        async move { (group, rebuild(cluster, (group, node, old), within).await) }
    };
    let mut outcomes = stream::iter(replicas).map(rebuild).buffer_unordered(WINDOW);
    let mut failed = BTreeMap::new();
    while let Some((group, outcome)) = outcomes.next().await {
        if let Err(error) = outcome {
            failed.insert(group, format!("{error:#}"));
        }
    }
    failed
}

/// Replaces replica `old` of a group by a new one on its node, and waits until that has its vote.
async fn rebuild(
    cluster: &Reached,
    (group, node, old): (u64, u64, Old),
    within: Duration,
) -> anyhow::Result<()> {
    cluster
        .carry_on(group, within, async |leader, status| {
            match Next::of(status, node, old.replica) {
                Next::Done => return Ok(true),
                Next::Wait => {}
                Next::Add if old.learns => change(leader, group, Kind::AddLearner, node).await?,
                Next::Add => change(leader, group, Kind::AddVoter, node).await?,
                Next::Remove if leader.status.node == node => {
                    hand_over(leader, group, status).await?
                }
                Next::Remove => {
                    check_others(cluster, status, node).await?;
                    change(leader, group, Kind::Remove, node).await?;
                }
            }
            Ok(false)
        })
        .await
}

async fn change(leader: &Node, group: u64, kind: Kind, node: u64) -> anyhow::Result<()> {
    let step = MembershipStep { kind: kind.into(), node, ..MembershipStep::default() };
    let request =
        ChangeMembershipRequest { group, steps: vec![step], expect: None, timeout_ms: REQUEST_MS };
    let changed = leader.admin.clone().change_membership(request).await;
    changed.map(drop).map_err(|status| said(&leader.address, &status))
}

/// What comes next in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Remove,
    Add,
    Wait,
    Done,
}

impl Next {
    /// What the leader's status says about replica `old` on `node`.
    fn of(status: &GroupStatus, node: u64, old: u64) -> Self {
        let Some(membership) = &status.membership else { return Self::Wait };
        let busy = membership.incoming.is_some()
            || membership.members.iter().any(|member| member.outgoing_voter);
        match member_on(status, node) {
            _ if busy => Self::Wait,
            Some(member) if member.replica == old => Self::Remove,
            // Nothing is recorded that is still to be done with it.
            Some(_) => Self::Done,
            None => Self::Add,
        }
    }
}

/// Whether those that stay can do without the replica: else the group would stand still with its
/// removal until another one comes back. A group that sleeps hears of nobody, so each is asked.
async fn check_others(cluster: &Reached, status: &GroupStatus, node: u64) -> anyhow::Result<()> {
    let others = other_voters(status, node);
    let ask = |other: u64| async move {
        let Some(other) = cluster.nodes().get(&other) else { return false };
        other.group(status.group).await.is_ok_and(|held| takes_part(&held))
    };
    let answers = futures::future::join_all(others.iter().copied().map(ask)).await;
    let live = answers.iter().filter(|takes_part| **takes_part).count();
    enough(live, others.len())
}

fn other_voters(status: &GroupStatus, node: u64) -> Vec<u64> {
    let members = status.membership.iter().flat_map(|all| &all.members);
    let others = members.filter(|member| role_of(member) == "voter" && member.node != node);
    others.map(|member| member.node).collect()
}

/// Whether a replica does its part in the group.
fn takes_part(held: &GroupStatus) -> bool {
    held.role != "failed" && held.doubt.is_empty()
}

/// Whether so many of the other voters are enough.
fn enough(live: usize, others: usize) -> anyhow::Result<()> {
    let needed = others / 2 + 1;
    if others == 0 {
        bail!("it is the only voter: nobody else has what it holds");
    }
    if live < needed {
        bail!("{live} of the {others} other voters take part, {needed} must");
    }
    Ok(())
}

fn show(node: u64, replicas: &BTreeMap<u64, Old>, as_json: bool) {
    let groups: Vec<u64> = replicas.keys().copied().collect();
    if as_json {
        return println!("{}", json!({ "node": node, "groups": groups }));
    }
    println!("node {node} would get {} new replicas", number(groups.len() as u64));
    for group in groups.iter().take(SHOWN) {
        println!("group {group}");
    }
    if groups.len() > SHOWN {
        println!("and {} more", number((groups.len() - SHOWN) as u64));
    }
}

fn report(node: u64, rebuilt: usize, failed: &BTreeMap<u64, String>, as_json: bool) {
    if as_json {
        return println!("{}", json!({ "node": node, "rebuilt": rebuilt, "failed": failed }));
    }
    println!("node {node} has {} new replicas", number(rebuilt as u64));
    for (group, error) in failed.iter().take(SHOWN) {
        println!("group {group}: {error}");
    }
    if failed.len() > SHOWN {
        println!("and {} more failed", number((failed.len() - SHOWN) as u64));
    }
}

#[cfg(test)]
mod tests {
    use shardhost::proto::log::{Incoming, MemberRole, Membership};

    use super::*;

    fn member(node: u64, replica: u64, role: MemberRole) -> Member {
        Member { node, replica, role: role.into(), ..Member::default() }
    }

    /// Node `n` has replica `n`.
    fn status(nodes: &[u64]) -> GroupStatus {
        let members = nodes.iter().map(|node| member(*node, *node, MemberRole::Voter)).collect();
        let membership = Some(Membership { members, ..Membership::default() });
        GroupStatus { membership, ..GroupStatus::default() }
    }

    #[test]
    fn a_replica_is_removed_then_added_then_waited_for() {
        let mut now = status(&[1, 2, 3]);
        assert_eq!(Next::of(&now, 3, 3), Next::Remove);
        assert_eq!(Next::of(&status(&[1, 2]), 3, 3), Next::Add);
        let membership = now.membership.as_mut().unwrap();
        membership.members[2] = member(3, 4, MemberRole::Learner);
        membership.incoming = Some(Incoming { replica: 4, replaces: 0 });
        assert_eq!(Next::of(&now, 3, 3), Next::Wait);
        let membership = now.membership.as_mut().unwrap();
        membership.incoming = None;
        membership.members[2] = member(3, 4, MemberRole::Voter);
        assert_eq!(Next::of(&now, 3, 3), Next::Done);
    }

    #[test]
    fn a_replica_stays_that_the_others_cannot_do_without() {
        assert_eq!(other_voters(&status(&[1, 2, 3]), 3), [1, 2]);
        for (live, others) in [(2, 2), (1, 1), (3, 4), (2, 3)] {
            assert!(enough(live, others).is_ok(), "{live} of {others}");
        }
        for (live, others) in [(0, 0), (1, 2), (0, 1), (2, 4)] {
            assert!(enough(live, others).is_err(), "{live} of {others}");
        }
    }
}
