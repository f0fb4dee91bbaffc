//! How much time passed for each drain, by the clock of the leader of the system group that never jumps.
//! Pure.
//!
//! The time that passed is recorded in the catalog regularly, so that a successor continues from
//! there: a change of leader loses at most [`TELL_EVERY`] and the time without a leader, by which a
//! drain lasts longer. It is recorded with the revision of its drain, so nothing counts twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shardhost_groups::NodeId;

use shardhost_policy::catalog::{DrainIntent, DrainState, MAX_PASSED_MS, Revision, View};

/// Time of a drain that may be lost with a leadership.
pub(super) const TELL_EVERY: Duration = Duration::from_secs(5);

/// Since when time has passed that the catalog does not know.
#[derive(Debug, Default)]
pub(super) struct DrainClocks {
    of: BTreeMap<NodeId, DrainClock>,
}

#[derive(Clone, Copy, Debug)]
struct DrainClock {
    /// The revision of the drain that was seen last.
    revision: Revision,
    since: Instant,
}

impl DrainClocks {
    /// The drains for which passed time is to be recorded, in milliseconds: those that are due, and
    /// those without a record for long. Time counts from the first look.
    pub(super) fn due_reports<'a>(
        &mut self,
        view: &'a View,
        now: Instant,
    ) -> Vec<(&'a DrainIntent, u64)> {
        self.of.retain(|node, _| view.drains().contains_key(node));
        let mut due = Vec::new();
        for drain in view.drains().values().map(AsRef::as_ref) {
            let fresh = DrainClock { revision: drain.revision, since: now };
            let clock = self.of.entry(drain.node).or_insert(fresh);
            // A view from before the last record is ignored.
            if drain.revision < clock.revision {
                continue;
            }
            if drain.revision > clock.revision {
                *clock = fresh;
            }
            let passed = now.saturating_duration_since(clock.since);
            let passed_ms =
                u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).min(MAX_PASSED_MS);
            if passed_ms > 0 && (passed >= TELL_EVERY || is_due(drain, passed_ms)) {
                due.push((drain, passed_ms));
            }
        }
        due
    }

    /// The catalog recorded it, and the drain is at this revision, if it still exists.
    pub(super) fn told(&mut self, node: NodeId, revision: Revision, passed_ms: u64) {
        if let Some(clock) = self.of.get_mut(&node) {
            clock.revision = revision;
            clock.since += Duration::from_millis(passed_ms);
        }
    }
}

/// Whether the time of a drain is over.
const fn is_due(drain: &DrainIntent, passed_ms: u64) -> bool {
    let now_ms = drain.clock_ms.saturating_add(passed_ms);
    let overdue = matches!(drain.state, DrainState::Draining) && drain.deadline_ms <= now_ms;
    overdue || drain.expires_ms <= now_ms
}

#[cfg(test)]
mod tests {
    use super::*;
    use shardhost_policy::catalog::{
        Catalog, Command, Done, DrainFallback, NewDrain, NewNode, Operation, Stranding,
    };

    const NODE: NodeId = NodeId::must(1);
    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
    const NOW_MS: u64 = 1_000_000;

    /// A drain of node 1 that lasts a day.
    fn drained() -> Catalog {
        let mut catalog = Catalog::default();
        let (address, zone) = ("10.0.0.1:7400".to_owned(), None);
        let node = NewNode { id: NODE, address, zone, weight: 1, store: 1 };
        run(&mut catalog, NOW_MS, Operation::PutNode(node));
        let new = NewDrain {
            node: NODE,
            owner: "anna".to_owned(),
            deadline_ms: NOW_MS + DAY_MS,
            expires_ms: NOW_MS + DAY_MS,
            fallback: DrainFallback::Proceed,
            stranding: Stranding::Accept,
        };
        run(&mut catalog, NOW_MS, Operation::BeginDrain(new));
        catalog
    }

