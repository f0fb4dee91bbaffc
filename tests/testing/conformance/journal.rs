//! The state machine of the suite: it remembers every command, and fails or blocks on request.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use shardhost_storage::{LogIndex, LogPosition};

use shardhost_groups::error::QueryError;
use shardhost_groups::machine::{
    ApplyBatch, ApplyFault, Progress, SnapshotWriter, StateChecksum, StateMachine,
};

/// What a journal has when its host died.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keeps {
    /// Nothing: it lives in memory, and the host makes snapshots.
    #[default]
    Nothing,
    Everything,
    /// What was applied when it was last [flushed](JournalDisk::flush).
    Flushed,
}

/// A command and its place in the log.
pub type Noted = (LogPosition, Bytes);

/// What a journal holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub applied: Option<LogPosition>,
    pub commands: Vec<Noted>,
}

/// What happened to a journal, over all its lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalCounts {
    /// Times that it was opened.
    pub lives: u64,
    pub applied: u64,
    /// Commands that it applied although it held them.
    pub repeated: u64,
    /// Times that it was restored from a snapshot.
    pub restored: u64,
    /// Views for snapshots that it gave.
    pub views: u64,
    /// Views that were not dropped yet.
    pub open_views: u64,
    /// Times that it was notified of the removal of its replica.
    pub removed: u64,
}

/// What a [`Journal`] writes to, and what a test looks at. Clones are the same disk.
#[derive(Clone, Default)]
pub struct JournalDisk {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    keeps: Keeps,
    live: Contents,
    durable: Contents,
    volatile: Vec<Noted>,
    counts: JournalCounts,
    apply_held: bool,
    views_held: bool,
    views_fail: bool,
}

impl fmt::Debug for JournalDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        write!(f, "journal at {:?}, {:?}", state.live.applied, state.counts)
    }
}

impl JournalDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(keeps: Keeps) -> Self {
        let disk = Self::default();
        disk.lock().keeps = keeps;
        disk
    }

    /// Opens the journal on it: the process was started.
    #[must_use]
    pub fn open(&self) -> Journal {
        let mut state = self.lock();
        if state.keeps == Keeps::Nothing {
            state.live = Contents::default();
        }
        state.volatile.clear();
        state.counts.lives += 1;
        drop(state);
        Journal { disk: self.clone() }
    }

    /// The process died.
    pub fn crash(&self) {
        let mut state = self.lock();
        if state.keeps == Keeps::Flushed {
            state.live = state.durable.clone();
        }
    }

    /// Makes durable what is applied.
    pub fn flush(&self) {
        let mut state = self.lock();
        state.durable = state.live.clone();
    }

    /// What the journal holds.
    #[must_use]
    pub fn contents(&self) -> Contents {
        self.lock().live.clone()
    }

    /// The commands that the journal holds, as text.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        self.lock().live.commands.iter().map(|(_, command)| text(command)).collect()
    }

    /// The commands that begin with `volatile` and were applied or replayed in this life.
    #[must_use]
    pub fn volatile(&self) -> Vec<String> {
        self.lock().volatile.iter().map(|(_, command)| text(command)).collect()
    }

    /// How often the journal holds this command.
    #[must_use]
    pub fn count(&self, wanted: &str) -> usize {
        self.lock().live.commands.iter().filter(|(_, command)| command == wanted).count()
    }

    /// What happened to it.
    #[must_use]
    pub fn counts(&self) -> JournalCounts {
        self.lock().counts
    }

    /// Blocks applying, until [released](JournalDisk::release).
    pub fn hold_apply(&self) {
        self.lock().apply_held = true;
    }

    /// Blocks writing out a view, until [released](JournalDisk::release).
    pub fn hold_views(&self) {
        self.lock().views_held = true;
    }

    /// Lets views fail while they are written out, until [released](JournalDisk::release).
    pub fn fail_views(&self) {
        self.lock().views_fail = true;
    }

    /// Lets everything continue.
    pub fn release(&self) {
        let mut state = self.lock();
        (state.apply_held, state.views_held, state.views_fail) = (false, false, false);
        drop(state);
        self.shared.released.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }

    fn wait_while(&self, held: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while held(&state) {
            self.shared.released.wait(&mut state);
        }
        state
    }
}

fn text(command: &Bytes) -> String {
    String::from_utf8_lossy(command).into_owned()
}

/// A state machine that remembers every command and answers with the number of commands that it
/// holds, as text.
///
/// | command | what it does |
/// |---|---|
/// | `panic` | panics |
/// | `fail` | fails |
/// | `volatile`... | is remembered in memory as well, and replayed after a restart |
/// | anything else | is remembered |
///
/// It answers the queries `count`, `last` and `list`.
#[derive(Debug, Default)]
pub struct Journal {
    disk: JournalDisk,
}

