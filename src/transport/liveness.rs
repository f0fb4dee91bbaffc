//! Whether a peer node is live: judged by its heartbeats, with a monotonic clock that the caller
//! reads.
//!
//! Any frame from the node counts as life; heartbeats see to it that one comes at least every
//! interval. Silence for the liveness timeout is loss. A broken or refused urgent connection is
//! only a suspicion: with it, two silent intervals are enough. So a killed process is noticed
//! within about three intervals, a frozen one within the timeout, and a connection that is made
//! again at once goes unnoticed.
//!
//! A node's advertisement is remembered until another incarnation of it is seen, and reported right
//! after its liveness. The streams of a lane follow one another, so the last advertisement of its
//! urgent lane is the newest; a greeting of the other lane may come late, and adds only what is
//! missing.
//!
//! Liveness, loss and advertisements are reported in order, under a lock; the lock is not taken per
//! frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::transport::{Inbound, Lane};
use shardhost_storage::NodeId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::handshake::{Greeting, Refusal};
use super::starts::{Place, Sight, Starts};

/// The known state of one peer.
#[derive(Debug)]
pub(super) struct Liveness {
    node: NodeId,
    started: Instant,
    last_heard: AtomicU64,
    suspected: AtomicBool,
    live: AtomicBool,
    /// The incarnation that represents the peer, by a greeting or an answer to ours; 0: none.
    /// Written under the lock, from `Known::starts`.
    incarnation: AtomicU64,
    /// Notified when another incarnation represents the peer.
    displaced: Notify,
    known: Mutex<Known>,
    /// Ends every stream of the peer.
    stop: CancellationToken,
}

#[derive(Debug)]
struct Known {
    starts: Starts,
    /// The incarnation that was last reported live.
    told: Option<u64>,
    /// The last advertisement of the newest incarnation.
    advertisement: Option<Advertisement>,
    /// The present stream of each lane.
    bulk: Option<CancellationToken>,
    urgent: Option<CancellationToken>,
}

/// How long a peer may be silent before it is lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// While nothing speaks against it.
    pub calm: Duration,
    /// While its urgent connection is broken.
    pub suspected: Duration,
}

/// A stream from the peer that passed the handshake.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    pub node: NodeId,
    pub incarnation: u64,
    pub lane: Lane,
    /// Set when the stream is superseded, the peer removed, or the transport shut down.
    pub ended: CancellationToken,
}

impl Liveness {
    pub fn new(node: NodeId, started: Instant, stop: CancellationToken) -> Self {
        Self {
            node,
            started,
            last_heard: AtomicU64::new(0),
            suspected: AtomicBool::new(false),
            live: AtomicBool::new(false),
            incarnation: AtomicU64::new(0),
            displaced: Notify::new(),
            known: Mutex::new(Known::new(node)),
            stop,
        }
    }

    /// An earlier process of this host saw this incarnation of the peer.
    pub fn remember(&self, incarnation: u64) {
        let mut known = self.known.lock();
        known.starts.remember(incarnation);
        self.incarnation.store(known.starts.seen(), Ordering::Release);
    }

    /// The first frame of a stream came.
    pub fn confirm(&self, incarnation: u64) {
        self.known.lock().starts.confirm(incarnation);
    }

    /// Waits until another incarnation than this one represents the peer.
    pub async fn displaced(&self, incarnation: u64) {
        loop {
            let mut displaced = std::pin::pin!(self.displaced.notified());
            displaced.as_mut().enable();
            if self.incarnation() != Some(incarnation) {
                return;
            }
            displaced.await;
        }
    }

    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    /// Whether the peer is live, and sent something lately.
    pub fn is_heard_within(&self, time: Duration, now: Instant) -> bool {
        let timeouts = Timeouts { calm: time, suspected: time };
        self.is_live() && !self.is_silent(now, timeouts)
    }

    /// Since when the peer says nothing; `None`: it has said nothing yet.
    pub fn silent_for(&self, now: Instant) -> Option<Duration> {
        let heard = self.last_heard.load(Ordering::Acquire);
        (self.incarnation().is_some() && heard > 0)
            .then(|| Duration::from_millis(self.milliseconds(now).saturating_sub(heard)))
    }

    pub fn incarnation(&self) -> Option<u64> {
        Some(self.incarnation.load(Ordering::Acquire)).filter(|seen| *seen > 0)
    }

    /// The last advertisement of the newest incarnation.
    pub fn advertisement(&self) -> Option<Advertisement> {
        self.known.lock().advertisement.clone()
    }

    /// Admits a stream, with the advertisement of its greeting. Its predecessor on the same lane
    /// ends; all streams of an earlier incarnation end.
    pub fn admit(
        &self,
        greeting: &Greeting,
        latest: u64,
        lane: Lane,
        said: Option<Advertisement>,
        now: Instant,
        inbound: &Arc<dyn Inbound>,
    ) -> Result<Visit, Refusal> {
        let mut known = self.known.lock();
        let sight = self.sight(&known, latest);
        let place = known.starts.greets(greeting, sight)?;
        self.note(&mut known, place);
        let ended = self.stop.child_token();
        if let Some(previous) = known.stream(lane).replace(ended.clone()) {
            previous.cancel();
        }
        self.mark_heard(now);
        let news = said.is_some_and(|said| known.hear(said, lane));
        let told = self.tell_live(&mut known, greeting.incarnation, inbound);
        if news && !told {
            self.tell_advertisement(&known, greeting.incarnation, inbound);
        }
        Ok(Visit { node: self.node, incarnation: greeting.incarnation, lane, ended })
    }

