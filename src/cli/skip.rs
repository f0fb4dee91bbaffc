//! `shardhost group skip`: a group that is stuck because a command fails the state machine of each
//! of its replicas continues without it.

mod judge;
mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use shardhost_proto::admin::{
    AbandonSkipRequest, BeginSkipRequest, EntryReply, LookAtEntryRequest, OpenReplicaRequest,
    SkipEntryRequest,
};

use super::ended::partly;
use super::output::{Column, number, table, whole};
use super::target::{Node, Target, promptly, said};
use judge::{
    Asked, Found, Seen, another_skip, holds_command, is_begun, lacking, later_term, left_closed,
    may_abandon, the_entry,
};
use members::{Members, members};

/// Which command.
#[derive(Debug, Args)]
pub struct SkipArguments {
    /// Number of the group.
    group: u64,
    /// Where the command stands in the log: behind what `group show` says is applied, where a replica has
    /// failed and its process runs. A replica that is parked says only what is on its disk: it may have
    /// applied, and acknowledged, what comes next, and the log of the host says what ended it. A state
    /// machine that is given several at a time may have failed at a later one.
    #[arg(long, value_name = "INDEX", value_parser = log_index, allow_negative_numbers = true)]
    index: u64,
    /// Do it. Without this, it is only shown what would be skipped, and where.
    #[arg(long)]
    confirm: bool,
    /// Take back a skip that was begun and not carried out, as long as no member has skipped the command: the
    /// replicas that note it are opened as they are.
    #[arg(long, conflicts_with = "confirm")]
    abandon: bool,
    /// A member that is gone for good, or whose replica cannot be opened, and is not asked. Remove or replace it
    /// before it can come back: it would still hold the command, or, where a skip is taken back, may have skipped
    /// it.
    #[arg(long, value_name = "NODE")]
    without: Vec<u64>,
    #[command(flatten)]
    target: Target,
}

impl SkipArguments {
    const fn asked(&self) -> Asked {
        Asked { group: self.group, index: self.index }
    }
}

/// A place in a log, as it is typed.
fn log_index(text: &str) -> Result<u64, String> {
    whole(text).ok().filter(|index| *index > 0).ok_or_else(|| {
        "a log has entries from index 1 on: give the index of the command, a whole number"
            .to_owned()
    })
}

/// Said where state machines were asked that do not run.
const ON_DISK_ONLY: &str = "replicas that are not open say what is on their disks: before their processes \
                            ended they may have applied more, and acknowledged it. See the logs of the \
                            hosts for the command that fails or ends them.";

/// Shows what would be skipped, or skips it, or takes that back.
///
/// Every log is rewritten before any replica is opened: a command that one replica skipped and another
/// one applies would make them differ.
pub async fn skip(arguments: &SkipArguments) -> anyhow::Result<ExitCode> {
    let mut members = members(arguments).await?;
    let seen = look_at_all(arguments, &mut members).await?;
    if let Some((node, other)) = another_skip(arguments.index, &seen) {
        show(arguments, &seen, &BTreeSet::new());
        return Err(blocked(arguments, node, other));
    }
    if arguments.abandon {
        show(arguments, &seen, &BTreeSet::new());
        return abandon(arguments, &mut members, &seen).await;
    }
    let found = the_entry(arguments.asked(), &seen, &members.voters);
    let is_over = found.as_ref().map_or_else(|_| !holds_command(&seen), |it| it.entry.is_none());
    if is_over && !is_begun(&seen) && !left_closed(&seen).is_empty() {
        show(arguments, &seen, &BTreeSet::new());
        return open_left(arguments, &mut members, &seen).await;
    }
    let found = found.map_err(|error| taken_back(arguments, &seen, error))?;
    show(arguments, &seen, &found.older);
    if !arguments.target.json && found.entry.is_some() && seen.values().any(|here| here.closed) {
        println!("{ON_DISK_ONLY}");
    }
    if found.entry.is_none() && !is_begun(&seen) {
        return nothing_to_skip(arguments, &seen);
    }
    if !arguments.confirm {
        tell(arguments, "would-skip", "would be skipped; run this again with --confirm");
        return Ok(ExitCode::SUCCESS);
    }
    carry_out(arguments, &mut members, &seen, &found).await
}

/// The note of another skip keeps its member from applying what others may have skipped.
fn blocked(arguments: &SkipArguments, node: u64, other: u64) -> anyhow::Error {
    let SkipArguments { group, index, .. } = arguments;
    anyhow::anyhow!(
        "the skip of entry {} is not finished (node {node} notes it), so that of {} cannot begin: finish it with \
         `shardhost group skip {group} --index {other} --confirm`, or take it back with `--abandon` instead, then \
         run this again",
        number(other),
        number(*index)
    )
}

