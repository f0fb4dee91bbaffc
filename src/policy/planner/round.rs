//! The moves of one round: what budgets allow of the full plan. A bundle is as short as it can be
//! with the score falling, so the cluster is better off wherever a round ends.

use super::order::{Runs, Step};
use super::plan::DeferReason;
use super::snapshot::Snapshot;
use super::state::State;

/// What may still be moved in this round.
pub(super) struct Budgets {
    round: u64,
    out: Vec<u64>,
    into: Vec<u64>,
}

impl Budgets {
    /// The budgets of the settings, less the moves in flight.
    pub(super) fn of(state: &State<'_>) -> Self {
        let snapshot: &Snapshot = state.index.snapshot;
        let (settings, nodes) = (&snapshot.settings, state.index.nodes());
        let mut budgets = Self {
            round: settings.moves_per_round.into(),
            out: vec![settings.out_per_node.into(); nodes],
            into: vec![settings.in_per_node.into(); nodes],
        };
        for entry in snapshot.moves.iter().filter(|entry| entry.completed_at_ms.is_none()) {
            let ends = (state.index.node(entry.from), state.index.node(entry.to));
            budgets.round = budgets.round.saturating_sub(1);
            if let (Some(from), Some(to)) = ends {
                budgets.out[from as usize] = budgets.out[from as usize].saturating_sub(1);
                budgets.into[to as usize] = budgets.into[to as usize].saturating_sub(1);
            }
        }
        budgets
    }

    pub(super) fn unlimited(nodes: usize) -> Self {
        Self { round: u64::MAX, out: vec![u64::MAX; nodes], into: vec![u64::MAX; nodes] }
    }

    /// Takes a bundle off, all or nothing.
    fn take(&mut self, bundle: &[Step]) -> Result<(), DeferReason> {
        for (at, step) in bundle.iter().enumerate() {
            if let Err(reason) = self.take_one(step) {
                bundle[..at].iter().for_each(|step| self.give_back(step));
                return Err(reason);
            }
        }
        Ok(())
    }

    fn take_one(&mut self, step: &Step) -> Result<(), DeferReason> {
        let (from, to) = (step.from as usize, step.to as usize);
        match (self.round, self.out[from], self.into[to]) {
            (0, _, _) => return Err(DeferReason::RoundBudget),
            (_, 0, _) => return Err(DeferReason::OutBudget),
            (_, _, 0) => return Err(DeferReason::InBudget),
            _ => {}
        }
        self.round -= 1;
        self.out[from] -= 1;
        self.into[to] -= 1;
        Ok(())
    }

    fn give_back(&mut self, step: &Step) {
        self.round += 1;
        self.out[step.from as usize] += 1;
        self.into[step.to as usize] += 1;
    }
}

/// Moves that improve nothing, not even together. Only moves that have to respect spread or load
/// can come to that; where there are none, nothing is tried.
pub(super) fn idle(before: &State<'_>, runs: &Runs) -> Vec<Step> {
    let is_free = |step: &Step| before.index.is_free(step.group as usize);
    if runs.steps().iter().all(is_free) {
        return Vec::new();
    }
    let mut state = before.clone();
    let budgets = Budgets::unlimited(before.index.nodes());
    let mut trial = Round::new(&mut state, budgets);
    trial.fill(runs);
    trial.deferred.into_iter().map(|(step, _)| step).collect()
}

/// A round that is being filled. A bundle that is larger than the budgets waits for ever: budgets
/// should leave room for a chain of a few moves.
pub(super) struct Round<'s, 'a> {
    /// Where everything is after the bundles so far.
    pub(super) state: &'s mut State<'a>,
    budgets: Budgets,
    /// Bundles of this round, in order.
    pub(super) bundles: Runs,
    /// Moves that are deferred to a later pass.
    pub(super) deferred: Vec<(Step, DeferReason)>,
}

impl<'s, 'a> Round<'s, 'a> {
    pub(super) fn new(state: &'s mut State<'a>, budgets: Budgets) -> Self {
        Self { state, budgets, bundles: Runs::default(), deferred: Vec::new() }
    }

    /// Fills the round. What improves nothing at its turn is tried again when all else is done, at
    /// last together.
    pub(super) fn fill(&mut self, runs: &Runs) {
        let mut waiting = self.try_all(runs);
        while waiting.len() > 0 {
            let before = self.bundles.len();
            waiting = self.try_all(&waiting);
            if self.bundles.len() == before {
                break;
            }
        }
        let mut late = Runs::default();
        self.run(waiting.steps(), &mut late);
        let late = late.steps().iter().map(|step| (*step, DeferReason::WaitsForOthers));
        self.deferred.extend(late);
    }

    /// Returns what improves nothing as things are.
    fn try_all(&mut self, runs: &Runs) -> Runs {
        let mut waiting = Runs::default();
        runs.iter().for_each(|run| self.run(run, &mut waiting));
        waiting
    }

    /// Cuts a run into bundles wherever the score has fallen.
    fn run(&mut self, run: &[Step], waiting: &mut Runs) {
        if self.budgets.round == 0 {
            self.deferred.extend(run.iter().map(|step| (*step, DeferReason::RoundBudget)));
            return;
        }
        let (mut start, mut reached) = (0, self.state.score);
        for (at, step) in run.iter().enumerate() {
            self.state.shift(step.group as usize, step.to);
            if self.state.score < reached {
                self.close(&run[start..=at]);
                (start, reached) = (at + 1, self.state.score);
            }
        }
        if start < run.len() {
            self.undo(&run[start..]);
            waiting.push(&run[start..]);
        }
    }

    /// Keeps a bundle that budgets allow.
    fn close(&mut self, bundle: &[Step]) {
        match self.budgets.take(bundle) {
            Ok(()) => self.bundles.push(bundle),
            Err(reason) => {
                self.undo(bundle);
                self.deferred.extend(bundle.iter().map(|step| (*step, reason)));
            }
        }
    }

    fn undo(&mut self, steps: &[Step]) {
        for step in steps.iter().rev() {
            self.state.shift(step.group as usize, step.from);
        }
    }
}
