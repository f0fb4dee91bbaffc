//! `shardhost group skip`: a group that is stuck because a command fails the state machine of each
//! of its replicas continues without it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use shardhost_proto::admin::{
    EntryReply, LookAtEntryRequest, OpenReplicaRequest, SkipEntryRequest,
};
use shardhost_proto::log::{Member, MemberRole, Membership};

use super::output::{Column, number, table, whole};
use super::target::{Node, Target, in_time, said};

/// Which command.
#[derive(Debug, Args)]
pub struct SkipArguments {
    /// Number of the group.
    group: u64,
    /// Where the command stands in the log: behind what `group show` says is applied, where a replica has
    /// failed and its process runs. A replica that is parked says only what is on its disk: it may have
    /// applied, and acknowledged, what comes next, and the log of the host says what ended it. A state
    /// machine that is given several at a time may have failed at a later one.
    #[arg(long, value_name = "INDEX", value_parser = whole)]
    index: u64,
    /// Do it. Without this, it is only shown what would be skipped, and where.
    #[arg(long)]
    confirm: bool,
    /// A member that is gone for good and is not asked. Remove it from the group before it can come
    /// back: it would still hold the command.
    #[arg(long, value_name = "NODE")]
    without: Vec<u64>,
    #[command(flatten)]
    target: Target,
}

/// Said where state machines were asked that do not run.
const ON_DISK_ONLY: &str = "replicas that are not open say what is on their disks: before their processes \
                            ended they may have applied more, and acknowledged it. See the logs of the \
                            hosts for the command that fails or ends them.";

/// What the members hold at the index, by number.
type Seen = BTreeMap<u64, EntryReply>;

/// Shows what would be skipped, or skips it.
///
/// Every log is rewritten before any replica is opened: a command that one replica skipped and another
/// one applies would make them differ.
pub async fn skip(arguments: &SkipArguments) -> anyhow::Result<ExitCode> {
    let Members { mut nodes, voters } = members(arguments).await?;
    let mut seen = Seen::new();
    for (number, node) in &mut nodes {
        seen.insert(*number, look(arguments, node).await?);
    }
    let Found { entry: found, older } = the_entry(arguments, &seen, &voters)?;
    if !arguments.target.json {
        println!("{}", as_table(&seen, &older));
        if found.is_some() && seen.values().any(|here| here.closed) {
            println!("{}", ON_DISK_ONLY);
        }
    }
    let begun = seen.values().any(|here| here.skipping == Some(arguments.index));
    if found.is_none() && !begun {
        if seen.values().all(|here| here.running) {
            tell(arguments, "skipped", "is empty at every member: there is nothing to skip");
            return Ok(ExitCode::SUCCESS);
        }
        bail!(
            "entry {} is empty: a leader began its term with it. It fails no state machine, so no replica is \
             opened; find the index of the command that does",
            number(arguments.index)
        );
    }
    if !arguments.confirm {
        tell(arguments, "would-skip", "would be skipped; run this again with --confirm");
        return Ok(ExitCode::SUCCESS);
    }
    if let Some((node, other)) = another_skip(arguments, &seen) {
        bail!(
            "the skip of entry {} is not finished (node {node} notes it): run `shardhost group skip {} --index \
             {other} --confirm` first, then this again",
            number(other),
            arguments.group
        );
    }
    let again = "not every member was done; none of them opens its replica before this command has ended: run \
                 it again";
    if let Some(entry) = found {
        for begin in [true, false] {
            for (_, node) in nodes.iter_mut().filter(|(number, _)| !older.contains(number)) {
                have_skipped(arguments, node, entry, begin).await.context(again)?;
            }
        }
        for (number, node) in nodes.iter_mut().filter(|(number, _)| older.contains(number)) {
            still_older(arguments, node, seen[number]).await.context(again)?;
        }
    }
    for node in nodes.values_mut() {
        let opened = node.admin.open_replica(OpenReplicaRequest { group: arguments.group });
        let opened = within(arguments, &node.address, opened).await;
        opened.context("the entry is skipped at every member, but not all run; run this again")?;
    }
    tell(arguments, "skipped", "is skipped");
    Ok(ExitCode::SUCCESS)
}

