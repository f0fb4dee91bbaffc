//! `shardhost replicas rule`: how many replicas groups have, and where they may be.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shardhost::GroupId;
use shardhost_policy::catalog::{
    GroupState, Label, MAX_RULED_LEARNERS, MAX_RULED_VOTERS, Name, NodeRecord, Operation,
    PlannerMode, Record, RecordKind, ReplicaRule, Selection, Settings, Subject, rule_of,
};

use super::catalog::{Catalog, typed_name};
use super::ended::senseless;
use super::output::{Column, counted, number, table, whole};
use super::target::Target;

/// What is done with rules.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set a rule, in the place of the one of this name: how many voters and learners groups have, and on
    /// which nodes. Replicas are added, removed and moved until it holds (`replicas status`).
    ///
    /// Of several rules that select a group the narrowest one counts, alone: that for the group, for a label, for
    /// a kind, for all.
    Set(SetArguments),
    /// Show the rules, and how many groups each counts for.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Remove a rule. Replicas stay as they are.
    Remove {
        /// Its name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

/// A rule.
#[derive(Args, Debug)]
pub struct SetArguments {
    /// Its name.
    name: String,
    #[command(flatten)]
    groups: GroupsArguments,
    /// Voters of each group: an odd number. By default as many as it has.
    #[arg(long, value_name = "NUMBER", value_parser = voters)]
    voters: Option<u32>,
    /// Learners of each group: replicas without a vote, for reads. By default as many as it has.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_RULED_LEARNERS)))]
    learners: Option<u32>,
    /// Only nodes of this zone hold replicas, or of one of these, if it is given several times.
    #[arg(long = "zone", value_name = "ZONE")]
    zones: Vec<String>,
    /// Only nodes that have this hold replicas; of several, all of them.
    #[arg(long = "capability", value_name = "NAME")]
    capabilities: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// The groups that a rule is for.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct GroupsArguments {
    /// For all groups but the catalog.
    #[arg(long)]
    all: bool,
    /// For the groups of this kind.
    #[arg(long)]
    kind: Option<String>,
    /// For the groups with this label.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Option<String>,
    /// For this group; 0 is the catalog.
    #[arg(long, value_parser = whole)]
    group: Option<u64>,
}

fn voters(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|voters: &u32| voters % 2 == 1);
    number.filter(|voters| *voters <= MAX_RULED_VOTERS).ok_or_else(|| {
        format!(
            "an odd number from 1 to {MAX_RULED_VOTERS} is needed: one more than an odd number of voters outlives \
             no further loss"
        )
    })
}

/// A rule for a kind that no node can hold would wait for groups that never come.
fn known_kind(text: &str) -> anyhow::Result<Name> {
    shardhost_server::check_kind(text).map_err(senseless)?;
    typed_name(Subject::Kind, text)
}

impl GroupsArguments {
    fn selection(&self) -> anyhow::Result<Selection> {
        Ok(match (&self.kind, &self.label, self.group) {
            (Some(kind), None, None) => Selection::Kind(known_kind(kind)?),
            (None, Some(label), None) => {
                let Some((key, value)) = label.split_once('=') else {
                    return Err(senseless(format!(
                        "{label:?} is no label; it is written KEY=VALUE"
                    )));
                };
                let key = typed_name(Subject::Label, key)?;
                Selection::Label(Label { key, value: value.into() })
            }
            (None, None, Some(group)) => Selection::Group(GroupId::new(group)),
            _ => Selection::All,
        })
    }
}

impl SetArguments {
    fn rule(&self) -> anyhow::Result<ReplicaRule> {
        let names = |subject: Subject, texts: &[String]| {
            let mut names: Vec<Name> = Vec::new();
            for text in texts {
                names.push(typed_name(subject, text)?);
            }
            names.sort_unstable();
            names.dedup();
            anyhow::Ok(names.into_boxed_slice())
        };
        let rule = ReplicaRule {
            name: typed_name(Subject::Rule, &self.name)?,
            groups: self.groups.selection()?,
            voters: self.voters,
            learners: self.learners,
            zones: names(Subject::Zone, &self.zones)?,
            capabilities: names(Subject::Capability, &self.capabilities)?,
        };
        let says = rule.voters.is_some() || rule.learners.is_some();
        if !says && rule.zones.is_empty() && rule.capabilities.is_empty() {
            return Err(senseless(
                "a rule without --voters, --learners, --zone and --capability asks for nothing; give one of them",
            ));
        }
        Ok(rule)
    }
}

