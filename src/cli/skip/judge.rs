//! Whether what the members hold at an index may be skipped, or its skip abandoned.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use shardhost_proto::admin::EntryReply;

use super::super::output::number;

/// What the members hold at the index, by number.
pub(super) type Seen = BTreeMap<u64, EntryReply>;

/// What is to be skipped.
#[derive(Debug)]
pub(super) struct Found {
    /// `None`: no member holds more there than nothing.
    pub(super) entry: Option<EntryReply>,
    /// Members that hold an entry of an older term there, which a quorum has replaced.
    pub(super) older: BTreeSet<u64>,
}

/// What is asked about: an entry of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) group: u64,
    pub(super) index: u64,
}

/// A member that notes the skip of another entry, and which.
pub(super) fn another_skip(index: u64, seen: &Seen) -> Option<(u64, u64)> {
    let noted = |(node, here): (&u64, &EntryReply)| Some((*node, here.skipping?));
    seen.iter().filter_map(noted).find(|(_, other)| *other != index)
}

/// Whether a member notes this skip, where none notes another one.
pub(super) fn is_begun(seen: &Seen) -> bool {
    seen.values().any(|here| here.skipping.is_some())
}

/// The entry that all members hold who have one there. Fails when it is no command, or not the same one
/// everywhere, or when it may have been applied. A member may hold an entry of an older term where a
/// quorum of the voters holds the newer one: the group cannot commit the older one any more.
pub(super) fn the_entry(
    asked: Asked,
    seen: &Seen,
    voters: &[BTreeSet<u64>],
) -> anyhow::Result<Found> {
    let Asked { index, .. } = asked;
    let held = || seen.iter().filter(|(_, here)| here.present);
    let newest = held().map(|(_, here)| here.term).max();
    if newest.is_none() && !seen.values().any(|here| here.behind) {
        bail!("nothing stands at {} in the log of any member", number(index));
    }
    let newest = newest.unwrap_or(0);
    let older = older_ones(index, seen, voters, newest)?;
    let of_newest = || held().filter(|(_, here)| here.term == newest).map(|(_, here)| here);
    let entry = of_newest().find(|here| !here.empty).copied();
    let some_skipped = of_newest().any(|here| here.empty);
    for (node, here) in seen.iter().filter(|(_, here)| here.behind) {
        check_behind(asked, *node, here, seen, entry.is_some() && !some_skipped)?;
    }
    let Some(entry) = entry else {
        return Ok(Found { entry: None, older });
    };
    if !entry.command {
        bail!("what stands at {} is for the group itself and cannot be skipped", number(index));
    }
    for (node, here) in seen.iter().filter(|(_, here)| !here.behind) {
        check_member(asked, *node, here, &entry, some_skipped)?;
    }
    Ok(Found { entry: Some(entry), older })
}

/// The term that members enter with the skip of a command of this term, when all have begun: later than that of any
/// of them, so later than any in which a leader may have sent the command. Where a member has skipped it, that was so
/// of its term.
pub(super) fn later_term(of_entry: u64, seen: &Seen) -> u64 {
    let skipped = |here: &&EntryReply| here.present && here.empty && here.term == of_entry;
    let entered = seen.values().filter(skipped).map(|here| here.current_term).min();
    let latest = seen.values().map(|here| here.current_term).max().unwrap_or(0);
    entered.filter(|term| *term > of_entry).unwrap_or_else(|| latest.max(of_entry) + 1)
}

/// Closed members whose logs end before the entry, and what each of them is asked to skip: where all that had the
/// command have skipped it, an earlier leader may still send it to these.
pub(super) fn lacking(seen: &Seen) -> BTreeMap<u64, EntryReply> {
    let noted = seen.values().filter(|here| here.skipping.is_some());
    let newest = noted.map(|here| here.skipping_term).max().unwrap_or(0);
    let lacks = |here: &EntryReply| !here.running && !here.present && !here.behind;
    let asked = |here: &EntryReply| {
        let term = if here.skipping.is_some() { here.skipping_term } else { newest };
        EntryReply { term, command: true, ..EntryReply::default() }
    };
    seen.iter().filter(|(_, here)| lacks(here)).map(|(node, here)| (*node, asked(here))).collect()
}

