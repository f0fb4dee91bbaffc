//! Why a group is led where it is, and why it is not moved: an answer for each group, from a closed
//! set, readable by an operator at night.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use shardhost_groups::RejectReason;
use shardhost_storage::{GroupId, NodeId};

use super::candidates::{CandidateTable, Constraint, Scope, cool_downs_until};
use super::canon::SnapshotError;
use super::index::{Index, NONE};
use super::plan::{DeferReason, Plan, Tier};
use super::snapshot::Snapshot;
use super::state::State;
use super::target::{self, TargetVerdict};
use crate::utc::Utc;

/// Why a group stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stay {
    /// No move of it would improve anything.
    Optimal,
    /// It is pinned to where it is.
    Pinned,
    /// It is not known who leads it.
    UnknownLeader,
    /// Its leader's node is not live: that is for an election.
    LeaderNotLive,
    /// A move of it is under way, or not yet confirmed by both ends.
    InFlight {
        #[serde(with = "super::ids::node")]
        to: NodeId,
        /// The executor's number of the move.
        ticket: u64,
    },
    /// It moved a short time ago.
    CoolDowns {
        /// It may be moved again from this time on.
        until_ms: u64,
    },
    /// None of its voters can take it.
    NoTarget,
    /// Every voter that could take it has a back-off.
    AllBackedOff {
        /// The first of them may be asked again from this time on.
        until_ms: u64,
    },
    /// It is to move in a later round.
    Deferred {
        /// Where it is to go.
        #[serde(with = "super::ids::node")]
        to: NodeId,
        tier: Tier,
        /// Why not in this round.
        reason: DeferReason,
    },
    /// A node with fewer leaders could take it, but an objective of higher priority would get worse.
    WouldWorsen {
        tier: Tier,
        /// The node with fewer leaders.
        #[serde(with = "super::ids::node")]
        to: NodeId,
    },
}

impl fmt::Display for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Optimal => f.write_str("stays: moving it would improve nothing"),
            Self::Pinned => f.write_str("stays: it is pinned here"),
            Self::UnknownLeader => {
                f.write_str("is left alone: no node reports its leader; look at its voters")
            }
            Self::LeaderNotLive => f.write_str(
                "is left alone: its leader's node is not live; its voters elect another",
            ),
            Self::InFlight { to, ticket } => write!(
                f,
                "is moving to node {to} (ticket {ticket}); both ends have yet to confirm it"
            ),
            Self::CoolDowns { until_ms } => {
                let until = Utc(*until_ms);
                write!(f, "stays: it moved a short time ago and rests until {until}")
            }
            Self::NoTarget => f.write_str("stays: none of its other voters can take it"),
            Self::AllBackedOff { until_ms } => write!(
                f,
                "stays: every voter that could take it failed to; one is asked again from {} on",
                Utc(*until_ms)
            ),
            Self::Deferred { to, tier, reason } => {
                write!(f, "waits to move to node {to} ({tier}): {reason}")
            }
            Self::WouldWorsen { tier, to } => {
                write!(f, "stays: node {to} has fewer leaders, but {tier} would get worse")
            }
        }
    }
}

/// What a plan does with a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// It moves in this round.
    Moves {
        tier: Tier,
        #[serde(with = "super::ids::node")]
        from: NodeId,
        /// Who is to lead it.
        #[serde(with = "super::ids::node")]
        to: NodeId,
    },
    /// It is not moved in this round.
    Stays(Stay),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moves { tier, from, to } => {
                write!(f, "moves from node {from} to node {to} to improve: {tier}")
            }
            Self::Stays(stay) => stay.fmt(f),
        }
    }
}

/// The whole answer for one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    #[serde(with = "super::ids::group")]
    pub group: GroupId,
    /// Where it counts. `None`: nowhere, its leader is unknown or not live.
    #[serde(with = "super::ids::node_option")]
    pub node: Option<NodeId>,
    /// What the plan does with it.
    pub outcome: Outcome,
    /// What speaks against each of its voters, by rising node.
    pub voters: Vec<VoterVerdict>,
}

