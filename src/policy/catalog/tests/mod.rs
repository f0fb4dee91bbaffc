//! What the tests of the catalog share: a small cluster, and short ways to say commands.

mod bytes;
mod drains;
mod feed;
mod groups;
mod nodes;
mod random;
mod reconcile;
mod rules;
mod shard_map;
mod snapshot;
mod tokens;
mod version;

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, LogIndex, NodeId, Requirement};

use super::*;

/// The time of commands that do not care.
pub(super) const NOW: u64 = 1_000_000;

pub(super) fn group(number: u64) -> GroupId {
    GroupId::new(number)
}

pub(super) fn node(number: u64) -> NodeId {
    NodeId::must(number)
}

pub(super) fn revision(number: u64) -> Revision {
    Revision::new(number)
}

pub(super) fn name(text: &str) -> Name {
    Name::new(Subject::Kind, text).unwrap()
}

pub(super) fn names(list: &[&str]) -> BTreeSet<Name> {
    list.iter().map(|text| name(text)).collect()
}

pub(super) fn new_node(number: u64) -> NewNode {
    NewNode {
        id: node(number),
        address: format!("10.0.0.{number}:7400"),
        zone: None,
        weight: 1,
        store: 100 + number,
    }
}

pub(super) fn in_zone(number: u64, zone: &str) -> NewNode {
    NewNode { zone: Some(name(zone)), ..new_node(number) }
}

pub(super) fn new_group(number: u64, founders: &[u64]) -> NewGroup {
    NewGroup::new(group(number), name("queue"), founders.iter().map(|number| node(*number)))
}

pub(super) fn put_node(catalog: &mut Catalog, new: NewNode) {
    run(catalog, Operation::PutNode(new)).unwrap();
}

pub(super) fn create(catalog: &mut Catalog, new: NewGroup) -> Done {
    run(catalog, Operation::CreateGroup(new)).unwrap()
}

/// Runs a command through its bytes, as replicas do.
pub(super) fn run_command(catalog: &mut Catalog, command: &Command) -> Reply {
    let decoded = Command::decode(&command.encode())?;
    assert_eq!(decoded, *command, "a command is read as it was written");
    let reply = catalog.apply(command);
    let travelled = decode_reply(&encode_reply(&reply));
    assert_eq!(travelled, reply, "a reply is read as it was written");
    reply
}

pub(super) fn run(catalog: &mut Catalog, operation: Operation) -> Reply {
    run_command(catalog, &Command::new(NOW, operation))
}

/// Runs a command that must be refused, and checks that nothing changed.
pub(super) fn refused_command(catalog: &mut Catalog, command: &Command) -> Refusal {
    let before = catalog.clone();
    let refusal = run_command(catalog, command).unwrap_err();
    assert_eq!(*catalog, before, "{refusal}: a refused command changed something");
    refusal
}

pub(super) fn refused(catalog: &mut Catalog, operation: Operation) -> Refusal {
    refused_command(catalog, &Command::new(NOW, operation))
}

/// The words of a refusal, all of which must be in it.
#[track_caller]
pub(super) fn says(refusal: &Refusal, words: &[&str]) {
    let text = refusal.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

pub(super) fn three_nodes() -> Catalog {
    let mut catalog = Catalog::default();
    for number in 1..=3 {
        put_node(&mut catalog, new_node(number));
    }
    catalog
}

/// Three nodes, and group 7 on all of them.
pub(super) fn with_group() -> Catalog {
    let mut catalog = three_nodes();
    create(&mut catalog, new_group(7, &[1, 2, 3]));
    catalog
}

pub(super) fn hard(list: &[&str]) -> Requirement {
    Requirement::hard(list.iter().copied()).unwrap()
}

pub(super) fn destroy(catalog: &mut Catalog, number: u64) {
    run(catalog, Operation::DestroyGroup { group: group(number), generation: None }).unwrap();
    run(catalog, Operation::FinishDestroy { group: group(number) }).unwrap();
}

/// A report of the members of group 7, and which of them are the first.
pub(super) fn members(index: u64, nodes: &[u64], founding: Option<&[u64]>) -> Operation {
    let set = |list: &[u64]| list.iter().map(|number| node(*number)).collect();
    Operation::RecordMembers {
        group: group(7),
        config_index: LogIndex::new(index),
        nodes: set(nodes),
        founding: founding.map(set),
        learners: None,
        generation: None,
    }
}