/// Members that a step of a skip closed, or whose skip is over, and that are not open since.
pub(super) fn left_closed(seen: &Seen) -> BTreeSet<u64> {
    seen.iter().filter(|(_, here)| here.left_closed).map(|(node, _)| *node).collect()
}

/// Whether a member holds a command there, of whatever term.
pub(super) fn holds_command(seen: &Seen) -> bool {
    seen.values().any(|here| here.present && !here.empty)
}

/// The members whose entry is of an older term than the newest, which a majority has replaced. A log that begins
/// behind the index held what was committed there.
fn older_ones(
    index: u64,
    seen: &Seen,
    voters: &[BTreeSet<u64>],
    newest: u64,
) -> anyhow::Result<BTreeSet<u64>> {
    let holds_newest = |node: &u64| {
        let here = seen.get(node);
        here.is_some_and(|here| here.behind || (here.present && here.term == newest))
    };
    let is_decided = voters
        .iter()
        .all(|voters| voters.iter().filter(|node| holds_newest(node)).count() > voters.len() / 2);
    let is_older = |here: &EntryReply| here.present && here.term < newest;
    let older: BTreeSet<u64> =
        seen.iter().filter(|(_, here)| is_older(here)).map(|(node, _)| *node).collect();
    if let Some(node) = older.first().filter(|_| !is_decided) {
        bail!(
            "node {node} holds an entry of an older term at {} and no majority of the voters holds the \
             newer one: one of them is not committed",
            number(index)
        );
    }
    Ok(older)
}

/// A member whose log begins behind the entry has skipped it where the skip was being finished: it runs, and
/// others still note the skip and have rewritten their logs, which none does before all have begun. Where one of
/// them holds the command and none has rewritten its log, the member may as well have applied the command.
fn check_behind(
    asked: Asked,
    node: u64,
    here: &EntryReply,
    seen: &Seen,
    is_command_left: bool,
) -> anyhow::Result<()> {
    let Asked { group, index } = asked;
    if !is_begun(seen) {
        bail!(
            "node {node} has applied what stands at {} (its log begins behind it): the command is not at \
             fault; replace the replicas that fail with `shardhost member replace`",
            number(index)
        );
    }
    if is_command_left {
        return Err(unknown_behind(asked, node, seen));
    }
    if !here.running {
        bail!(
            "the replica on node {node} is not open, and its log begins behind {}: start that node \
             without `--park {group}`, then run this again",
            number(index)
        );
    }
    Ok(())
}

/// Neither a skip nor its end is safe: what a member did with the command is not known any more.
fn unknown_behind(asked: Asked, node: u64, seen: &Seen) -> anyhow::Error {
    let Asked { group, index } = asked;
    let noted = seen.iter().filter(|(_, here)| here.skipping.is_some());
    let noted: Vec<String> = noted.map(|(node, _)| node.to_string()).collect();
    let first = noted.first().cloned().unwrap_or_default();
    anyhow::anyhow!(
        "the log of node {node} begins behind {}: whether that member skipped or applied the command is not \
         known any more. Replace the replicas that still note the skip (of node {}) by new ones, as with \
         `shardhost member replace {group} {first} {first}`",
        number(index),
        noted.join(", ")
    )
}

