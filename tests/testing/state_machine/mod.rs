//! Whether a state machine keeps its side of [`StateMachine`].
//!
//! [`check`] runs commands through many instances, in batches cut here and there, through
//! snapshots and restores, and compares what they answer and what they become. It cannot know
//! what a machine should answer, only that every replica answers the same.
//!
//! Two states are compared by [`StateMachine::checksum`] and by the answers to
//! [queries](Check::queries); a machine that offers neither is compared by the bytes of its
//! snapshots, which must then be equal for equal states.
//!
//! A machine that adds up numbers, and its check:
//!
//! ```
//! use std::io::{Read, Write};
//!
//! use bytes::Bytes;
//! use shardhost_testing::state_machine::Check;
//! use shardhost_groups::{
//!     ApplyBatch, ApplyFault, LogPosition, QueryError, SnapshotWriter, StateMachine,
//! };
//!
//! #[derive(Default)]
//! struct Sum {
//!     value: u64,
//!     applied: Option<LogPosition>,
//! }
//!
//! impl StateMachine for Sum {
//!     fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
//!         Ok(self.applied)
//!     }
//!     fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
//!         for command in batch.commands() {
//!             // A command that makes no sense is answered, the same on every replica. To fail
//!             // would stop the group.
//!             let number = std::str::from_utf8(command.data()).ok();
//!             match number.and_then(|number| number.parse::<u64>().ok()) {
//!                 Some(number) => self.value = self.value.wrapping_add(number),
//!                 None => {
//!                     command.respond("not a number");
//!                     continue;
//!                 }
//!             }
//!             command.respond(self.value.to_string());
//!         }
//!         self.applied = Some(batch.last());
//!         Ok(())
//!     }
//!     fn query(&self, _: &Bytes) -> Result<Bytes, QueryError> {
//!         Ok(self.value.to_string().into())
//!     }
//!     fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
//!         Ok(Box::new(View(self.value)))
//!     }
//!     fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
//!         let mut bytes = [0; 8];
//!         source.read_exact(&mut bytes).map_err(ApplyFault::new)?;
//!         self.value = u64::from_be_bytes(bytes);
//!         self.applied = Some(at);
//!         Ok(())
//!     }
//! }
//!
//! struct View(u64);
//!
//! impl SnapshotWriter for View {
//!     fn write_to(self: Box<Self>, sink: &mut dyn Write) -> std::io::Result<()> {
//!         sink.write_all(&self.0.to_be_bytes())
//!     }
//! }
//!
//! Check::new(Sum::default, ["1", "20", "three", "400"]).queries([""]).run().unwrap();
//! ```

mod instance;
mod script;

#[cfg(test)]
mod tests;

use bytes::Bytes;

use instance::Instance;
use script::Script;
use shardhost_groups::machine::StateMachine;

/// Random ways to cut the commands into batches that are tried.
const CUTS: u64 = 8;
/// Snapshots that are taken on the way, at most.
const SNAPSHOTS: usize = 8;

/// A state machine does not keep its side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {detail}")]
#[non_exhaustive]
pub struct Broken {
    pub rule: &'static str,
    /// Where, and the two values.
    pub detail: String,
}

impl Broken {
    fn new(rule: &'static str, detail: impl Into<String>) -> Self {
        Self { rule, detail: detail.into() }
    }
}

/// Checks a machine with these commands. `new` makes machines that hold nothing; a machine on disk
/// gets a separate directory each time.
///
/// # Errors
/// [`Broken`]: the first rule that does not hold.
pub fn check<M: StateMachine>(
    new: impl FnMut() -> M,
    commands: impl IntoIterator<Item = impl Into<Bytes>>,
) -> Result<(), Broken> {
    Check::new(new, commands).run()
}

type Reopen<'a, M> = Box<dyn FnMut(M) -> M + 'a>;