/// A member that notes the skip of another entry, and which.
fn another_skip(arguments: &SkipArguments, seen: &Seen) -> Option<(u64, u64)> {
    let noted = |(node, here): (&u64, &EntryReply)| Some((*node, here.skipping?));
    seen.iter().filter_map(noted).find(|(_, index)| *index != arguments.index)
}

/// Has a member note that the entry is being skipped, or skip it.
async fn have_skipped(
    arguments: &SkipArguments,
    node: &mut Node,
    entry: EntryReply,
    begin: bool,
) -> anyhow::Result<()> {
    let request = SkipEntryRequest {
        group: arguments.group,
        index: arguments.index,
        term: entry.term,
        bytes: entry.bytes,
        checksum: entry.checksum,
        begin,
    };
    let skipped = node.admin.skip_entry(request);
    within(arguments, &node.address, skipped).await
}

async fn look(arguments: &SkipArguments, node: &mut Node) -> anyhow::Result<EntryReply> {
    let request = LookAtEntryRequest { group: arguments.group, index: arguments.index };
    in_time(&node.address, node.admin.look_at_entry(request)).await
}

/// A member that holds an entry of an older term has nothing to skip, as long as it gets no newer one.
async fn still_older(
    arguments: &SkipArguments,
    node: &mut Node,
    seen: EntryReply,
) -> anyhow::Result<()> {
    if look(arguments, node).await? != seen {
        bail!("{} has received other entries meanwhile", node.address);
    }
    Ok(())
}

/// What comes of work on the disk of a node, which may take as long as the command.
async fn within<T>(
    arguments: &SkipArguments,
    address: &str,
    work: impl Future<Output = Result<T, tonic::Status>>,
) -> anyhow::Result<()> {
    let time = Duration::from_secs(arguments.target.timeout.max(1));
    match tokio::time::timeout(time, work).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(said(address, &status)),
        Err(_) => bail!("{address} does not answer within {time:?}"),
    }
}

/// The nodes that are asked, by number, and whose votes decide.
struct Members {
    nodes: BTreeMap<u64, Node>,
    /// One set of nodes; two while the members change.
    voters: Vec<BTreeSet<u64>>,
}

/// The voters of a configuration, and those of the one before it while it changes.
fn voters_of(membership: &Membership) -> Vec<BTreeSet<u64>> {
    let nodes = |votes: &dyn Fn(&Member) -> bool| -> BTreeSet<u64> {
        membership.members.iter().filter(|member| votes(member)).map(|member| member.node).collect()
    };
    let now = nodes(&|member| member.role() == MemberRole::Voter);
    let before = nodes(&|member| member.outgoing_voter);
    [now, before].into_iter().filter(|voters| !voters.is_empty()).collect()
}

/// The nodes that hold a replica, as the newest configuration says that any node knows. Each of them has
/// to answer.
async fn members(arguments: &SkipArguments) -> anyhow::Result<Members> {
    let SkipArguments { group, target, without, .. } = arguments;
    let start = target.node().await?;
    let asked = start.all_addresses().into_iter().map(async |address| {
        let node = Node::connect(&address).await.ok()?;
        let status = node.group(*group).await.ok()?;
        Some((node, status.membership?))
    });
    let answers = futures::future::join_all(asked).await;
    let mut holders: BTreeMap<u64, Node> = BTreeMap::new();
    let mut newest = None::<Membership>;
    for (node, membership) in answers.into_iter().flatten() {
        holders.insert(node.status.node, node);
        if newest.as_ref().is_none_or(|known| known.config_index < membership.config_index) {
            newest = Some(membership);
        }
    }
    let Some(newest) = newest else {
        bail!("no node that answers holds a replica of group {group}")
    };
    let named: BTreeSet<u64> = newest.members.iter().map(|member| member.node).collect();
    for node in without {
        if !named.contains(node) {
            bail!("node {node} holds no replica of group {group}: --without {node} means nothing");
        }
        if holders.contains_key(node) {
            bail!("node {node} answers and holds the command, too: it cannot be left out");
        }
    }
    let mut nodes = BTreeMap::new();
    for number in named.into_iter().filter(|node| !without.contains(node)) {
        let Some(node) = holders.remove(&number) else {
            bail!(
                "node {number} holds a replica and has to skip the command, too, and does not answer; \
                 if it is gone for good, say --without {number}"
            );
        };
        nodes.insert(number, node);
    }
    Ok(Members { nodes, voters: voters_of(&newest) })
}

