//! What is in a queue and what may be delivered: the decisions, in memory.
//!
//! It knows sequences, partition keys, attempts and deadlines, but no bodies and no disk. All of
//! it follows from the stored records and the shard's time, so it is rebuilt after a restart.
//!
//! **Invariant:** what is in flight of a partition is a prefix of it and has one deadline: a
//! receive takes from the front, and only of partitions that have nothing in flight.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::{MAX_ATTEMPT, Receipt};

/// Place of a partition in [`Index::partitions`].
type Slot = u32;

#[derive(Clone, Copy, Debug)]
struct Message {
    partition: Slot,
    attempt: u32,
    size: u32,
    /// When its newest delivery ends; 0: never delivered.
    deadline_ms: u64,
}

/// The messages of one key, oldest first. Exists only while it has one.
#[derive(Debug, Default)]
struct Partition {
    key: Arc<[u8]>,
    messages: VecDeque<u64>,
    /// How many of the first messages are in flight.
    in_flight: usize,
    /// Until when; meaningless with nothing in flight.
    deadline_ms: u64,
    /// The sequence it stands under in [`Index::available`].
    listed: Option<u64>,
}

/// A message as it was stored, for rebuilding the index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored<'a> {
    pub(super) sequence: u64,
    pub(super) partition_key: &'a [u8],
    pub(super) size: u32,
    pub(super) attempt: u32,
    pub(super) deadline_ms: u64,
}

/// What a receive asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Take<'a> {
    pub(super) max_messages: usize,
    pub(super) max_bytes: usize,
    pub(super) visibility_ms: u64,
    pub(super) partition_key: Option<&'a [u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) sequence: u64,
    pub(super) attempt: u32,
    pub(super) deadline_ms: u64,
}

/// The index of one queue.
#[derive(Debug, Default)]
pub(super) struct Index {
    now_ms: u64,
    /// Sequence of the newest message that was ever sent; 0: none.
    last_sequence: u64,
    messages: BTreeMap<u64, Message>,
    partitions: Vec<Partition>,
    free: Vec<Slot>,
    slots: HashMap<Arc<[u8]>, Slot>,
    /// Partitions with messages and nothing in flight, by their oldest message.
    available: BTreeSet<(u64, Slot)>,
    /// Partitions with something in flight, by its deadline.
    in_flight: BTreeSet<(u64, Slot)>,
}

impl Index {
    /// An empty index at a stored time and sequence.
    pub(super) fn at(now_ms: u64, last_sequence: u64) -> Self {
        Self { now_ms, last_sequence, ..Self::default() }
    }

    pub(super) const fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub(super) const fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The oldest message, or where the next one will stand.
    pub(super) fn first_sequence(&self) -> u64 {
        self.messages.first_key_value().map_or(self.last_sequence + 1, |(sequence, _)| *sequence)
    }

    /// Whether a receive of any key would deliver something.
    pub(super) fn has_available(&self) -> bool {
        !self.available.is_empty()
    }

    /// Whether a receive at this time would deliver something.
    pub(super) fn would_deliver(&self, now_ms: u64, partition_key: Option<&[u8]>) -> bool {
        let now_ms = self.now_ms.max(now_ms);
        match partition_key {
            None => {
                let earliest = self.in_flight.first();
                self.has_available() || earliest.is_some_and(|(until_ms, _)| *until_ms <= now_ms)
            }
            Some(key) => self.slots.get(key).is_some_and(|slot| {
                let partition = &self.partitions[*slot as usize];
                let is_over = partition.in_flight > 0 && partition.deadline_ms <= now_ms;
                partition.listed.is_some() || is_over
            }),
        }
    }

    /// Moves the time, never backwards, and makes available what was hidden until then.
    pub(super) fn advance(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        while let Some(&(deadline_ms, slot)) = self.in_flight.first()
            && deadline_ms <= self.now_ms
        {
            self.in_flight.pop_first();
            self.partitions[slot as usize].in_flight = 0;
            self.list_front(slot);
        }
    }

    /// Appends a message and returns its sequence.
    pub(super) fn push(&mut self, partition_key: &[u8], size: u32) -> u64 {
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        self.insert(Stored { sequence, partition_key, size, attempt: 0, deadline_ms: 0 });
        sequence
    }

    /// Takes in a message. Stored ones must come in the order of their sequences.
    pub(super) fn insert(&mut self, stored: Stored<'_>) {
        let slot = self.slot(stored.partition_key);
        self.messages.insert(
            stored.sequence,
            Message {
                partition: slot,
                attempt: stored.attempt,
                size: stored.size,
                deadline_ms: stored.deadline_ms,
            },
        );
        let partition = &mut self.partitions[slot as usize];
        partition.messages.push_back(stored.sequence);
        if stored.deadline_ms > self.now_ms {
            partition.in_flight += 1;
            partition.deadline_ms = stored.deadline_ms;
            self.in_flight.insert((stored.deadline_ms, slot));
        }
        self.list_front(slot);
    }