fn check_member(
    asked: Asked,
    node: u64,
    here: &EntryReply,
    entry: &EntryReply,
    some_skipped: bool,
) -> anyhow::Result<()> {
    let Asked { group, index } = asked;
    if here.empty && here.term == entry.term {
        return Ok(());
    }
    let same = (here.bytes, here.checksum) == (entry.bytes, entry.checksum);
    if here.present && here.term == entry.term && !same {
        bail!(
            "node {node} holds another entry of the same term at {}: replicas differ",
            number(index)
        );
    }
    let Some(applied) = here.applied else {
        bail!(
            "what the state machine on node {node} has applied cannot be read: it may have applied, and \
             acknowledged, what stands at {}. Run this again when its state is recovered (`shardhost group show \
             {group}` at that node names the cause), or go on without it, with `--without {node}`, and replace it with \
             `shardhost member replace {group} {node} {node}` once the others run",
            number(index)
        );
    };
    if applied >= index && some_skipped {
        bail!(
            "node {node} has applied what stands at {}, and other members have skipped it: replicas \
             differ; replace those of the members that are wrong with `shardhost member replace`",
            number(index)
        );
    }
    if applied >= index {
        bail!(
            "node {node} has applied what stands at {} (it is at {}): the command is not at fault; \
             replace the replicas that fail with `shardhost member replace`",
            number(index),
            number(applied)
        );
    }
    if here.running {
        bail!(
            "the replica on node {node} runs and has not come to {} yet: wait until it fails, or \
             start that node with `--park {group}`",
            number(index)
        );
    }
    Ok(())
}

