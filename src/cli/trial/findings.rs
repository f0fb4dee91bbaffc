//! What a verification found wrong, each write counted once however often it was looked at.

use std::collections::BTreeMap;

/// A violation of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Lost,
    /// Not the value that was written, or never written.
    Wrong,
    /// In another place than where it was sent.
    OutOfOrder,
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Findings {
    faults: BTreeMap<(Fault, String), String>,
    /// Deliveries of a message that had been delivered, which at-least-once allows.
    pub redelivered: u64,
}

impl Findings {
    /// Notes a fault of `subject`, with what was seen.
    pub fn add(&mut self, fault: Fault, subject: String, detail: String) {
        self.faults.entry((fault, subject)).or_insert(detail);
    }

    /// Takes over what another verification found.
    pub fn merge(&mut self, other: Self) {
        for (key, detail) in other.faults {
            self.faults.entry(key).or_insert(detail);
        }
        self.redelivered += other.redelivered;
    }

    /// How many writes have this fault.
    pub fn count(&self, fault: Fault) -> u64 {
        self.faults.keys().filter(|(found, _)| *found == fault).count() as u64
    }

    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    /// The violation, as text.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.faults.iter().map(|((fault, subject), detail)| {
            let fault = match fault {
                Fault::Lost => "lost",
                Fault::Wrong => "wrong",
                Fault::OutOfOrder => "out of order",
            };
            format!("{fault}: {subject}: {detail}")
        })
    }
}