/// What is to be skipped.
#[derive(Debug)]
struct Found {
    /// `None`: no member holds more there than nothing.
    entry: Option<EntryReply>,
    /// Members that hold an entry of an older term there, which a quorum has replaced.
    older: BTreeSet<u64>,
}

/// The entry that all members hold who have one there. Fails when it is no command, or not the same one
/// everywhere, or when it may have been applied. A member may hold an entry of an older term where a
/// quorum of the voters holds the newer one: the group cannot commit the older one any more.
fn the_entry(
    arguments: &SkipArguments,
    seen: &Seen,
    voters: &[BTreeSet<u64>],
) -> anyhow::Result<Found> {
    let index = arguments.index;
    let held = || seen.iter().filter(|(_, here)| here.present);
    let Some(newest) = held().map(|(_, here)| here.term).max() else {
        bail!("nothing stands at {} in the log of any member", number(index));
    };
    let holds_newest =
        |node: &u64| seen.get(node).is_some_and(|here| here.present && here.term == newest);
    let is_decided = voters
        .iter()
        .all(|voters| voters.iter().filter(|node| holds_newest(node)).count() > voters.len() / 2);
    let older: BTreeSet<u64> =
        held().filter(|(_, here)| here.term < newest).map(|(node, _)| *node).collect();
    if let Some(node) = older.first().filter(|_| !is_decided) {
        bail!(
            "node {node} holds an entry of an older term at {} and no majority of the voters holds the \
             newer one: one of them is not committed",
            number(index)
        );
    }
    let of_newest = || held().filter(|(_, here)| here.term == newest).map(|(_, here)| here);
    let Some(entry) = of_newest().find(|here| !here.empty) else {
        return Ok(Found { entry: None, older });
    };
    if !entry.command {
        bail!("what stands at {} is for the group itself and cannot be skipped", number(index));
    }
    let some_skipped = of_newest().any(|here| here.empty);
    for (node, here) in seen {
        let same = (here.bytes, here.checksum) == (entry.bytes, entry.checksum);
        let skipped = here.empty && here.term == entry.term;
        if here.present && here.term == newest && !same && !skipped {
            bail!(
                "node {node} holds another entry of the same term at {}: replicas differ",
                number(index)
            );
        }
        let applied = here.applied.unwrap_or(0);
        if applied >= index && !skipped && some_skipped {
            bail!(
                "node {node} has applied what stands at {}, and other members have skipped it: replicas \
                 differ; replace those of the members that are wrong with `shardhost member replace`",
                number(index)
            );
        }
        if applied >= index && !skipped {
            bail!(
                "node {node} has applied what stands at {} (it is at {}): the command is not at fault; \
                 replace the replicas that fail with `shardhost member replace`",
                number(index),
                number(applied)
            );
        }
        if here.running && !skipped {
            bail!(
                "the replica on node {node} runs and has not come to {} yet: wait until it fails, or \
                 start that node with `--park {}`",
                number(index),
                arguments.group
            );
        }
    }
    Ok(Found { entry: Some(*entry), older })
}

fn as_table(seen: &Seen, older: &BTreeSet<u64>) -> String {
    let columns = [
        Column::Right("node"),
        Column::Left("entry"),
        Column::Right("term"),
        Column::Right("bytes"),
        Column::Left("checksum"),
        Column::Right("applied"),
    ];
    let row = |(node, here): (&u64, &EntryReply)| {
        let what = match (here.present, here.empty) {
            _ if older.contains(node) => "older, replaced",
            (false, _) => "not there yet",
            (true, true) => "empty",
            (true, false) => "there",
        };
        vec![
            node.to_string(),
            what.to_owned(),
            number(here.term),
            number(here.bytes),
            format!("{:08x}", here.checksum),
            here.applied.map_or_else(|| "?".to_owned(), number),
        ]
    };
    table(&columns, seen.iter().map(row))
}

