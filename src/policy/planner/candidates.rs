//! What may be done with each group: where it is, where it may lead once the first three tiers had
//! their say, and what it costs them to stay.
//!
//! Capability, displacement and preference belong to each group alone. So the least sum over all
//! groups is reached where each group is at its own least, and these tiers only narrow the nodes
//! that the later ones choose from.

use super::findings;
use super::index::{Fitness, Index, NONE, Rows, Standing};
use super::plan::{Finding, Tier};
use super::snapshot::{Group, RequirementMode};
use super::target::{self, TargetVerdict, Wishes};

/// What the first three tiers say of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Constraint {
    /// Not ours to move: unknown leader, leader not live, or a move under way.
    Held,
    /// It moved a short time ago and violates nothing.
    CoolDowns,
    /// It may stay, and may go to nodes that are as good.
    Free,
    /// It is to leave for the sake of this tier.
    Leaves(Tier),
    /// It should leave for the sake of this tier, and has nowhere to go.
    Stuck(Tier),
}

/// What one placement of a group costs the first three tiers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ViolationCost {
    pub(super) hard: bool,
    pub(super) soft: bool,
    pub(super) displaced: bool,
    pub(super) rank: u32,
}

impl ViolationCost {
    fn of(index: &Index<'_>, group: usize, wishes: &Wishes<'_>, node: u32) -> Self {
        let lacks = index.fitness(group, node) == Fitness::Incapable;
        let hard = index.snapshot.groups[group].requirement.mode == RequirementMode::Hard;
        Self {
            hard: lacks && hard,
            soft: lacks && !hard,
            displaced: index.standing[node as usize].displaces(),
            rank: wishes.rank(index, node),
        }
    }

    /// The tier for which a group should leave at once.
    fn violates(self) -> Option<Tier> {
        match self {
            Self { hard: true, .. } | Self { soft: true, .. } => Some(Tier::Capability),
            Self { displaced: true, .. } => Some(Tier::Displaced),
            _ => None,
        }
    }
}

/// All groups. Everything is indexed by the dense number of a group.
pub(super) struct CandidateTable {
    /// Where it counts; `NONE`: nowhere.
    pub(super) home: Vec<u32>,
    /// Where it may lead, by rising node. One node: it does not move.
    pub(super) allowed: Rows,
    pub(super) constraint: Vec<Constraint>,
    pub(super) home_violation_cost: Vec<ViolationCost>,
    /// The rank of any other node where it may lead: they are all alike.
    pub(super) target_rank: Vec<u32>,
    /// Gathered here, while each group is at hand: groups are large, and reading them is a good
    /// part of planning.
    pub(super) findings: Vec<Finding>,
}

/// Which groups may be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    /// Only those that have to leave.
    Violations,
}

impl CandidateTable {
    pub(super) fn new(index: &Index<'_>, scope: Scope) -> Self {
        let groups = index.groups();
        let mut candidates = Self {
            home: Vec::with_capacity(groups),
            allowed: Rows::with_capacity(groups),
            constraint: Vec::with_capacity(groups),
            home_violation_cost: Vec::with_capacity(groups),
            target_rank: Vec::with_capacity(groups),
            findings: Vec::new(),
        };
        let mut judge = Judge { index, scope, allowed: Vec::new(), rank: 0 };
        for group in 0..groups {
            candidates.add(&mut judge, group);
            findings::of_group(index, group, &mut candidates.findings);
        }
        findings::of_ledger(index, &mut candidates.findings);
        candidates
    }

    fn add(&mut self, judge: &mut Judge<'_>, group: usize) {
        let (home, held) = whereabouts(judge.index, group);
        let wishes = Wishes::of(&judge.index.snapshot.groups[group]);
        let violation_cost = match home {
            NONE => ViolationCost::default(),
            node => ViolationCost::of(judge.index, group, &wishes, node),
        };
        judge.stay(home, violation_cost.rank);
        let constraint = if held {
            Constraint::Held
        } else {
            judge.decide(group, &wishes, home, violation_cost)
        };
        self.home.push(home);
        self.allowed.push(&judge.allowed);
        self.constraint.push(constraint);
        self.home_violation_cost.push(violation_cost);
        self.target_rank.push(judge.rank);
    }

