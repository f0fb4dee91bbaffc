//! Commands of a script: words, two of which a state machine cannot bear.

use shardhost_groups::ApplyFault;
use shardhost_testing::simulation::Command;

/// The command that makes a machine panic, and the one that it refuses to apply.
const PANIC: &str = "panic";
const FAULT: &str = "fault";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub String);

impl Command for Text {
    fn read(bytes: &[u8]) -> Result<Self, ApplyFault> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        assert!(text != PANIC, "the script asked for it");
        match text == FAULT {
            true => Err(ApplyFault::new("the script asked for it")),
            false => Ok(Self(text)),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.clone().into_bytes()
    }

    /// How many were applied, so that one applied twice would show.
    fn answer(&self, count: usize) -> Vec<u8> {
        count.to_string().into_bytes()
    }
}
