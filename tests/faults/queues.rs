//! Clients of a queue that remember what they sent, received and removed, and hold it together at the end.
//!
//! | what is checked | when |
//! |---|---|
//! | a message whose send was acknowledged was received, or is still there | at the end |
//! | a message whose send was refused for good is never seen | always |
//! | a message has one place: what is sent once is stored once | always |
//! | what is there can be received, soon after its visibility ended | at the end |
//! | a message that was removed is removed once, and is not seen by who asks after that | always |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_client::{Client, ClientError, QueueClient, Received};
use shardhost_proto::client::{Delivery, Sent};

/// Partition keys, spread over the shards.
const KEYS: u64 = 16;
/// Messages of one receive at most.
const BATCH: u32 = 16;
/// Messages of one receive at the end.
const MAX_RECEIVE: u32 = 500;
/// One in so many batches is not acked, and comes back.
const FORGOTTEN: u64 = 8;
/// For how long what was received is hidden.
const VISIBILITY: Duration = Duration::from_secs(3);
/// What is there at the end is received within this time: it may just have been hidden.
const RECEIVED_WITHIN: Duration = Duration::from_secs(40);
/// Reported violations; where there are many, the first ones matter.
const MAX_FAULTS: usize = 20;

/// What all clients share.
pub struct QueueLoad {
    stop: AtomicBool,
    pause: Duration,
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    /// Grows with all that is noted: the order in which things were known.
    moment: u64,
    acknowledged: BTreeSet<String>,
    refused: BTreeSet<String>,
    seen: BTreeSet<String>,
    /// The sequence and the shard of each message that was seen.
    places: BTreeMap<String, (usize, u64)>,
    /// When it was known that a message is removed.
    removed: BTreeMap<String, u64>,
    faults: Vec<String>,
}

impl Ledger {
    fn fault(&mut self, fault: String) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
    }

    /// A message was seen by who asked at a moment.
    fn see(&mut self, shard: usize, message: &Delivery, asked: u64) {
        let body = String::from_utf8_lossy(&message.body).into_owned();
        if body == crate::cluster::SERVED {
            return;
        }
        if self.refused.contains(&body) {
            self.fault(format!("{body} was refused for good, and is there"));
        }
        let place = (shard, message.sequence);
        let first = *self.places.entry(body.clone()).or_insert(place);
        if first != place {
            self.fault(format!("{body} is stored twice, at {first:?} and {place:?}"));
        }
        if let Some(removed) = self.removed.get(&body).filter(|removed| **removed < asked) {
            self.fault(format!(
                "{body} was removed at {removed}, and is there for who asks at {asked}"
            ));
        }
        self.seen.insert(body);
    }

    /// Once everything that is there was seen.
    fn verdict(&mut self) -> Result<usize, String> {
        let lost: Vec<String> = self.acknowledged.difference(&self.seen).cloned().collect();
        for body in lost {
            self.fault(format!("{body} was acknowledged, was never received, and is not there"));
        }
        if self.faults.is_empty() {
            Ok(self.acknowledged.len())
        } else {
            Err(self.faults.join("\n"))
        }
    }

    /// All these were removed by one answer.
    fn remove(&mut self, messages: &[Delivery]) {
        self.moment += 1;
        for message in messages {
            let body = String::from_utf8_lossy(&message.body).into_owned();
            let before = self.removed.insert(body.clone(), self.moment);
            if before.is_some() && body != crate::cluster::SERVED {
                self.fault(format!("{body} was removed twice"));
            }
        }
    }
}

impl QueueLoad {
    pub fn new(pause: Duration) -> Arc<Self> {
        Arc::new(Self { stop: AtomicBool::new(false), pause, ledger: Mutex::default() })
    }

    /// The clients end after what they are at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn ends(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sends one message after the other, each once.
    pub async fn send(self: Arc<Self>, client: Client, number: u64) {
        for step in 0_u64.. {
            if self.ends() {
                return;
            }
            let (key, body) = (format!("part-{}", step % KEYS), format!("{number}/{step}"));
            let dedup = if step % 2 == 0 { body.clone() } else { String::new() };
            let sent = client.queue().send(key, body.clone(), dedup).await;
            self.note_sent(body, sent);
            tokio::time::sleep(self.pause).await;
        }
    }

    fn note_sent(&self, body: String, sent: Result<Sent, ClientError>) {
        let mut ledger = self.ledger.lock();
        match sent {
            Ok(_) => drop(ledger.acknowledged.insert(body)),
            Err(error) if error.is_definite() => drop(ledger.refused.insert(body)),
            Err(_) => {}
        }
    }

    /// Receives from one shard after the other, and acks most of it.
    pub async fn receive(self: Arc<Self>, client: Client) {
        for round in 0.. {
            if self.ends() {
                return;
            }
            let shard = usize::try_from(round).unwrap_or(0) % client.queue().shards().max(1);
            let asked = self.ledger.lock().moment;
            // A receive whose answer is lost took messages that come back.
            if let Ok(received) = client.queue().receive(shard, BATCH, VISIBILITY).await {
                self.note_received(&received, asked + 1);
                if round % FORGOTTEN != 0 && !received.messages.is_empty() {
                    self.ack(&client.queue(), &received).await;
                }
            }
            tokio::time::sleep(self.pause).await;
        }
    }