impl Journal {
    fn note(state: &mut State, position: LogPosition, command: &Bytes) -> Result<(), ApplyFault> {
        match command.as_ref() {
            b"panic" => panic!("the journal was told to panic"),
            b"fail" => return Err(ApplyFault::new("the journal was told to fail")),
            _ => {}
        }
        let held = state.live.commands.last().is_some_and(|(last, _)| *last >= position);
        state.counts.applied += 1;
        state.counts.repeated += u64::from(held);
        if is_volatile(command) {
            state.volatile.push((position, command.clone()));
        }
        state.live.commands.push((position, command.clone()));
        Ok(())
    }
}

fn is_volatile(command: &Bytes) -> bool {
    command.starts_with(b"volatile")
}

impl StateMachine for Journal {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.disk.lock().live.applied)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        let mut state = self.disk.wait_while(|state| state.apply_held);
        for command in batch.commands() {
            Self::note(&mut state, command.position(), &command.data().clone())?;
            command.respond(state.live.commands.len().to_string());
        }
        state.live.applied = Some(batch.last());
        if state.keeps == Keeps::Everything {
            state.durable = state.live.clone();
        }
        Ok(())
    }

    fn query(&self, request: &Bytes) -> Result<Bytes, QueryError> {
        let state = self.disk.lock();
        let commands = &state.live.commands;
        match request.as_ref() {
            b"count" => Ok(commands.len().to_string().into()),
            b"last" => Ok(commands.last().map(|(_, last)| last.clone()).unwrap_or_default()),
            b"list" => {
                let all: Vec<_> = commands.iter().map(|(_, command)| text(command)).collect();
                Ok(all.join(" ").into())
            }
            other => Err(QueryError::Invalid(format!("{:?}", Bytes::copy_from_slice(other)))),
        }
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        let mut state = self.disk.lock();
        state.counts.views += 1;
        state.counts.open_views += 1;
        let commands = state.live.commands.clone();
        drop(state);
        Ok(Box::new(View { commands, disk: self.disk.clone() }))
    }

    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        let commands = read_commands(source).map_err(ApplyFault::new)?;
        let mut state = self.disk.lock();
        state.live = Contents { applied: Some(at), commands };
        state.durable = state.live.clone();
        state.counts.restored += 1;
        Ok(())
    }

    fn durable_index(&self) -> Option<LogIndex> {
        let state = self.disk.lock();
        let kept = match state.keeps {
            Keeps::Nothing => return None,
            Keeps::Everything => &state.live,
            Keeps::Flushed => &state.durable,
        };
        Some(kept.applied.unwrap_or_default().index)
    }

    fn make_durable(&mut self) -> Result<(), ApplyFault> {
        self.disk.flush();
        Ok(())
    }

    fn is_partly_volatile(&self) -> bool {
        true
    }

    fn is_volatile(&self, command: &Bytes) -> bool {
        is_volatile(command)
    }

    fn replay(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        let mut state = self.disk.lock();
        for command in batch.commands() {
            state.volatile.push((command.position(), command.data().clone()));
        }
        Ok(())
    }

    fn removed(&mut self) -> Result<(), ApplyFault> {
        let mut state = self.disk.lock();
        state.counts.removed += 1;
        (state.live, state.durable) = Default::default();
        Ok(())
    }

    fn checksum(&self, _: &Progress) -> Result<StateChecksum, QueryError> {
        let state = self.disk.lock();
        let sum = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let bytes = state.live.commands.iter().flat_map(|(_, command)| command.iter());
        let checksum = bytes.fold(0xcbf2_9ce4_8422_2325, sum);
        Ok(StateChecksum { items: state.live.commands.len() as u64, checksum })
    }
}

/// A view that is written out: term, index, length and bytes of each command.
struct View {
    commands: Vec<Noted>,
    disk: JournalDisk,
}

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> io::Result<()> {
        if self.disk.wait_while(|state| state.views_held).views_fail {
            return Err(io::Error::other("the journal was told to fail"));
        }
        for (position, command) in &self.commands {
            let length = command.len() as u64;
            for number in [position.term.get(), position.index.get(), length] {
                sink.write_all(&number.to_be_bytes())?;
            }
            sink.write_all(command)?;
        }
        Ok(())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.disk.lock().counts.open_views -= 1;
    }
}

fn read_commands(source: &mut dyn Read) -> io::Result<Vec<Noted>> {
    let mut bytes = Vec::new();
    source.read_to_end(&mut bytes)?;
    let mut rest = bytes.as_slice();
    let mut commands = Vec::new();
    while !rest.is_empty() {
        let mut numbers = [0; 3];
        for number in &mut numbers {
            let (head, tail) = rest.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
            *number = u64::from_be_bytes(*head);
            rest = tail;
        }
        let length = usize::try_from(numbers[2]).map_err(io::Error::other)?;
        let (command, tail) = rest.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        rest = tail;
        let position = LogPosition::new(numbers[0], numbers[1]);
        commands.push((position, Bytes::copy_from_slice(command)));
    }
    Ok(commands)
}
