//! Looks at what a state machine is given after a restart: nothing that it held already, and
//! nothing twice.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shardhost::{
    ApplyBatch, ApplyFault, LogIndex, LogPosition, Progress, QueryError, SnapshotWriter,
    StateChecksum, StateMachine,
};

/// Commands that end so were proposed after the restart.
pub const FRESH: &[u8] = b"after the restart";

/// What the machines of a host were given since it started.
#[derive(Debug, Default)]
pub struct Watch {
    held: AtomicU64,
    restored: AtomicU64,
    replayed: AtomicU64,
    fresh: AtomicU64,
    twice: AtomicU64,
}

/// The numbers of a [`Watch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Entries that the machines held when they were opened, in their state or from snapshots.
    pub held: u64,
    /// Machines that were restored from a snapshot.
    pub restored: u64,
    /// Commands of an earlier life that were applied because the machine did not hold them.
    pub replayed: u64,
    pub fresh: u64,
    /// Commands that were given to a machine that held them already.
    pub twice: u64,
}

impl Watch {
    /// The numbers as they are.
    pub fn seen(&self) -> Seen {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Seen {
            held: read(&self.held),
            restored: read(&self.restored),
            replayed: read(&self.replayed),
            fresh: read(&self.fresh),
            twice: read(&self.twice),
        }
    }
}

/// A machine that is watched.
pub struct Watched {
    machine: Box<dyn StateMachine>,
    watch: Arc<Watch>,
    /// The index up to which the machine holds everything.
    holds: AtomicU64,
}

impl Watched {
    /// Watches a machine.
    pub const fn new(machine: Box<dyn StateMachine>, watch: Arc<Watch>) -> Self {
        Self { machine, watch, holds: AtomicU64::new(0) }
    }

    fn holds_now(&self, index: u64) {
        let before = self.holds.swap(index, Ordering::Relaxed);
        self.watch.held.fetch_add(index.saturating_sub(before), Ordering::Relaxed);
    }

    fn look_at(&self, batch: &mut ApplyBatch<'_>) {
        let mut holds = self.holds.load(Ordering::Relaxed);
        for command in batch.commands() {
            let index = command.position().index.get();
            let kind = if index <= holds {
                &self.watch.twice
            } else if command.data().ends_with(FRESH) {
                &self.watch.fresh
            } else {
                &self.watch.replayed
            };
            kind.fetch_add(1, Ordering::Relaxed);
            holds = holds.max(index);
        }
    }
}

impl StateMachine for Watched {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        let applied = self.machine.applied()?;
        self.holds_now(applied.unwrap_or_default().index.get());
        Ok(applied)
    }
    fn begin(&mut self) -> Result<(), ApplyFault> {
        self.machine.begin()
    }
    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        self.look_at(batch);
        self.holds.store(batch.last().index.get(), Ordering::Relaxed);
        self.machine.apply(batch)
    }
    fn query(&self, request: &Bytes) -> Result<Bytes, QueryError> {
        self.machine.query(request)
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        self.machine.snapshot()
    }
    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        self.machine.restore(at, source)?;
        self.watch.restored.fetch_add(1, Ordering::Relaxed);
        self.holds_now(at.index.get());
        Ok(())
    }
    fn durable_index(&self) -> Option<LogIndex> {
        self.machine.durable_index()
    }
    fn make_durable(&mut self) -> Result<(), ApplyFault> {
        self.machine.make_durable()
    }
    fn answers_at_once(&self, request: &Bytes) -> bool {
        self.machine.answers_at_once(request)
    }

    fn answer_at_once(&self, request: &Bytes) -> Option<Result<Bytes, QueryError>> {
        self.machine.answer_at_once(request)
    }
    fn removed(&mut self) -> Result<(), ApplyFault> {
        self.machine.removed()
    }
    fn checksum(&self, progress: &Progress) -> Result<StateChecksum, QueryError> {
        self.machine.checksum(progress)
    }
}

#[cfg(test)]
mod tests {
    use shardhost::{Command, GroupId};

    use super::*;
    use crate::machine::Counter;

    fn apply(machine: &mut Watched, entries: &[(u64, &'static [u8])]) {
        let command =
            |(index, data): &(u64, &'static [u8])| Command::new(LogPosition::new(1, *index), *data);
        let mut commands: Vec<Command> = entries.iter().map(command).collect();
        let last = commands.last().unwrap().position();
        machine.apply(&mut ApplyBatch::new(GroupId::new(1), last, &mut commands)).unwrap();
    }

    #[test]
    fn what_a_machine_is_given_again_is_told_from_what_it_lacked() {
        let watch = Arc::<Watch>::default();
        let mut machine = Watched::new(Box::new(Counter::default()), Arc::clone(&watch));
        assert_eq!(machine.applied().unwrap(), None);
        let at = LogPosition::new(1, 5);
        machine.restore(at, &mut &5u64.to_be_bytes()[..]).unwrap();
        apply(&mut machine, &[(5, b"held"), (6, b"lacked"), (7, FRESH)]);
        apply(&mut machine, &[(7, FRESH), (9, FRESH)]);
        let seen = Seen { held: 5, restored: 1, replayed: 1, fresh: 2, twice: 2 };
        assert_eq!(watch.seen(), seen);
    }
}
