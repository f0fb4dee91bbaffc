//! `shardhost member`: who belongs to a group.

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::json;
use shardhost_proto::admin::membership_step::{CaughtUp, Kind};
use shardhost_proto::admin::{
    CancelAdditionRequest, ChangeMembershipRequest, GroupStatus, HostStatus, MembershipStep,
    ReplaceMemberRequest,
};
use shardhost_proto::log::{Incoming, Member, Membership};
use tokio::time::Instant;

use super::change::{answered, confirmed, is_led_elsewhere, unconfirmed};
use super::ended::{partly, senseless};
use super::fill::{self, FillArguments};
use super::group_status::role_of;
use super::output::{Column, number, table, whole};
use super::rebuild::{self, RebuildArguments};
use super::replacing::Replacing;
use super::target::{Node, Target};

/// Between two looks at a change that takes its time.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(200);
/// Before the next leader is looked for, when the one that was asked leads no more.
const LED_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the members of a group, as its leader sees them.
    List {
        /// Number of the group.
        group: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Add a node: as a voter, which it becomes when it has caught up, or as a learner.
    Add {
        #[command(flatten)]
        change: Change,
        /// A permanent learner.
        #[arg(long)]
        learner: bool,
        /// Where the node is expected to be; refused if the cluster knows another address.
        #[arg(long, value_name = "ADDRESS", default_value = "")]
        address: String,
    },
    /// Give a learner a vote.
    Promote {
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        caught_up: WhenCaughtUp,
    },
    /// Take a voter's vote; it continues as a learner.
    Demote {
        #[command(flatten)]
        change: Change,
    },
    /// Remove a node from a group; its replica's data goes when it learns of it.
    Remove {
        #[command(flatten)]
        change: Change,
    },
    /// Replace a member, also one that is dead, by another node, or by a new replica on the same node.
    ///
    /// The present step is recorded in the group: any leader continues it, also without this
    /// command. Run it again to watch it to its end.
    Replace {
        /// Number of the group.
        group: u64,
        /// The node whose replica goes.
        old: u64,
        /// The node that gets one.
        new: u64,
        /// Only if the configuration is still that of this index.
        #[arg(long, value_name = "INDEX", value_parser = whole)]
        expect: Option<u64>,
        /// Give up the replacement or addition that is under way.
        #[arg(long)]
        cancel: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Give a node that joined its fair part of the replicas, each in the place of another node's.
    ///
    /// The fullest nodes give, preferably groups that they cannot lead themselves. Run it again to
    /// continue where it stopped; leaderships follow with `shardhost balance now`.
    Fill(FillArguments),
    /// Replace every replica of a node by a new one on the same node, from what the others hold.
    ///
    /// For a node that lost its disk, whose data directory was put back from an older copy, or
    /// whose replicas differ from those of others. A replica that the others cannot do without is
    /// kept, and named. Run it again for those. An interrupted run first finishes the groups of which it
    /// removed a replica.
    ///
    /// Ends with exit code 3 when nodes do not answer, when groups have fewer voters than at the beginning,
    /// and when they have fewer than is expected and none on the node: all are named, and an earlier run may
    /// have left the groups so. What a rule asks for is expected of its groups, and is not named where replicas
    /// move automatically.
    Rebuild(RebuildArguments),
}

/// A change of one member.
#[derive(Clone, Debug, Args)]
pub struct Change {
    /// Number of the group.
    group: u64,
    /// The node.
    node: u64,
    /// Only if the configuration is still that of this index; see `member list`.
    #[arg(long, value_name = "INDEX", value_parser = whole)]
    expect: Option<u64>,
    #[command(flatten)]
    target: Target,
}

/// How much of the log a learner must have before it gets a vote.
#[derive(Clone, Copy, Debug, Args)]
#[group(multiple = false)]
pub struct WhenCaughtUp {
    /// At most so many entries behind the leader. The default is 1,024.
    #[arg(long, value_name = "ENTRIES", value_parser = whole)]
    max_lag: Option<u64>,
    /// At least everything up to this index.
    #[arg(long, value_name = "INDEX", value_parser = whole)]
    at_least: Option<u64>,
    /// Whatever it has.
    #[arg(long)]
    unchecked: bool,
}

impl WhenCaughtUp {
    fn to_wire(self) -> Option<CaughtUp> {
        let unchecked = self.unchecked.then_some(CaughtUp::Unchecked(true));
        self.max_lag.map(CaughtUp::MaxLag).or(self.at_least.map(CaughtUp::AtLeast)).or(unchecked)
    }
}

/// Changes or shows members.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let step = |kind: Kind, change: &Change| MembershipStep {
        kind: kind.into(),
        node: change.node,
        ..MembershipStep::default()
    };
    match command {
        Command::List { group, target } => list(*group, target).await?,
        Command::Add { change, learner, address } => {
            let kind = if *learner { Kind::AddLearner } else { Kind::AddVoter };
            let step = MembershipStep { address: address.clone(), ..step(kind, change) };
            make(change, step).await?;
        }
        Command::Promote { change, caught_up } => {
            let caught_up = caught_up.to_wire();
            make(change, MembershipStep { caught_up, ..step(Kind::Promote, change) }).await?;
        }
        Command::Demote { change } => make(change, step(Kind::Demote, change)).await?,
        Command::Remove { change } => make(change, step(Kind::Remove, change)).await?,
        Command::Replace { group, old, new, target, cancel: true, expect } => {
            cancel(*group, (*old, *new), *expect, target).await?;
        }
        Command::Replace { group, old, new, expect: None, target, .. } if old == new => {
            return rebuild::run(&RebuildArguments::of_group(*old, *group, target)).await;
        }
        Command::Replace { old, new, .. } if old == new => {
            return Err(senseless(
                "a new replica on the same node takes two changes: leave --expect out",
            ));
        }
        Command::Replace { group, old, new, expect, target, .. } => {
            replace(*group, (*old, *new), *expect, target).await?;
        }
        Command::Fill(arguments) => return fill::run(arguments).await,
        Command::Rebuild(arguments) => return rebuild::run(arguments).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(group: u64, target: &Target) -> anyhow::Result<()> {
    let (leader, status) = target.leader_of(group).await?;
    show(target, group, leader.status.node, &status)
}

fn show(target: &Target, group: u64, leader: u64, status: &GroupStatus) -> anyhow::Result<()> {
    let Some(membership) = &status.membership else { bail!("group {group} has no members") };
    if target.json {
        println!("{}", membership_json(group, leader, membership));
        return Ok(());
    }
    let config = number(membership.config_index);
    println!("group {group}, configuration of index {config}, led by node {leader}");
    let progress =
        |member: &Member| status.peers.iter().find(|peer| peer.replica == member.replica);
    let rows = membership.members.iter().map(|member| {
        let (matched, state) = match progress(member) {
            Some(peer) => (number(peer.matched), peer.state.clone()),
            None if member.node == leader => (number(status.last_index), "leader".to_owned()),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let (node, replica) = (member.node.to_string(), member.replica.to_string());
        vec![node, replica, role_of(member).to_owned(), matched, state]
    });
    println!("{}", table(&COLUMNS, rows));
    if let Some(text) = under_way(membership) {
        println!("{text}");
    }
    Ok(())
}

const COLUMNS: [Column; 5] = [
    Column::Right("node"),
    Column::Right("replica"),
    Column::Left("role"),
    Column::Right("matched"),
    Column::Left("state"),
];

/// The unfinished changes, as text.
fn under_way(membership: &Membership) -> Option<String> {
    let node = |replica: u64| {
        let members = membership.members.iter();
        members.clone().find(|member| member.replica == replica).map_or(0, |member| member.node)
    };
    if membership.members.iter().any(|member| member.outgoing_voter) {
        return Some("a joint change is under way".to_owned());
    }
    let Incoming { replica, replaces } = *membership.incoming.as_ref()?;
    let new = node(replica);
    Some(match replaces {
        0 => format!("node {new} catches up and becomes a voter"),
        old => format!("node {new} catches up and takes the place of node {}", node(old)),
    })
}

async fn make(change: &Change, step: MembershipStep) -> anyhow::Result<()> {
    let target = &change.target;
    let deadline = Instant::now() + target.timeout();
    loop {
        let (mut leader, status) = target.leader_of(change.group).await?;
        // The leader refuses every change beside an addition, and does not know the command that ends it.
        check_no_addition(&status, None)?;
        let request = ChangeMembershipRequest {
            group: change.group,
            steps: vec![step.clone()],
            expect: change.expect,
            timeout_ms: target.timeout.saturating_mul(1_000),
        };
        let changed = leader.admin.change_membership(request);
        match answered(&leader.address, target.timeout(), changed).await? {
            Ok(changed) => {
                return report(target, change.group, &leader, changed.membership.as_ref());
            }
            Err(status) if is_led_elsewhere(&status) && Instant::now() < deadline => {
                tokio::time::sleep(LED_AGAIN).await;
            }
            Err(status) => return Err(unconfirmed(&leader.address, &status)),
        }
    }
}

fn report(
    target: &Target,
    group: u64,
    leader: &Node,
    membership: Option<&Membership>,
) -> anyhow::Result<()> {
    let Some(membership) = membership else { bail!("{} named no members", leader.address) };
    if target.json {
        println!("{}", membership_json(group, leader.status.node, membership));
        return Ok(());
    }
    let members = membership.members.iter();
    let members: Vec<String> =
        members.map(|member| format!("node {} {}", member.node, role_of(member))).collect();
    let index = number(membership.config_index);
    println!("group {group} has the configuration of index {index}: {}", members.join(", "));
    Ok(())
}

async fn cancel(
    group: u64,
    named: (u64, u64),
    expect: Option<u64>,
    target: &Target,
) -> anyhow::Result<()> {
    let (mut leader, status) = target.leader_of(group).await?;
    check_no_addition(&status, Some(named))?;
    let timeout_ms = target.timeout.saturating_mul(1_000);
    let request = CancelAdditionRequest { group, expect, timeout_ms };
    let changed = leader.admin.cancel_addition(request);
    let changed = confirmed(&leader.address, target.timeout(), changed).await?;
    report(target, group, &leader, changed.membership.as_ref())
}

/// Refuses when another node is being added than the command names, by its former and its new node.
fn check_no_addition(status: &GroupStatus, named: Option<(u64, u64)>) -> anyhow::Result<()> {
    let Some(found) = incoming_nodes(status).filter(|found| Some(*found) != named) else {
        return Ok(());
    };
    let (group, (old, new)) = (status.group, found);
    let what = match old == new {
        true => format!("node {new} is being added"),
        false => format!("node {new} is taking the place of node {old}"),
    };
    bail!(
        "in group {group}, {what}: wait until `shardhost member list {group}` does not show it any more, or \
         give it up with `shardhost member replace {group} {old} {new} --cancel`"
    )
}

/// The node that goes and the node that comes; of an addition both are the one that comes.
fn incoming_nodes(status: &GroupStatus) -> Option<(u64, u64)> {
    let membership = status.membership.as_ref()?;
    let incoming = membership.incoming.as_ref()?;
    let node_of = |replica: u64| {
        membership.members.iter().find(|member| member.replica == replica).map(|member| member.node)
    };
    let new = node_of(incoming.replica)?;
    Some((node_of(incoming.replaces).unwrap_or(new), new))
}

/// A node that is no member may have been replaced before; one that the cluster does not have was not.
fn check_replaced(known: &HostStatus, group: u64, old: u64) -> anyhow::Result<()> {
    if known.node == old || known.peers.iter().any(|peer| peer.node == old) {
        return Ok(());
    }
    bail!(
        "the cluster has no node {old}, and none of that number is a member of group {group}: nothing was \
         replaced; `shardhost member list {group}` shows the members"
    )
}

/// Begins the replacement, unless it is under way or done, and watches it to its end.
async fn replace(
    group: u64,
    (old, new): (u64, u64),
    expect: Option<u64>,
    target: &Target,
) -> anyhow::Result<()> {
    let (mut leader, status) = target.leader_of(group).await?;
    check_no_addition(&status, Some((old, new)))?;
    if Replacing::of(&status, old, new) == Replacing::Done {
        check_replaced(&leader.status, group, old)?;
        eprintln!(
            "node {old} is no member of group {group}, and node {new} is a voter: it was replaced before, or never was \
             a member"
        );
    }
    if Replacing::of(&status, old, new) == Replacing::NotBegun {
        let request = ReplaceMemberRequest {
            group,
            old_node: old,
            new_node: new,
            expect,
            timeout_ms: target.timeout.saturating_mul(1_000),
        };
        let begun = leader.admin.replace_member(request);
        confirmed(&leader.address, target.timeout(), begun).await?;
        if !target.json {
            println!("recorded: node {new} replaces node {old} in group {group}");
        }
    }
    let deadline = Instant::now() + target.timeout();
    loop {
        let led = target.leader_of(group).await;
        let (leader, status) = led.map_err(|error| {
            partly(format!("the replacement in group {group} is recorded and continues: {error:#}"))
        })?;
        match Replacing::of(&status, old, new) {
            Replacing::Done => return show(target, group, leader.status.node, &status),
            Replacing::NotBegun => bail!("the replacement in group {group} was given up"),
            Replacing::UnderWay if Instant::now() < deadline => {}
            Replacing::UnderWay => {
                return Err(partly(format!(
                    "the replacement in group {group} is recorded and continues, but is not done after \
                     {:?}; run the command again to watch it, or `--cancel` it",
                    target.timeout()
                )));
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn membership_json(group: u64, leader: u64, membership: &Membership) -> serde_json::Value {
    let members = membership.members.iter().map(
        |member| json!({ "node": member.node, "replica": member.replica, "role": role_of(member) }),
    );
    json!({
        "group": group,
        "leader_node": leader,
        "config_index": membership.config_index,
        "members": members.collect::<Vec<_>>(),
        "under_way": under_way(membership),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_named_by_its_nodes() {
        let member = |replica, node| Member { replica, node, ..Member::default() };
        let members = vec![member(1, 1), member(2, 2), member(7, 4)];
        let of = |incoming: Option<(u64, u64)>| {
            let incoming = incoming.map(|(replica, replaces)| Incoming { replica, replaces });
            let membership =
                Membership { members: members.clone(), incoming, ..Membership::default() };
            incoming_nodes(&GroupStatus { membership: Some(membership), ..GroupStatus::default() })
        };
        assert_eq!(of(Some((7, 2))), Some((2, 4)));
        assert_eq!(of(Some((7, 0))), Some((4, 4)), "an addition");
        assert_eq!(of(None), None);
    }

    #[test]
    fn a_node_that_the_cluster_does_not_have_was_not_replaced() {
        let peers = vec![shardhost_proto::admin::PeerStatus { node: 3, ..Default::default() }];
        let leader = HostStatus { node: 1, peers, ..HostStatus::default() };
        for known in [1, 3] {
            check_replaced(&leader, 7, known).unwrap();
        }
        let refused = check_replaced(&leader, 7, 9).unwrap_err().to_string();
        assert!(refused.contains("has no node 9") && refused.contains("group 7"), "{refused}");
    }

    #[test]
    fn a_change_beside_another_one_is_refused_with_what_gives_that_up() {
        let member = |replica, node| Member { replica, node, ..Member::default() };
        let members = vec![member(3, 3), member(7, 4)];
        let incoming = Some(Incoming { replica: 7, replaces: 3 });
        let membership = Some(Membership { members, incoming, ..Membership::default() });
        let status = GroupStatus { group: 9, membership, ..GroupStatus::default() };
        assert!(check_no_addition(&status, Some((3, 4))).is_ok(), "it is that one");
        for named in [None, Some((1, 4)), Some((3, 5))] {
            let refused = check_no_addition(&status, named).unwrap_err().to_string();
            assert!(refused.contains("node 4 is taking the place of node 3"), "{refused}");
            assert!(refused.contains("member replace 9 3 4 --cancel"), "{refused}");
        }
    }
}