/// Sets, shows or removes rules.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Set(arguments) => set(arguments).await?,
        Command::List { target } => list(target).await?,
        Command::Remove { name, target } => remove(name, target).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn set(arguments: &SetArguments) -> anyhow::Result<()> {
    let (rule, target) = (arguments.rule()?, &arguments.target);
    let catalog = Catalog::reach(target).await?;
    catalog.apply(None, Operation::PutRule(rule.clone())).await?;
    let seen = Seen::look(&catalog).await?;
    if target.json {
        println!("{}", seen.json(&rule));
        return Ok(());
    }
    println!("rule {} is set, for {}: {}", rule.name, selected(&rule.groups), asked(&rule));
    for note in seen.notes(&rule) {
        println!("{note}");
    }
    Ok(())
}

async fn remove(name: &str, target: &Target) -> anyhow::Result<()> {
    let name = typed_name(Subject::Rule, name)?;
    let catalog = Catalog::reach(target).await?;
    catalog.apply(None, Operation::RemoveRule { name: name.clone() }).await?;
    match target.json {
        true => println!("{}", json!({ "removed": name.as_str() })),
        false => println!("rule {name} is removed; replicas stay where they are"),
    }
    Ok(())
}

const COLUMNS: [Column; 7] = [
    Column::Left("rule"),
    Column::Left("for"),
    Column::Right("groups"),
    Column::Right("voters"),
    Column::Right("learners"),
    Column::Left("zones"),
    Column::Left("capabilities"),
];

async fn list(target: &Target) -> anyhow::Result<()> {
    let seen = Seen::look(&Catalog::reach(target).await?).await?;
    let rules = &seen.settings.rules;
    if target.json {
        let rules: Vec<Value> = rules.iter().map(|rule| seen.json(rule)).collect();
        println!("{}", json!({ "rules": rules }));
        return Ok(());
    }
    if rules.is_empty() {
        println!(
            "there is no rule: groups have the members that they were created with, or were given"
        );
        return Ok(());
    }
    let count = |count: Option<u32>| count.map_or("as they are".to_owned(), |one| one.to_string());
    let row = |rule: &ReplicaRule| {
        vec![
            rule.name.to_string(),
            selected(&rule.groups),
            number(seen.groups_of(rule)),
            count(rule.voters),
            count(rule.learners),
            listed(&rule.zones),
            listed(&rule.capabilities),
        ]
    };
    println!("{}", table(&COLUMNS, rules.iter().map(row)));
    for rule in rules.iter() {
        if let Some(group) = seen.group_gone(rule) {
            let name = &rule.name;
            println!(
                "rule {name} is for group {group}, which is not there: `shardhost replicas rule remove {name}` \
                 removes it"
            );
        }
    }
    Ok(())
}

fn selected(groups: &Selection) -> String {
    match groups {
        Selection::All => "all groups".to_owned(),
        Selection::Kind(kind) => format!("groups of kind {kind}"),
        Selection::Label(Label { key, value }) => format!("groups with {key}={value}"),
        Selection::Group(group) => format!("group {group}"),
    }
}

fn listed(names: &[Name]) -> String {
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    if names.is_empty() { "any".to_owned() } else { names.join(", ") }
}

fn asked(rule: &ReplicaRule) -> String {
    let mut asked = Vec::new();
    asked.extend(rule.voters.map(|voters| counted(voters.into(), "voter")));
    asked.extend(rule.learners.map(|learners| counted(learners.into(), "learner")));
    if !rule.zones.is_empty() {
        asked.push(format!("in {}", listed(&rule.zones)));
    }
    if !rule.capabilities.is_empty() {
        asked.push(format!("on nodes that have {}", listed(&rule.capabilities)));
    }
    asked.join(", ")
}

/// What a rule meets.
struct Seen {
    settings: Arc<Settings>,
    nodes: Vec<Arc<NodeRecord>>,
    groups: Vec<Record>,
}

impl Seen {
    async fn look(catalog: &Catalog<'_>) -> anyhow::Result<Self> {
        let nodes = catalog.list(RecordKind::Node).await?;
        let nodes = nodes.into_iter().filter_map(|record| match record {
            Record::Node(node) => Some(node),
            _ => None,
        });
        Ok(Self {
            settings: catalog.settings().await?,
            nodes: nodes.collect(),
            groups: catalog.list(RecordKind::Group).await?,
        })
    }

    /// How many groups a rule counts for.
    fn groups_of(&self, rule: &ReplicaRule) -> u64 {
        let is_ruled = |record: &&Record| match record {
            Record::Group(group) => {
                rule_of(&self.settings.rules, group).is_some_and(|one| one.name == rule.name)
            }
            _ => false,
        };
        let catalog = rule.groups == Selection::Group(GroupId::new(0));
        self.groups.iter().filter(is_ruled).count() as u64 + u64::from(catalog)
    }

