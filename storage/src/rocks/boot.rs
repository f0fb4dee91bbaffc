//! The identity of this run of the machine: as long as it lasts, power was not lost, and written
//! data is read back, synced or not.

use std::fmt;
use std::fs;
use std::num::NonZeroU128;

/// Where Linux has it: random, another one after every start of the kernel.
const SOURCE: &str = "/proc/sys/kernel/random/boot_id";

/// Names one run of a machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BootId(NonZeroU128);

impl BootId {
    /// From its number; `None` for zero.
    #[must_use]
    pub const fn new(number: u128) -> Option<Self> {
        match NonZeroU128::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number, which is not zero.
    #[must_use]
    pub const fn get(self) -> u128 {
        self.0.get()
    }

    /// That of the present run; `None` when the system does not say.
    #[must_use]
    pub fn current() -> Option<Self> {
        Self::parse(&fs::read_to_string(SOURCE).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let digits: String = text.trim().chars().filter(|digit| *digit != '-').collect();
        Self::new(u128::from_str_radix(&digits, 16).ok()?)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot {:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_read_and_anything_else_is_not_known() {
        let parsed = BootId::parse("01020304-0506-0708-090a-0b0c0d0e0f10\n").expect("a boot id");
        assert_eq!(parsed.get(), 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        for text in ["", "boot", "00000000-0000-0000-0000-000000000000", &"1".repeat(40)] {
            assert_eq!(BootId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_run_of_the_machine_keeps_its_name() {
        assert_eq!(BootId::current(), BootId::current());
    }
}
