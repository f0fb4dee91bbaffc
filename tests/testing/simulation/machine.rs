//! A state machine that remembers every command, on a disk of its own that may lag behind.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use shardhost_groups::{
    ApplyBatch, ApplyFault, ConsistencyView, LogIndex, LogPosition, SnapshotWriter, StateMachine,
};

/// What a world proposes to its groups.
pub trait Command: Clone + Debug + PartialEq + Send + 'static {
    /// A command as it stands in the log.
    ///
    /// # Errors
    /// The machine gives up: the bytes are no command, or the command asks for it.
    fn read(bytes: &[u8]) -> Result<Self, ApplyFault>;
    /// The bytes that [`Command::read`] reads.
    fn bytes(&self) -> Vec<u8>;
    /// The answer to its caller, where it is the `count`th that was applied.
    fn answer(&self, count: usize) -> Vec<u8>;
}

/// What a machine holds: which command stands where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents<C> {
    pub applied: LogPosition,
    pub commands: Vec<(LogPosition, C)>,
}

impl<C> Default for Contents<C> {
    fn default() -> Self {
        Self { applied: LogPosition::default(), commands: Vec::new() }
    }
}

/// The disk of one machine.
#[derive(Debug)]
pub struct MachineDisk<C> {
    /// What the running machine holds.
    pub live: Contents<C>,
    /// What a crash leaves of it.
    pub durable: Contents<C>,
    /// Whether the machine keeps itself; otherwise a crash leaves nothing.
    pub keeps: bool,
    /// Commands that were applied since the world last took them.
    pub fresh: Vec<(LogPosition, C)>,
}

impl<C: Command> MachineDisk<C> {
    /// An empty disk.
    #[must_use]
    pub fn new(keeps: bool) -> Self {
        Self { live: Contents::default(), durable: Contents::default(), keeps, fresh: Vec::new() }
    }

    /// A machine that keeps itself writes what it holds.
    pub fn flush(&mut self) {
        if self.keeps {
            self.durable = self.live.clone();
        }
    }

    /// What a copy of the disk holds.
    #[must_use]
    pub fn copy(&self) -> Self {
        let (live, durable) = (self.durable.clone(), self.durable.clone());
        Self { live, durable, keeps: self.keeps, fresh: Vec::new() }
    }

    /// The process dies.
    pub fn crash(&mut self) {
        self.live = self.durable.clone();
        self.fresh.clear();
    }
}

/// The machine; its contents live on the disk that the world holds too.
#[derive(Debug)]
pub struct ListMachine<C> {
    pub disk: Arc<Mutex<MachineDisk<C>>>,
}

impl<C: Command> StateMachine for ListMachine<C> {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        let applied = self.disk.lock().unwrap().live.applied;
        Ok((applied.index > LogIndex::new(0)).then_some(applied))
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        let commands = batch.commands().map(|one| Ok((one.position(), C::read(one.data())?)));
        let commands = commands.collect::<Result<Vec<_>, ApplyFault>>()?;
        let mut disk = self.disk.lock().unwrap();
        for (asked, (position, command)) in batch.commands().zip(commands) {
            disk.live.commands.push((position, command.clone()));
            asked.respond(command.answer(disk.live.commands.len()));
            disk.fresh.push((position, command));
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
        let mut rest = bytes.as_slice();
        let mut commands = Vec::new();
        while !rest.is_empty() {
            commands.push(take_command(&mut rest)?);
        }
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

fn take_command<C: Command>(rest: &mut &[u8]) -> Result<(LogPosition, C), ApplyFault> {
    let position = LogPosition::new(take_number(rest)?, take_number(rest)?);
    let length = take_number(rest)?;
    let command = usize::try_from(length).ok().and_then(|length| rest.split_off(..length));
    let command = command.ok_or_else(|| ApplyFault::new("a snapshot of something else"))?;
    Ok((position, C::read(command)?))
}

fn take_number(rest: &mut &[u8]) -> Result<u64, ApplyFault> {
    let number = rest.split_first_chunk::<8>();
    let (number, after) = number.ok_or_else(|| ApplyFault::new("a snapshot of something else"))?;
    *rest = after;
    Ok(u64::from_be_bytes(*number))
}

struct View<C>(Contents<C>);

impl<C: Command> SnapshotWriter for View<C> {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> std::io::Result<()> {
        for (position, command) in self.0.commands {
            let bytes = command.bytes();
            for number in [position.term.get(), position.index.get(), bytes.len() as u64] {
                sink.write_all(&number.to_be_bytes())?;
            }
            sink.write_all(&bytes)?;
        }
        Ok(())
    }
}
