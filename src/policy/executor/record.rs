//! Rounds that are kept, to be planned again elsewhere: the same snapshot must give the same plan,
//! byte for byte.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::settings::Bounds;
use crate::planner::{self, Plan, Snapshot, SnapshotError};

/// A snapshot, and the plan that was made from it. As JSON it is a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    pub snapshot: Snapshot,
    pub plan: Plan,
}

/// Why a recorded round could not be repeated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The snapshot cannot be planned at all: the record was changed, or is of another version.
    #[error("the recorded snapshot cannot be planned: {0}")]
    Snapshot(#[from] SnapshotError),
    /// A plan could not be written as JSON.
    #[error("a plan cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Another plan came out: this program plans otherwise than the one that recorded.
    #[error(
        "another plan comes out: byte {at} differs, where {recorded:?} was recorded and \
         {planned:?} is planned; compare the versions of both programs"
    )]
    Differs {
        /// The first byte of the plan's JSON that differs.
        at: usize,
        /// What was recorded from there on, shortened.
        recorded: String,
        /// The plan from there on, shortened.
        planned: String,
    },
}

/// Bytes of both plans that [`ReplayError::Differs`] shows.
const SHOWN: usize = 60;

/// Plans a recorded snapshot again.
///
/// # Errors
/// The plan is not the recorded one, byte for byte.
pub fn replay(recorded: &Recorded) -> Result<(), ReplayError> {
    let plan = planner::plan(&recorded.snapshot)?;
    let (then, again) = (serde_json::to_vec(&recorded.plan)?, serde_json::to_vec(&plan)?);
    if then == again {
        return Ok(());
    }
    let at = then.iter().zip(&again).take_while(|(one, other)| one == other).count();
    let show = |bytes: &[u8]| {
        let end = bytes.len().min(at + SHOWN);
        String::from_utf8_lossy(&bytes[at.min(end)..end]).into_owned()
    };
    Err(ReplayError::Differs { at, recorded: show(&then), planned: show(&again) })
}

/// The newest rounds worth keeping, the oldest first.
#[derive(Clone, Debug)]
pub(super) struct Records {
    limit: usize,
    group_limit: usize,
    kept: VecDeque<Arc<Recorded>>,
}

impl Records {
    pub(super) const fn new(bounds: &Bounds) -> Self {
        Self { limit: bounds.records, group_limit: bounds.recorded_groups, kept: VecDeque::new() }
    }

    pub(super) fn keep(&mut self, round: &Arc<Recorded>) {
        if self.limit == 0 || self.kept.back().is_some_and(|last| Arc::ptr_eq(last, round)) {
            return;
        }
        self.kept.push_back(Arc::clone(round));
        let groups = |kept: &VecDeque<Arc<Recorded>>| -> usize {
            kept.iter().map(|round| round.snapshot.groups.len()).sum()
        };
        while self.kept.len() > self.limit
            || (self.kept.len() > 1 && groups(&self.kept) > self.group_limit)
        {
            self.kept.pop_front();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Recorded>> {
        self.kept.iter()
    }
}

/// Whether two plans come to the same, whatever they cost.
pub(super) fn same_outcome(one: &Plan, other: &Plan) -> bool {
    one.moves == other.moves && one.deferred == other.deferred && one.stuck == other.stuck
}
