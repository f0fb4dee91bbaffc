//! `shardhost group`: the groups of a node, as that node sees them.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};
use shardhost::proto::admin::{GroupStatus, ListGroupsRequest, PeerProgress};
use shardhost::proto::log::{Member, MemberRole};

use super::output::{Column, facts, number, table};
use super::target::{Target, in_time};

/// What to show.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// All groups of a node.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// One group, with the progress of its replicas if the node leads it.
    Show {
        /// Number of the group.
        group: u64,
        #[command(flatten)]
        target: Target,
    },
}

/// Shows groups.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List { target } => list(target).await?,
        Command::Show { group, target } => show(*group, target).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(target: &Target) -> anyhow::Result<()> {
    let mut node = target.node().await?;
    let listed = in_time(&node.address, node.admin.list_groups(ListGroupsRequest {})).await?;
    let groups = listed.groups;
    if target.json {
        let groups: Vec<Value> = groups.iter().map(group_json).collect();
        println!("{}", json!({ "node": node.status.node, "groups": groups }));
    } else {
        println!("node {} at {}", node.status.node, node.address);
        println!("{}", table(&COLUMNS, groups.iter().map(row)));
    }
    Ok(())
}

async fn show(group: u64, target: &Target) -> anyhow::Result<()> {
    let node = target.node().await?;
    let status = node.group(group).await?;
    if target.json {
        println!("{}", group_json(&status));
        return Ok(());
    }
    println!("group {group} on node {} at {}", node.status.node, node.address);
    println!("{}", facts(described(&status)));
    if !status.peers.is_empty() {
        println!("{}", table(&PEER_COLUMNS, status.peers.iter().map(peer_row)));
    }
    Ok(())
}

const COLUMNS: [Column; 8] = [
    Column::Right("group"),
    Column::Left("kind"),
    Column::Left("role"),
    Column::Right("leader"),
    Column::Right("term"),
    Column::Right("committed"),
    Column::Right("applied"),
    Column::Left("state"),
];

fn row(group: &GroupStatus) -> Vec<String> {
    vec![
        group.group.to_string(),
        group.kind.clone(),
        group.role.clone(),
        leader(group),
        number(group.term),
        number(group.committed),
        number(group.applied),
        state(group),
    ]
}

const PEER_COLUMNS: [Column; 6] = [
    Column::Right("replica"),
    Column::Right("node"),
    Column::Right("matched"),
    Column::Right("next"),
    Column::Left("state"),
    Column::Left("active"),
];

fn peer_row(peer: &PeerProgress) -> Vec<String> {
    vec![
        peer.replica.to_string(),
        peer.node.to_string(),
        number(peer.matched),
        number(peer.next),
        peer.state.clone(),
        if peer.recently_active { "yes" } else { "no" }.to_owned(),
    ]
}

fn described(group: &GroupStatus) -> Vec<(&'static str, String)> {
    let members = members(group).iter().map(|member| {
        let role = role_of(member);
        format!("node {} (replica {}, {role})", member.node, member.replica)
    });
    let mut rows = vec![
        ("kind", group.kind.clone()),
        ("role", group.role.clone()),
        ("replica", group.replica.to_string()),
        ("leader", leader(group)),
        ("term", number(group.term)),
        ("log", format!("{} to {}", number(group.first_index), number(group.last_index))),
        ("committed", number(group.committed)),
        ("applied", number(group.applied)),
        ("members", members.collect::<Vec<_>>().join("\n")),
        ("state", state(group)),
    ];
    if group.transferring_to_node != 0 {
        rows.push(("transfer to", format!("node {}", group.transferring_to_node)));
    }
    rows
}

fn leader(group: &GroupStatus) -> String {
    match group.leader_node {
        0 => "-".to_owned(),
        node => node.to_string(),
    }
}

fn state(group: &GroupStatus) -> String {
    match (group.fault.is_empty(), group.asleep) {
        (false, _) => format!("failed: {}", group.fault),
        (true, true) => "asleep".to_owned(),
        (true, false) => "awake".to_owned(),
    }
}

fn members(group: &GroupStatus) -> &[Member] {
    group.membership.as_ref().map_or(&[], |membership| &membership.members)
}

fn role_of(member: &Member) -> &'static str {
    match member.role() {
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
        MemberRole::Unspecified => "leaving",
    }
}

fn group_json(group: &GroupStatus) -> Value {
    let members: Vec<Value> = members(group)
        .iter()
        .map(|member| {
            json!({ "node": member.node, "replica": member.replica, "role": role_of(member) })
        })
        .collect();
    let peers: Vec<Value> = group
        .peers
        .iter()
        .map(|peer| {
            json!({
                "replica": peer.replica,
                "node": peer.node,
                "matched": peer.matched,
                "next": peer.next,
                "state": peer.state,
                "recently_active": peer.recently_active,
            })
        })
        .collect();
    json!({
        "group": group.group,
        "kind": group.kind,
        "role": group.role,
        "replica": group.replica,
        "leader_node": group.leader_node,
        "term": group.term,
        "first_index": group.first_index,
        "last_index": group.last_index,
        "committed": group.committed,
        "applied": group.applied,
        "asleep": group.asleep,
        "fault": group.fault,
        "transferring_to_node": group.transferring_to_node,
        "members": members,
        "peers": peers,
    })
}
