//! The pulse of the transport: one task that, each interval, sends a heartbeat to every peer,
//! looks who is silent, drops what waited too long for a connection, and reports drops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shardhost_groups::transport::Inbound;
use shardhost_proto::peer::NodeHeartbeat;
use tokio::time::MissedTickBehavior;

use super::clocks;
use super::liveness::Timeouts;
use super::peer::Peer;
use super::shared::Shared;

/// How often the clocks of the peers are compared with that of this node.
const CLOCKS_INTERVAL: Duration = Duration::from_secs(5);

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
    timeouts: Timeouts,
    sequence: u64,
    last: Instant,
    last_was_late: bool,
    clocks_compared: Instant,
    clock_alarm: bool,
}

impl<'a> Pulse<'a> {
    fn new(shared: &'a Shared, inbound: Arc<dyn Inbound>) -> Self {
        let timeouts = Timeouts {
            calm: shared.config.liveness_timeout,
            suspected: shared.config.heartbeat_interval * 2,
        };
        let last = Instant::now();
        Self {
            shared,
            inbound,
            timeouts,
            sequence: 0,
            last,
            last_was_late: false,
            clocks_compared: last,
            clock_alarm: false,
        }
    }

    fn beat(&mut self) {
        let now = Instant::now();
        let judges = self.may_judge(now);
        self.sequence += 1;
        for peer in self.shared.peers.load().values() {
            self.attend(peer, now);
            self.look_at_bulk(peer, now, judges);
            if judges {
                peer.liveness.judge(now, self.timeouts, &self.inbound);
            }
        }
        if now.saturating_duration_since(self.clocks_compared) >= CLOCKS_INTERVAL {
            self.clocks_compared = now;
            self.compare_clocks(now);
        }
    }

    /// Logs once when the clock of this node is found wrong, and once when it is right again.
    fn compare_clocks(&mut self, now: Instant) {
        let alarm = self.shared.clock_alarm(now);
        match (alarm, self.clock_alarm) {
            (Some(alarm), false) => tracing::warn!(%alarm, "wall clocks differ"),
            (None, true) => tracing::info!("wall clocks agree again"),
            _ => {}
        }
        self.clock_alarm = alarm.is_some();
    }

    /// A process that was itself stopped for a while has received nothing: its first beat judges no
    /// peer, so that data that waits in the sockets is read first. A process that is late at every
    /// beat judges all the same.
    fn may_judge(&mut self, now: Instant) -> bool {
        let late = now.duration_since(self.last) > self.shared.config.heartbeat_interval * 3;
        let forgiven = late && !self.last_was_late;
        self.last = now;
        self.last_was_late = late;
        !forgiven
    }

    /// A bulk connection of which a peer takes nothing, although the peer is live, is made again. A
    /// peer that is silent, or that a stopped process did not read, may still take it.
    fn look_at_bulk(&self, peer: &Peer, now: Instant, judges: bool) {
        let lately = self.shared.config.heartbeat_interval * 3;
        if judges && peer.liveness.is_heard_within(lately, now) {
            peer.bulk.give_up_if_stalled(now, self.timeouts.calm);
        } else {
            peer.bulk.excuse(now);
        }
    }

    fn attend(&self, peer: &Peer, now: Instant) {
        if !self.shared.silent.load(Ordering::Relaxed) {
            peer.urgent.beat(NodeHeartbeat {
                sequence: self.sequence,
                advertisement: None,
                founding: self.shared.identity.founded.get(),
                wall_ms: clocks::wall_ms(),
            });
        }
        let mut dropped = Vec::new();
        peer.bulk.expire(now, &mut dropped);
        peer.urgent.expire(now, &mut dropped);
        peer.note_unreachable(dropped);
        peer.report_unreachable(&self.inbound);
    }
}
