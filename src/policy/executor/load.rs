//! From measured operations per second to load that stands still while nothing changes: smoothed
//! over time, then a step of a coarse scale, which is kept until the smoothed load is far from it.
//! Noise of a fifth up and down changes no step.

use shardhost_storage::GroupId;

use super::settings::LoadSettings;
use crate::policy::planner::{Group, snapshot::MAX_LOAD};

/// Smoothed loads are kept in thousandths of an operation per second.
const UNIT: u64 = 1_000;

#[derive(Clone, Copy, Debug)]
struct Meter {
    group: GroupId,
    smoothed: u64,
    /// The step that counts, in operations per second.
    step: u32,
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
            let measured = u64::from(group.load.min(MAX_LOAD)) * UNIT;
            let meter = self.next(group.id, old, measured, elapsed_ms);
            group.load = meter.step;
            self.meters.push(meter);
        }
        self.at_ms = now_ms;
    }

    fn next(&self, group: GroupId, old: Option<Meter>, measured: u64, elapsed_ms: u64) -> Meter {
        let Some(old) = old else {
            let step = self.step_of(measured);
            return Meter { group, smoothed: measured, step };
        };
        let smoothed = self.follow(old.smoothed, measured, elapsed_ms);
        let step = u64::from(old.step) * UNIT;
        let stays = match old.step {
            0 => smoothed < u64::from(self.settings.idle_below) * UNIT * 3 / 2,
            _ => smoothed >= step * 3 / 5 && smoothed <= step * 5 / 3,
        };
        Meter { group, smoothed, step: if stays { old.step } else { self.step_of(smoothed) } }
    }

    fn follow(&self, smoothed: u64, measured: u64, elapsed_ms: u64) -> u64 {
        let whole = u128::from(self.settings.smoothing_ms) + u128::from(elapsed_ms);
        let part = |value: u64, share: u64| u128::from(value) * u128::from(share);
        let sum = part(smoothed, self.settings.smoothing_ms) + part(measured, elapsed_ms);
        let mean = sum.checked_div(whole).unwrap_or(u128::from(measured));
        u64::try_from(mean).unwrap_or(u64::MAX)
    }

    /// The nearest of all powers of two and their middles, compared by ratio: no load is further
    /// than a quarter from its step. So a first measurement that is off by a fifth, and noise that
    /// is smoothed, stay within what a step bears.
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
