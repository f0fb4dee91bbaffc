//! The leadership planner: from one [`Snapshot`] to one [`Plan`], which lists the leaderships that
//! move, where, why, and why the others stay.
//!
//! A pure function. It has no clock, no chance, no floating point, no thread and no I/O: time and
//! seed are part of the snapshot. The same bytes in give the same bytes out on any machine, so a
//! snapshot that was recorded in production is a test. It must not know who asks, nor who carries
//! the plan out: safety is decided there, at the moment of each transfer.
//!
//! | where | what |
//! |---|---|
//! | [`snapshot`], `canon` | what goes in, and in which order |
//! | [`plan`](mod@plan) | what comes out |
//! | `index`, `target`, `candidates` | dense numbers; what may be done with each group: tiers 1 to 3 |
//! | `findings` | what an operator should look at |
//! | `state` | a placement of all leaders, and its [`Score`] |
//! | `solve`, `spread`, `load`, `count`, `flow` | the full plan: tiers 4 to 6 |
//! | `order`, `round` | which of it comes first, and what budgets leave for this round |
//! | [`explain`], [`drain`] | why a group is where it is; one assignment for a drain |
//! | `reason` | the same by the names that the gate, counters and people use |
//! | [`check`](mod@check) | checks a plan, and shares nothing with what made it |
//!
//! **Invariant:** the score falls with every bundle of a plan's moves, compared tier by tier.
//! **Invariant:** a second plan, made when the first is carried out, is empty or falls further.

mod candidates;
mod canon;
pub mod check;
mod count;
pub mod drain;
pub mod explain;
mod findings;
mod flow;
pub(super) mod ids;
mod index;
mod load;
mod order;
pub mod plan;
mod reason;
mod round;
pub mod snapshot;
mod solve;
mod spread;
mod state;
mod target;

#[cfg(test)]
mod tests;

pub use canon::SnapshotError;
pub use check::{CheckError, check};
pub use drain::{DrainAssignment, assign_drain};
pub use explain::{Explanation, Outcome, Stay, why, why_all};
pub use plan::{Certificate, DeferReason, Deferred, Finding, Move, NodeCount, Plan, Price};
pub use plan::{Score, Stuck, Summary, Tier};
pub use snapshot::{BackOff, Group, LedgerMove, Node, Place, Requirement, RequirementMode};
pub use snapshot::{Settings, Snapshot, Voter};
pub use target::TargetVerdict;

use candidates::{CandidateTable, Constraint, Scope};
use index::Index;
use order::{Runs, Step};
use round::{Budgets, Round};
use solve::{Solution, solve};
use state::State;

/// Plans one round.
///
/// # Errors
/// The snapshot is not canonical or exceeds a limit; see [`Snapshot::canonicalise`].
pub fn plan(snapshot: &Snapshot) -> Result<Plan, SnapshotError> {
    snapshot.check()?;
    let index = Index::new(snapshot);
    let candidates = CandidateTable::new(&index, Scope::All);
    let mut round_state = State::at_home(&index, &candidates);
    let budgets = Budgets::of(&round_state);
    Ok(plan_within(&mut round_state, budgets))
}

/// Plans what budgets allow. The state is where everything is, and then where the round ends.
fn plan_within(state: &mut State<'_>, budgets: Budgets) -> Plan {
    let before = state.clone();
    let mut after = state.clone();
    let (solution, runs) = solve(&mut after);
    let mut round = Round::new(state, budgets);
    round.fill(&runs);
    let (bundles, deferred) = (round.bundles, round.deferred);
    Plan {
        moves: moves(&before, &bundles),
        deferred: deferrals(&before, deferred),
        stuck: stuck(&before),
        summary: summary(&before, state, &after),
        certificate: certificate(&before, &solution),
    }
}

fn moves(state: &State<'_>, bundles: &Runs) -> Vec<Move> {
    let steps =
        (0..).zip(bundles.iter()).flat_map(|(at, bundle)| bundle.iter().map(move |s| (at, s)));
    let to_move = |(bundle, step): (u32, &Step)| {
        let (group, term) = state.index.fences[step.group as usize];
        Move {
            group,
            from: state.index.id(step.from),
            to: state.index.id(step.to),
            to_incarnation: state.index.snapshot.nodes[step.to as usize].incarnation,
            term,
            tier: step.tier,
            bundle,
        }
    };
    steps.map(to_move).collect()
}

fn deferrals(state: &State<'_>, mut deferred: Vec<(Step, DeferReason)>) -> Vec<Deferred> {
    deferred.sort_unstable_by_key(|(step, _)| step.group);
    let to_deferred = |(step, reason): (Step, DeferReason)| Deferred {
        group: state.index.fences[step.group as usize].0,
        from: state.index.id(step.from),
        to: state.index.id(step.to),
        tier: step.tier,
        reason,
    };
    deferred.into_iter().map(to_deferred).collect()
}

fn stuck(state: &State<'_>) -> Vec<Stuck> {
    let mut stuck = Vec::new();
    for (group, constraint) in state.candidates.constraint.iter().enumerate() {
        if let Constraint::Stuck(tier) = *constraint {
            stuck.push(Stuck {
                group: state.index.snapshot.groups[group].id,
                node: state.index.id(state.candidates.home[group]),
                tier,
                reason: explain::no_target(state.index, group, state.candidates.home[group]),
            });
        }
    }
    stuck
}

fn summary(before: &State<'_>, round: &State<'_>, after: &State<'_>) -> Summary {
    let count = |node: usize| NodeCount {
        node: before.index.id(node as u32),
        before: before.counts[node],
        after_round: round.counts[node],
        after: after.counts[node],
    };
    Summary {
        before: before.score,
        after_round: round.score,
        after: after.score,
        nodes: (0..before.index.nodes()).map(count).collect(),
        findings: before.candidates.findings.clone(),
    }
}

fn certificate(state: &State<'_>, solution: &Solution) -> Certificate {
    let price = |(node, (cost, moves)): &(usize, (u64, i64))| Price {
        node: state.index.id(*node as u32),
        cost: *cost,
        moves: *moves,
    };
    Certificate { prices: solution.prices.iter().map(price).collect() }
}
