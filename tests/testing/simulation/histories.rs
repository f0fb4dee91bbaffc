//! What clients see, as histories of a table: every command puts a value of its own under one of a
//! few keys, and reads of every kind tell which value stands there.

use std::collections::{BTreeMap, BTreeSet};

use crate::linearizability::table::{Action, Answer, Table, TableOp};
use crate::linearizability::{History, Limits, Operation, Outcome, check};
use shardhost_groups::{GroupId, LogPosition};

/// Keys of the table of each group: so many that few writes of one key are under way together,
/// whose orders would all have to be tried.
const KEYS: u64 = 40;

/// Operations on one key that are under way together. Beyond, what no read depends on is left out:
/// every order of them would have to be tried, and that no write is lost is checked elsewhere.
const MAX_TOGETHER: usize = 8;

type Key = (GroupId, u64);

/// The key that a command puts a value under.
pub const fn key_of(command: u64) -> u64 {
    command % KEYS
}

/// The value under a key, in a table that applied these commands.
pub fn value_of(commands: &[(LogPosition, u64)], key: u64) -> Option<u64> {
    commands.iter().rev().map(|(_, id)| *id).find(|id| key_of(*id) == key)
}

/// Operations as clients saw them, with a clock that only counts.
#[derive(Debug, Default)]
pub struct Histories {
    moment: u64,
    puts: BTreeMap<u64, (GroupId, u64)>,
    operations: Vec<Operation<TableOp<Key, u64>, Answer<u64>>>,
    answered: BTreeSet<u64>,
    seen: BTreeSet<u64>,
}

impl Histories {
    fn tick(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// A client is about to ask.
    pub fn begin(&mut self) -> u64 {
        self.tick()
    }

    /// A command was proposed.
    pub fn put(&mut self, id: u64, group: GroupId) {
        let called = self.tick();
        self.puts.insert(id, (group, called));
    }

    /// A command was acknowledged.
    pub fn acknowledged(&mut self, id: u64) {
        let at = self.tick();
        self.answered.insert(id);
        self.note_put(id, Outcome::Answered { at, answer: Answer::Written });
    }

    fn note_put(&mut self, id: u64, outcome: Outcome<Answer<u64>>) {
        if let Some((group, called)) = self.puts.get(&id).copied() {
            let op = TableOp::new((group, key_of(id)), Action::Put(id));
            self.operations.push(Operation { client: id, op, called, outcome });
        }
    }

    /// A read was answered.
    pub fn read(&mut self, group: GroupId, key: u64, called: u64, value: Option<u64>) {
        let at = self.tick();
        self.seen.extend(value);
        let op = TableOp::new((group, key), Action::Get);
        let outcome = Outcome::Answered { at, answer: Answer::Value(value) };
        self.operations.push(Operation { client: 0, op, called, outcome });
    }

    /// Whether one table per group explains what all clients saw.
    pub fn check(&mut self) -> Result<(), String> {
        // An unseen put without an answer may as well never have taken effect.
        let answered = std::mem::take(&mut self.answered);
        for id in self.seen.difference(&answered).copied().collect::<Vec<_>>() {
            self.note_put(id, Outcome::Unknown);
        }
        let mut history = History::new();
        let mut operations = std::mem::take(&mut self.operations);
        operations.sort_by_key(|one| one.called);
        let mut under_way: BTreeMap<Key, Vec<u64>> = BTreeMap::new();
        for one in operations {
            let others = under_way.entry(one.op.key).or_default();
            others.retain(|end| *end > one.called);
            let explains = matches!(one.op.action, Action::Put(id) if self.seen.contains(&id));
            if others.len() >= MAX_TOGETHER && !explains {
                continue;
            }
            others.push(match one.outcome {
                Outcome::Answered { at, .. } => at,
                Outcome::Unknown => u64::MAX,
            });
            history.push(one);
        }
        let verdict = check(&Table::new(), &history, Limits::default());
        if verdict.is_linearizable() { Ok(()) } else { Err(format!("{verdict}")) }
    }
}
