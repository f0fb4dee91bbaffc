//! The receipt of a delivery.

/// Bits of a receipt that hold the attempt.
const ATTEMPT_BITS: u32 = 20;

/// Largest attempt a message counts to; later deliveries repeat it.
pub const MAX_ATTEMPT: u32 = (1 << ATTEMPT_BITS) - 1;
/// Largest sequence of a message. A shard that comes so far takes no more sends.
pub const MAX_SEQUENCE: u64 = (1 << (u64::BITS - ATTEMPT_BITS)) - 1;

/// Names one delivery of one message: its sequence and the attempt, in one number. So a receipt
/// is another one at each delivery, the same on every replica, and needs no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Receipt(u64);

impl Receipt {
    /// The receipt of the delivery of `sequence` that was its `attempt`-th.
    #[must_use]
    pub const fn new(sequence: u64, attempt: u32) -> Self {
        Self(sequence << ATTEMPT_BITS | attempt as u64)
    }
    /// A receipt as a client gave it back.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }
    /// The receipt as a client gets it.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
    /// The message.
    #[must_use]
    pub const fn sequence(self) -> u64 {
        self.0 >> ATTEMPT_BITS
    }
    /// Which delivery of it.
    #[must_use]
    pub const fn attempt(self) -> u32 {
        (self.0 & MAX_ATTEMPT as u64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_holds_the_largest_sequence_and_attempt() {
        let receipt = Receipt::new(MAX_SEQUENCE, MAX_ATTEMPT);
        assert_eq!(receipt.number(), u64::MAX);
        assert_eq!((receipt.sequence(), receipt.attempt()), (MAX_SEQUENCE, MAX_ATTEMPT));
    }
}
