//! `shardhost group`: the groups of a node, as that node sees them; creating and destroying groups,
//! and changing what they require.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};
use shardhost_proto::admin::{DestroyGroupRequest, GroupStatus, PeerProgress, ShowGroupRequest};

use super::advance_time::{AdvanceTimeArguments, advance_time};
use super::change::{answered, confirmed, unconfirmed};
use super::create::{CreateArguments, create};
use super::ended::{PARTLY, code_of, partly};
use super::group_status::{group_json, members, role_of};
use super::output::{Cell, Column, facts, number, table, whole};
use super::place::{PlaceArguments, place};
use super::requirement::{RequireArguments, require, requirement_text};
use super::skip::{SkipArguments, skip};
use super::target::{Target, all_groups, promptly};

/// What to do.
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
    /// Create a group: a replica on each of these nodes, all of them voters.
    ///
    /// Ends with exit code 3 when some of them do not answer: the group is created without them, and they
    /// are named.
    Create(CreateArguments),
    /// Change what a group requires of its leader.
    ///
    /// The names are those of capabilities, which nodes get from their configuration. A leader that
    /// lacks one serves no users and transfers its leadership to a node that has them all.
    Require(RequireArguments),
    /// Set where the leader of a group is wanted; without a preference, anywhere. Replaces the
    /// former setting.
    Place(PlaceArguments),
    /// Move the time of a queue shard forward: hidden messages are received again earlier.
    AdvanceTime(AdvanceTimeArguments),
    /// Skip a command that fails the state machine of every replica.
    Skip(SkipArguments),
    /// Destroy a group: the replicas of all its members, and their data. It cannot be undone.
    Destroy {
        /// Number of the group.
        group: u64,
        /// Only if the configuration is that of this index; see `member list`.
        #[arg(long, value_name = "INDEX", value_parser = whole)]
        expect: u64,
        #[command(flatten)]
        target: Target,
    },
}

/// Shows, creates, changes or destroys groups.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List { target } => list(target).await?,
        Command::Show { group, target } => show(*group, target).await?,
        Command::Create(arguments) => create(arguments).await?,
        Command::Require(arguments) => require(arguments).await?,
        Command::Place(arguments) => place(arguments).await?,
        Command::Skip(arguments) => return skip(arguments).await,
        Command::AdvanceTime(arguments) => advance_time(arguments).await?,
        Command::Destroy { group, expect, target } => destroy(*group, *expect, target).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Destroys the replica of every member of the generation that is seen; those that are gone already
/// are no error.
async fn destroy(group: u64, expect: u64, target: &Target) -> anyhow::Result<()> {
    let Some(status) = seen(group, target).await? else {
        return destroy_in_catalog(group, expect, target).await;
    };
    let index = status.membership.as_ref().map_or(0, |membership| membership.config_index);
    if index != expect {
        anyhow::bail!(
            "group {group} has the configuration of index {index}, the command expects that of \
             {expect}; look at the members again"
        );
    }
    // The high half of a replica's number.
    let generation = u32::try_from(status.replica >> 32).ok().filter(|_| status.replica != 0);
    let mut asked = Vec::new();
    for member in members(&status) {
        // The leader was asked: a follower may not have applied that configuration yet.
        let request = DestroyGroupRequest { group, expect: None, generation };
        let destroyed = destroy_at(member.node, request, target).await;
        destroyed.map_err(|error| left(group, &asked, error))?;
        asked.push(member.node);
    }
    told_destroyed(group, target);
    Ok(())
}

/// Destroys the replica of one node, if it is there.
async fn destroy_at(
    node: u64,
    request: DestroyGroupRequest,
    target: &Target,
) -> anyhow::Result<()> {
    let mut node = target.node_numbered(node).await?;
    let gone = node.admin.destroy_group(request);
    match answered(&node.address, target.timeout(), gone).await? {
        Err(status) if status.code() != tonic::Code::NotFound => {
            Err(unconfirmed(&node.address, &status))
        }
        _ => Ok(()),
    }
}

/// How far a destruction came.
fn left(group: u64, destroyed: &[u64], error: anyhow::Error) -> anyhow::Error {
    match destroyed {
        [] if code_of(&error) == PARTLY => {
            error.context(format!("what becomes of group {group} is not known yet"))
        }
        [] => error.context(format!("group {group} is not destroyed")),
        nodes => partly(format!(
            "group {group} is destroyed on nodes {nodes:?} and not on all others; that cannot be taken back, run \
             this again when they answer. In a cluster without a catalog, a node that comes back without a \
             quorum is started with `--park {group}`, and asked with --at: {error:#}"
        )),
    }
}

