//! A machine in order, and one for each way to be out of order.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use shardhost_storage::{LogIndex, LogPosition};

use super::{Broken, Check, check};
use crate::conformance::{Journal, JournalDisk, Keeps};
use shardhost_groups::error::QueryError;
use shardhost_groups::machine::{
    ApplyBatch, ApplyFault, Progress, SnapshotWriter, StateChecksum, StateMachine,
};

/// What is wrong with a [`Words`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    AnswersWithBatchLength,
    AnswersWithChance,
    ForgetsEmptyBatches,
    FailsOnBadInput,
    LeavesOutTheLastWord,
    ShowsLaterWords,
    KeepsWhatWasThere,
    RestoresToNowhere,
    PromisesTooMuch,
    QueriesChange,
    IsBornOld,
    LosesWhatIsDurable,
}

static CHANCE: AtomicU64 = AtomicU64::new(0);

struct Words {
    flaw: Flaw,
    words: Arc<Mutex<Vec<Bytes>>>,
    applied: Option<LogPosition>,
    asked: Cell<u64>,
}

impl Words {
    fn new(flaw: Flaw) -> Self {
        let applied = (flaw == Flaw::IsBornOld).then_some(LogPosition::new(1, 1));
        Self { flaw, words: Arc::default(), applied, asked: Cell::new(0) }
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }
}

impl StateMachine for Words {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        let length = batch.len();
        let mut words = self.words.lock();
        for command in batch.commands() {
            if self.is(Flaw::FailsOnBadInput) && command.data() == "bad" {
                return Err(ApplyFault::new("bad input"));
            }
            words.push(command.data().clone());
            command.respond(match self.flaw {
                Flaw::AnswersWithBatchLength => length.to_string(),
                Flaw::AnswersWithChance => CHANCE.fetch_add(1, Ordering::Relaxed).to_string(),
                _ => words.len().to_string(),
            });
        }
        if length > 0 || !self.is(Flaw::ForgetsEmptyBatches) {
            self.applied = Some(batch.last());
        }
        Ok(())
    }

    fn query(&self, _: &Bytes) -> Result<Bytes, QueryError> {
        self.asked.set(self.asked.get() + 1);
        let asked = if self.is(Flaw::QueriesChange) { self.asked.get() } else { 0 };
        Ok(format!("{:?} {asked}", self.words.lock()).into())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        let mut words = self.words.lock().clone();
        if self.is(Flaw::LeavesOutTheLastWord) {
            words.pop();
        }
        if self.is(Flaw::ShowsLaterWords) {
            return Ok(Box::new(View(Arc::clone(&self.words))));
        }
        Ok(Box::new(View(Arc::new(Mutex::new(words)))))
    }

    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map_err(ApplyFault::new)?;
        let words = bytes.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let mut kept = self.words.lock();
        if !self.is(Flaw::KeepsWhatWasThere) {
            kept.clear();
        }
        kept.extend(words.map(Bytes::copy_from_slice));
        if !self.is(Flaw::RestoresToNowhere) {
            self.applied = Some(at);
        }
        Ok(())
    }

    fn durable_index(&self) -> Option<LogIndex> {
        let applied = self.applied.unwrap_or_default().index;
        match self.flaw {
            Flaw::PromisesTooMuch => Some(applied.next()),
            Flaw::LosesWhatIsDurable => Some(applied),
            _ => None,
        }
    }
}

struct View(Arc<Mutex<Vec<Bytes>>>);

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> io::Result<()> {
        self.0.lock().iter().try_for_each(|word| {
            sink.write_all(word)?;
            sink.write_all(b" ")
        })
    }
}

fn words() -> Vec<String> {
    (0..37)
        .map(|number| if number == 20 { "bad".to_owned() } else { format!("w{number}") })
        .collect()
}

fn checked(flaw: Flaw) -> Result<(), Broken> {
    Check::new(|| Words::new(flaw), words())
        .queries(["everything"])
        .reopen(|machine| {
            let kept = if machine.is(Flaw::LosesWhatIsDurable) { Flaw::None } else { machine.flaw };
            Words { flaw: machine.flaw, ..Words::new(kept) }
        })
        .run()
}

#[test]
fn a_machine_in_order_passes() {
    checked(Flaw::None).unwrap();
    check(|| Words::new(Flaw::None), words()).unwrap();
    check(|| Words::new(Flaw::None), [""; 0]).unwrap();
}

#[test]
fn the_journal_of_the_suite_passes() {
    for keeps in [Keeps::Nothing, Keeps::Everything, Keeps::Flushed] {
        let disk = std::cell::RefCell::new(JournalDisk::new(keeps));
        let new = || {
            disk.replace(JournalDisk::new(keeps));
            disk.borrow().open()
        };
        let reopen = |machine: Journal| {
            drop(machine);
            disk.borrow().crash();
            disk.borrow().open()
        };
        Check::new(new, words()).queries(["list", "count"]).reopen(reopen).run().unwrap();
    }
}

#[test]
fn each_way_to_be_out_of_order_is_found() {
    let flaws = [
        (Flaw::AnswersWithBatchLength, "equal commands get equal answers"),
        (Flaw::AnswersWithChance, "equal commands get equal answers"),
        (Flaw::ForgetsEmptyBatches, "stands where the batch ends"),
        (Flaw::FailsOnBadInput, "must not stop the group"),
        (Flaw::LeavesOutTheLastWord, "restored from a snapshot"),
        (Flaw::ShowsLaterWords, "restored from a snapshot"),
        (Flaw::KeepsWhatWasThere, "restored from a snapshot"),
        (Flaw::RestoresToNowhere, "stands where the snapshot was taken"),
        (Flaw::PromisesTooMuch, "nothing is durable that is not applied"),
        (Flaw::QueriesChange, "looking at a state does not change it"),
        (Flaw::IsBornOld, "a new machine holds nothing"),
        (Flaw::LosesWhatIsDurable, "a restart loses nothing that was durable"),
    ];
    for (flaw, words) in flaws {
        let broken = checked(flaw).expect_err("it has a flaw");
        assert!(broken.to_string().contains(words), "{flaw:?}: {broken}");
    }
}

/// Equal answers are not enough where a machine offers nothing else to look at.
#[test]
fn a_machine_that_shows_nothing_is_compared_by_its_snapshots() {
    let broken = check(|| Words::new(Flaw::LeavesOutTheLastWord), words());
    assert!(broken.is_err(), "a snapshot without the last word");
}

/// Answers no query, and returns how many words there are.
struct Counted(Words);

impl StateMachine for Counted {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        self.0.applied()
    }
    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        self.0.apply(batch)
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        self.0.snapshot()
    }
    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        self.0.restore(at, source)
    }
    fn checksum(&self, _: &Progress) -> Result<StateChecksum, QueryError> {
        Ok(StateChecksum { items: self.0.words.lock().len() as u64, checksum: 0 })
    }
}

#[test]
fn a_checksum_is_looked_at() {
    check(|| Counted(Words::new(Flaw::None)), words()).unwrap();
    let broken = check(|| Counted(Words::new(Flaw::LeavesOutTheLastWord)), words());
    let broken = broken.expect_err("a word is missing").to_string();
    assert!(broken.contains("StateChecksum { items: "), "{broken}");
}
