//! A steady stream of writes, offered whatever the answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shardhost::groups::clock::{Clock, SystemClock};
use shardhost::groups::{ProposalSink, ProposeOutcome};
use shardhost::{GroupId, Host};
use shardhost_server::shards::table::TableCommand;

use crate::arguments::MachineKind;

/// The offered load.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// The group that is measured.
    pub group: u64,
    /// Writes per second to it.
    pub rate: u64,
    /// Writes per second to all others together.
    pub others: u64,
    pub machine: MachineKind,
}

/// An acknowledged write of the group that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// When it was acknowledged, on the clock of this machine.
    pub at_ns: u64,
    pub took_us: u64,
}

/// Takes acknowledgements. The token of a write is when it was due; 0: it is of another group.
#[derive(Debug, Default)]
struct Acks(Mutex<Vec<Ack>>);

impl ProposalSink for Acks {
    fn complete(&self, due_ns: u64, outcome: ProposeOutcome) {
        let now = SystemClock.now();
        if let (Ok(_), Some(now), true) = (outcome, now, due_ns > 0) {
            let (at_ns, took_us) = (now.get(), now.get().saturating_sub(due_ns) / 1_000);
            self.0.lock().push(Ack { at_ns, took_us });
        }
    }
}

/// One host's part: it offers everything, and its groups refuse what others lead.
pub struct Offering {
    acks: Arc<Acks>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Offering {
    /// Starts the stream on a separate thread.
    pub fn start(host: &Host, offer: Offer) -> anyhow::Result<Self> {
        let (acks, stop) = (Arc::<Acks>::default(), Arc::<AtomicBool>::default());
        let (sink, stopped, host) = (Arc::clone(&acks), Arc::clone(&stop), host.clone());
        let run = move || {
            let mut stream = Stream { host, offer, sink, number: 0 };
            stream.run(&stopped);
        };
        let thread = std::thread::Builder::new().name("offer".to_owned()).spawn(run)?;
        Ok(Self { acks, stop, thread: Some(thread) })
    }

    /// Ends the stream, and returns what was acknowledged.
    pub fn end(&mut self) -> Vec<Ack> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that offers writes panicked");
        }
        std::mem::take(&mut *self.acks.0.lock())
    }
}

struct Stream {
    host: Host,
    offer: Offer,
    sink: Arc<Acks>,
    number: u64,
}

impl Stream {
    fn run(&mut self, stop: &AtomicBool) {
        let mut own = Due::new(self.offer.rate);
        let mut others = Due::new(self.offer.others);
        let ids: Vec<GroupId> = self.host.groups().iter().map(|group| group.id()).collect();
        let measured = GroupId::new(self.offer.group);
        let ids: Vec<GroupId> = ids.into_iter().filter(|id| *id != measured).collect();
        let mut turn = ids.iter().cycle();
        while !stop.load(Ordering::Relaxed) {
            let Some(now) = SystemClock.now().map(|now| now.get()) else { return };
            while let Some(due) = own.take(now) {
                self.write(measured, due);
            }
            while let Some(_due) = others.take(now) {
                if let Some(group) = turn.next() {
                    self.write(*group, 0);
                }
            }
            std::thread::sleep(Duration::from_nanos(own.next_ns.min(others.next_ns) - now));
        }
    }

    fn write(&mut self, group: GroupId, token: u64) {
        self.number += 1;
        let Some(group) = self.host.group(group) else { return };
        let sink: Arc<dyn ProposalSink> = Arc::clone(&self.sink) as _;
        group.submit([(token, self.command())], &sink);
    }

    fn command(&self) -> Bytes {
        let value = self.number.to_be_bytes().repeat(2);
        match self.offer.machine {
            MachineKind::Trivial => value.into(),
            MachineKind::Table => {
                let key = format!("key-{:05}", self.number % 1_000);
                TableCommand::Put { key: key.as_bytes(), value: &value }.encode()
            }
        }
    }
}

struct Due {
    next_ns: u64,
    interval_ns: u64,
}

impl Due {
    /// So many per second, beginning at once; 0: none ever.
    fn new(rate: u64) -> Self {
        match 1_000_000_000u64.checked_div(rate) {
            Some(interval_ns) => Self { next_ns: 0, interval_ns: interval_ns.max(1) },
            None => Self { next_ns: u64::MAX, interval_ns: 1 },
        }
    }

    /// The moment of one that is due.
    fn take(&mut self, now: u64) -> Option<u64> {
        if self.next_ns == 0 {
            self.next_ns = now;
        }
        let due = self.next_ns;
        (due <= now).then(|| {
            self.next_ns += self.interval_ns;
            due
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_due_at_even_intervals_and_none_is_left_out() {
        let mut due = Due::new(1_000);
        let all = |due: &mut Due, now| std::iter::from_fn(|| due.take(now)).collect::<Vec<_>>();
        assert_eq!(all(&mut due, 5_000_000), [5_000_000]);
        assert_eq!(all(&mut due, 5_900_000), [0; 0]);
        assert_eq!(all(&mut due, 8_000_000), [6_000_000, 7_000_000, 8_000_000]);
        assert_eq!(all(&mut Due::new(0), u64::MAX - 1), [0; 0]);
    }
}
