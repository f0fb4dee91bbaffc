//! How fast moves of one tier may start.

use super::settings::Rate;

/// Tokens are counted in thousandths, so that no rate is lost to rounding.
const TOKEN: u64 = 1_000;

#[derive(Clone, Debug)]
pub(super) struct Bucket {
    rate: Rate,
    level: u64,
    at_ms: u64,
}

impl Bucket {
    pub(super) fn new(rate: Rate, now_ms: u64) -> Self {
        Self { rate, level: u64::from(rate.burst) * TOKEN, at_ms: now_ms }
    }

    fn level_at(&self, now_ms: u64) -> u64 {
        // A token per second is one thousandth of a token per millisecond.
        let elapsed = now_ms.saturating_sub(self.at_ms);
        let more = elapsed.saturating_mul(u64::from(self.rate.per_second));
        self.level.saturating_add(more).min(u64::from(self.rate.burst) * TOKEN)
    }

    pub(super) fn has_token(&self, now_ms: u64) -> bool {
        self.level_at(now_ms) >= TOKEN
    }

    pub(super) fn take(&mut self, now_ms: u64) {
        self.level = self.level_at(now_ms).saturating_sub(TOKEN);
        self.at_ms = self.at_ms.max(now_ms);
    }
}
