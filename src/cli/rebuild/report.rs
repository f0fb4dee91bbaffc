//! What is left undone or unknown of a rebuild, as text and as JSON.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::json;

use super::survey::{Shrunk, Survey, shrunk};
use crate::ended::PARTLY;
use crate::output::{counted, number};
use crate::reached::Reached;
use crate::ruled::Ruled;

/// Groups that are shown.
const SHOWN: usize = 20;

/// Why the node may lack replicas that no node names.
pub struct Unknown {
    /// Nodes that do not answer, and where they are expected.
    silent: BTreeMap<u64, String>,
    /// Groups that have fewer voters than is expected, and how many.
    short: BTreeMap<u64, usize>,
    /// Groups that lost voters since the beginning.
    shrunk: BTreeMap<u64, Shrunk>,
    /// How many are expected.
    usual: BTreeMap<u64, usize>,
}

impl Unknown {
    pub fn of(cluster: &Reached, survey: &Survey) -> Self {
        let (silent, short) = (cluster.silent().clone(), survey.short.clone());
        Self { silent, short, shrunk: BTreeMap::new(), usual: survey.usual.clone() }
    }

    /// The same by what the nodes say at the end; of the selected groups.
    pub fn afterwards(
        mut self,
        before: &Survey,
        after: Survey,
        ruled: &Ruled,
        silent: BTreeMap<u64, String>,
        selected: impl Fn(u64) -> bool,
    ) -> Self {
        self.silent.extend(silent);
        (self.short, self.usual) = (after.short, after.usual);
        self.shrunk = shrunk(&before.voters, &after.voters);
        self.short.retain(|group, _| selected(*group));
        // One that has as many as its rule asks for had too many.
        let lost = |group: u64, now: usize| ruled.voters(group).is_none_or(|asked| now < asked);
        self.shrunk.retain(|group, shrunk| selected(*group) && lost(*group, shrunk.now));
        self
    }

    /// Whether a group lost a voter since the beginning.
    pub fn has_shrunk(&self) -> bool {
        !self.shrunk.is_empty()
    }

    pub fn exit_code(&self) -> ExitCode {
        let whole = self.silent.is_empty() && self.short.is_empty() && self.shrunk.is_empty();
        if whole { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) }
    }

    fn show(&self, node: u64) {
        for (silent, address) in &self.silent {
            println!(
                "node {silent} ({address}) does not answer: groups that only such nodes hold are not \
                 known; run this again when it does, or `shardhost node remove {silent}` if it is gone for good"
            );
        }
        for (group, Shrunk { before, now }) in &self.shrunk {
            println!(
                "group {group} has {}, and had {before} when this began: `shardhost member add {group} \
                 {node}`, or another node, adds one",
                counted(*now as u64, "voter")
            );
        }
        for (group, voters) in
            self.short.iter().filter(|(group, _)| !self.shrunk.contains_key(group))
        {
            let usual = self.usual.get(group).copied().unwrap_or(0);
            println!(
                "group {group} has {} and none on node {node}, where {usual} are expected: if \
                 an earlier run removed that one, `shardhost member add {group} {node}` adds another, or \
                 `shardhost member promote {group} {node}` where a learner took its place",
                counted(*voters as u64, "voter")
            );
        }
    }

    fn short_groups(&self) -> BTreeMap<u64, usize> {
        let shrunk = self.shrunk.iter().map(|(group, shrunk)| (*group, shrunk.now));
        self.short.iter().map(|(group, voters)| (*group, *voters)).chain(shrunk).collect()
    }

    fn silent_nodes(&self) -> Vec<u64> {
        self.silent.keys().copied().collect()
    }
}

/// Why a group has no new replica.
pub struct Failure {
    pub cause: String,
    /// Something was sent, and what became of it may not be known.
    pub begun: bool,
    /// What adds one, where the old one may be gone.
    pub addition: Option<String>,
}

/// Shows what would be rebuilt.
pub fn show(node: u64, survey: &Survey, unknown: &Unknown, as_json: bool) {
    let groups: Vec<u64> = survey.replicas.keys().copied().collect();
    if as_json {
        let (silent, short) = (unknown.silent_nodes(), unknown.short_groups());
        return println!(
            "{}",
            json!({ "node": node, "groups": groups, "silent_nodes": silent, "short_groups": short })
        );
    }
    println!("node {node} would get {}", counted(groups.len() as u64, "new replica"));
    for group in groups.iter().take(SHOWN) {
        println!("group {group}");
    }
    if groups.len() > SHOWN {
        println!("and {} more", number((groups.len() - SHOWN) as u64));
    }
    unknown.show(node);
}

/// Shows what was rebuilt, and what was not.
pub fn report(
    node: u64,
    rebuilt: usize,
    failed: &BTreeMap<u64, Failure>,
    unknown: &Unknown,
    as_json: bool,
) {
    if as_json {
        let causes: BTreeMap<u64, &str> =
            failed.iter().map(|(group, failure)| (*group, failure.cause.as_str())).collect();
        let additions: Vec<&String> =
            failed.values().filter_map(|failure| failure.addition.as_ref()).collect();
        return println!(
            "{}",
            json!({
                "node": node,
                "rebuilt": rebuilt,
                "failed": causes,
                "to_run": additions,
                "silent_nodes": unknown.silent_nodes(),
                "short_groups": unknown.short_groups(),
            })
        );
    }
    println!("node {node} has {}", counted(rebuilt as u64, "new replica"));
    for (group, Failure { cause, .. }) in failed.iter().take(SHOWN) {
        println!("group {group}: {cause}");
    }
    if failed.len() > SHOWN {
        println!("and {} more failed", number((failed.len() - SHOWN) as u64));
    }
    // All of them: nothing else knows.
    for (group, failure) in failed {
        if let Some(addition) = &failure.addition {
            println!(
                "group {group} may be without its replica on node {node}, now or soon: once `member list \
                 {group}` does not show one, run `{addition}`"
            );
        } else if failure.begun {
            println!(
                "group {group} has a new replica on node {node}, which continues to its place: `member list \
                 {group}` shows when it has it"
            );
        }
    }
    unknown.show(node);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(u64, usize)]) -> BTreeMap<u64, usize> {
        counts.iter().copied().collect()
    }

    #[test]
    fn what_lost_a_voter_meanwhile_is_named_whatever_the_cause() {
        let before = Survey { voters: counts(&[(1, 3), (2, 3), (3, 5)]), ..Survey::default() };
        let after = || Survey {
            voters: counts(&[(1, 3), (2, 2), (3, 4)]),
            short: counts(&[(2, 2)]),
            usual: counts(&[(2, 3)]),
            ..Survey::default()
        };
        let unknown = || Unknown {
            silent: BTreeMap::new(),
            short: BTreeMap::new(),
            shrunk: BTreeMap::new(),
            usual: BTreeMap::new(),
        };
        let none = Ruled::default();
        let all = unknown().afterwards(&before, after(), &none, BTreeMap::new(), |_| true);
        assert_eq!(all.short_groups(), counts(&[(2, 2), (3, 4)]));
        assert!(all.has_shrunk() && all.exit_code() == ExitCode::from(PARTLY));
        let one =
            unknown().afterwards(&before, after(), &none, BTreeMap::new(), |group| group == 1);
        assert!(!one.has_shrunk() && one.exit_code() == ExitCode::SUCCESS);
        let silent = BTreeMap::from([(4, "n4".to_owned())]);
        let one = unknown().afterwards(&before, after(), &none, silent, |group| group == 1);
        assert_eq!(one.exit_code(), ExitCode::from(PARTLY));
    }
}
