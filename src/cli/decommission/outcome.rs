//! What a decommission did and left, as text and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use serde_json::{Value, json};
use shardhost_proto::balance::DrainStatus;

use super::choose::{Choice, Move};
use super::groups::Groups;
use crate::ended::PARTLY;
use crate::output::{counted, number, span};
use crate::rebuild::{Shrunk, shrunk};

/// Groups that are shown.
const SHOWN: usize = 20;

/// What was done.
#[derive(Debug, Default)]
pub struct Outcome {
    pub moved: u64,
    /// Groups that still have a replica on the node, or may, and why.
    pub left: BTreeMap<u64, String>,
    /// Those of them in which a change may have begun, and then continues.
    pub continues: BTreeSet<u64>,
    /// Groups that have fewer voters than is expected, and how many. Some are meant to be so.
    short: BTreeMap<u64, usize>,
    /// Groups that lost voters since the beginning.
    shrunk: BTreeMap<u64, Shrunk>,
    /// Other nodes that do not answer.
    silent: BTreeSet<u64>,
    /// The drain of the node, if it answers.
    pub drain: Option<DrainStatus>,
}

impl Outcome {
    /// Before anything is done: what has no place, what cannot be asked for, and which other nodes do not
    /// answer.
    pub fn new(stuck: BTreeMap<u64, String>, unled: &BTreeSet<u64>, silent: BTreeSet<u64>) -> Self {
        let mut left = stuck;
        left.extend(unled.iter().map(|group| (*group, "it has no leader".to_owned())));
        Self { left, silent, ..Self::default() }
    }

    /// Takes over what the nodes say at the end, and which do not answer.
    pub fn take_over(
        &mut self,
        node: u64,
        voters_before: &BTreeMap<u64, usize>,
        after: Groups,
        silent: impl IntoIterator<Item = u64>,
    ) {
        for held in after.held {
            let again = || "it has a replica there again".to_owned();
            self.left.entry(held.group).or_insert_with(again);
        }
        for group in after.unled {
            let unled = || "it has no leader, and may have a replica there".to_owned();
            self.left.entry(group).or_insert_with(unled);
        }
        self.shrunk = shrunk(voters_before, &after.voters);
        self.short = after.short;
        self.silent = silent.into_iter().filter(|silent| *silent != node).collect();
    }

    /// Whether nothing is left undone or unknown.
    pub fn is_whole(&self) -> bool {
        self.left.is_empty() && self.shrunk.is_empty() && self.silent.is_empty()
    }

    /// Of what was done, or would be.
    pub fn exit_code(&self) -> ExitCode {
        if self.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) }
    }

    fn show_silent(&self) {
        for silent in &self.silent {
            println!(
                "node {silent} does not answer: groups that only such nodes hold are not known; run this again \
                 when it does, or `shardhost node remove {silent}` if it is gone for good"
            );
        }
    }

    fn show_left(&self) {
        for (group, why) in self.left.iter().take(SHOWN) {
            let continues =
                if self.continues.contains(group) { " (its change continues)" } else { "" };
            println!("group {group} stays: {why}{continues}");
        }
        if self.left.len() > SHOWN {
            println!("and {} more stay", number((self.left.len() - SHOWN) as u64));
        }
    }

    fn show_short(&self) {
        for (group, Shrunk { before, now }) in &self.shrunk {
            println!(
                "group {group} has {}, and had {before} when this began: another command may have \
                 removed one; `shardhost member add {group} NODE` adds another",
                counted(*now as u64, "voter")
            );
        }
        let short = self.short.iter().filter(|(group, _)| !self.shrunk.contains_key(group));
        for (group, voters) in short {
            println!(
                "group {group} has {}, fewer than is expected, as when this began: a `member rebuild` \
                 that was ended may have left it so; `shardhost member add {group} NODE` adds another",
                counted(*voters as u64, "voter")
            );
        }
    }

    fn json(&self, node: u64) -> Value {
        let Self { moved, left, continues, short, shrunk, silent, drain } = self;
        let shrunk: BTreeMap<u64, usize> =
            shrunk.iter().map(|(group, shrunk)| (*group, shrunk.now)).collect();
        let mut all = short.clone();
        all.extend(&shrunk);
        json!({
            "node": node, "moved": moved, "left": left, "continues": continues, "silent_nodes": silent,
            "short_groups": all, "shrunk_groups": shrunk,
            "drain_expires_in_ms": drain.as_ref().and_then(|drain| drain.expires_in_ms),
        })
    }
}

/// Shows where the replicas would go.
pub fn show(node: u64, choice: &Choice, outcome: &Outcome, as_json: bool) {
    if as_json {
        let moves = choice.moves.iter().map(|one| json!({ "group": one.group, "new": one.new }));
        let moves: Vec<Value> = moves.collect();
        return println!(
            "{}",
            json!({
                "node": node, "moves": moves, "left": outcome.left, "silent_nodes": outcome.silent
            })
        );
    }
    println!("{} of node {node} would move", counted(choice.moves.len() as u64, "replica"));
    for Move { group, new, .. } in choice.moves.iter().take(SHOWN) {
        println!("group {group}: to node {new}");
    }
    if choice.moves.len() > SHOWN {
        println!("and {} more", number((choice.moves.len() - SHOWN) as u64));
    }
    outcome.show_left();
    outcome.show_silent();
}