/// What speaks against a voter as a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoterVerdict {
    #[serde(with = "super::ids::node")]
    pub node: NodeId,
    pub verdict: TargetVerdict,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {} ", self.group)?;
        if let Some(node) = self.node {
            write!(f, "on node {node} ")?;
        }
        write!(f, "{}", self.outcome)?;
        write_name(f, self.outcome.reason())?;
        let others = self.voters.iter().filter(|voter| Some(voter.node) != self.node);
        for VoterVerdict { node, verdict } in others {
            write!(f, "\n  node {node}: {verdict}")?;
            write_name(f, verdict.reason())?;
        }
        Ok(())
    }
}

/// The name of a cause behind its words: what counters and other commands call it.
fn write_name(f: &mut fmt::Formatter<'_>, reason: Option<RejectReason>) -> fmt::Result {
    reason.map_or(Ok(()), |reason| write!(f, " [{}]", reason.name()))
}

/// Why a group is where it is. `None`: the snapshot does not know the group. For many groups use
/// one `Explainer`.
///
/// # Errors
/// The snapshot is not canonical or exceeds a limit.
pub fn why(
    snapshot: &Snapshot,
    plan: &Plan,
    group: GroupId,
) -> Result<Option<Explanation>, SnapshotError> {
    snapshot.check()?;
    let index = Index::new(snapshot);
    let candidates = CandidateTable::new(&index, Scope::All);
    let explainer = Explainer::new(&index, &candidates, plan);
    Ok(explainer.why(group))
}

/// Every group of the snapshot, explained, by rising group.
///
/// # Errors
/// The snapshot is not canonical or exceeds a limit.
pub fn why_all(snapshot: &Snapshot, plan: &Plan) -> Result<Vec<Explanation>, SnapshotError> {
    snapshot.check()?;
    let index = Index::new(snapshot);
    let candidates = CandidateTable::new(&index, Scope::All);
    let explainer = Explainer::new(&index, &candidates, plan);
    Ok((0..index.groups()).map(|at| explainer.explain(at)).collect())
}

/// Answers for the groups of one plan.
struct Explainer<'a> {
    index: &'a Index<'a>,
    candidates: &'a CandidateTable,
    after: State<'a>,
    outcomes: BTreeMap<GroupId, Outcome>,
}

impl<'a> Explainer<'a> {
    fn new(index: &'a Index<'a>, candidates: &'a CandidateTable, plan: &Plan) -> Self {
        let mut after = State::at_home(index, candidates);
        let groups = &index.snapshot.groups;
        let moved = plan.moves.iter().map(|step| (step.group, step.to));
        let waiting = plan.deferred.iter().map(|step| (step.group, step.to));
        for (group, to) in moved.chain(waiting) {
            let at = groups.binary_search_by_key(&group, |group| group.id);
            if let (Ok(at), Some(to)) = (at, index.node(to))
                && candidates.allowed.row(at).contains(&to)
            {
                after.shift(at, to);
            }
        }
        Self { index, candidates, after, outcomes: outcomes(plan) }
    }

    fn why(&self, group: GroupId) -> Option<Explanation> {
        let groups = &self.index.snapshot.groups;
        let at = groups.binary_search_by_key(&group, |group| group.id).ok()?;
        Some(self.explain(at))
    }

    fn explain(&self, at: usize) -> Explanation {
        let group = &self.index.snapshot.groups[at];
        let home = self.candidates.home[at];
        let outcome = self.outcomes.get(&group.id).copied();
        Explanation {
            group: group.id,
            node: (home != NONE).then(|| self.index.id(home)),
            outcome: outcome.unwrap_or_else(|| Outcome::Stays(self.stay(at))),
            voters: verdicts(self.index, at),
        }
    }

