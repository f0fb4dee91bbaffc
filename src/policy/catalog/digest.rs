//! A checksum over messages: FNV-1a, the same on every machine and in every version.

use prost::Message;

const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// A checksum over a sequence of messages and numbers; their order and their borders count.
#[derive(Clone, Debug)]
pub(super) struct Digest {
    sum: u64,
    /// Reused from message to message, to save allocations.
    bytes: Vec<u8>,
}

impl Default for Digest {
    fn default() -> Self {
        Self { sum: BASIS, bytes: Vec::new() }
    }
}

impl Digest {
    pub(super) fn add_number(&mut self, number: u64) {
        for byte in number.to_le_bytes() {
            self.sum = (self.sum ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }

    pub(super) fn add_message(&mut self, message: &impl Message) {
        self.bytes.clear();
        message.encode_raw(&mut self.bytes);
        self.add_number(self.bytes.len() as u64);
        for byte in &self.bytes {
            self.sum = (self.sum ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
    }

    pub(super) const fn value(&self) -> u64 {
        self.sum
    }
}
