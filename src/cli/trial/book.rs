//! What the cluster acknowledged: the expectation that the verification holds it to.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

/// A message that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentMessage {
    /// The sequence that the queue gave it.
    pub sequence: u64,
    /// The line that it holds.
    pub line: u32,
}

/// What a partition of the queue must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionBook {
    /// What was acknowledged, in the order in which it was sent.
    pub sent: Vec<SentMessage>,
    /// The message whose outcome stayed unknown: it may be there, behind the others.
    pub in_doubt: Option<u32>,
}

/// Everything that was acknowledged. Filled while loading, read afterwards.
#[derive(Debug)]
pub struct Book {
    puts: Vec<AtomicBool>,
    queue: Mutex<HashMap<Bytes, PartitionBook>>,
    /// What a test put wrong on purpose: this line's value is expected to be another.
    flipped: Option<u32>,
}

impl Book {
    /// An empty book for so many lines.
    pub fn new(lines: usize) -> Self {
        let puts = std::iter::repeat_with(AtomicBool::default).take(lines).collect();
        Self { puts, queue: Mutex::default(), flipped: None }
    }

    /// A line was put into the table.
    pub fn put(&self, line: u32) {
        self.puts[line as usize].store(true, Ordering::Relaxed);
    }

    /// A partition was sent, as far as it goes.
    pub fn sent(&self, partition: Bytes, book: PartitionBook) {
        self.queue.lock().insert(partition, book);
    }

    /// The lines that the table must hold.
    pub fn lines_put(&self) -> Vec<u32> {
        let marked = (0u32..).zip(&self.puts);
        marked.filter(|(_, done)| done.load(Ordering::Relaxed)).map(|(line, _)| line).collect()
    }

    /// What the partitions of the queue must hold.
    pub fn partitions(&self) -> HashMap<Bytes, PartitionBook> {
        self.queue.lock().clone()
    }

    /// The value that is expected of a line whose right one is `value`.
    pub fn expected(&self, line: u32, value: Bytes) -> Bytes {
        if self.flipped == Some(line) { [&value[..], b"?"].concat().into() } else { value }
    }

    /// Expects another value of one line: a verification that finds nothing then is worthless.
    pub fn flip_a_value(&mut self) {
        self.flipped = self.lines_put().first().copied();
    }

    /// Forgets that one message was acknowledged.
    pub fn forget_a_message(&mut self) {
        let mut queue = self.queue.lock();
        if let Some(partition) = queue.values_mut().find(|partition| partition.sent.len() > 1) {
            partition.sent.remove(0);
        }
    }

    /// Expects a message that was never sent.
    pub fn invent_a_message(&mut self) {
        let mut queue = self.queue.lock();
        if let Some(partition) = queue.values_mut().find(|partition| !partition.sent.is_empty()) {
            partition.sent.push(SentMessage { sequence: u64::MAX, line: 0 });
        }
    }
}
