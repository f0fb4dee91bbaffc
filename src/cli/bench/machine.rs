//! The state machine that does next to nothing: it counts, so that the host is what is measured.

use std::io::{Read, Write};

use shardhost::{ApplyBatch, ApplyFault, LogPosition, SnapshotWriter, StateMachine};

/// Counts commands.
#[derive(Debug, Default)]
pub struct Counter {
    applied: Option<LogPosition>,
    count: u64,
}

impl StateMachine for Counter {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        self.count += batch.len() as u64;
        self.applied = Some(batch.last());
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(Count(self.count)))
    }

    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        let mut bytes = [0; 8];
        source.read_exact(&mut bytes).map_err(ApplyFault::new)?;
        self.count = u64::from_be_bytes(bytes);
        self.applied = Some(at);
        Ok(())
    }
}

struct Count(u64);

impl SnapshotWriter for Count {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> std::io::Result<()> {
        sink.write_all(&self.0.to_be_bytes())
    }
}
