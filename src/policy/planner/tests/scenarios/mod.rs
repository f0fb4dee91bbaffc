//! One rule of planning after the other, each as a small cluster.

mod balance;
mod budgets;
mod drain;
mod planner_inputs;
mod reasons;
mod refusals;
mod wishes;

use shardhost_storage::{GroupId, NodeId};

use super::super::{Outcome, Plan, Snapshot, Stay, why};

fn stay(snapshot: &Snapshot, plan: &Plan, group: u64) -> Stay {
    let answer = why(snapshot, plan, GroupId::new(group)).expect("a sound snapshot");
    match answer.expect("a known group").outcome {
        Outcome::Stays(stay) => stay,
        moves => panic!("group {group} {moves}"),
    }
}

/// The whole answer for a group, in words.
fn words(snapshot: &Snapshot, plan: &Plan, group: u64) -> String {
    let answer = why(snapshot, plan, GroupId::new(group)).expect("a sound snapshot");
    answer.expect("a known group").to_string()
}

fn id(node: u64) -> NodeId {
    NodeId::must(node)
}
