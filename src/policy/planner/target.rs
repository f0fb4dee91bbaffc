//! Whether a node may receive a group's leadership, and how much the group likes it there. Looks
//! at one group and one node; knows nothing of balance.

use std::fmt;

use serde::{Deserialize, Serialize};
use shardhost_storage::NodeId;

use super::index::{Fitness, Index, Standing};
use super::snapshot::{BackOff, Group, Place, Voter};
use crate::utc::Utc;

/// What speaks against a voter's node as a target, the most lasting reason first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TargetVerdict {
    Eligible,
    /// It is live for a short time only: the target of groups that have to leave and have no
    /// better one.
    Warming,
    /// What it can do is unknown: the target of groups that have to leave and have no better one.
    UnknownCapabilities,
    /// It is unknown or not live.
    NotLive,
    /// It lacks what the group requires.
    Incapable,
    /// It is to be emptied.
    Draining,
    /// An operator or its health excludes it from leading.
    Unfit,
    NoWeight,
    /// What it has of the log is unknown.
    LagUnknown,
    /// It lacks more entries than the settings allow.
    Lags {
        entries: u64,
    },
    /// Leadership failed to reach it.
    BackedOff {
        /// It may be asked again from this time on.
        until_ms: u64,
    },
}

/// What a group wishes, once contradictions are taken out.
pub(super) struct Wishes<'a> {
    pub(super) pin: Option<NodeId>,
    pub(super) preference: &'a [Place],
}

impl<'a> Wishes<'a> {
    pub(super) fn of(group: &'a Group) -> Self {
        let preference = if contradicts(&group.preference) { &[] } else { &group.preference[..] };
        Self { pin: group.pin.filter(|pin| is_voter(group, *pin)), preference }
    }

    /// The place of a node in the wishes; 0 is the best.
    pub(super) fn rank(&self, index: &Index<'_>, node: u32) -> u32 {
        if self.pin.is_none() && self.preference.is_empty() {
            return 0;
        }
        let id = index.id(node);
        if self.pin == Some(id) {
            return 0;
        }
        let zone = &index.snapshot.nodes[node as usize].zone;
        let names = |place: &Place| match place {
            Place::Node(named) => *named == id,
            Place::Zone(named) => named == zone,
        };
        let at = self.preference.iter().position(names).unwrap_or(self.preference.len());
        at as u32 + u32::from(self.pin.is_some())
    }
}

pub(super) fn is_voter(group: &Group, node: NodeId) -> bool {
    group.voters.iter().any(|voter| voter.node == node)
}

/// Whether a place is named twice.
pub(super) fn contradicts(preference: &[Place]) -> bool {
    (1..preference.len()).any(|at| preference[..at].contains(&preference[at]))
}

/// The back_offs of a group, if there are any.
pub(super) fn back_offs_of<'a>(index: &Index<'a>, group: &Group) -> &'a [BackOff] {
    let back_offs = &index.snapshot.back_offs;
    if back_offs.is_empty() {
        return back_offs;
    }
    let start = back_offs.partition_point(|back_off| back_off.group < group.id);
    let length =
        back_offs[start..].iter().take_while(|back_off| back_off.group == group.id).count();
    &back_offs[start..start + length]
}

/// What speaks against a voter as the target of its group.
pub(super) fn judge(
    index: &Index<'_>,
    group: usize,
    voter: &Voter,
    back_offs: &[BackOff],
) -> (Option<u32>, TargetVerdict) {
    let Some(node) = index.live_node(voter.node) else { return (None, TargetVerdict::NotLive) };
    (Some(node), judge_live(index, group, node, voter, back_offs))
}

fn judge_live(
    index: &Index<'_>,
    group: usize,
    node: u32,
    voter: &Voter,
    back_offs: &[BackOff],
) -> TargetVerdict {
    let fitness = index.fitness(group, node);
    let standing = index.standing[node as usize];
    match (fitness, standing) {
        (_, Standing::Dead) => return TargetVerdict::NotLive,
        (Fitness::Incapable, _) => return TargetVerdict::Incapable,
        (_, Standing::Draining) => return TargetVerdict::Draining,
        (_, Standing::Unfit) => return TargetVerdict::Unfit,
        (_, Standing::Weightless) => return TargetVerdict::NoWeight,
        _ => {}
    }
    if let Some(verdict) = judge_log(index, voter) {
        return verdict;
    }
    if let Some(until_ms) = backed_off_until(index, voter, back_offs) {
        return TargetVerdict::BackedOff { until_ms };
    }
    match (fitness, standing) {
        (Fitness::Unknown, _) => TargetVerdict::UnknownCapabilities,
        (_, Standing::Warming) => TargetVerdict::Warming,
        _ => TargetVerdict::Eligible,
    }
}

fn judge_log(index: &Index<'_>, voter: &Voter) -> Option<TargetVerdict> {
    match voter.lag {
        None => Some(TargetVerdict::LagUnknown),
        Some(entries) if entries > index.snapshot.settings.max_lag_entries => {
            Some(TargetVerdict::Lags { entries })
        }
        Some(_) => None,
    }
}

fn backed_off_until(index: &Index<'_>, voter: &Voter, back_offs: &[BackOff]) -> Option<u64> {
    let back_off = back_offs.iter().find(|back_off| back_off.target == voter.node)?;
    (back_off.until_ms > index.snapshot.now_ms).then_some(back_off.until_ms)
}

impl fmt::Display for TargetVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eligible => f.write_str("could take it"),
            Self::Warming => f.write_str("came up a short time ago; takes only what has to move"),
            Self::UnknownCapabilities => {
                f.write_str("did not say what it can do; takes only what has to move")
            }
            Self::NotLive => f.write_str("is not live"),
            Self::Incapable => f.write_str("lacks what the group requires"),
            Self::Draining => f.write_str("is draining"),
            Self::Unfit => f.write_str("is unfit"),
            Self::NoWeight => f.write_str("has no weight: it takes no leaders"),
            Self::LagUnknown => f.write_str("is not known to be caught up"),
            Self::Lags { entries } => write!(f, "lacks {entries} entries"),
            Self::BackedOff { until_ms } => {
                write!(f, "failed to take it, and is not asked until {}", Utc(*until_ms))
            }
        }
    }
}
