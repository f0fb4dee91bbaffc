//! One assignment for all leaders that have to leave: the planner's answer while all others stay in
//! place, without budgets. The drain controls pace and deadline.

use serde::{Deserialize, Serialize};

use super::candidates::{CandidateTable, Constraint, Scope};
use super::canon::SnapshotError;
use super::explain;
use super::index::{Index, NONE, Standing};
use super::plan::{Move, NodeCount, Stuck, Tier};
use super::plan_within;
use super::round::Budgets;
use super::snapshot::Snapshot;
use super::state::State;

/// Where the leaders of draining nodes go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainAssignment {
    /// Every leader of a draining node that can leave, in the order in which they should.
    pub moves: Vec<Move>,
    /// Every other leader of a draining node, by rising group, and why it cannot leave.
    pub undrainable: Vec<Stuck>,
    /// Leaders of all nodes before and after.
    pub nodes: Vec<NodeCount>,
}

/// Assigns the leaders of all draining nodes at once, in proportion to the weights of those that
/// get them and to what they have. Moves of leaders that have to leave other nodes (unfit ones,
/// say) are counted on and not listed.
///
/// # Errors
/// The snapshot is not canonical or exceeds a limit.
pub fn assign_drain(snapshot: &Snapshot) -> Result<DrainAssignment, SnapshotError> {
    snapshot.check()?;
    let index = Index::new(snapshot);
    let candidates = CandidateTable::new(&index, Scope::Violations);
    let mut state = State::at_home(&index, &candidates);
    let undrainable = undrainable(&state);
    let plan = plan_within(&mut state, Budgets::unlimited(index.nodes()));
    let drains = |step: &Move| index.node(step.from).is_some_and(|node| is_draining(&index, node));
    Ok(DrainAssignment {
        moves: plan.moves.into_iter().filter(drains).collect(),
        undrainable,
        nodes: plan.summary.nodes,
    })
}

fn is_draining(index: &Index<'_>, node: u32) -> bool {
    node != NONE && index.standing[node as usize] == Standing::Draining
}

fn undrainable(state: &State<'_>) -> Vec<Stuck> {
    let mut found = Vec::new();
    for (group, home) in state.candidates.home.iter().enumerate() {
        if !is_draining(state.index, *home) {
            continue;
        }
        let tier = match state.candidates.constraint[group] {
            Constraint::Leaves(_) => continue,
            Constraint::Stuck(tier) => tier,
            _ => Tier::Displaced,
        };
        let reason = match state.candidates.constraint[group] {
            Constraint::Held => explain::held(state.index, group),
            _ => explain::no_target(state.index, group, *home),
        };
        let (node, group) = (state.index.id(*home), state.index.snapshot.groups[group].id);
        found.push(Stuck { group, node, tier, reason });
    }
    found
}