fn tell(arguments: &SkipArguments, state: &str, words: &str) {
    let SkipArguments { group, index, target, .. } = arguments;
    if target.json {
        println!("{}", json!({ "group": group, "index": index, "state": state }));
    } else {
        println!("entry {} of group {group} {words}", number(*index));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: SkipArguments,
    }

    fn arguments() -> SkipArguments {
        Line::parse_from(["skip", "7", "--index", "5"]).arguments
    }

    fn there() -> EntryReply {
        EntryReply {
            present: true,
            term: 2,
            bytes: 10,
            checksum: 99,
            applied: Some(4),
            command: true,
            ..EntryReply::default()
        }
    }

    fn found(members: [EntryReply; 3]) -> Result<Found, String> {
        let seen = (1..).zip(members).collect();
        let voters = [BTreeSet::from([1, 2, 3])];
        the_entry(&arguments(), &seen, &voters).map_err(|error| error.to_string())
    }

    fn judge(members: [EntryReply; 3]) -> Result<Option<u64>, String> {
        found(members).map(|found| found.entry.map(|entry| entry.term))
    }

    #[test]
    fn only_one_command_that_nobody_applied_and_nobody_will_is_skipped() {
        let empty = EntryReply { empty: true, bytes: 0, checksum: 1, ..there() };
        let absent = EntryReply { applied: Some(4), ..EntryReply::default() };
        assert_eq!(judge([there(); 3]), Ok(Some(2)));
        assert_eq!(judge([there(), absent, empty]), Ok(Some(2)), "it was interrupted");
        assert_eq!(judge([empty; 3]), Ok(None));
        let refused = |members, words: &str| {
            let why = judge(members).unwrap_err();
            assert!(why.contains(words), "{why}");
        };
        refused([absent; 3], "nothing stands at 5");
        refused([EntryReply { command: false, ..there() }; 3], "for the group itself");
        refused([there(), EntryReply { checksum: 98, ..there() }, there()], "another entry");
        refused([there(), EntryReply { applied: Some(5), ..there() }, there()], "not at fault");
        refused([empty, EntryReply { applied: Some(6), ..there() }, there()], "replicas differ");
        refused(
            [there(), EntryReply { running: true, ..there() }, there()],
            "start that node with",
        );
        refused([there(), EntryReply { running: true, ..absent }, there()], "start that node with");
    }
    #[test]
    fn an_older_entry_is_left_alone_where_a_majority_of_the_voters_holds_the_newer_one() {
        let older = EntryReply { term: 1, checksum: 5, ..there() };
        let both = found([there(), older, there()]).unwrap();
        assert_eq!((both.entry, both.older), (Some(there()), BTreeSet::from([2])));
        // It was interrupted: the newer one is skipped here and there, or everywhere.
        let skipped = EntryReply { empty: true, bytes: 0, checksum: 1, ..there() };
        assert_eq!(judge([skipped, older, there()]), Ok(Some(2)));
        let done = found([skipped, older, skipped]).unwrap();
        assert_eq!((done.entry, done.older), (None, BTreeSet::from([2])));

        let refused = |members, words: &str| {
            let why = judge(members).unwrap_err();
            assert!(why.contains(words), "{why}");
        };
        let absent = EntryReply { present: false, ..EntryReply::default() };
        refused([there(), older, older], "one of them is not committed");
        refused([there(), older, absent], "one of them is not committed");
        // It could receive the newer one while that is skipped elsewhere.
        refused([there(), EntryReply { running: true, ..older }, there()], "start that node with");
        refused([there(), EntryReply { applied: Some(5), ..older }, there()], "not at fault");
    }

    #[test]
    fn both_configurations_of_a_change_have_their_say() {
        let member = |node, role: MemberRole, outgoing_voter| Member {
            node,
            role: role as i32,
            outgoing_voter,
            ..Member::default()
        };
        let members = vec![
            member(1, MemberRole::Voter, true),
            member(2, MemberRole::Voter, false),
            member(3, MemberRole::Learner, true),
            member(4, MemberRole::Learner, false),
        ];
        let voters = voters_of(&Membership { members, ..Membership::default() });
        assert_eq!(voters, [BTreeSet::from([1, 2]), BTreeSet::from([1, 3])]);
    }
}
