//! What in a snapshot an operator should look at. Changes no plan.

use super::index::{Fitness, Index, NONE};
use super::plan::Finding;
use super::target;

/// An irregularity of one group.
pub(super) fn of_group(index: &Index<'_>, at: usize, findings: &mut Vec<Finding>) {
    let what = &index.snapshot.groups[at];
    let group = what.id;
    if let Some(node) = what.pin.filter(|pin| !target::is_voter(what, *pin)) {
        findings.push(Finding::PinToNonVoter { group, node });
    }
    if target::contradicts(&what.preference) {
        findings.push(Finding::PreferenceContradicts { group });
    }
    let flying = index.flight_of[at] != NONE;
    if let Some(node) = what.leader.filter(|id| !flying && index.live_node(*id).is_none()) {
        findings.push(Finding::LeaderNotLive { group, node });
    }
    let capable =
        |node: Option<u32>| node.is_some_and(|node| index.fitness(at, node) == Fitness::Capable);
    if !what.requirement.capabilities.is_empty()
        && !what.voters.iter().any(|voter| capable(index.node(voter.node)))
    {
        findings.push(Finding::NoCapableVoter { group });
    }
}

/// An irregularity of the ledger.
pub(super) fn of_ledger(index: &Index<'_>, findings: &mut Vec<Finding>) {
    for entry in &index.snapshot.moves {
        if index.snapshot.groups.binary_search_by_key(&entry.group, |group| group.id).is_err() {
            findings.push(Finding::MoveOfUnknownGroup { group: entry.group });
        }
    }
}
