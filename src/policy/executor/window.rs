//! How many moves may be under way: additive increase, multiplicative decrease. One window knows
//! nothing of the others.

use super::settings::WindowSettings;

/// A window that grows while moves go well and is halved when one does not.
#[derive(Clone, Debug)]
pub struct Window {
    settings: WindowSettings,
    size: u32,
    /// Moves that went well since it grew.
    good: u32,
    in_flight: u32,
    /// Moves with a smaller number began before the last cut and do not cut again: failures that
    /// happen together count once.
    cut_from: u64,
}

impl Window {
    /// A window of the first size, within its bounds.
    #[must_use]
    pub fn new(settings: WindowSettings) -> Self {
        let size = settings.first.clamp(settings.least, settings.most);
        Self { settings, size, good: 0, in_flight: 0, cut_from: 0 }
    }

    /// Moves that may be under way.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Moves that are under way.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether one more may start.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.in_flight < self.size
    }

    /// A move starts.
    pub const fn start(&mut self) {
        self.in_flight += 1;
    }

    /// A move ended, however.
    pub const fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// A move went well. Grows by an eighth of its first size with each eighth of a window.
    pub fn grow(&mut self) {
        self.good += 1;
        if self.good >= self.size / 8 {
            self.size = (self.size + (self.settings.first / 8).max(1)).min(self.settings.most);
            self.good = 0;
        }
    }

    /// The move of this number did not go well; `next` is the number of the next to start.
    pub fn cut(&mut self, number: u64, next: u64) {
        if number >= self.cut_from {
            self.size = (self.size / 2).max(self.settings.least);
            self.cut_from = next;
        }
        self.good = 0;
    }
}
