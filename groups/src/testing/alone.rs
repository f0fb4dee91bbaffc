//! A host without others, and a group without state: for tests that look at the host itself.

use std::io::Read;

use shardhost_storage::LogPosition;

use crate::machine::{ApplyBatch, ApplyFault, SnapshotWriter, StateMachine};
use crate::transport::{Outgoing, SnapshotShipment, Transport};

/// Drops whatever is to be sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Transport for Alone {
    fn send(&self, _: Vec<Outgoing>) {}
    fn send_snapshot(&self, _: SnapshotShipment) {}
}

/// A state machine that keeps nothing, answers nothing, and has no snapshots.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stateless;

impl StateMachine for Stateless {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(None)
    }

    fn apply(&mut self, _: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Err(ApplyFault::new("it has none"))
    }

    fn restore(&mut self, _: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        Ok(())
    }
}
