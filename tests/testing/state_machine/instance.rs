//! One machine under check, what it answered, and what can be seen of its state.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Cursor;
use std::ops::Range;

use bytes::Bytes;
use shardhost_storage::{GroupId, LogIndex, LogPosition};

use super::script::Script;
use super::{Broken, Reopen};
use shardhost_groups::error::QueryError;
use shardhost_groups::machine::{
    ApplyFault, Progress, SnapshotWriter, StateChecksum, StateMachine, apply_all,
};

/// The group that batches name.
const GROUP: GroupId = GroupId::new(1);

/// A machine, where it stands, and its answers by the number of the command.
pub(super) struct Instance<M> {
    machine: M,
    queries: Vec<Bytes>,
    at: Option<LogPosition>,
    answers: BTreeMap<usize, Bytes>,
}

/// What can be seen of a state.
#[derive(PartialEq, Eq)]
struct Seen {
    checksum: Option<StateChecksum>,
    answers: Vec<Result<Bytes, QueryError>>,
    /// Only of a machine that shows nothing else.
    snapshot: Option<Bytes>,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { checksum, answers, snapshot } = self;
        match (checksum, snapshot) {
            (_, Some(bytes)) => write!(f, "a snapshot {bytes:?}"),
            (Some(sum), None) => write!(f, "{sum:?}, queries {answers:?}"),
            (None, None) => write!(f, "queries {answers:?}"),
        }
    }
}

impl<M: StateMachine> Instance<M> {
    pub(super) fn new(machine: M, queries: &[Bytes]) -> Result<Self, Broken> {
        let answers = BTreeMap::new();
        let instance = Self { machine, queries: queries.to_vec(), at: None, answers };
        instance.check_position("a new machine holds nothing")?;
        Ok(instance)
    }

    /// Applies commands in batches of so many.
    pub(super) fn run(
        &mut self,
        script: &Script,
        range: Range<usize>,
        at_once: usize,
    ) -> Result<(), Broken> {
        let mut start = range.start;
        while start < range.end {
            let end = (start + at_once).min(range.end);
            self.apply(script, start..end)?;
            start = end;
        }
        Ok(())
    }

    /// Applies everything from `from` on, cut at random.
    pub(super) fn run_cut(
        &mut self,
        script: &Script,
        from: usize,
        seed: u64,
    ) -> Result<(), Broken> {
        script.cuts(from, seed).into_iter().try_for_each(|range| self.apply(script, range))
    }

    fn apply(&mut self, script: &Script, range: Range<usize>) -> Result<(), Broken> {
        let last = script.position(range.end);
        let mut commands = script.batch(range.clone());
        let applied = apply_all(&mut self.machine, GROUP, last, &mut commands);
        applied.map_err(|fault| {
            let detail = format!("commands {range:?}: {fault}");
            Broken::new("a command must not stop the group", detail)
        })?;
        self.at = Some(last);
        self.check_position("after a batch a machine stands where the batch ends")?;
        for (number, command) in range.zip(&commands) {
            self.answers.insert(number, command.response().clone());
        }
        Ok(())
    }

    fn check_position(&self, rule: &'static str) -> Result<(), Broken> {
        let applied = self.machine.applied().map_err(|fault| failed("applied", &fault))?;
        if applied != self.at {
            let detail = format!("it says {applied:?}, it should be {:?}", self.at);
            return Err(Broken::new(rule, detail));
        }
        let durable = self.machine.durable_index().unwrap_or_default();
        let applied = applied.unwrap_or_default().index;
        if durable > applied {
            let detail = format!("index {durable} is durable, {applied} is applied");
            return Err(Broken::new("nothing is durable that is not applied", detail));
        }
        Ok(())
    }

    pub(super) fn view(&mut self) -> Result<Box<dyn SnapshotWriter>, Broken> {
        self.machine.snapshot().map_err(|fault| failed("snapshot", &fault))
    }

