//! From measured operations per second to a load that is constant while nothing changes: smoothed
//! over time, then rounded to a step of a coarse scale, which is kept until the smoothed load is
//! far from it. A step that a change left off centre is set again once, when the change is over.
//! Noise of a fifth up and down changes no step after that.

use shardhost_storage::GroupId;

use super::settings::LoadSettings;
use crate::planner::{Group, snapshot::MAX_LOAD};

/// Smoothed loads are kept in thousandths of an operation per second.
const UNIT: u64 = 1_000;

#[derive(Clone, Copy, Debug)]
struct Meter {
    group: GroupId,
    smoothed: u64,
    /// The step that counts, in operations per second.
    step: u32,
    /// The step was set in the middle of a change, and is set anew at this time.
    centre_at_ms: Option<u64>,
}

/// The loads of all groups of the last round.
#[derive(Clone, Debug)]
pub(super) struct Loads {
    settings: LoadSettings,
    meters: Vec<Meter>,
    at_ms: u64,
}

impl Loads {
    pub(super) const fn new(settings: LoadSettings) -> Self {
        Self { settings, meters: Vec::new(), at_ms: 0 }
    }

    /// Replaces measured loads by the steps that count. Groups rise by id.
    pub(super) fn settle(&mut self, groups: &mut [Group], now_ms: u64) {
        let elapsed_ms = now_ms.saturating_sub(self.at_ms);
        let mut known = std::mem::take(&mut self.meters).into_iter().peekable();
        self.meters.reserve(groups.len());
        for group in groups {
            while known.next_if(|meter| meter.group < group.id).is_some() {}
            let old = known.next_if(|meter| meter.group == group.id);
            let meter = match old {
                Some(old) => self.next(old, measured(group), now_ms, elapsed_ms),
                None => self.first(group.id, measured(group).unwrap_or(0), now_ms),
            };
            group.load = meter.step;
            self.meters.push(meter);
        }
        self.at_ms = now_ms;
    }

    fn first(&self, group: GroupId, measured: u64, now_ms: u64) -> Meter {
        let centre_at_ms = Some(now_ms.saturating_add(self.settings.centre_ms));
        Meter { group, smoothed: measured, step: self.step_of(measured), centre_at_ms }
    }

    fn next(&self, old: Meter, measured: Option<u64>, now_ms: u64, elapsed_ms: u64) -> Meter {
        let smoothed = measured
            .map_or(old.smoothed, |measured| self.follow(old.smoothed, measured, elapsed_ms));
        if !self.bears(old.step, smoothed) {
            return self.first(old.group, smoothed, now_ms);
        }
        if old.centre_at_ms.is_some_and(|at| now_ms >= at) {
            return Meter { smoothed, step: self.step_of(smoothed), centre_at_ms: None, ..old };
        }
        Meter { smoothed, ..old }
    }

    /// Whether a step represents a load, roughly.
    fn bears(&self, step: u32, smoothed: u64) -> bool {
        let exact = u64::from(step) * UNIT;
        match step {
            0 => smoothed < u64::from(self.settings.idle_below) * UNIT * 3 / 2,
            _ => smoothed >= exact * 3 / 5 && smoothed <= exact * 5 / 3,
        }
    }

    fn follow(&self, smoothed: u64, measured: u64, elapsed_ms: u64) -> u64 {
        let whole = u128::from(self.settings.smoothing_ms) + u128::from(elapsed_ms);
        let part = |value: u64, share: u64| u128::from(value) * u128::from(share);
        let sum = part(smoothed, self.settings.smoothing_ms) + part(measured, elapsed_ms);
        let mean = sum.checked_div(whole).unwrap_or(u128::from(measured));
        u64::try_from(mean).unwrap_or(u64::MAX)
    }

    /// The nearest of all powers of two and their middles, compared by ratio: no load is further
    /// than a quarter from its step, and smoothed noise stays within what a step bears.
    fn step_of(&self, smoothed: u64) -> u32 {
        let operations = u32::try_from(smoothed / UNIT).unwrap_or(MAX_LOAD).min(MAX_LOAD);
        if operations < self.settings.idle_below.max(2) {
            return 0;
        }
        let power: u32 = 1 << operations.ilog2();
        match u64::from(operations) * 100 / u64::from(power) {
            ..122 => power,
            122..173 => power / 2 * 3,
            _ => power.saturating_mul(2).min(MAX_LOAD),
        }
    }
}

/// In thousandths. `None`: the leader did not report; then no lag of any voter is known.
fn measured(group: &Group) -> Option<u64> {
    let by_leader = group.voters.iter().any(|voter| voter.lag.is_some());
    by_leader.then(|| u64::from(group.load.min(MAX_LOAD)) * UNIT)
}
