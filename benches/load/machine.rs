//! A state machine that only counts, so that the host itself is measured.

use std::io::{Read, Write};

use bytes::Bytes;
use shardhost::{
    ApplyBatch, ApplyFault, LogPosition, Progress, QueryError, SnapshotWriter, StateChecksum,
    StateMachine,
};

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

    /// Whatever is asked, the answer is the number.
    fn query(&self, _: &Bytes) -> Result<Bytes, QueryError> {
        Ok(Bytes::copy_from_slice(&self.count.to_be_bytes()))
    }

    fn answers_at_once(&self, _: &Bytes) -> bool {
        true
    }

    fn checksum(&self, _: &Progress) -> Result<StateChecksum, QueryError> {
        Ok(StateChecksum { items: self.count, checksum: self.count })
    }
}

struct Count(u64);

impl SnapshotWriter for Count {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> std::io::Result<()> {
        sink.write_all(&self.0.to_be_bytes())
    }
}
