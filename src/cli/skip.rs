//! `shardhost group skip`: a group that stands still because a command fails the state machine of each of
//! its replicas goes on without it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use shardhost_proto::admin::{
    EntryReply, LookAtEntryRequest, OpenReplicaRequest, SkipEntryRequest,
};
use shardhost_proto::log::Membership;

use super::output::{Column, number, table, whole};
use super::target::{Node, Target, in_time, said};

/// Which command.
#[derive(Debug, Args)]
pub struct SkipArguments {
    /// Number of the group.
    group: u64,
    /// Where the command stands in the log: behind what `group show` says is applied. A state machine that
    /// is given several at a time may have failed at a later one.
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

/// What the members hold at the index, by number.
type Seen = BTreeMap<u64, EntryReply>;

/// Shows what would be skipped, or skips it.
///
/// Every log is rewritten before any replica is opened: a command that one replica skipped and another
/// one applies would make them differ.
pub async fn skip(arguments: &SkipArguments) -> anyhow::Result<ExitCode> {
    let mut members = members(arguments).await?;
    let mut seen = Seen::new();
    for (number, node) in &mut members {
        let request = LookAtEntryRequest { group: arguments.group, index: arguments.index };
        seen.insert(*number, in_time(&node.address, node.admin.look_at_entry(request)).await?);
    }
    let found = the_entry(arguments, &seen)?;
    if !arguments.target.json {
        println!("{}", as_table(&seen));
    }
    let done = found.is_none() && seen.values().all(|here| here.running);
    if done {
        tell(arguments, "skipped", "carries nothing, at every member: there is nothing to skip");
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.confirm {
        tell(arguments, "would-skip", "would be skipped; run this again with --confirm");
        return Ok(ExitCode::SUCCESS);
    }
    let again = "not every member was done: start none of them without --park before this command has \
                 ended; run it again";
    if let Some(entry) = found {
        for node in members.values_mut() {
            rewrite(arguments, node, entry).await.context(again)?;
        }
    }
    for node in members.values_mut() {
        let request = OpenReplicaRequest { group: arguments.group };
        let opened = in_time(&node.address, node.admin.open_replica(request)).await;
        opened.context("the entry is skipped at every member, but not all run; run this again")?;
    }
    tell(arguments, "skipped", "is skipped");
    Ok(ExitCode::SUCCESS)
}

async fn rewrite(
    arguments: &SkipArguments,
    node: &mut Node,
    entry: EntryReply,
) -> anyhow::Result<()> {
    let request = SkipEntryRequest {
        group: arguments.group,
        index: arguments.index,
        term: entry.term,
        bytes: entry.bytes,
        checksum: entry.checksum,
    };
    let skipped = node.admin.skip_entry(request);
    let within = Duration::from_secs(arguments.target.timeout.max(1));
    match tokio::time::timeout(within, skipped).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(said(&node.address, &status)),
        Err(_) => bail!("{} does not answer within {within:?}", node.address),
    }
}

/// The nodes that hold a replica, as the newest configuration says that any node knows. Each of them has
/// to answer.
async fn members(arguments: &SkipArguments) -> anyhow::Result<BTreeMap<u64, Node>> {
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
    let mut members = BTreeMap::new();
    for number in named.into_iter().filter(|node| !without.contains(node)) {
        let Some(node) = holders.remove(&number) else {
            bail!(
                "node {number} holds a replica and has to skip the command, too, and does not answer; \
                 if it is gone for good, say --without {number}"
            );
        };
        members.insert(number, node);
    }
    Ok(members)
}

/// The entry that all members hold who have one there; `None`: none of them holds more than nothing.
/// Fails when it is not the same one everywhere, or no command, or somebody has applied it.
fn the_entry(arguments: &SkipArguments, seen: &Seen) -> anyhow::Result<Option<EntryReply>> {
    let index = arguments.index;
    let held = || seen.values().filter(|here| here.present);
    let Some(entry) = held().find(|here| !here.empty) else {
        if held().next().is_none() {
            bail!("nothing stands at {} in the log of any member", number(index));
        }
        return Ok(None);
    };
    if !entry.command {
        bail!("what stands at {} is for the group itself and cannot be skipped", number(index));
    }
    let some_skipped = held().any(|here| here.empty && here.term == entry.term);
    for (node, here) in seen {
        let same =
            (here.term, here.bytes, here.checksum) == (entry.term, entry.bytes, entry.checksum);
        let skipped = here.empty && here.term == entry.term;
        if here.present && !same && !skipped {
            bail!(
                "node {node} holds another entry at {}: one of them is not committed",
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
    Ok(Some(*entry))
}

fn as_table(seen: &Seen) -> String {
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

    fn judge(members: [EntryReply; 3]) -> Result<Option<u64>, String> {
        let seen = (1..).zip(members).collect();
        let found = the_entry(&arguments(), &seen).map_err(|error| error.to_string())?;
        Ok(found.map(|entry| entry.term))
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
        refused([there(), EntryReply { term: 1, ..there() }, there()], "another entry");
        refused([there(), EntryReply { applied: Some(5), ..there() }, there()], "not at fault");
        refused([empty, EntryReply { applied: Some(6), ..there() }, there()], "replicas differ");
        refused(
            [there(), EntryReply { running: true, ..there() }, there()],
            "start that node with",
        );
        refused([there(), EntryReply { running: true, ..absent }, there()], "start that node with");
    }
}