/// Shows what moved, and what did not.
pub fn report(node: u64, outcome: &Outcome, as_json: bool) {
    if as_json {
        return println!("{}", outcome.json(node));
    }
    println!("{} of node {node} moved", counted(outcome.moved, "replica"));
    outcome.show_left();
    outcome.show_silent();
    outcome.show_short();
    if outcome.is_whole() {
        println!(
            "no group has a replica on node {node}: it can be stopped for good, and `shardhost node remove \
             {node}` then forgets it. `shardhost drain end {node}` and `shardhost member fill {node}` take it \
             back"
        );
    } else if !outcome.left.is_empty() {
        println!("run this again for those that stay{}", drained(node, outcome.drain.as_ref()));
    }
}

/// How long a node takes no leaderships.
fn drained(node: u64, drain: Option<&DrainStatus>) -> String {
    let Some(drain) = drain.filter(|drain| drain.draining) else { return String::new() };
    let until = format!("; node {node} is drained until `shardhost drain end {node}`");
    match (drain.durable, drain.expires_in_ms) {
        (true, Some(left)) => format!("{until}, or for {}", span(left)),
        (true, None) => format!("{until}, or until that expires (`shardhost drain status {node}`)"),
        (false, _) => format!("{until}, or until it stops"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::choose::Held;
    use super::*;

    fn counts(counts: &[(u64, usize)]) -> BTreeMap<u64, usize> {
        counts.iter().copied().collect()
    }

    fn ended(after: Groups, silent: &[u64]) -> Outcome {
        let mut outcome = Outcome::default();
        let before = counts(&[(1, 3), (2, 3), (3, 1)]);
        outcome.take_over(4, &before, after, silent.iter().copied());
        outcome
    }

    #[test]
    fn a_group_that_is_small_by_intention_is_no_reason_to_run_again() {
        let voters = counts(&[(1, 3), (2, 3), (3, 1)]);
        let small = ended(Groups { voters, short: counts(&[(3, 1)]), ..Groups::default() }, &[]);
        assert!(small.is_whole());
        assert_eq!(small.json(4)["short_groups"], json!({ "3": 1 }));
        let voters = counts(&[(1, 3), (2, 2), (3, 1)]);
        let lost = ended(Groups { voters, ..Groups::default() }, &[]);
        assert!(!lost.is_whole());
        assert_eq!(lost.json(4)["short_groups"], json!({ "2": 2 }));
        assert_eq!(lost.json(4)["shrunk_groups"], json!({ "2": 2 }));
    }

    #[test]
    fn what_may_have_a_replica_on_the_node_at_the_end_is_named() {
        let held = vec![Held { group: 1, ..Held::default() }];
        let unled = BTreeSet::from([2]);
        let left = ended(Groups { held, unled, ..Groups::default() }, &[]);
        assert!(!left.is_whole());
        assert!(left.left[&1].contains("again") && left.left[&2].contains("no leader"), "{left:?}");
    }

    #[test]
    fn a_node_that_stops_answering_is_silent_and_the_one_that_is_given_up_may_be() {
        assert!(!ended(Groups::default(), &[2]).is_whole());
        assert!(ended(Groups::default(), &[4]).is_whole());
    }

    #[test]
    fn a_plan_by_which_a_group_stays_ends_as_a_run_by_which_one_stays() {
        let plan = |stuck: &[u64], unled: &[u64], silent: &[u64]| {
            let stuck = stuck.iter().map(|group| (*group, "no place".to_owned())).collect();
            let unled = unled.iter().copied().collect();
            Outcome::new(stuck, &unled, silent.iter().copied().collect()).exit_code()
        };
        assert_eq!(plan(&[], &[], &[]), ExitCode::SUCCESS);
        for left in [plan(&[7], &[], &[]), plan(&[], &[7], &[]), plan(&[], &[], &[2])] {
            assert_eq!(left, ExitCode::from(PARTLY));
        }
    }

    #[test]
    fn it_is_said_how_long_the_node_is_drained() {
        let drain = DrainStatus { draining: true, durable: true, ..DrainStatus::default() };
        let expires = DrainStatus { expires_in_ms: Some(90_000_000), ..drain.clone() };
        assert!(drained(4, Some(&expires)).ends_with("or for 1 d 1 h"));
        assert!(drained(4, Some(&drain)).contains("drain status 4"));
        let fleeting = DrainStatus { durable: false, ..drain.clone() };
        assert!(drained(4, Some(&fleeting)).ends_with("until it stops"));
        let none = DrainStatus { draining: false, ..drain };
        assert_eq!(drained(4, Some(&none)) + &drained(4, None), "");
    }
}