    fn run(catalog: &mut Catalog, now_ms: u64, operation: Operation) -> Done {
        catalog.apply(&Command::new(now_ms, operation)).unwrap()
    }

    /// A look of a leader whose time of day is `now_ms`.
    fn tend(catalog: &mut Catalog, clocks: &mut DrainClocks, now: Instant, now_ms: u64) -> usize {
        let view = catalog.view().clone();
        let told = clocks.due_reports(&view, now);
        for (drain, passed_ms) in &told {
            let operation =
                Operation::PassTime { node: drain.node, intent: drain.id, passed_ms: *passed_ms };
            let command = Command::new(now_ms, operation).expecting(drain.revision);
            let done = catalog.apply(&command).unwrap();
            clocks.told(drain.node, done.revision, *passed_ms);
        }
        told.len()
    }

    fn clock_ms(catalog: &Catalog) -> Option<u64> {
        catalog.view().drains().get(&NODE).map(|drain| drain.clock_ms - NOW_MS)
    }

    #[test]
    fn a_leader_whose_clock_is_days_ahead_ends_no_drain() {
        let (mut catalog, mut clocks) = (drained(), DrainClocks::default());
        let began = Instant::now();
        for second in 0..=6 {
            let now = began + Duration::from_secs(second);
            tend(&mut catalog, &mut clocks, now, NOW_MS + 2 * DAY_MS);
        }
        assert_eq!(clock_ms(&catalog), Some(5_000));
    }

    #[test]
    fn a_drain_lasts_as_long_as_was_asked_for_across_leaders() {
        let mut catalog = drained();
        let mut now = Instant::now();
        // Each leads for a while, and its successor begins anew.
        let mut lost = Duration::ZERO;
        for leader in 0..20_000 {
            let mut clocks = DrainClocks::default();
            let leads = Duration::from_millis(9_500 + 7 * (leader % 500));
            let (began, before) = (now, clock_ms(&catalog));
            while now < began + leads && clock_ms(&catalog).is_some() {
                tend(&mut catalog, &mut clocks, now, 0);
                now += Duration::from_millis(500);
            }
            let Some((before, after)) = before.zip(clock_ms(&catalog)) else { break };
            let counted = Duration::from_millis(after - before);
            assert!(counted <= now - began);
            lost += now - began - counted;
            assert!(now - began - counted <= TELL_EVERY + Duration::from_millis(500));
        }
        assert_eq!(clock_ms(&catalog), None, "it ends");
        assert!(lost > Duration::ZERO);
    }

    #[test]
    fn what_was_told_counts_once_and_a_view_from_before_says_nothing() {
        let (mut catalog, mut clocks) = (drained(), DrainClocks::default());
        let began = Instant::now();
        let before = catalog.view().clone();
        assert_eq!(tend(&mut catalog, &mut clocks, began, NOW_MS), 0);
        assert_eq!(tend(&mut catalog, &mut clocks, began + TELL_EVERY, NOW_MS), 1);
        assert!(clocks.due_reports(&before, began + TELL_EVERY * 2).is_empty());
        // The same again, by a caller that does not know what became of it.
        let drain = &before.drains()[&NODE];
        let operation = Operation::PassTime { node: NODE, intent: drain.id, passed_ms: 5_000 };
        let again = Command::new(NOW_MS, operation).expecting(drain.revision);
        assert_eq!(catalog.apply(&again).unwrap_err().name(), "WRONG_REVISION");
        assert_eq!(clock_ms(&catalog), Some(5_000));
        // A drain that was changed is looked at again.
        let intent = drain.id;
        run(&mut catalog, NOW_MS, Operation::FinishDrain { node: NODE, intent });
        assert_eq!(tend(&mut catalog, &mut clocks, began + TELL_EVERY * 3, NOW_MS), 0);
        assert_eq!(tend(&mut catalog, &mut clocks, began + TELL_EVERY * 4, NOW_MS), 1);
        assert_eq!(clock_ms(&catalog), Some(10_000));
    }
}
