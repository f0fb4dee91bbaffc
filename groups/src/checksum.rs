//! The checksum of a state, by which replicas are compared.

/// What a state machine holds at one applied position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateSum {
    /// How the bytes were made; others are not compared.
    pub format: u32,
    pub bytes: u64,
    pub sum: u64,
}

impl std::fmt::Display for StateSum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x} over {} bytes", self.sum, self.bytes)
    }
}