    fn stay(&self, at: usize) -> Stay {
        let group = &self.index.snapshot.groups[at];
        let home = self.candidates.home[at];
        match (self.candidates.constraint[at], cool_downs_until(self.index, group)) {
            (Constraint::Held, _) => held(self.index, at),
            (Constraint::CoolDowns, Some(until_ms)) => Stay::CoolDowns { until_ms },
            (Constraint::Stuck(_), _) => no_target(self.index, at, home),
            _ if group.pin == Some(self.index.id(home)) => Stay::Pinned,
            _ => self.no_better(at),
        }
    }

    /// Why a group that may go stays.
    fn no_better(&self, at: usize) -> Stay {
        let (home, allowed) = (self.candidates.home[at], self.candidates.allowed.row(at));
        let eligible = self.eligible(at, home);
        if eligible.is_empty() {
            return no_target(self.index, at, home);
        }
        let emptier = |node: &&u32| self.after.next_cost(**node) < self.after.last_cost(home);
        let Some(to) = eligible.iter().filter(emptier).min_by_key(|to| self.after.next_cost(**to))
        else {
            return Stay::Optimal;
        };
        let effect = self.after.effect(at, *to);
        let tier = match (allowed.contains(to), effect.pairs > 0, effect.load > 0) {
            (false, _, _) => Tier::Preference,
            (true, true, _) => Tier::Spread,
            (true, false, true) => Tier::Load,
            (true, false, false) => return Stay::Optimal,
        };
        Stay::WouldWorsen { tier, to: self.index.id(*to) }
    }

    fn eligible(&self, at: usize, home: u32) -> Vec<u32> {
        let group = &self.index.snapshot.groups[at];
        let back_offs = target::back_offs_of(self.index, group);
        let judged =
            group.voters.iter().map(|voter| target::judge(self.index, at, voter, back_offs));
        let fine =
            |(node, verdict): (Option<u32>, _)| node.filter(|_| verdict == TargetVerdict::Eligible);
        judged.filter_map(fine).filter(|node| *node != home).collect()
    }
}

fn outcomes(plan: &Plan) -> BTreeMap<GroupId, Outcome> {
    let mut outcomes = BTreeMap::new();
    for step in &plan.moves {
        let moves = Outcome::Moves { tier: step.tier, from: step.from, to: step.to };
        outcomes.insert(step.group, moves);
    }
    for step in &plan.deferred {
        let stay = Stay::Deferred { to: step.to, tier: step.tier, reason: step.reason };
        outcomes.insert(step.group, Outcome::Stays(stay));
    }
    outcomes
}

fn verdicts(index: &Index<'_>, at: usize) -> Vec<VoterVerdict> {
    let group = &index.snapshot.groups[at];
    let back_offs = target::back_offs_of(index, group);
    let verdict = |voter| target::judge(index, at, voter, back_offs).1;
    let voters = group.voters.iter();
    voters.map(|voter| VoterVerdict { node: voter.node, verdict: verdict(voter) }).collect()
}

/// Why a group is not ours to move.
pub(super) fn held(index: &Index<'_>, at: usize) -> Stay {
    match (index.flight_of[at], index.snapshot.groups[at].leader) {
        (NONE, None) => Stay::UnknownLeader,
        (NONE, Some(_)) => Stay::LeaderNotLive,
        (flight, _) => {
            let entry = &index.snapshot.moves[flight as usize];
            Stay::InFlight { to: entry.to, ticket: entry.ticket }
        }
    }
}

/// Why no voter but `home` takes a group: it would, if it had no back-off, or cannot.
pub(super) fn no_target(index: &Index<'_>, at: usize, home: u32) -> Stay {
    let group = &index.snapshot.groups[at];
    let back_offs = target::back_offs_of(index, group);
    let backed_off =
        group.voters.iter().filter_map(|voter| match target::judge(index, at, voter, back_offs) {
            (Some(node), TargetVerdict::BackedOff { until_ms }) if node != home => Some(until_ms),
            _ => None,
        });
    backed_off.min().map_or(Stay::NoTarget, |until_ms| Stay::AllBackedOff { until_ms })
}
