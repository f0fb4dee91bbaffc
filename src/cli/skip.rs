//! `shardhost group skip`: a group that stands still because a command fails the state machine of each of
//! its replicas goes on without it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde_json::json;
use shardhost::proto::admin::{EntryReply, LookAtEntryRequest, SkipEntryRequest};

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

/// The members that were asked, by number.
type Seen = BTreeMap<u64, (Node, EntryReply)>;

/// Shows what would be skipped, or skips it.
pub async fn skip(arguments: &SkipArguments) -> anyhow::Result<ExitCode> {
    let mut seen = look(arguments).await?;
    let entry = the_entry(arguments, &seen)?;
    let Some(entry) = entry else {
        tell(arguments, "skipped", "is skipped already, at every member");
        return Ok(ExitCode::SUCCESS);
    };
    if !arguments.target.json {
        println!("{}", as_table(&seen));
    }
    if !arguments.confirm {
        tell(arguments, "would-skip", "would be skipped; run this again with --confirm");
        return Ok(ExitCode::SUCCESS);
    }
    for (node, here) in seen.values_mut().filter(|(_, here)| !here.running) {
        let request = SkipEntryRequest {
            group: arguments.group,
            index: arguments.index,
            term: entry.term,
            bytes: entry.bytes,
            checksum: entry.checksum,
        };
        let skipped = node.admin.skip_entry(request).await;
        if let Err(status) = skipped {
            let why = said(&node.address, &status);
            return Err(why.context("not every member was done; run this command again"));
        }
        here.empty = true;
    }
    tell(arguments, "skipped", "is skipped");
    Ok(ExitCode::SUCCESS)
}

/// What every member holds at the index.
async fn look(arguments: &SkipArguments) -> anyhow::Result<Seen> {
    let SkipArguments { group, index, target, without, .. } = arguments;
    let (_, status) = target.holder_of(*group).await?;
    let members = status.membership.map(|membership| membership.members).unwrap_or_default();
    let asked = members.iter().map(|member| member.node).filter(|node| !without.contains(node));
    let mut seen = Seen::new();
    for number in asked {
        let mut node = target.node_numbered(number).await.map_err(|error| {
            error.context(format!(
                "node {number} holds a replica and has to skip the command, too; if it is gone for \
                 good, say --without {number}"
            ))
        })?;
        let request = LookAtEntryRequest { group: *group, index: *index };
        let entry = in_time(&node.address, node.admin.look_at_entry(request)).await?;
        seen.insert(number, (node, entry));
    }
    if seen.is_empty() {
        bail!("nobody is left who holds a replica of group {group}");
    }
    Ok(seen)
}

/// The entry that all members hold who have one there; `None`: all of these skipped it. Fails when it is
/// not the same one everywhere, or somebody has applied it.
fn the_entry(arguments: &SkipArguments, seen: &Seen) -> anyhow::Result<Option<EntryReply>> {
    let index = arguments.index;
    let held = || seen.iter().filter(|(_, (_, here))| here.present);
    let Some(entry) = held().map(|(_, (_, here))| here).find(|here| !here.empty) else {
        if held().next().is_none() {
            bail!("nothing stands at {} in the log of any member", number(index));
        }
        return Ok(None);
    };
    for (node, (_, here)) in seen {
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
        if applied >= index && !skipped {
            bail!(
                "node {node} has applied what stands at {} (it is at {}): the command is not at fault; \
                 replace the replicas that fail with `shardhost member replace`",
                number(index),
                number(applied)
            );
        }
        if here.running && here.present && !skipped {
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
    let row = |(node, (_, here)): (&u64, &(Node, EntryReply))| {
        let what = match (here.present, here.empty) {
            (false, _) => "not there yet",
            (true, true) => "skipped",
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
