//! Whether a peer node lives: judged by what is heard from it, with a monotonic clock that the
//! caller reads.
//!
//! Any frame from the node counts as life; heartbeats see to it that one comes at least every
//! interval. Silence for the liveness timeout is loss. A broken or refused urgent connection is
//! only a suspicion: with it, two silent intervals are enough. So a killed process is noticed
//! within about three intervals, a frozen one within the timeout, and a connection that is made
//! again at once goes unnoticed.
//!
//! What a node says of itself is remembered until another incarnation of it is seen, and told
//! right after its life. The streams of a lane follow one another, so what its urgent lane says
//! last is the newest; a greeting of the other lane may come late, and only says what was not said
//! before.
//!
//! Life, loss and what is said are told in order, under a lock; the lock is not taken per frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_groups::transport::{Inbound, Lane};
use shardhost_groups::worker::Advert;
use shardhost_storage::NodeId;
use tokio_util::sync::CancellationToken;

use super::handshake::{Greeting, Refusal};

/// What is known of the life of one peer.
#[derive(Debug)]
pub(super) struct Liveness {
    node: NodeId,
    started: Instant,
    /// Milliseconds after `started`.
    last_heard: AtomicU64,
    suspected: AtomicBool,
    live: AtomicBool,
    /// The newest incarnation seen, in a greeting or in an answer to ours; 0: none. Written under
    /// the lock.
    incarnation: AtomicU64,
    known: Mutex<Known>,
    /// Ends every stream of the peer.
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Known {
    /// The incarnation that was last told to be live.
    told: Option<u64>,
    /// What the newest incarnation said of itself last.
    advert: Option<Advert>,
    /// The present stream of each lane.
    bulk: Option<CancellationToken>,
    urgent: Option<CancellationToken>,
}

/// How long a peer may be silent before it is lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
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
            known: Mutex::default(),
            stop,
        }
    }

    /// An earlier process of this host saw this incarnation of the peer.
    pub fn remember(&self, incarnation: u64) {
        self.incarnation.fetch_max(incarnation, Ordering::AcqRel);
    }

    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    pub fn incarnation(&self) -> Option<u64> {
        Some(self.incarnation.load(Ordering::Acquire)).filter(|seen| *seen > 0)
    }

    /// What the newest incarnation said of itself last.
    pub fn advert(&self) -> Option<Advert> {
        self.known.lock().advert.clone()
    }

    /// Lets a stream in, with what its greeting says of the node. Its predecessor on the same lane
    /// ends; all streams of an earlier incarnation end.
    pub fn admit(
        &self,
        greeting: Greeting,
        lane: Lane,
        said: Option<Advert>,
        now: Instant,
        inbound: &Arc<dyn Inbound>,
    ) -> Result<Visit, Refusal> {
        let mut known = self.known.lock();
        self.note(&mut known, greeting.incarnation)?;
        let ended = self.stop.child_token();
        if let Some(previous) = known.stream(lane).replace(ended.clone()) {
            previous.cancel();
        }
        self.mark_heard(now);
        let news = said.is_some_and(|said| known.hear(said, lane));
        let told = self.tell_live(&mut known, greeting.incarnation, inbound);
        if news && !told {
            self.tell_advert(&known, greeting.incarnation, inbound);
        }
        Ok(Visit { node: self.node, incarnation: greeting.incarnation, lane, ended })
    }

    /// The peer answered a greeting of this node.
    pub fn welcomed(&self, greeting: Greeting) -> Result<(), Refusal> {
        self.note(&mut self.known.lock(), greeting.incarnation)
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

    /// A heartbeat said something of the peer.
    pub fn said(&self, visit: &Visit, advert: Advert, inbound: &Arc<dyn Inbound>) {
        let mut known = self.known.lock();
        if !visit.ended.is_cancelled() && known.hear(advert, visit.lane) && self.is_live() {
            self.tell_advert(&known, visit.incarnation, inbound);
        }
    }

    /// The urgent connection to or from the peer broke or was refused.
    pub fn suspect(&self) {
        self.suspected.store(true, Ordering::Release);
    }

    /// Looks whether the peer has been silent for too long.
    pub fn judge(&self, now: Instant, patience: Patience, inbound: &Arc<dyn Inbound>) {
        if self.is_live() && self.is_silent(now, patience) {
            let _known = self.known.lock();
            if self.is_live() && self.is_silent(now, patience) {
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

    fn note(&self, known: &mut Known, theirs: u64) -> Result<(), Refusal> {
        let seen = self.incarnation.load(Ordering::Acquire);
        if theirs < seen {
            return Err(Refusal::OldIncarnation { node: self.node, theirs, seen });
        }
        if theirs > seen {
            known.end_streams();
            known.advert = None;
            self.incarnation.store(theirs, Ordering::Release);
        }
        Ok(())
    }

    /// Tells that the peer lives and what it says of itself, if that is news.
    fn tell_live(&self, known: &mut Known, incarnation: u64, inbound: &Arc<dyn Inbound>) -> bool {
        let was_live = self.live.swap(true, Ordering::AcqRel);
        let news = !was_live || known.told != Some(incarnation);
        if news {
            tracing::info!(node = %self.node, incarnation, "peer live");
            known.told = Some(incarnation);
            inbound.peer_live(self.node, incarnation);
            self.tell_advert(known, incarnation, inbound);
        }
        news
    }

    fn tell_advert(&self, known: &Known, incarnation: u64, inbound: &Arc<dyn Inbound>) {
        if let Some(advert) = known.advert.clone() {
            inbound.peer_advert(self.node, incarnation, advert);
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

    fn is_silent(&self, now: Instant, patience: Patience) -> bool {
        let heard = self.last_heard.load(Ordering::Acquire);
        let silence = Duration::from_millis(self.milliseconds(now).saturating_sub(heard));
        let suspected = self.suspected.load(Ordering::Acquire);
        silence >= if suspected { patience.suspected } else { patience.calm }
    }
}

impl Known {
    fn stream(&mut self, lane: Lane) -> &mut Option<CancellationToken> {
        match lane {
            Lane::Bulk => &mut self.bulk,
            Lane::Urgent => &mut self.urgent,
        }
    }

    /// Remembers what the node says of itself; whether that is news.
    fn hear(&mut self, said: Advert, lane: Lane) -> bool {
        let newer = lane == Lane::Urgent || self.advert.is_none();
        let news = newer && self.advert.as_ref() != Some(&said);
        if news {
            self.advert = Some(said);
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
mod tests {
    use super::*;
    use shardhost_groups::transport::ShipmentOutcome;
    use shardhost_proto::peer::GroupMessage;
    use shardhost_storage::{GroupId, LogPosition, ReplicaId};

    const PATIENCE: Patience =
        Patience { calm: Duration::from_secs(1), suspected: Duration::from_millis(200) };

    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Edge {
        Live(u64),
        /// By the one name in it.
        Said(u64, String),
        Lost,
    }
    use Edge::{Live, Lost};

    #[derive(Debug, Default)]
    struct Edges(Mutex<Vec<Edge>>);

    impl Inbound for Edges {
        fn deliver(&self, _: NodeId, _: Vec<GroupMessage>) -> usize {
            0
        }
        fn snapshot_arrived(&self, _: NodeId, _: GroupMessage) {}
        fn wants_snapshot(&self, _: GroupId, _: ReplicaId, _: LogPosition) -> bool {
            false
        }
        fn snapshot_shipped(&self, _: GroupId, _: ReplicaId, _: ShipmentOutcome) {}
        fn peer_live(&self, _: NodeId, incarnation: u64) {
            self.0.lock().push(Live(incarnation));
        }
        fn peer_advert(&self, _: NodeId, incarnation: u64, advert: Advert) {
            let names = advert.capabilities.into_iter().collect::<String>();
            self.0.lock().push(Edge::Said(incarnation, names));
        }
        fn peer_lost(&self, _: NodeId) {
            self.0.lock().push(Lost);
        }
        fn unreachable(&self, _: NodeId, _: Vec<(GroupId, ReplicaId)>) {}
    }

    fn advert(name: &str) -> Advert {
        Advert { capabilities: [name.to_owned()].into(), draining: false }
    }

    fn said(incarnation: u64, name: &str) -> Edge {
        Edge::Said(incarnation, name.to_owned())
    }

    struct Case {
        edges: Arc<Edges>,
        inbound: Arc<dyn Inbound>,
        start: Instant,
        liveness: Liveness,
    }

    impl Case {
        fn new() -> Self {
            let edges = Arc::new(Edges::default());
            let inbound: Arc<dyn Inbound> = edges.clone();
            let start = Instant::now();
            let liveness = Liveness::new(NodeId::must(2), start, CancellationToken::new());
            Self { edges, inbound, start, liveness }
        }

        fn at(&self, milliseconds: u64) -> Instant {
            self.start + Duration::from_millis(milliseconds)
        }

        fn admit(&self, incarnation: u64, lane: Lane) -> Result<Visit, Refusal> {
            let greeting = Greeting { node: NodeId::must(2), incarnation };
            self.liveness.admit(greeting, lane, None, self.start, &self.inbound)
        }

        /// Lets a stream in whose greeting says one name of its node.
        fn admit_saying(&self, incarnation: u64, lane: Lane, name: &str) -> Visit {
            let greeting = Greeting { node: NodeId::must(2), incarnation };
            let said = Some(advert(name));
            self.liveness.admit(greeting, lane, said, self.start, &self.inbound).unwrap()
        }

        fn says(&self, visit: &Visit, name: &str) {
            self.liveness.said(visit, advert(name), &self.inbound);
        }

        fn heard_at(&self, milliseconds: u64, visit: &Visit) {
            self.liveness.heard(visit, self.at(milliseconds), &self.inbound);
        }

        fn judge_at(&self, milliseconds: u64) {
            self.liveness.judge(self.at(milliseconds), PATIENCE, &self.inbound);
        }

        fn edges(&self) -> Vec<Edge> {
            self.edges.0.lock().clone()
        }
    }

    #[test]
    fn silence_for_the_timeout_is_loss_and_a_frame_is_life_again() {
        let case = Case::new();
        let visit = case.admit(1, Lane::Urgent).unwrap();
        case.judge_at(999);
        assert_eq!(case.edges(), [Live(1)]);
        case.judge_at(1000);
        case.judge_at(2000);
        assert_eq!(case.edges(), [Live(1), Lost]);
        case.heard_at(2001, &visit);
        assert_eq!(case.edges(), [Live(1), Lost, Live(1)]);
    }

    #[test]
    fn a_suspicion_shortens_the_patience_until_the_next_frame() {
        let case = Case::new();
        let visit = case.admit(1, Lane::Urgent).unwrap();
        case.liveness.suspect();
        case.judge_at(199);
        case.heard_at(199, &visit);
        case.judge_at(500);
        assert_eq!(case.edges(), [Live(1)]);
        case.liveness.suspect();
        case.judge_at(501);
        assert_eq!(case.edges(), [Live(1), Lost]);
    }

    #[test]
    fn a_new_incarnation_is_told_and_ends_the_streams_of_the_old_one() {
        let case = Case::new();
        let bulk = case.admit(1, Lane::Bulk).unwrap();
        let urgent = case.admit(1, Lane::Urgent).unwrap();
        case.admit(2, Lane::Urgent).unwrap();
        assert!(bulk.ended.is_cancelled() && urgent.ended.is_cancelled());
        assert_eq!(case.edges(), [Live(1), Live(2)]);
    }

    #[test]
    fn a_frame_of_an_ended_stream_is_no_life() {
        let case = Case::new();
        let visit = case.admit(1, Lane::Urgent).unwrap();
        case.judge_at(1000);
        visit.ended.cancel();
        case.heard_at(1001, &visit);
        assert_eq!(case.edges(), [Live(1), Lost]);
    }

    #[test]
    fn an_old_incarnation_is_refused_also_when_only_an_answer_told_of_the_new_one() {
        let case = Case::new();
        case.liveness.welcomed(Greeting { node: NodeId::must(2), incarnation: 5 }).unwrap();
        let refusal = case.admit(4, Lane::Bulk).unwrap_err();
        assert_eq!(refusal, Refusal::OldIncarnation { node: NodeId::must(2), theirs: 4, seen: 5 });
        assert!(case.edges().is_empty());
    }

    #[test]
    fn a_second_stream_of_a_lane_ends_the_first_and_leaves_the_other_lane() {
        let case = Case::new();
        let bulk = case.admit(1, Lane::Bulk).unwrap();
        let urgent = case.admit(1, Lane::Urgent).unwrap();
        case.admit(1, Lane::Bulk).unwrap();
        assert!(bulk.ended.is_cancelled());
        assert!(!urgent.ended.is_cancelled());
        assert_eq!(case.edges(), [Live(1)]);
    }

    #[test]
    fn a_forgotten_peer_is_lost_once() {
        let case = Case::new();
        case.admit(1, Lane::Bulk).unwrap();
        case.liveness.forget(&case.inbound);
        case.liveness.forget(&case.inbound);
        assert_eq!(case.edges(), [Live(1), Lost]);
    }

    #[test]
    fn what_a_node_says_is_told_after_its_life_and_when_it_changes() {
        let case = Case::new();
        let visit = case.admit_saying(1, Lane::Urgent, "ssd");
        case.says(&visit, "ssd");
        case.says(&visit, "fifo");
        assert_eq!(case.edges(), [Live(1), said(1, "ssd"), said(1, "fifo")]);
        assert_eq!(case.liveness.advert(), Some(advert("fifo")));
    }

    #[test]
    fn a_node_that_is_heard_again_says_what_it_said_before() {
        let case = Case::new();
        let visit = case.admit_saying(1, Lane::Urgent, "ssd");
        case.judge_at(1000);
        case.heard_at(1001, &visit);
        assert_eq!(case.edges(), [Live(1), said(1, "ssd"), Lost, Live(1), said(1, "ssd")]);
    }

    #[test]
    fn another_incarnation_has_said_nothing_yet() {
        let case = Case::new();
        let before = case.admit_saying(1, Lane::Urgent, "ssd");
        case.admit(2, Lane::Bulk).unwrap();
        case.says(&before, "fifo");
        assert_eq!(case.edges(), [Live(1), said(1, "ssd"), Live(2)]);
        assert_eq!(case.liveness.advert(), None);
        case.admit_saying(2, Lane::Urgent, "gpu");
        assert_eq!(case.edges().last(), Some(&said(2, "gpu")));
    }

    #[test]
    fn a_greeting_of_the_bulk_lane_that_comes_late_does_not_take_back_what_was_said() {
        let case = Case::new();
        case.admit_saying(1, Lane::Bulk, "old");
        let urgent = case.admit_saying(1, Lane::Urgent, "old");
        case.says(&urgent, "fresh");
        case.admit_saying(1, Lane::Bulk, "old");
        assert_eq!(case.edges(), [Live(1), said(1, "old"), said(1, "fresh")]);
    }

    #[test]
    fn what_a_lost_node_says_is_told_when_it_lives() {
        let case = Case::new();
        let visit = case.admit(1, Lane::Urgent).unwrap();
        case.judge_at(1000);
        case.says(&visit, "ssd");
        assert_eq!(case.edges(), [Live(1), Lost]);
        case.heard_at(1001, &visit);
        assert_eq!(case.edges(), [Live(1), Lost, Live(1), said(1, "ssd")]);
    }
}