/// What an operator can do about a skip that was begun and cannot be finished.
fn taken_back(arguments: &SkipArguments, seen: &Seen, error: anyhow::Error) -> anyhow::Error {
    match may_abandon(arguments.asked(), seen) {
        Ok(()) => error.context(
            "the skip was begun, and no member has skipped the entry: `--abandon` instead of `--confirm` takes it \
             back",
        ),
        Err(_) => error,
    }
}

fn nothing_to_skip(arguments: &SkipArguments, seen: &Seen) -> anyhow::Result<ExitCode> {
    if seen.values().all(|here| here.running) {
        tell(arguments, "skipped", "is empty at every member: there is nothing to skip");
        return Ok(ExitCode::SUCCESS);
    }
    bail!(
        "entry {} is empty: it was skipped, or a leader began its term with it. It fails no state machine, so no \
         replica is opened: start nodes without `--park`, or find the index of the command that does",
        number(arguments.index)
    )
}

/// The skip is over, and not all replicas are open that its steps closed.
async fn open_left(
    arguments: &SkipArguments,
    members: &mut Members,
    seen: &Seen,
) -> anyhow::Result<ExitCode> {
    if !arguments.confirm && !arguments.abandon {
        let words = "is not being skipped any more; the replicas that its skip left closed would be opened: run this \
                     again with --confirm";
        tell(arguments, "would-open", words);
        return Ok(ExitCode::SUCCESS);
    }
    let left = left_closed(seen);
    open_all(arguments, members, |node| left.contains(node), "the skip is over").await?;
    tell(
        arguments,
        "opened",
        "is not being skipped any more; the replicas that its skip left closed are open",
    );
    Ok(ExitCode::SUCCESS)
}

/// Has every member note the skip, then skip the entry, then open its replica.
async fn carry_out(
    arguments: &SkipArguments,
    members: &mut Members,
    seen: &Seen,
    found: &Found,
) -> anyhow::Result<ExitCode> {
    let skipped = match found.entry {
        Some(entry) => skip_everywhere(arguments, members, seen, (entry, &found.older)).await,
        None => skip_where_it_lacks(arguments, members, &lacking(seen)).await,
    };
    skipped.map_err(|error| {
        partly(format!(
            "not every member was done; none of them opens its replica before this command has ended: run it \
             again, or with --abandon as long as no member has skipped the entry: {error:#}"
        ))
    })?;
    open_all(arguments, members, |_| true, "the entry is skipped at every member").await?;
    tell(arguments, "skipped", "is skipped");
    Ok(ExitCode::SUCCESS)
}

/// Members that run are past the entry without the command. Those that hold an entry of an older term, or none, get
/// no newer one of an earlier leader once they entered the term, so they do that before any log is rewritten.
async fn skip_everywhere(
    arguments: &SkipArguments,
    members: &mut Members,
    seen: &Seen,
    (entry, older): (EntryReply, &BTreeSet<u64>),
) -> anyhow::Result<()> {
    let asked = |number: &u64| !older.contains(number) && !seen[number].running;
    let Members { nodes, unopenable, .. } = members;
    for (number, node) in nodes.iter_mut().filter(|(number, _)| asked(number)) {
        begin_at(arguments, node, entry)
            .await
            .map_err(|error| left_out(unopenable, *number, error))?;
    }
    // From here on the terms of closed members stay as they are.
    let begun = look_at_all(arguments, members).await?;
    let term = later_term(entry.term, &begun);
    let Members { nodes, unopenable, .. } = members;
    for (number, node) in nodes.iter_mut().filter(|(number, _)| older.contains(number)) {
        skip_at(arguments, node, entry, Enters { term, older: true }).await?;
        still_older(arguments, node, seen[number]).await?;
    }
    for holds in [false, true] {
        let now = |number: &u64| asked(number) && begun[number].present == holds;
        for (number, node) in nodes.iter_mut().filter(|(number, _)| now(number)) {
            skip_at(arguments, node, entry, Enters { term, older: false })
                .await
                .map_err(|error| left_out(unopenable, *number, error))?;
        }
    }
    Ok(())
}