    /// A stream of a snapshot greets.
    pub fn visits(&self, greeting: &Greeting, latest: u64) -> Result<(), Refusal> {
        let known = self.known.lock();
        known.starts.visits(greeting.incarnation, self.sight(&known, latest))
    }

    /// The process at the peer's address answered a greeting. When that was sent, `asked`
    /// represented the peer.
    pub fn welcomed(
        &self,
        greeting: &Greeting,
        asked: Option<u64>,
        latest: u64,
    ) -> Result<(), Refusal> {
        let mut known = self.known.lock();
        let sight = self.sight(&known, latest);
        let place = known.starts.answers(greeting.incarnation, asked.unwrap_or(0), sight)?;
        self.note(&mut known, place);
        Ok(())
    }

    /// A frame came on a stream.
    pub fn heard(&self, visit: &Visit, now: Instant, inbound: &Arc<dyn Inbound>) {
        self.mark_heard(now);
        if !self.is_live() {
            let mut known = self.known.lock();
            if !visit.ended.is_cancelled() {
                self.tell_live(&mut known, visit.incarnation, inbound);
            }
        }
    }

    /// A heartbeat carried an advertisement of the peer.
    pub fn said(&self, visit: &Visit, advertisement: Advertisement, inbound: &Arc<dyn Inbound>) {
        let mut known = self.known.lock();
        if !visit.ended.is_cancelled() && known.hear(advertisement, visit.lane) && self.is_live() {
            self.tell_advertisement(&known, visit.incarnation, inbound);
        }
    }

    /// The urgent connection to or from the peer broke or was refused.
    pub fn suspect(&self) {
        self.suspected.store(true, Ordering::Release);
    }

    /// Looks whether the peer has been silent for too long.
    pub fn judge(&self, now: Instant, timeouts: Timeouts, inbound: &Arc<dyn Inbound>) {
        if self.is_live() && self.is_silent(now, timeouts) {
            let _known = self.known.lock();
            if self.is_live() && self.is_silent(now, timeouts) {
                tracing::warn!(node = %self.node, "peer lost");
                self.live.store(false, Ordering::Release);
                inbound.peer_lost(self.node);
            }
        }
    }

    /// The peer was removed from the directory, or the transport ends.
    pub fn forget(&self, inbound: &Arc<dyn Inbound>) {
        let _known = self.known.lock();
        if self.live.swap(false, Ordering::AcqRel) {
            inbound.peer_lost(self.node);
        }
    }

    fn sight(&self, known: &Known, latest: u64) -> Sight {
        let heard = self.is_live() && known.told == Some(known.starts.seen());
        Sight { heard, latest }
    }

    fn note(&self, known: &mut Known, place: Place) {
        if place == Place::Taken {
            known.end_streams();
            known.advertisement = None;
            self.incarnation.store(known.starts.seen(), Ordering::Release);
            self.displaced.notify_waiters();
        }
    }

    /// Reports that the peer is live, and its advertisement, if that is news.
    fn tell_live(&self, known: &mut Known, incarnation: u64, inbound: &Arc<dyn Inbound>) -> bool {
        let was_live = self.live.swap(true, Ordering::AcqRel);
        let news = !was_live || known.told != Some(incarnation);
        if news {
            tracing::info!(node = %self.node, incarnation, "peer live");
            known.told = Some(incarnation);
            inbound.peer_live(self.node, incarnation);
            self.tell_advertisement(known, incarnation, inbound);
        }
        news
    }

    fn tell_advertisement(&self, known: &Known, incarnation: u64, inbound: &Arc<dyn Inbound>) {
        if let Some(advertisement) = known.advertisement.clone() {
            inbound.peer_advertisement(self.node, incarnation, advertisement);
        }
    }

    fn mark_heard(&self, now: Instant) {
        self.last_heard.store(self.milliseconds(now), Ordering::Release);
        self.suspected.store(false, Ordering::Release);
    }

    fn milliseconds(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }

    fn is_silent(&self, now: Instant, timeouts: Timeouts) -> bool {
        let heard = self.last_heard.load(Ordering::Acquire);
        let silence = Duration::from_millis(self.milliseconds(now).saturating_sub(heard));
        let suspected = self.suspected.load(Ordering::Acquire);
        silence >= if suspected { timeouts.suspected } else { timeouts.calm }
    }
}

impl Known {
    fn new(node: NodeId) -> Self {
        let starts = Starts::new(node);
        Self { starts, told: None, advertisement: None, bulk: None, urgent: None }
    }

    fn stream(&mut self, lane: Lane) -> &mut Option<CancellationToken> {
        match lane {
            Lane::Bulk => &mut self.bulk,
            Lane::Urgent => &mut self.urgent,
        }
    }

    /// Remembers the node's advertisement; returns whether that is news.
    fn hear(&mut self, said: Advertisement, lane: Lane) -> bool {
        let newer = lane == Lane::Urgent || self.advertisement.is_none();
        let news = newer && self.advertisement.as_ref() != Some(&said);
        if news {
            self.advertisement = Some(said);
        }
        news
    }

    fn end_streams(&mut self) {
        for stream in [self.bulk.take(), self.urgent.take()].into_iter().flatten() {
            stream.cancel();
        }
    }
}

#[cfg(test)]
mod tests;
