//! The pulse of the transport: one task that, each interval, sends a heartbeat to every peer,
//! looks who is silent, drops what waited too long for a connection, and reports drops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use shardhost_groups::transport::Inbound;
use tokio::time::MissedTickBehavior;

use super::liveness::Patience;
use super::peer::Peer;
use super::shared::Shared;

/// Beats until the transport ends.
pub(super) async fn run(shared: Arc<Shared>, inbound: Arc<dyn Inbound>) {
    let mut interval = tokio::time::interval(shared.config.heartbeat_interval);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = Pulse::new(&shared, inbound);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            _ = interval.tick() => pulse.beat(),
        }
    }
}

struct Pulse<'a> {
    shared: &'a Shared,
    inbound: Arc<dyn Inbound>,
    patience: Patience,
    sequence: u64,
    last: Instant,
    last_was_late: bool,
}

impl<'a> Pulse<'a> {
    fn new(shared: &'a Shared, inbound: Arc<dyn Inbound>) -> Self {
        let patience = Patience {
            calm: shared.config.liveness_timeout,
            suspected: shared.config.heartbeat_interval * 2,
        };
        let last = Instant::now();
        Self { shared, inbound, patience, sequence: 0, last, last_was_late: false }
    }

    fn beat(&mut self) {
        let now = Instant::now();
        let judges = self.may_judge(now);
        self.sequence += 1;
        for peer in self.shared.peers.load().values() {
            self.attend(peer, now);
            self.look_at_bulk(peer, now, judges);
            if judges {
                peer.liveness.judge(now, self.patience, &self.inbound);
            }
        }
    }

    /// A process that was itself stopped for a while has not heard anybody: its first beat
    /// judges nobody, so that what waits in the sockets is heard first. A process that is late
    /// at every beat judges all the same.
    fn may_judge(&mut self, now: Instant) -> bool {
        let late = now.duration_since(self.last) > self.shared.config.heartbeat_interval * 3;
        let forgiven = late && !self.last_was_late;
        self.last = now;
        self.last_was_late = late;
        !forgiven
    }

    /// A bulk connection of which a peer takes nothing, although the peer is heard, is made anew. One
    /// that is not heard, or not by a process that stood still, may take it when it is.
    fn look_at_bulk(&self, peer: &Peer, now: Instant, judges: bool) {
        let lately = self.shared.config.heartbeat_interval * 3;
        if judges && peer.liveness.is_heard_within(lately, now) {
            peer.bulk.give_up_if_stalled(now, self.patience.calm);
        } else {
            peer.bulk.excuse(now);
        }
    }

    fn attend(&self, peer: &Peer, now: Instant) {
        if !self.shared.silent.load(Ordering::Relaxed) {
            peer.urgent.beat(self.sequence, self.shared.identity.founded.get());
        }
        let mut dropped = Vec::new();
        peer.bulk.expire(now, &mut dropped);
        peer.urgent.expire(now, &mut dropped);
        peer.note_unreachable(dropped);
        peer.report_unreachable(&self.inbound);
    }
}