/// All that had the command have skipped it. Members that lack it, as where the skip was interrupted or went on
/// without them, enter its term before they run.
async fn skip_where_it_lacks(
    arguments: &SkipArguments,
    members: &mut Members,
    lacking: &BTreeMap<u64, EntryReply>,
) -> anyhow::Result<()> {
    if lacking.is_empty() {
        return Ok(());
    }
    let Members { nodes, unopenable, .. } = members;
    for (number, node) in nodes.iter_mut() {
        let Some(entry) = lacking.get(number) else { continue };
        let begun = begin_at(arguments, node, *entry).await;
        begun.map_err(|error| left_out(unopenable, *number, error))?;
    }
    let begun = look_at_all(arguments, members).await?;
    let Members { nodes, unopenable, .. } = members;
    for (number, node) in nodes.iter_mut() {
        let Some(entry) = lacking.get(number) else { continue };
        let enters = Enters { term: later_term(entry.term, &begun), older: false };
        let entered = skip_at(arguments, node, *entry, enters).await;
        entered.map_err(|error| left_out(unopenable, *number, error))?;
    }
    Ok(())
}

/// Has members end the skip and open their replicas. One that cannot be opened keeps no other closed.
async fn open_all(
    arguments: &SkipArguments,
    members: &mut Members,
    opens: impl Fn(&u64) -> bool,
    done: &str,
) -> anyhow::Result<()> {
    let mut closed = Vec::new();
    for (number, node) in members.nodes.iter_mut().filter(|(number, _)| opens(number)) {
        if let Err(error) = open_at(arguments, node).await {
            closed.push(format!("node {number}: {error:#}"));
        }
    }
    if closed.is_empty() {
        return Ok(());
    }
    let group = arguments.group;
    Err(partly(format!(
        "{done}, but not all run. Run this again; a replica that cannot be opened is replaced with `shardhost member \
         replace {group} NODE NODE` once the others run\n{}",
        closed.join("\n")
    )))
}

/// An error of a member whose replica cannot be opened: the others need not wait for it.
fn left_out(unopenable: &BTreeSet<u64>, number: u64, error: anyhow::Error) -> anyhow::Error {
    if !unopenable.contains(&number) {
        return error;
    }
    error.context(format!(
        "the replica on node {number} cannot be opened; to go on without it, say --without {number}, and replace it \
         once the others run"
    ))
}

/// Has every member that notes the skip agree not to carry it out, before any of them is opened: another
/// operator may be carrying it out just now. A member that agreed does not rewrite its log, and one that has
/// rewritten it does not agree, so no log is rewritten beside a replica that is opened.
async fn abandon(
    arguments: &SkipArguments,
    members: &mut Members,
    seen: &Seen,
) -> anyhow::Result<ExitCode> {
    if !is_begun(seen) && !left_closed(seen).is_empty() {
        return open_left(arguments, members, seen).await;
    }
    may_abandon(arguments.asked(), seen)?;
    let notes = |number: &u64| seen[number].skipping.is_some();
    for (_, node) in members.nodes.iter_mut().filter(|(number, _)| notes(number)) {
        let SkipArguments { group, index, .. } = *arguments;
        let abandoned = node.admin.abandon_skip(AbandonSkipRequest { group, index });
        let abandoned = within(arguments, &node.address, abandoned).await;
        abandoned
            .context("the skip is not abandoned, and no replica was opened: run this again")?;
    }
    // A skip that another operator began anew since has notes at members that did not agree.
    let now = look_at_all(arguments, members).await?;
    may_abandon(arguments.asked(), &now)?;
    if let Some((number, _)) =
        now.iter().find(|(number, here)| here.skipping.is_some() && !notes(number))
    {
        bail!("node {number} has begun the skip anew: another operator is at it; run this again");
    }
    let left = left_closed(&now);
    let opens = |number: &u64| notes(number) || left.contains(number);
    open_all(arguments, members, opens, "the skip is abandoned").await?;
    tell(arguments, "abandoned", "is not skipped: its skip is abandoned");
    Ok(ExitCode::SUCCESS)
}

/// Has a member note that the entry is being skipped.
async fn begin_at(
    arguments: &SkipArguments,
    node: &mut Node,
    entry: EntryReply,
) -> anyhow::Result<()> {
    let SkipArguments { group, index, .. } = *arguments;
    let EntryReply { term, bytes, checksum, .. } = entry;
    let begun = node.admin.begin_skip(BeginSkipRequest { group, index, term, bytes, checksum });
    within(arguments, &node.address, begun).await
}

/// The term that a member enters with the skip.
#[derive(Clone, Copy, Debug)]
struct Enters {
    term: u64,
    /// It holds an entry of an older term, and skips nothing.
    older: bool,
}