    fn note_received(&self, received: &Received, asked: u64) {
        let mut ledger = self.ledger.lock();
        received.messages.iter().for_each(|one| ledger.see(received.shard, one, asked));
    }

    async fn ack(&self, queue: &QueueClient, received: &Received) {
        let Ok(acked) = queue.ack(received.shard, received.receipts()).await else { return };
        let count = received.messages.len();
        if acked.acked as usize + acked.stale as usize != count {
            let mut ledger = self.ledger.lock();
            ledger.fault(format!(
                "of {count} receipts {} were acked, {} stale",
                acked.acked, acked.stale
            ));
        }
        // Which part was stale is unknown.
        if acked.acked as usize == count {
            self.ledger.lock().remove(&received.messages);
        }
    }

    /// Looks at what is left, and holds everything together. Returns how many messages were acknowledged.
    ///
    /// # Errors
    /// What is wrong, a line each.
    pub async fn verify(&self, client: &Client) -> Result<usize, String> {
        for shard in 0..client.queue().shards() {
            let there = self.look(&client.queue(), shard).await?;
            self.receive_all(&client.queue(), shard, there).await?;
        }
        self.ledger.lock().verdict()
    }

    /// Receives and acks until everything that is there is gone.
    async fn receive_all(
        &self,
        queue: &QueueClient,
        shard: usize,
        mut there: BTreeSet<u64>,
    ) -> Result<(), String> {
        let deadline = Instant::now() + RECEIVED_WITHIN;
        while let Some(first) = there.first() {
            if Instant::now() > deadline {
                let left = there.len();
                return Err(format!(
                    "{left} messages of shard {shard}, {first} is the first, are there and are not \
                     received within {RECEIVED_WITHIN:?}"
                ));
            }
            let asked = self.ledger.lock().moment + 1;
            let Ok(received) = queue.receive(shard, MAX_RECEIVE, VISIBILITY).await else {
                continue;
            };
            self.note_received(&received, asked);
            let taken: BTreeSet<u64> = received.messages.iter().map(|one| one.sequence).collect();
            there.retain(|sequence| !taken.contains(sequence));
            if received.messages.is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            } else {
                self.ack(queue, &received).await;
            }
        }
        Ok(())
    }

    /// Sees everything in a shard.
    async fn look(&self, queue: &QueueClient, shard: usize) -> Result<BTreeSet<u64>, String> {
        let (mut from, mut found) = (0, BTreeSet::new());
        loop {
            let asked = self.ledger.lock().moment + 1;
            let there = queue.peek(shard, from, Some(1_000)).await;
            let there =
                there.map_err(|error| format!("shard {shard} cannot be looked at: {error}"))?;
            let mut ledger = self.ledger.lock();
            there.messages.iter().for_each(|message| ledger.see(shard, message, asked));
            found.extend(there.messages.iter().map(|message| message.sequence));
            let Some(last) = there.messages.last().filter(|_| there.more) else { return Ok(found) };
            from = last.sequence + 1;
        }
    }
}

fn message(body: &str, sequence: u64) -> Delivery {
    Delivery { sequence, body: body.to_owned().into(), ..Delivery::default() }
}

fn ledger(acknowledged: &[&str]) -> Ledger {
    let acknowledged = acknowledged.iter().map(|body| (*body).to_owned()).collect();
    Ledger { acknowledged, ..Ledger::default() }
}

#[test]
fn a_ledger_in_order_has_no_faults() {
    let mut ledger = ledger(&["one", "two"]);
    ledger.see(0, &message("one", 1), 1);
    ledger.remove(&[message("one", 1)]);
    // Asked before that was known, and its outcome unknown to its sender.
    ledger.see(0, &message("one", 1), 1);
    ledger.see(1, &message("two", 1), 2);
    ledger.see(1, &message("unknown", 2), 2);
    assert_eq!(ledger.verdict(), Ok(2));
}

#[test]
fn a_ledger_finds_what_is_lost_doubled_refused_or_removed_and_there() {
    let found = |mut ledger: Ledger, words: &str| {
        let faults = ledger.verdict().expect_err(words);
        assert!(faults.contains(words), "{faults}");
    };
    found(ledger(&["one"]), "never received");
    let mut doubled = ledger(&[]);
    doubled.see(0, &message("one", 1), 1);
    doubled.see(0, &message("one", 2), 1);
    found(doubled, "stored twice");
    let mut refused = ledger(&[]);
    refused.refused.insert("one".to_owned());
    refused.see(0, &message("one", 1), 1);
    found(refused, "refused for good");
    let mut removed = ledger(&[]);
    removed.remove(&[message("one", 1)]);
    removed.see(0, &message("one", 1), 2);
    found(removed, "was removed");
    let mut twice = ledger(&[]);
    twice.remove(&[message("one", 1)]);
    twice.remove(&[message("one", 1)]);
    found(twice, "removed twice");
}