    /// The group that a rule is for alone, if the catalog has no such group (any more).
    fn group_gone(&self, rule: &ReplicaRule) -> Option<GroupId> {
        let Selection::Group(id) = rule.groups else { return None };
        let is_it = |record: &Record| match record {
            Record::Group(group) => group.id == id && group.state == GroupState::Active,
            _ => false,
        };
        (id.get() > 0 && !self.groups.iter().any(is_it)).then_some(id)
    }

    /// How many nodes it allows.
    fn allowed(&self, rule: &ReplicaRule) -> u64 {
        let allows = |node: &&Arc<NodeRecord>| {
            let capabilities = node.advertisement.as_ref().map_or(&[][..], |one| &one.capabilities);
            rule.allows(node.zone.as_ref(), capabilities)
        };
        self.nodes.iter().filter(allows).count() as u64
    }

    fn json(&self, rule: &ReplicaRule) -> Value {
        let names =
            |names: &[Name]| names.iter().map(|name| json!(name.as_str())).collect::<Value>();
        json!({
            "name": rule.name.as_str(),
            "for": selected(&rule.groups),
            "groups": self.groups_of(rule),
            "group_gone": self.group_gone(rule).is_some(),
            "allowed_nodes": self.allowed(rule),
            "voters": rule.voters,
            "learners": rule.learners,
            "zones": names(&rule.zones),
            "capabilities": names(&rule.capabilities),
        })
    }

    /// What an operator may not expect.
    fn notes(&self, rule: &ReplicaRule) -> Vec<String> {
        let (groups, allowed) = (self.groups_of(rule), self.allowed(rule));
        let mut notes = vec![format!(
            "it counts for {} now; {} of {} may hold the replicas",
            counted(groups, "group"),
            number(allowed),
            counted(self.nodes.len() as u64, "node")
        )];
        let needed = u64::from(rule.voters.unwrap_or(0) + rule.learners.unwrap_or(0));
        if allowed < needed {
            notes.push(format!(
                "a group has {} by it: until there are as many nodes, groups have fewer (`shardhost \
                 replicas status` names them)",
                counted(needed, "replica")
            ));
        }
        if self.settings.replicas.is_none_or(|replicas| replicas.mode != PlannerMode::On) {
            notes.push(
                "nothing moves until replicas are moved automatically: `shardhost replicas mode on`".to_owned(),
            );
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::ended::code_of;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    /// The rule, or the exit code and why.
    fn rule(words: &str) -> Result<ReplicaRule, (u8, String)> {
        let line = Line::try_parse_from(format!("x set {words}").split(' '));
        let line = line.map_err(|error| (error.exit_code() as u8, error.to_string()))?;
        let Command::Set(arguments) = line.command else { panic!("{line:?}") };
        arguments.rule().map_err(|error| (code_of(&error), format!("{error:#}")))
    }

    #[test]
    fn a_rule_says_what_it_is_for_and_what_it_asks_for() {
        let gold = "gold --label tier=gold --voters 5 --learners 1 --zone b --zone a --zone a --capability ssd";
        let gold = rule(gold).unwrap();
        assert_eq!(selected(&gold.groups), "groups with tier=gold");
        assert_eq!(asked(&gold), "5 voters, 1 learner, in a, b, on nodes that have ssd");
        let catalog = rule("catalog --group 0 --voters 5").unwrap();
        assert_eq!(catalog.groups, Selection::Group(GroupId::new(0)));
        assert_eq!(rule("r --all --learners 0").unwrap().groups, Selection::All);
    }

    #[test]
    fn a_rule_that_cannot_be_meant_is_refused_with_what_can() {
        for (words, says) in [
            ("r --voters 3", "--all"),
            ("r --all --kind table --voters 3", "cannot be used with"),
            ("r --all --voters 4", "an odd number from 1 to 7"),
            ("r --all --voters 9", "an odd number from 1 to 7"),
            ("r --all --learners 9", "0..=8"),
            ("r --label gold --voters 3", "KEY=VALUE"),
            ("r --all", "asks for nothing"),
            ("R! --all --voters 3", "names no rule"),
            ("r --all --zone B!", "names no zone"),
            ("r --all --capability S!", "names no capability"),
            (
                "r --kind tabel --voters 3",
                "there is no kind `tabel`; the kinds are table and queue",
            ),
            ("r --label T!=gold --voters 3", "names no label"),
        ] {
            let (code, refused) = rule(words).unwrap_err();
            assert!(code == 2 && refused.contains(says), "{words}: {code}, {refused}");
        }
    }
}