    /// Whether a group that is at `home` may stay there.
    pub(super) fn may_stay(&self, group: usize) -> bool {
        !matches!(self.constraint[group], Constraint::Leaves(_))
    }
}

/// Where a group counts, and whether it must not be moved.
pub(super) fn whereabouts(index: &Index<'_>, group: usize) -> (u32, bool) {
    let what = &index.snapshot.groups[group];
    let live = |id| index.live_node(id).unwrap_or(NONE);
    if index.flight_of[group] != NONE {
        return (live(index.snapshot.moves[index.flight_of[group] as usize].to), true);
    }
    match what.leader {
        None => (what.last_leader.map_or(NONE, live), true),
        Some(leader) => (live(leader), live(leader) == NONE),
    }
}

/// Until when a group is left alone, if it is.
pub(super) fn cool_downs_until(index: &Index<'_>, group: &Group) -> Option<u64> {
    let until = group.moved_at_ms?.saturating_add(index.snapshot.settings.cool_down_ms);
    (until > index.snapshot.now_ms).then_some(until)
}

/// Decides for one group after the other; keeps its lists to itself.
struct Judge<'a> {
    index: &'a Index<'a>,
    scope: Scope,
    allowed: Vec<u32>,
    rank: u32,
}

/// How reluctantly a target is taken: unknown capabilities, a short life, then rank.
type TargetRank = (bool, bool, u32);

impl Judge<'_> {
    fn stay(&mut self, home: u32, rank: u32) {
        self.allowed.clear();
        if home != NONE {
            self.allowed.push(home);
        }
        self.rank = rank;
    }

    fn decide(
        &mut self,
        group: usize,
        wishes: &Wishes<'_>,
        home: u32,
        violation_cost: ViolationCost,
    ) -> Constraint {
        if let Some(tier) = violation_cost.violates() {
            return self.leave(group, wishes, home, tier);
        }
        let what = &self.index.snapshot.groups[group];
        if self.scope == Scope::Violations || cool_downs_until(self.index, what).is_some() {
            return Constraint::CoolDowns;
        }
        self.choose(group, wishes, home, violation_cost.rank)
    }

    fn leave(&mut self, group: usize, wishes: &Wishes<'_>, home: u32, tier: Tier) -> Constraint {
        let mut best: Option<TargetRank> = None;
        self.each_target(group, wishes, home, |target_rank, node, allowed| {
            if best.is_none_or(|best| target_rank < best) {
                best = Some(target_rank);
                allowed.clear();
            }
            if best == Some(target_rank) {
                allowed.push(node);
            }
        });
        match best {
            Some((_, _, rank)) => {
                self.rank = rank;
                Constraint::Leaves(tier)
            }
            None => Constraint::Stuck(tier),
        }
    }

    /// The targets of the best rank, of which the present node may be one.
    fn choose(&mut self, group: usize, wishes: &Wishes<'_>, home: u32, rank: u32) -> Constraint {
        let mut best = rank;
        self.each_target(group, wishes, home, |(unknown, warming, rank), node, allowed| {
            if unknown || warming || rank > best {
                return;
            }
            if rank < best {
                best = rank;
                allowed.clear();
            }
            allowed.push(node);
        });
        self.rank = best;
        self.allowed.sort_unstable();
        if best < rank { Constraint::Leaves(Tier::Preference) } else { Constraint::Free }
    }

    fn each_target(
        &mut self,
        group: usize,
        wishes: &Wishes<'_>,
        home: u32,
        mut take: impl FnMut(TargetRank, u32, &mut Vec<u32>),
    ) {
        let index = self.index;
        let what = &index.snapshot.groups[group];
        let back_offs = target::back_offs_of(index, what);
        for voter in &what.voters {
            let (Some(node), verdict) = target::judge(index, group, voter, back_offs) else {
                continue;
            };
            let reluctant = match verdict {
                TargetVerdict::Eligible => (false, false),
                TargetVerdict::Warming => (false, true),
                TargetVerdict::UnknownCapabilities => {
                    (true, index.standing[node as usize] == Standing::Warming)
                }
                _ => continue,
            };
            if node != home {
                let rank = wishes.rank(index, node);
                take((reluctant.0, reluctant.1, rank), node, &mut self.allowed);
            }
        }
    }
}
