//! Which snapshots are on their way out, and the one report that each ends in.
//!
//! There is one shipment to a replica at a time. When its group asks for another, because it
//! leads anew or has a later snapshot, the first ends and the second reports for both: reports
//! name a replica, and that of the first would be taken for one of the second.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use shardhost_groups::transport::{ShipmentOutcome, SnapshotShipment};
use shardhost_storage::{ByteRate, GroupId, ReplicaId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::transport::config::SnapshotLimits;
use crate::transport::shared::Shared;
use crate::transport::stats::ShipmentFailure;

/// Bounds and bookkeeping of shipments.
pub(in crate::transport) struct Shipments {
    limits: SnapshotLimits,
    /// Turns of those that are sent.
    turns: Semaphore,
    /// Room for those that wait for a turn or have one.
    room: Arc<Semaphore>,
    /// The rate that all share.
    pub(super) rate: ByteRate,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    by_destination: HashMap<Destination, Entry>,
    /// Number of the last one.
    last: u64,
}

/// The newest shipment to a replica.
struct Entry {
    number: u64,
    superseded: CancellationToken,
    /// How many asked for it, itself and those that it replaced.
    reports: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Destination {
    pub group: GroupId,
    pub replica: ReplicaId,
}

impl Destination {
    /// Of a shipment that addresses a replica.
    pub fn of(shipment: &SnapshotShipment) -> Option<Self> {
        let replica = ReplicaId::new(shipment.message.to_replica)?;
        Some(Self { group: GroupId::new(shipment.message.group), replica })
    }
}

impl Shipments {
    pub fn new(limits: &SnapshotLimits) -> Self {
        Self {
            limits: *limits,
            turns: Semaphore::new(limits.sending),
            room: Arc::new(Semaphore::new(limits.sending + limits.waiting)),
            rate: ByteRate::new(limits.bytes_per_second),
            running: Mutex::default(),
        }
    }

    /// Snapshots being sent.
    pub fn sending(&self) -> usize {
        self.limits.sending.saturating_sub(self.turns.available_permits())
    }

    /// Shipments that wait for a turn, or to report that they failed.
    pub fn waiting(&self) -> usize {
        let most = self.limits.sending + self.limits.waiting;
        most.saturating_sub(self.room.available_permits()).saturating_sub(self.sending())
    }

    pub(super) const fn turns(&self) -> &Semaphore {
        &self.turns
    }

    fn enter(&self, destination: Destination) -> (u64, CancellationToken) {
        let mut running = self.running.lock();
        running.last += 1;
        let (number, superseded) = (running.last, CancellationToken::new());
        let entry = Entry { number, superseded: superseded.clone(), reports: 1 };
        if let Some(older) = running.by_destination.insert(destination, entry) {
            older.superseded.cancel();
            running.by_destination.entry(destination).and_modify(|e| e.reports += older.reports);
        }
        (number, superseded)
    }

    /// How many reports are due; none when a newer shipment took them over.
    fn leave(&self, destination: Destination, number: u64) -> usize {
        let mut running = self.running.lock();
        match running.by_destination.get(&destination) {
            Some(entry) if entry.number == number => {
                running.by_destination.remove(&destination).map_or(0, |entry| entry.reports)
            }
            _ => 0,
        }
    }
}

/// A shipment that was let in. Reports how it ended when it is dropped; failure, if it ended in
/// no other way.
pub(super) struct Ticket {
    shared: Arc<Shared>,
    destination: Destination,
    entered: Option<Entered>,
    outcome: Option<Result<(), ShipmentFailure>>,
}

struct Entered {
    number: u64,
    superseded: CancellationToken,
    _room: OwnedSemaphorePermit,
}

impl Ticket {
    /// Lets a shipment in; one too many gets a ticket that can only fail.
    pub fn new(shared: &Arc<Shared>, destination: Destination) -> Self {
        let shipments = &shared.shipments;
        let entered = Arc::clone(&shipments.room).try_acquire_owned().ok().map(|room| {
            let (number, superseded) = shipments.enter(destination);
            Entered { number, superseded, _room: room }
        });
        Self { shared: Arc::clone(shared), destination, entered, outcome: None }
    }

    pub const fn destination(&self) -> Destination {
        self.destination
    }

    /// Set when a newer shipment takes over; `None`: there is no room.
    pub fn superseded(&self) -> Option<CancellationToken> {
        Some(self.entered.as_ref()?.superseded.clone())
    }

    /// How it ended.
    pub fn end(&mut self, outcome: Result<(), ShipmentFailure>) {
        self.outcome = Some(outcome);
    }

    fn count(&self) -> ShipmentOutcome {
        let counters = &self.shared.counters.snapshots;
        let stopping = self.shared.stop.is_cancelled();
        let unexpected =
            if stopping { ShipmentFailure::Stopping } else { ShipmentFailure::Panicked };
        match self.outcome.unwrap_or(Err(unexpected)) {
            Ok(()) => {
                counters.sent.add(1);
                ShipmentOutcome::Delivered
            }
            Err(failure) => {
                counters.failures.add(failure);
                match failure {
                    ShipmentFailure::Missing | ShipmentFailure::Damaged => {
                        ShipmentOutcome::Unusable
                    }
                    _ => ShipmentOutcome::Failed,
                }
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Destination { group, replica } = self.destination;
        let reports = match &self.entered {
            Some(entered) => self.shared.shipments.leave(self.destination, entered.number),
            None => 1,
        };
        for _ in 0..reports {
            let outcome = self.count();
            if let Some(inbound) = self.shared.inbound() {
                inbound.snapshot_shipped(group, replica, outcome);
            }
        }
    }
}