    pub(super) fn restore(&mut self, at: LogPosition, bytes: &[u8]) -> Result<(), Broken> {
        let restored = self.machine.restore(at, &mut Cursor::new(bytes));
        restored.map_err(|fault| failed("restore", &fault))?;
        self.at = Some(at);
        self.answers.clear();
        self.check_position("after a restore a machine stands where the snapshot was taken")
    }

    pub(super) fn make_durable(&mut self) -> Result<(), Broken> {
        self.machine.make_durable().map_err(|fault| failed("make_durable", &fault))?;
        self.check_position("making durable moves nothing")?;
        match self.machine.durable_index() {
            Some(durable) if durable < self.at.unwrap_or_default().index => {
                let detail = format!("index {durable} is, {:?} is applied", self.at);
                Err(Broken::new("after make_durable everything applied is durable", detail))
            }
            _ => Ok(()),
        }
    }

    /// The machine after it was closed and opened again.
    pub(super) fn reopened(self, reopen: &mut Reopen<'_, M>) -> Result<Self, Broken> {
        let rule = "a restart loses nothing that was durable, and makes nothing up";
        let durable = self.machine.durable_index().unwrap_or_default();
        let before = self.at.unwrap_or_default().index;
        let machine = reopen(self.machine);
        let at = machine.applied().map_err(|fault| failed("applied", &fault))?;
        let applied = at.unwrap_or_default().index;
        if applied < durable || applied > before {
            let detail = format!(
                "index {durable} was durable, {before} applied; opened again it stands at {applied}"
            );
            return Err(Broken::new(rule, detail));
        }
        let instance = Self { machine, at, answers: BTreeMap::new(), ..self };
        instance.check_position("a machine that was opened again stands where it says")?;
        Ok(instance)
    }

    /// How many of the commands the machine holds.
    pub(super) fn place_in(&self, script: &Script) -> Result<usize, Broken> {
        let Some(at) = self.at.filter(|at| at.index > LogIndex::default()) else { return Ok(0) };
        script.count_at(at).ok_or_else(|| {
            let detail = format!("{at} is the end of no batch");
            Broken::new("a machine stands where a batch ended", detail)
        })
    }

    /// Compares answers, as far as both gave one, and states.
    pub(super) fn must_equal(&mut self, other: &mut Self, what: &str) -> Result<(), Broken> {
        for (number, answer) in &self.answers {
            let expected = other.answers.get(number).unwrap_or(answer);
            if answer != expected {
                let detail =
                    format!("{what}: command {number} is answered {answer:?} and {expected:?}");
                return Err(Broken::new("equal commands get equal answers", detail));
            }
        }
        let (ours, theirs) = (self.seen()?, other.seen()?);
        if ours != theirs {
            let detail = format!("{what}: {ours:?}, and {theirs:?}");
            return Err(Broken::new("equal commands lead to equal states", detail));
        }
        if self.seen()? != ours {
            let detail = format!("{what}: {ours:?}, and then {:?}", self.seen()?);
            return Err(Broken::new("looking at a state does not change it", detail));
        }
        Ok(())
    }

    fn seen(&mut self) -> Result<Seen, Broken> {
        let checksum = self.machine.checksum(&Progress::default()).ok();
        let answers: Vec<_> = self.queries.iter().map(|query| self.machine.query(query)).collect();
        let blind = checksum.is_none() && answers.is_empty();
        let snapshot = if blind { Some(write_out(self.view()?)?.into()) } else { None };
        Ok(Seen { checksum, answers, snapshot })
    }
}

fn failed(call: &str, fault: &ApplyFault) -> Broken {
    Broken::new("a machine does what it is asked for", format!("{call}: {fault}"))
}

/// The bytes of a view.
pub(super) fn write_out(view: Box<dyn SnapshotWriter>) -> Result<Vec<u8>, Broken> {
    let mut bytes = Vec::new();
    let written = view.write_to(&mut bytes);
    written.map_err(|error| Broken::new("a view can be written out", error.to_string()))?;
    Ok(bytes)
}
