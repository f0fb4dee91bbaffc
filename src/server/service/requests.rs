//! What became of the requests of clients, counted: by kind of shard, read or write, and outcome.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shardhost_groups::latency::{Latency, LatencySnapshot};
use shardhost_proto::client::FailureReason;
use shardhost_proto::shard_map::{QUEUE_KIND, TABLE_KIND};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

impl Access {
    const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// One word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Where a request comes from: counted when its reply is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) access: Access,
    /// When its batch had come.
    pub(super) came: Instant,
}

/// Outcomes are counted by the number of their reason; 0 is none: it was answered.
const OUTCOMES: usize = 16;
/// A reason of a later version.
const OTHER: &str = "other";

/// Requests of all kinds of shards.
#[derive(Debug, Default)]
pub struct Requests {
    tables: OfKind,
    queues: OfKind,
}

#[derive(Debug, Default)]
pub(super) struct OfKind([OfAccess; Access::ALL.len()]);

#[derive(Debug, Default)]
struct OfAccess {
    outcomes: [AtomicU64; OUTCOMES],
    took: Latency,
}

impl Requests {
    pub(super) fn of(&self, kind: &str) -> &OfKind {
        if kind == QUEUE_KIND { &self.queues } else { &self.tables }
    }

    /// How many there were of each kind, access and outcome, in this order.
    pub fn counted(&self) -> Vec<(&'static str, Access, &'static str, u64)> {
        let mut counted = Vec::new();
        for (kind, access, of) in self.all() {
            for (outcome, count) in of.outcomes.iter().enumerate() {
                let (name, count) = (name_of(outcome), count.load(Ordering::Relaxed));
                // A series that is there before the first of its kind shows that it came.
                if name != OTHER || count > 0 {
                    counted.push((kind, access, name, count));
                }
            }
        }
        counted
    }

    /// How long those took that were answered, from the arrival of their batch to the making of the reply.
    pub fn took(&self) -> Vec<(&'static str, Access, LatencySnapshot)> {
        self.all().map(|(kind, access, of)| (kind, access, of.took.snapshot())).collect()
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, Access, &OfAccess)> {
        let kinds = [(TABLE_KIND, &self.tables), (QUEUE_KIND, &self.queues)];
        kinds.into_iter().flat_map(|(kind, of)| {
            Access::ALL.into_iter().zip(&of.0).map(move |(access, of)| (kind, access, of))
        })
    }
}

impl OfKind {
    /// A request of this origin has its reply; `failure`: it failed for this reason.
    pub(super) fn count(&self, origin: Origin, now: Instant, failure: Option<FailureReason>) {
        let of = &self.0[usize::from(origin.access == Access::Write)];
        of.outcomes[number_of(failure)].fetch_add(1, Ordering::Relaxed);
        if failure.is_none() {
            let took: Duration = now.saturating_duration_since(origin.came);
            of.took.record(took);
        }
    }
}

fn number_of(failure: Option<FailureReason>) -> usize {
    let number = failure.map_or(0, |reason| usize::try_from(i32::from(reason)).unwrap_or(0));
    number.min(OUTCOMES - 1)
}

fn name_of(outcome: usize) -> &'static str {
    let reason =
        i32::try_from(outcome).ok().and_then(|number| FailureReason::try_from(number).ok());
    match reason {
        Some(FailureReason::Unspecified) => "answered",
        Some(FailureReason::NotLeader) => "not-leader",
        Some(FailureReason::Overloaded) => "overloaded",
        Some(FailureReason::Invalid) => "invalid",
        Some(FailureReason::UnknownGroup) => "unknown-group",
        Some(FailureReason::OutcomeUnknown) => "outcome-unknown",
        Some(FailureReason::GroupFailed) => "group-failed",
        Some(FailureReason::Transferring) => "transferring",
        Some(FailureReason::NotServing) => "not-serving",
        Some(FailureReason::WrongMap) => "wrong-map",
        Some(FailureReason::SessionOver) => "session-over",
        None => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_counted_once_under_its_kind_operation_and_outcome() {
        let requests = Requests::default();
        let came = Instant::now();
        let now = came + Duration::from_millis(3);
        let count = |kind, access, failure| {
            requests.of(kind).count(Origin { access, came }, now, failure);
        };
        count(TABLE_KIND, Access::Write, None);
        count(TABLE_KIND, Access::Write, Some(FailureReason::NotLeader));
        count(TABLE_KIND, Access::Write, Some(FailureReason::NotLeader));
        count(QUEUE_KIND, Access::Read, Some(FailureReason::WrongMap));
        let counted: Vec<_> = requests.counted().into_iter().filter(|one| one.3 > 0).collect();
        let expected = [
            (TABLE_KIND, Access::Write, "answered", 1),
            (TABLE_KIND, Access::Write, "not-leader", 2),
            (QUEUE_KIND, Access::Read, "wrong-map", 1),
        ];
        assert_eq!(counted, expected);
        let took: Vec<u64> = requests.took().iter().map(|(.., took)| took.count()).collect();
        assert_eq!(took, [0, 1, 0, 0], "only what was answered");
    }

    #[test]
    fn every_reason_has_a_name_and_a_place() {
        let reasons = (0..=i32::from(u8::MAX)).filter_map(|one| FailureReason::try_from(one).ok());
        for reason in reasons {
            let number = usize::try_from(i32::from(reason)).unwrap();
            assert!(number < OUTCOMES - 1 && name_of(number) != OTHER, "{reason:?}");
        }
    }
}