/// Fails where a skip cannot be taken back: no member notes it, one has skipped the entry, or may have.
pub(super) fn may_abandon(asked: Asked, seen: &Seen) -> anyhow::Result<()> {
    let Asked { group, index } = asked;
    if !is_begun(seen) {
        bail!(
            "no member notes a skip of entry {}: there is nothing to abandon. A replica that is closed all the \
             same is opened by the next start of its node without `--park {group}`",
            number(index)
        );
    }
    let noted = seen.values().filter(|here| here.skipping.is_some());
    let terms: BTreeSet<u64> = noted.map(|here| here.skipping_term).collect();
    for (node, here) in seen {
        if here.present && here.empty && terms.contains(&here.term) {
            bail!(
                "node {node} has skipped entry {}, which cannot be taken back: finish it with `shardhost group \
                 skip {group} --index {index} --confirm`",
                number(index)
            );
        }
        if here.behind {
            return Err(unknown_behind(asked, *node, seen));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked { group: 7, index: 5 };

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
        the_entry(ASKED, &seen, &voters).map_err(|error| error.to_string())
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
        // Its state may come back with what the command did.
        let unknown = EntryReply { applied: None, ..there() };
        refused([there(), there(), unknown], "may have applied");
        refused([empty, EntryReply { applied: None, ..absent }, there()], "--without 2");
        assert_eq!(judge([EntryReply { applied: None, ..empty }, there(), there()]), Ok(Some(2)));
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

    /// Notes this skip.
    fn noted(here: EntryReply) -> EntryReply {
        EntryReply { skipping: Some(5), skipping_term: 2, ..here }
    }

    fn skipped() -> EntryReply {
        EntryReply { empty: true, bytes: 0, checksum: 1, ..there() }
    }

    /// It runs, and its log does not reach back to the entry.
    fn behind() -> EntryReply {
        EntryReply { behind: true, running: true, applied: Some(90), ..EntryReply::default() }
    }

    #[test]
    fn a_log_that_begins_behind_the_entry_is_done_where_others_show_that_it_was_skipped() {
        // Interrupted while replicas were opened.
        assert_eq!(judge([behind(), noted(skipped()), noted(skipped())]), Ok(None));
        assert_eq!(judge([behind(), behind(), noted(skipped())]), Ok(None));
        // One was left out, and has come back.
        let back = noted(there());
        let open = EntryReply { running: true, applied: Some(90), ..skipped() };
        assert_eq!(judge([behind(), open, back]), Ok(Some(2)));
        // It never had the entry, and gets it from the others, once it is in a later term (`lacking`).
        assert_eq!(judge([behind(), behind(), noted(EntryReply::default())]), Ok(None));

        let refused = |members, words: &str| {
            let why = judge(members).unwrap_err();
            assert!(why.contains(words), "{why}");
        };
        refused([behind(), there(), there()], "not at fault");
        refused([behind(); 3], "not at fault");
        refused([behind(), behind(), skipped()], "not at fault");
        // It may have applied the command.
        refused([behind(), noted(there()), noted(there())], "shardhost member replace 7 2 2");
        refused([behind(), behind(), noted(there())], "not known any more");
        let closed = EntryReply { running: false, closed: true, ..behind() };
        refused([closed, noted(skipped()), noted(skipped())], "without `--park 7`");
    }

    #[test]
    fn members_that_run_and_have_skipped_the_entry_keep_no_other_one_from_it() {
        let open = EntryReply { running: true, applied: Some(90), ..skipped() };
        assert_eq!(judge([open, open, noted(there())]), Ok(Some(2)));
    }

    #[test]
    fn members_enter_a_term_in_which_none_sent_the_command() {
        let in_term = |current_term, here| EntryReply { current_term, ..here };
        let term = |members: [EntryReply; 3]| later_term(2, &(1..).zip(members).collect());
        // One that lacks the entry may hear of it by the leader of the latest term.
        let absent = EntryReply::default();
        assert_eq!(term([in_term(2, there()), in_term(2, there()), in_term(1, absent)]), 3);
        assert_eq!(term([in_term(2, there()), in_term(9, absent), in_term(4, there())]), 10);
        // It was interrupted: those that have entered the term are not disturbed.
        let begun = [in_term(3, skipped()), in_term(2, there()), in_term(1, absent)];
        assert_eq!(term(begun), 3);
        let running = EntryReply { running: true, ..in_term(7, skipped()) };
        assert_eq!(term([running, in_term(3, skipped()), in_term(2, there())]), 3);
    }

    #[test]
    fn closed_members_without_the_entry_enter_the_term_although_all_others_have_skipped_it() {
        let absent = EntryReply { applied: Some(4), ..EntryReply::default() };
        let asked = |members: [EntryReply; 3]| {
            let lacking = lacking(&(1..).zip(members).collect());
            lacking.iter().map(|(node, entry)| (*node, entry.term)).collect::<Vec<_>>()
        };
        // It was interrupted, or went on without the member, which has come back.
        let open = EntryReply { running: true, applied: Some(90), ..skipped() };
        assert_eq!(asked([noted(skipped()), noted(skipped()), noted(absent)]), [(3, 2)]);
        assert_eq!(asked([open, behind(), noted(absent)]), [(3, 2)]);
        assert_eq!(asked([noted(skipped()), noted(skipped()), absent]), [(3, 2)], "no note yet");
        let earlier = EntryReply { skipping_term: 1, ..noted(absent) };
        assert_eq!(asked([noted(skipped()), noted(skipped()), earlier]), [(3, 1)], "by its note");
        assert_eq!(asked([open, behind(), noted(skipped())]), []);
        assert_eq!(asked([EntryReply { running: true, ..absent }, open, open]), []);
    }

    #[test]
    fn a_skip_is_abandoned_where_no_member_can_have_skipped_the_entry() {
        let judge = |members: [EntryReply; 3]| {
            let seen = (1..).zip(members).collect();
            may_abandon(ASKED, &seen).map_err(|error| error.to_string())
        };
        let running = EntryReply { running: true, applied: Some(9), ..there() };
        assert_eq!(judge([noted(there()), noted(there()), running]), Ok(()));
        assert_eq!(judge([noted(there()), noted(EntryReply::default()), there()]), Ok(()));
        // A leader began a later term there.
        let other = EntryReply { term: 3, ..skipped() };
        assert_eq!(judge([noted(there()), other, other]), Ok(()));

        let refused = |members, words: &str| {
            let why = judge(members).unwrap_err();
            assert!(why.contains(words), "{why}");
        };
        refused([there(), there(), running], "nothing to abandon");
        refused([noted(there()), noted(skipped()), noted(there())], "node 2 has skipped entry 5");
        refused([noted(there()), skipped(), there()], "--index 5 --confirm");
        refused([noted(there()), behind(), behind()], "not known any more");
    }

    #[test]
    fn the_skip_of_another_entry_is_named() {
        let other = EntryReply { skipping: Some(8), ..there() };
        let seen: Seen = (1..).zip([there(), noted(there()), other]).collect();
        assert_eq!(another_skip(5, &seen), Some((3, 8)));
        assert_eq!(another_skip(8, &seen), Some((2, 5)));
    }
}
