//! A state machine that remembers every command, on a disk of its own that may lag behind.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use shardhost_groups::{
    ApplyBatch, ApplyFault, ConsistencyView, LogIndex, LogPosition, SnapshotWriter, StateMachine,
};

/// The command that makes a machine panic, and the one that it refuses to apply.
const PANIC: &str = "panic";
const FAULT: &str = "fault";

/// What a machine holds: which command stands where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub applied: LogPosition,
    pub commands: Vec<(LogPosition, String)>,
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
    /// Commands that were applied since the trace last took them.
    pub fresh: Vec<(LogPosition, String)>,
}

impl MachineDisk {
    pub fn flush(&mut self) {
        if self.keeps {
            self.durable = self.live.clone();
        }
    }

    /// What a copy of the disk holds.
    pub fn copy(&self) -> Self {
        let (live, durable) = (self.durable.clone(), self.durable.clone());
        Self { live, durable, keeps: self.keeps, fresh: Vec::new() }
    }

    pub fn crash(&mut self) {
        self.live = self.durable.clone();
        self.fresh.clear();
    }
}

/// The machine; its contents live on the disk that the script holds too.
#[derive(Debug)]
pub struct ListMachine {
    pub disk: Arc<Mutex<MachineDisk>>,
}

impl StateMachine for ListMachine {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        let applied = self.disk.lock().unwrap().live.applied;
        Ok((applied.index > LogIndex::new(0)).then_some(applied))
    }

    /// Answers each command with how many were applied, so that one applied twice would show.
    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        let mut commands = Vec::new();
        for command in batch.commands() {
            commands.push((command.position(), String::from_utf8_lossy(command.data()).into()));
        }
        check(&commands)?;
        let mut disk = self.disk.lock().unwrap();
        for (command, text) in batch.commands().zip(commands) {
            disk.live.commands.push(text.clone());
            disk.fresh.push(text);
            command.respond(disk.live.commands.len().to_string().into_bytes());
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
        let mut text = String::new();
        source.read_to_string(&mut text).map_err(ApplyFault::new)?;
        let commands = text.lines().map(parse).collect::<Option<Vec<_>>>();
        let commands = commands.ok_or_else(|| ApplyFault::new("a snapshot of something else"))?;
        let mut disk = self.disk.lock().unwrap();
        disk.live = Contents { applied: at, commands };
        disk.flush();
        Ok(())
    }

    fn durable_index(&self) -> Option<LogIndex> {
        let disk = self.disk.lock().unwrap();
        disk.keeps.then_some(disk.durable.applied.index)
    }
}

fn check(commands: &[(LogPosition, String)]) -> Result<(), ApplyFault> {
    for (_, text) in commands {
        assert!(text != PANIC, "the script asked for it");
        if text == FAULT {
            return Err(ApplyFault::new("the script asked for it"));
        }
    }
    Ok(())
}

struct View(Contents);

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> std::io::Result<()> {
        for (position, text) in self.0.commands {
            writeln!(sink, "{} {} {text}", position.term, position.index)?;
        }
        Ok(())
    }
}

fn parse(line: &str) -> Option<(LogPosition, String)> {
    let mut words = line.splitn(3, ' ');
    let term = words.next()?.parse().ok()?;
    let index = words.next()?.parse().ok()?;
    Some((LogPosition::new(term, index), words.next()?.to_owned()))
}