/// Has a member skip the entry.
async fn skip_at(
    arguments: &SkipArguments,
    node: &mut Node,
    entry: EntryReply,
    Enters { term: raise_to, older }: Enters,
) -> anyhow::Result<()> {
    let SkipArguments { group, index, .. } = *arguments;
    let EntryReply { term, bytes, checksum, .. } = entry;
    let request = SkipEntryRequest { group, index, term, bytes, checksum, raise_to, older };
    let skipped = node.admin.skip_entry(request);
    within(arguments, &node.address, skipped).await
}

/// Has a member end this skip and open its replica.
async fn open_at(arguments: &SkipArguments, node: &mut Node) -> anyhow::Result<()> {
    let SkipArguments { group, index, abandon: abandoned, .. } = *arguments;
    let opened = node.admin.open_replica(OpenReplicaRequest { group, index, abandoned });
    within(arguments, &node.address, opened).await
}

async fn look_at_all(arguments: &SkipArguments, members: &mut Members) -> anyhow::Result<Seen> {
    let mut seen = Seen::new();
    for (number, node) in &mut members.nodes {
        let here = look(arguments, node).await;
        seen.insert(*number, here.map_err(|error| left_out(&members.unopenable, *number, error))?);
    }
    Ok(seen)
}

async fn look(arguments: &SkipArguments, node: &mut Node) -> anyhow::Result<EntryReply> {
    let request = LookAtEntryRequest { group: arguments.group, index: arguments.index };
    let here = promptly(&node.address, node.admin.look_at_entry(request)).await?;
    if here.current_term == 0 {
        bail!("{}", earlier_version(&node.address));
    }
    Ok(here)
}

fn earlier_version(address: &str) -> String {
    format!(
        "{address} runs an earlier version, which does not know this step: upgrade that host, then run this again"
    )
}

/// A member that holds an entry of an older term has nothing to skip, as long as it gets no newer one.
async fn still_older(
    arguments: &SkipArguments,
    node: &mut Node,
    seen: EntryReply,
) -> anyhow::Result<()> {
    let here = look(arguments, node).await?;
    let entry = |here: EntryReply| (here.term, here.bytes, here.checksum);
    if !here.present || entry(here) != entry(seen) {
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
        Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
            bail!("{}", earlier_version(address))
        }
        Ok(Err(status)) => Err(said(address, &status)),
        Err(_) => Err(partly(format!(
            "{address} does not answer within {time:?}; what it was asked for goes on there"
        ))),
    }
}

fn show(arguments: &SkipArguments, seen: &Seen, older: &BTreeSet<u64>) {
    if arguments.target.json {
        return;
    }
    println!("{}", as_table(seen, older));
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
            _ if here.behind => "before the log",
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
            here.applied.map_or_else(|| "unknown".to_owned(), number),
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

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: SkipArguments,
    }

    fn line(more: &[&str]) -> Result<SkipArguments, clap::Error> {
        let line = [&["skip", "7", "--index", "5"], more].concat();
        Line::try_parse_from(line).map(|line| line.arguments)
    }

    #[test]
    fn a_skip_is_either_carried_out_or_taken_back() {
        assert!(line(&["--confirm"]).unwrap().confirm);
        assert!(line(&["--abandon"]).unwrap().abandon);
        line(&["--confirm", "--abandon"]).unwrap_err();
    }

    #[test]
    fn an_index_that_no_log_has_is_refused_with_what_is_meant() {
        for index in ["0", "-5", "x", ""] {
            let line = Line::try_parse_from(["skip", "7", "--index", index]);
            let refused = line.unwrap_err().to_string();
            assert!(refused.contains("the index of the command"), "{index}: {refused}");
        }
        let line = Line::try_parse_from(["skip", "7", "--index", "1,176"]).unwrap();
        assert_eq!(line.arguments.index, 1_176);
    }

    #[test]
    fn an_error_of_a_replica_that_cannot_be_opened_says_how_the_others_go_on() {
        let error = || anyhow::anyhow!("a checksum is wrong");
        let text = format!("{:#}", left_out(&BTreeSet::from([2]), 2, error()));
        assert!(text.contains("--without 2") && text.contains("a checksum"), "{text}");
        assert_eq!(left_out(&BTreeSet::from([2]), 1, error()).to_string(), "a checksum is wrong");
    }

    #[tokio::test]
    async fn a_host_that_does_not_know_a_step_is_to_be_upgraded() {
        let arguments = line(&[]).unwrap();
        let unknown = async { Err::<(), _>(tonic::Status::unimplemented("")) };
        let refused = within(&arguments, "host-2", unknown).await.unwrap_err().to_string();
        assert!(refused.contains("host-2") && refused.contains("upgrade that host"), "{refused}");
    }
}
