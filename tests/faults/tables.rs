//! Clients of a table that write down what they see, for the checker of linearizable histories.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use shardhost_client::{Client, ClientError};
use shardhost_proto::client::Written;
use shardhost_testing::linearizability::table::{Action, Answer, Table, TableOp};
use shardhost_testing::linearizability::{Call, Limits, Recorder, check};

/// Keys that are in use at a time.
const KEYS: u64 = 4;

type Op = TableOp<u64, String>;
type Told = Answer<String>;

/// What all clients share.
pub struct TableLoad {
    recorder: Recorder<Op, Told>,
    answered: AtomicU64,
    stop: AtomicBool,
    /// Answers after which other keys are used, so that the history of each is short enough to check.
    per_epoch: u64,
    /// Between two operations of a client.
    pause: Duration,
}

fn text(value: Option<Bytes>) -> Option<String> {
    value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn told_of_write(written: &Written) -> Told {
    if written.done {
        return Answer::Done { existed: written.existed };
    }
    Answer::Differs { actual: text(written.actual.clone()) }
}

impl TableLoad {
    pub fn new(per_epoch: u64, pause: Duration) -> Arc<Self> {
        let (recorder, answered, stop) =
            (Recorder::new(), AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(Self { recorder, answered, stop, per_epoch, pause })
    }

    /// Operations that were answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// The clients end after what they are at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn note(&self, call: Call<Op, Told>, outcome: Result<Told, ClientError>) {
        match outcome {
            Ok(answer) => {
                call.answered(answer);
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.is_definite() => call.refused(),
            Err(_) => call.unknown(),
        }
    }

    /// One client: puts, deletes, compares and reads a few keys, one operation after the other.
    /// Values are never written twice, so that every read shows which write it saw.
    pub async fn work(self: Arc<Self>, client: Client, number: u64) {
        let table = client.table();
        let mut seen = BTreeMap::new();
        for step in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let key = self.answered() / self.per_epoch * KEYS + (number + step) % KEYS;
            let name = format!("key-{key}");
            let value = format!("{number}/{step}");
            let action = match (number * 7 + step) % 8 {
                0 | 1 => Action::Put(value),
                2 | 3 if step % 5 == 0 => Action::Delete,
                2 | 3 => {
                    let expect = seen.get(&key).cloned().flatten();
                    Action::CompareAndSet { expect, value: Some(value) }
                }
                _ => Action::Get,
            };
            let call = self.recorder.call(number, Op::new(key, action.clone()));
            let bytes = |value: Option<String>| value.map(Bytes::from);
            let outcome = match action {
                Action::Get => table.get(name).await.map(|value| {
                    let value = text(value);
                    seen.insert(key, value.clone());
                    Answer::Value(value)
                }),
                Action::Put(value) => table.put(name, value).await.map(|w| told_of_write(&w)),
                Action::Delete => table.delete(name).await.map(|w| told_of_write(&w)),
                Action::CompareAndSet { expect, value } => {
                    let set = table.compare_and_set(name, bytes(expect), bytes(value)).await;
                    set.map(|w| told_of_write(&w))
                }
            };
            self.note(call, outcome);
            if !self.pause.is_zero() {
                tokio::time::sleep(self.pause).await;
            }
        }
    }

    /// Everything that was seen is explained by operations that took effect one at a time. Returns how many
    /// there were.
    ///
    /// # Errors
    /// Why it is not.
    pub fn verify(&self, time: Duration) -> Result<usize, String> {
        let history = self.recorder.history();
        let limits = Limits::default().steps(200_000_000).time(time);
        let verdict = check(&Table::new(), &history, limits);
        match verdict.is_linearizable() {
            true => Ok(history.operations().len()),
            false => Err(verdict.to_string()),
        }
    }
}
