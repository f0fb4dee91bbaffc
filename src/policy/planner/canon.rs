//! The canonical order of a snapshot, and the limits it keeps. A snapshot that breaks them is
//! refused and never repaired in silence: the recorded bytes are what was planned from.

use std::fmt;

use shardhost_storage::{GroupId, NodeId};

use super::snapshot::{Group, MAX_GROUPS, MAX_LOAD, MAX_NODES, MAX_WEIGHT, Snapshot};

/// Why a snapshot is refused. Nothing was planned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotError {
    /// More nodes or groups than the planner is made for. Split the cluster.
    TooMany {
        what: &'static str,
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A weight above [`MAX_WEIGHT`]. Weights are relative: divide all of them.
    Weight { node: NodeId, weight: u32 },
    /// A load above [`MAX_LOAD`]. Use larger buckets.
    Load { group: GroupId, load: u32 },
    /// Nodes are not in the order of their ids. Canonicalize the snapshot; an id that occurs twice
    /// is an error of its builder.
    Nodes {
        /// The first of the two.
        before: NodeId,
        /// The one that follows it and should be larger.
        after: NodeId,
    },
    /// Groups do not rise by id, as above.
    Groups {
        /// The first of the two.
        before: GroupId,
        /// The one that follows it and should be larger.
        after: GroupId,
    },
    /// The voters of a group do not rise by node, as above.
    Voters {
        group: GroupId,
        /// The first of the two.
        before: NodeId,
        /// The one that follows it and should be larger.
        after: NodeId,
    },
    /// Moves of the ledger do not rise by group: two moves of one group cannot be under way.
    Moves {
        /// The first of the two.
        before: GroupId,
        /// The one that follows it and should be larger.
        after: GroupId,
    },
    /// BackOffs do not rise by group and target.
    BackOffs {
        /// The first of the two.
        before: (GroupId, NodeId),
        /// The one that follows it and should be larger.
        after: (GroupId, NodeId),
    },
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany { what, found, limit } => {
                write!(f, "the snapshot has {found} {what}, planning is made for {limit}")
            }
            Self::Weight { node, weight } => write!(
                f,
                "node {node} has weight {weight}, the limit is {MAX_WEIGHT}; divide all weights"
            ),
            Self::Load { group, load } => write!(
                f,
                "group {group} has load {load}, the limit is {MAX_LOAD}; use larger buckets"
            ),
            Self::Nodes { before, after } => out_of_order(f, "nodes", before, after),
            Self::Groups { before, after } => out_of_order(f, "groups", before, after),
            Self::Voters { group, before, after } => {
                write!(f, "group {group}: ")?;
                out_of_order(f, "voters", before, after)
            }
            Self::Moves { before, after } => out_of_order(f, "moves", before, after),
            Self::BackOffs { before, after } => {
                let text = |pair: &(GroupId, NodeId)| format!("{} to {}", pair.0, pair.1);
                out_of_order(f, "back_offs", &text(before), &text(after))
            }
        }
    }
}

fn out_of_order(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    before: &dyn fmt::Display,
    after: &dyn fmt::Display,
) -> fmt::Result {
    write!(f, "{what} must rise: {after} follows {before}; canonicalise, and remove doubles")
}

impl std::error::Error for SnapshotError {}

impl Snapshot {
    /// Brings lists into the order in which a snapshot is planned and recorded. The order of
    /// preferences has a meaning and stays.
    ///
    /// # Errors
    /// An entry occurs twice, or a limit is exceeded.
    pub fn canonicalise(mut self) -> Result<Self, SnapshotError> {
        self.nodes.sort_by_key(|node| node.id);
        self.groups.sort_by_key(|group| group.id);
        for group in &mut self.groups {
            group.voters.sort_by_key(|voter| voter.node);
        }
        self.moves.sort_by_key(|entry| entry.group);
        self.back_offs.sort_by_key(|back_off| (back_off.group, back_off.target));
        self.check()?;
        Ok(self)
    }

    /// Whether the snapshot is in canonical order and within the limits.
    ///
    /// # Errors
    /// The first thing that is not.
    pub fn check(&self) -> Result<(), SnapshotError> {
        within("nodes", self.nodes.len(), MAX_NODES)?;
        within("groups", self.groups.len(), MAX_GROUPS)?;
        rises(self.nodes.iter().map(|node| node.id))
            .map_err(|(before, after)| SnapshotError::Nodes { before, after })?;
        rises(self.moves.iter().map(|entry| entry.group))
            .map_err(|(before, after)| SnapshotError::Moves { before, after })?;
        rises(self.back_offs.iter().map(|back_off| (back_off.group, back_off.target)))
            .map_err(|(before, after)| SnapshotError::BackOffs { before, after })?;
        self.check_nodes()?;
        self.check_groups()
    }

    fn check_nodes(&self) -> Result<(), SnapshotError> {
        match self.nodes.iter().find(|node| node.weight > MAX_WEIGHT) {
            Some(node) => Err(SnapshotError::Weight { node: node.id, weight: node.weight }),
            None => Ok(()),
        }
    }

    fn check_groups(&self) -> Result<(), SnapshotError> {
        let mut last = None;
        for group in &self.groups {
            if let Some(before) = last.filter(|last| *last >= group.id) {
                return Err(SnapshotError::Groups { before, after: group.id });
            }
            last = Some(group.id);
            check_group(group)?;
        }
        Ok(())
    }
}

fn check_group(group: &Group) -> Result<(), SnapshotError> {
    if group.load > MAX_LOAD {
        return Err(SnapshotError::Load { group: group.id, load: group.load });
    }
    let voters = group.voters.iter().map(|voter| voter.node);
    let error = |(before, after)| SnapshotError::Voters { group: group.id, before, after };
    rises(voters).map_err(error)
}

fn within(what: &'static str, found: usize, limit: usize) -> Result<(), SnapshotError> {
    if found > limit {
        return Err(SnapshotError::TooMany { what, found, limit });
    }
    Ok(())
}

/// The first two neighbours of which the second is not larger.
fn rises<T: Ord + Copy>(mut values: impl Iterator<Item = T>) -> Result<(), (T, T)> {
    let Some(mut before) = values.next() else { return Ok(()) };
    for after in values {
        if after <= before {
            return Err((before, after));
        }
        before = after;
    }
    Ok(())
}
