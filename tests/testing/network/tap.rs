//! Taps: a test looks at what is sent and decides about it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::NodeId;

use super::Wire;
use super::shipping::Shipment;
use shardhost_groups::transport::Lane;

/// Something that is sent, as a tap sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Envelope<'a> {
    pub from: NodeId,
    pub to: NodeId,
    /// The lane of a message; `None`: a shipment of a snapshot.
    pub lane: Option<Lane>,
    pub message: &'a GroupMessage,
}

impl Envelope<'_> {
    /// What kind of message it is.
    #[must_use]
    pub fn kind(&self) -> MessageKind {
        self.message.kind()
    }
}

/// What a tap decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Deliver,
    /// It is lost without a notice. A shipment of a snapshot fails.
    Lose,
    /// It is kept until the tap is released.
    Hold,
}

/// Decides about everything that is sent, as long as it is held. Dropped, it loses what it holds.
#[must_use = "dropping the tap removes it"]
pub struct Tap {
    wire: Arc<Wire>,
    id: u64,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tap with {} held", self.held())
    }
}

impl Tap {
    pub(super) const fn new(wire: Arc<Wire>, id: u64) -> Self {
        Self { wire, id }
    }

    /// How much it holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.wire.lock().taps.held(self.id)
    }

    /// Waits until it holds so much; `false` when that does not happen `within`. Blocks.
    #[must_use]
    pub fn wait_held(&self, count: usize, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut state = self.wire.lock();
        while state.taps.held(self.id) < count {
            if self.wire.caught.wait_until(&mut state, deadline).timed_out() {
                return state.taps.held(self.id) >= count;
            }
        }
        true
    }

    /// Removes the tap and lets everything that it holds go its way, in the order in which it
    /// was sent, past all other taps.
    pub fn release(self) {
        let mut state = self.wire.lock();
        let held = state.taps.remove(self.id);
        let now = Instant::now();
        for one in held {
            match one {
                Held::Message { from, to, lane, message } => {
                    // Who sent it does not hear of it: it may have forgotten it long ago.
                    let _on_its_way = state.put(from, to, lane, message, now);
                }
                Held::Shipment(shipment) => self.wire.shipments.put(shipment),
            }
        }
        drop(state);
        self.wire.wake.notify_all();
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let held = self.wire.lock().taps.remove(self.id);
        for one in held {
            if let Held::Shipment(shipment) = one {
                shipment.fail(&self.wire);
            }
        }
    }
}

/// The function of a tap.
pub(super) type Judge = Box<dyn FnMut(&Envelope<'_>) -> Fate + Send>;

/// What the taps together decide.
pub(super) enum Judged {
    Deliver,
    Lose,
    Hold(u64),
}

/// Something that a tap holds.
pub(super) enum Held {
    Message { from: NodeId, to: NodeId, lane: Lane, message: GroupMessage },
    Shipment(Shipment),
}

struct One {
    judge: Judge,
    held: Vec<Held>,
}

/// All taps, in the order in which they were set.
#[derive(Default)]
pub(super) struct Taps {
    taps: BTreeMap<u64, One>,
    newest: u64,
}

impl Taps {
    pub(super) fn add(&mut self, judge: Judge) -> u64 {
        self.newest += 1;
        self.taps.insert(self.newest, One { judge, held: Vec::new() });
        self.newest
    }

    pub(super) fn judge(&mut self, envelope: &Envelope<'_>) -> Judged {
        for (id, tap) in &mut self.taps {
            match (tap.judge)(envelope) {
                Fate::Deliver => {}
                Fate::Lose => return Judged::Lose,
                Fate::Hold => return Judged::Hold(*id),
            }
        }
        Judged::Deliver
    }

    pub(super) fn hold(&mut self, id: u64, held: Held) {
        if let Some(tap) = self.taps.get_mut(&id) {
            tap.held.push(held);
        }
    }

    fn held(&self, id: u64) -> usize {
        self.taps.get(&id).map_or(0, |tap| tap.held.len())
    }

    fn remove(&mut self, id: u64) -> Vec<Held> {
        self.taps.remove(&id).map_or_else(Vec::new, |tap| tap.held)
    }
}