    /// Delivers messages: over all keys the oldest first, of one key in a row.
    pub(super) fn take(&mut self, wanted: Take<'_>) -> Vec<Taken> {
        let only = match wanted.partition_key {
            None => None,
            Some(key) => match self.slots.get(key) {
                Some(slot) => Some(*slot),
                None => return Vec::new(),
            },
        };
        let deadline_ms = self.now_ms.saturating_add(wanted.visibility_ms);
        let (mut taken, mut touched, mut bytes) = (Vec::new(), BTreeSet::new(), 0);
        while taken.len() < wanted.max_messages
            && let Some((sequence, slot)) = self.next_available(only)
        {
            bytes += self.messages.get(&sequence).map_or(0, |message| message.size as usize);
            if bytes > wanted.max_bytes && !taken.is_empty() {
                break;
            }
            taken.push(self.deliver(sequence, slot, deadline_ms));
            touched.insert(slot);
        }
        for slot in touched {
            self.list(slot, None);
            self.partitions[slot as usize].deadline_ms = deadline_ms;
            self.in_flight.insert((deadline_ms, slot));
        }
        taken
    }

    fn next_available(&self, only: Option<Slot>) -> Option<(u64, Slot)> {
        match only {
            None => self.available.first().copied(),
            Some(slot) => self.partitions[slot as usize].listed.map(|first| (first, slot)),
        }
    }

    /// Delivers one message and lists its partition under the one after it.
    fn deliver(&mut self, sequence: u64, slot: Slot, deadline_ms: u64) -> Taken {
        let mut attempt = 0;
        if let Some(message) = self.messages.get_mut(&sequence) {
            message.attempt = (message.attempt + 1).min(MAX_ATTEMPT);
            message.deadline_ms = deadline_ms;
            attempt = message.attempt;
        }
        let partition = &mut self.partitions[slot as usize];
        partition.in_flight += 1;
        let next = partition.messages.get(partition.in_flight).copied();
        self.list(slot, next);
        Taken { sequence, attempt, deadline_ms }
    }

    /// Removes the message of a receipt; `false` when the receipt is stale.
    pub(super) fn ack(&mut self, receipt: Receipt) -> bool {
        let sequence = receipt.sequence();
        let Some(message) = self.messages.get(&sequence).copied() else {
            return false;
        };
        if message.attempt == 0 || message.attempt != receipt.attempt() {
            return false;
        }
        self.messages.remove(&sequence);
        self.remove_from_partition(sequence, message);
        true
    }

    fn remove_from_partition(&mut self, sequence: u64, message: Message) {
        let slot = message.partition;
        let partition = &mut self.partitions[slot as usize];
        if let Ok(place) = partition.messages.binary_search(&sequence) {
            partition.messages.remove(place);
        }
        if message.deadline_ms > self.now_ms {
            partition.in_flight = partition.in_flight.saturating_sub(1);
            if partition.in_flight == 0 {
                self.in_flight.remove(&(partition.deadline_ms, slot));
            }
        }
        self.list_front(slot);
        self.free_if_empty(slot);
    }

    /// Lists a partition under its oldest message, unless something of it is in flight.
    fn list_front(&mut self, slot: Slot) {
        let partition = &self.partitions[slot as usize];
        let front = if partition.in_flight == 0 { partition.messages.front() } else { None };
        self.list(slot, front.copied());
    }

    /// Lists a partition under `sequence`, or not at all.
    fn list(&mut self, slot: Slot, sequence: Option<u64>) {
        let listed = &mut self.partitions[slot as usize].listed;
        if *listed == sequence {
            return;
        }
        if let Some(before) = listed.take() {
            self.available.remove(&(before, slot));
        }
        if let Some(sequence) = sequence {
            self.available.insert((sequence, slot));
        }
        *listed = sequence;
    }

    fn slot(&mut self, key: &[u8]) -> Slot {
        if let Some(slot) = self.slots.get(key) {
            return *slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.partitions.push(Partition::default());
            // At most one partition per message, and messages are bounded below 2^32.
            (self.partitions.len() - 1) as Slot
        });
        let key: Arc<[u8]> = key.into();
        self.partitions[slot as usize].key = Arc::clone(&key);
        self.slots.insert(key, slot);
        slot
    }

    fn free_if_empty(&mut self, slot: Slot) {
        let partition = &mut self.partitions[slot as usize];
        if partition.messages.is_empty() {
            self.slots.remove(&partition.key);
            *partition = Partition::default();
            self.free.push(slot);
        }
    }
}
