//! Chance that follows from a seed.

use shardhost_proto::hash::{MIX_STEP, mix};

/// A small generator (splitmix64): the same seed draws the same lots on every machine.
#[derive(Clone, Debug)]
pub struct Chance {
    state: u64,
}

impl Chance {
    /// What follows from this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ MIX_STEP }
    }

    /// The next lot.
    pub fn draw(&mut self) -> u64 {
        let lot = mix(self.state);
        self.state = self.state.wrapping_add(MIX_STEP);
        lot
    }

    /// A number below `bound`, or 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.draw() % bound }
    }

    /// A number in `from..=to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True so many times in a thousand.
    pub fn per_mille(&mut self, times: u64) -> bool {
        self.below(1000) < times
    }

    /// One of several.
    ///
    /// # Panics
    /// There are none.
    pub fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        self.pick(from).expect("there is one to pick")
    }

    /// One of several. `None`: there are none.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let at = usize::try_from(self.below(from.len() as u64)).ok()?;
        from.get(at).copied()
    }
}