/// A check that is being put together.
#[must_use = "nothing is checked before `run`"]
pub struct Check<'a, M> {
    new: Box<dyn FnMut() -> M + 'a>,
    commands: Vec<Bytes>,
    queries: Vec<Bytes>,
    reopen: Option<Reopen<'a, M>>,
}

impl<M> std::fmt::Debug for Check<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "check with {} commands", self.commands.len())
    }
}

impl<'a, M: StateMachine> Check<'a, M> {
    /// As [`check`].
    pub fn new(
        new: impl FnMut() -> M + 'a,
        commands: impl IntoIterator<Item = impl Into<Bytes>>,
    ) -> Self {
        let commands = commands.into_iter().map(Into::into).collect();
        Self { new: Box::new(new), commands, queries: Vec::new(), reopen: None }
    }

    /// Compares states by the answers to these as well. Whatever a query answers, an error too,
    /// must be the same on equal states.
    pub fn queries(mut self, queries: impl IntoIterator<Item = impl Into<Bytes>>) -> Self {
        self.queries.extend(queries.into_iter().map(Into::into));
        self
    }

    /// Closes a machine and opens it again on what it left, as a restart does: nothing below
    /// [`StateMachine::durable_index`] may be gone.
    pub fn reopen(mut self, reopen: impl FnMut(M) -> M + 'a) -> Self {
        self.reopen = Some(Box::new(reopen));
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`Broken`]: the first rule that does not hold.
    pub fn run(mut self) -> Result<(), Broken> {
        let script = Script::new(std::mem::take(&mut self.commands));
        let mut reference = self.instance()?;
        reference.run(&script, 0..script.len(), 1)?;
        for seed in 0..CUTS {
            let mut other = self.instance()?;
            other.run_cut(&script, 0, seed)?;
            other.must_equal(&mut reference, "the same commands, cut into other batches")?;
        }
        let step = script.len().div_ceil(SNAPSHOTS).max(1);
        for at in (0..=script.len()).step_by(step).chain([script.len()]) {
            self.check_snapshot(&script, at, &mut reference)?;
            self.check_reopen(&script, at, &mut reference)?;
        }
        Ok(())
    }

    fn instance(&mut self) -> Result<Instance<M>, Broken> {
        Instance::new((self.new)(), &self.queries)
    }

    /// A view after so many commands restores what was there then, whatever came later.
    fn check_snapshot(
        &mut self,
        script: &Script,
        at: usize,
        reference: &mut Instance<M>,
    ) -> Result<(), Broken> {
        let mut source = self.instance()?;
        source.run_cut(script, 0, at as u64)?;
        let mut here = self.instance()?;
        here.run(script, 0..at, 3)?;
        let view = here.view()?;
        here.run_cut(script, at, 1)?;
        here.must_equal(reference, "a machine that gave a view and went on")?;
        let bytes = instance::write_out(view)?;
        let mut level = self.instance()?;
        level.run(script, 0..at, 2)?;
        for mut target in [self.instance()?, source] {
            target.restore(script.position(at), &bytes)?;
            target.must_equal(&mut level, "a machine that was restored from a snapshot")?;
            target.run_cut(script, at, 2)?;
            target.must_equal(reference, "a machine that was restored and went on")?;
        }
        Ok(())
    }

    fn check_reopen(
        &mut self,
        script: &Script,
        at: usize,
        reference: &mut Instance<M>,
    ) -> Result<(), Broken> {
        if self.reopen.is_none() {
            return Ok(());
        }
        for durable in [true, false] {
            let mut machine = self.instance()?;
            machine.run(script, 0..at, 2)?;
            if durable {
                machine.make_durable()?;
            }
            let Some(reopen) = &mut self.reopen else { return Ok(()) };
            let mut machine = machine.reopened(reopen)?;
            let from = machine.place_in(script)?;
            machine.run_cut(script, from, 3)?;
            machine.must_equal(reference, "a machine that was opened again and went on")?;
        }
        Ok(())
    }
}
