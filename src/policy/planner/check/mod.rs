//! Checks a plan against its snapshot, in the plainest way that is right: ordered maps, everything
//! counted anew. It shares no code with the search, so that one mistake is not made twice. For
//! tests and tools: it takes time in the product of groups and bundles.

mod error;
mod proof;
mod reading;

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, NodeId};

pub use error::CheckError;
use reading::Reading;

use super::plan::{Plan, Score};
use super::snapshot::Snapshot;

/// Who leads each group that is led by a live node.
pub type Placement = BTreeMap<GroupId, NodeId>;

/// Checks that each move is allowed, that the score falls with each bundle and equals that of the
/// summary, that displaced leaders leave, and that the certificate proves the counts optimal.
///
/// # Errors
/// The first thing that is wrong. The plan must not be carried out.
pub fn check(snapshot: &Snapshot, plan: &Plan) -> Result<(), CheckError> {
    let reading = Reading::new(snapshot);
    check_steps(&reading, plan)?;
    let (round, full) = check_scores(&reading, plan)?;
    check_counts(&reading, plan, &round, &full)?;
    check_complete(&reading, &full)?;
    proof::check(&reading, plan, &full)
}

/// The score of the snapshot as it is, counted anew.
#[must_use]
pub fn score(snapshot: &Snapshot) -> Score {
    let reading = Reading::new(snapshot);
    reading.score(&reading.placement())
}

fn steps(plan: &Plan) -> impl Iterator<Item = (GroupId, NodeId, NodeId)> {
    let moves = plan.moves.iter().map(|step| (step.group, step.from, step.to));
    moves.chain(plan.deferred.iter().map(|step| (step.group, step.from, step.to)))
}

fn check_steps(reading: &Reading<'_>, plan: &Plan) -> Result<(), CheckError> {
    let mut seen = BTreeSet::new();
    for (group, from, to) in steps(plan) {
        if !seen.insert(group) {
            return Err(CheckError::MovedTwice { group });
        }
        let known = reading.group(group).ok_or(CheckError::UnknownGroup { group })?;
        let place = reading.place(known);
        if place != Some(from) {
            return Err(CheckError::NotThere { group, planned: from, actual: place });
        }
        if to == from || !reading.choices(known).contains(&to) {
            return Err(CheckError::NotAllowed { group, from, to });
        }
    }
    for step in &plan.moves {
        let term = reading.group(step.group).map(|group| group.term);
        let life = reading.node(step.to).map(|node| node.incarnation);
        if term != Some(step.term) || life != Some(step.to_incarnation) {
            return Err(CheckError::WrongFence { group: step.group });
        }
    }
    Ok(())
}

/// The placements after the round and after the full plan.
fn check_scores(reading: &Reading<'_>, plan: &Plan) -> Result<(Placement, Placement), CheckError> {
    let mut placement = reading.placement();
    let mut score = reading.score(&placement);
    same("before", plan.summary.before, score)?;
    for (at, bundle) in plan.moves.chunk_by(|one, other| one.bundle == other.bundle).enumerate() {
        if bundle[0].bundle as usize != at {
            return Err(CheckError::BundleNumber { expected: at, actual: bundle[0].bundle });
        }
        placement.extend(bundle.iter().map(|step| (step.group, step.to)));
        let next = reading.score(&placement);
        if next >= score {
            return Err(no_better(at, score, next));
        }
        score = next;
    }
    same("after_round", plan.summary.after_round, score)?;
    let round = placement.clone();
    placement.extend(plan.deferred.iter().map(|step| (step.group, step.to)));
    let full = reading.score(&placement);
    same("after", plan.summary.after, full)?;
    if full > score || (full == score) != plan.deferred.is_empty() {
        return Err(no_better(plan.moves.len(), score, full));
    }
    Ok((round, placement))
}

fn no_better(bundle: usize, before: Score, after: Score) -> CheckError {
    CheckError::NoBetter { bundle, before: Box::new(before), after: Box::new(after) }
}

fn same(when: &'static str, planned: Score, actual: Score) -> Result<(), CheckError> {
    if planned != actual {
        let (planned, actual) = (Box::new(planned), Box::new(actual));
        return Err(CheckError::WrongScore { when, planned, actual });
    }
    Ok(())
}

fn check_counts(
    reading: &Reading<'_>,
    plan: &Plan,
    round: &Placement,
    full: &Placement,
) -> Result<(), CheckError> {
    let before = reading.placement();
    let leaders = |placement: &Placement, node: NodeId| {
        placement.values().filter(|place| **place == node).count() as u64
    };
    for counted in &plan.summary.nodes {
        let planned = [counted.before, counted.after_round, counted.after];
        let actual = [&before, round, full].map(|placement| leaders(placement, counted.node));
        if planned != actual {
            return Err(CheckError::WrongCounts { node: counted.node, planned, actual });
        }
    }
    Ok(())
}

/// Whether each group is in an allowed place after the full plan.
fn check_complete(reading: &Reading<'_>, full: &Placement) -> Result<(), CheckError> {
    for group in &reading.snapshot.groups {
        if let Some(node) = full.get(&group.id)
            && !reading.choices(group).contains(node)
        {
            return Err(CheckError::LeftBehind { group: group.id, node: *node });
        }
    }
    Ok(())
}