/// Orders the end of a group of which the node that is asked holds nothing: no host may be able to
/// create a replica of it.
async fn destroy_in_catalog(group: u64, expect: u64, target: &Target) -> anyhow::Result<()> {
    let mut node = target.node().await?;
    let request = DestroyGroupRequest { group, expect: Some(expect), generation: None };
    let ordered = node.admin.destroy_group(request);
    confirmed(&node.address, target.timeout(), ordered).await?;
    if target.json {
        println!("{}", json!({ "group": group, "ordered": true }));
    } else {
        println!(
            "the catalog has the order to destroy group {group}: a host that holds a replica and does not answer \
             now destroys it when it is back"
        );
    }
    Ok(())
}

fn told_destroyed(group: u64, target: &Target) {
    if target.json {
        println!("{}", json!({ "group": group, "destroyed": true }));
    } else {
        println!(
            "group {group} is destroyed; in a cluster without a catalog it takes a higher --incarnation \
             when it is created again"
        );
    }
}

/// The status of a group from its leader. If it has none: from the node that is asked, whose
/// replica failed and names the members; `None`: that node holds no replica.
async fn seen(group: u64, target: &Target) -> anyhow::Result<Option<GroupStatus>> {
    let unled = match target.leader_of(group).await {
        Ok((_, status)) => return Ok(Some(status)),
        Err(error) => error,
    };
    let mut node = target.node().await?;
    match node.admin.show_group(ShowGroupRequest { group }).await {
        Ok(status) if is_readable_and_failed(status.get_ref()) => Ok(Some(status.into_inner())),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        _ => Err(unled),
    }
}

fn is_readable_and_failed(status: &GroupStatus) -> bool {
    status.role == "failed" && !members(status).is_empty()
}

async fn list(target: &Target) -> anyhow::Result<()> {
    let mut node = target.node().await?;
    let groups = promptly(&node.address, all_groups(&mut node.admin)).await?;
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
    let (node, status) = target.holder_of(group).await?;
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

const COLUMNS: [Column; 9] = [
    Column::Right("group"),
    Column::Left("kind"),
    Column::Left("role"),
    Column::Right("leader"),
    Column::Right("term"),
    Column::Right("committed"),
    Column::Right("applied"),
    Column::Left("requires"),
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
        requirement_text(group.membership.as_ref()),
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

fn applied(group: &GroupStatus) -> String {
    let applied = number(group.applied);
    match group.closed {
        true => format!("{applied} on disk; maybe more before the process ended"),
        // A page of groups does not say it, nor does a disk that hangs.
        false if group.role == "failed" && group.last_index == 0 => "unknown".to_owned(),
        false => applied,
    }
}

/// Where a group's members stand among what is said of it.
const MEMBERS_AT: usize = 9;

fn described(group: &GroupStatus) -> Vec<(&'static str, Cell)> {
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
        ("applied", applied(group)),
        ("configuration", config_of(group)),
        ("requires", requirement_text(group.membership.as_ref())),
        ("state", state(group)),
    ];
    if group.transferring_to_node != 0 {
        rows.push(("transfer to", format!("node {}", group.transferring_to_node)));
    }
    if !group.doubt.is_empty() {
        let what = "its log may have lost acknowledged writes; it takes part in no election yet";
        rows.push(("in doubt", format!("{}: {what}", group.doubt)));
    }
    if group.checked != 0 {
        rows.push(("compared", format!("equal to a majority at {}", number(group.checked))));
    }
    if group.differs != 0 {
        let (id, index) = (group.group, number(group.differs));
        let what = "differ, and there is no majority";
        rows.push(("ALARM", format!("the replicas of group {id} {what} (at index {index})")));
    }
    if group.conflicting_node != 0 {
        let node = group.conflicting_node;
        let what = format!("node {node} created a group of this id with other members");
        rows.push(("contested", what));
    }
    let mut rows: Vec<(_, Cell)> = rows.into_iter().map(|(name, is)| (name, is.into())).collect();
    rows.insert(MEMBERS_AT, ("members", Cell::of_lines(members)));
    rows
}

fn config_of(group: &GroupStatus) -> String {
    let index = group.membership.as_ref().map_or(0, |membership| membership.config_index);
    match group.pending_change {
        0 => format!("index {}", number(index)),
        pending => format!("index {}, a change is under way at {}", number(index), number(pending)),
    }
}

fn leader(group: &GroupStatus) -> String {
    match group.leader_node {
        0 => "-".to_owned(),
        node => node.to_string(),
    }
}

fn state(group: &GroupStatus) -> String {
    match (group.fault.as_str(), group.caretaker.as_str(), group.hibernating) {
        ("", "", _) if !group.stalled.is_empty() => format!("stands still: {}", group.stalled),
        ("", "", true) => "hibernating".to_owned(),
        ("", "", false) => "awake".to_owned(),
        ("", reason, _) => format!("leader that serves no users: {reason}"),
        (fault, ..) => format!("failed: {fault}"),
    }
}
