//! Chance that follows from a seed.

/// A small generator (splitmix64): the same seed draws the same lots on every machine.
#[derive(Clone, Debug)]
pub(in super::super) struct Chance {
    state: u64,
}

impl Chance {
    pub(in super::super) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9_7f4a_7c15 }
    }

    pub(in super::super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// A number below `bound`, or 0 when that is 0.
    pub(in super::super) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// A number in `from..=to`.
    pub(in super::super) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True so many times in a thousand.
    pub(in super::super) fn per_mille(&mut self, times: u64) -> bool {
        self.below(1_000) < times
    }

    /// One of several, of which there is at least one.
    pub(in super::super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
