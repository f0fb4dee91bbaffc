//! A state machine that remembers everything, on a disk of its own that may lag behind.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use shardhost_groups::{
    ApplyBatch, ApplyFault, ConsistencyView, LogIndex, LogPosition, SnapshotWriter, StateMachine,
};

/// What a machine holds: which command stands where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub applied: LogPosition,
    pub commands: Vec<(LogPosition, u64)>,
}

/// The disk of one machine.
#[derive(Debug, Default)]
pub struct MachineDisk {
    /// What the running machine holds.
    pub live: Contents,
    /// What a crash leaves of it.
    pub durable: Contents,
    /// Whether the machine keeps itself; otherwise a crash leaves nothing.
    pub keeps: bool,
    /// Commands that were applied since the checkers last looked.
    pub fresh: Vec<(LogPosition, u64)>,
}

impl MachineDisk {
    pub fn flush(&mut self) {
        if self.keeps {
            self.durable = self.live.clone();
        }
    }

    pub fn crash(&mut self) {
        self.live = self.durable.clone();
        self.fresh.clear();
    }
}

/// The machine; its contents live on the disk that the simulation holds too.
#[derive(Debug)]
pub struct ListMachine {
    pub disk: Arc<Mutex<MachineDisk>>,
}

impl StateMachine for ListMachine {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        let applied = self.disk.lock().unwrap().live.applied;
        Ok((applied.index > LogIndex::new(0)).then_some(applied))
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        let mut disk = self.disk.lock().unwrap();
        for command in batch.commands() {
            let bytes: [u8; 8] = command.data()[..8].try_into().map_err(ApplyFault::new)?;
            let id = u64::from_be_bytes(bytes);
            disk.live.commands.push((command.position(), id));
            disk.fresh.push((command.position(), id));
            command.respond(id.to_be_bytes().to_vec());
        }
        disk.live.applied = batch.last();
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(View(self.disk.lock().unwrap().live.clone())))
    }

    fn consistency_view(&mut self) -> Result<Option<ConsistencyView>, ApplyFault> {
        Ok(Some(ConsistencyView { format: 1, writer: self.snapshot()? }))
    }

    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map_err(ApplyFault::new)?;
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        let commands = (0..bytes.len() / 24)
            .map(|n| (LogPosition::new(number(n * 24), number(n * 24 + 8)), number(n * 24 + 16)))
            .collect();
        let mut disk = self.disk.lock().unwrap();
        disk.live = Contents { applied: at, commands };
        disk.fresh.clear();
        disk.flush();
        Ok(())
    }

    fn durable_index(&self) -> Option<LogIndex> {
        let disk = self.disk.lock().unwrap();
        disk.keeps.then_some(disk.durable.applied.index)
    }
}

struct View(Contents);

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> std::io::Result<()> {
        for (position, id) in self.0.commands {
            sink.write_all(&position.term.get().to_be_bytes())?;
            sink.write_all(&position.index.get().to_be_bytes())?;
            sink.write_all(&id.to_be_bytes())?;
        }
        Ok(())
    }
}
