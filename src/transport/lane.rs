//! One lane to one peer: a bounded queue that threads fill and one stream empties.
//!
//! Pushing takes a short lock, never waits, and reports which replicas' messages did not fit. The
//! HTTP/2 connection pulls frames when it can send, so messages that the peer does not take wait
//! here, within bounds. The lane knows nothing of sockets, nodes or Raft; connections are made by
//! `sender`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::Stream;
use parking_lot::Mutex;
use prost::Message;
use prost::encoding::encoded_len_varint;
use shardhost_proto::peer::{Advertisement, Frame, GroupMessage, Hello, NodeHeartbeat};
use shardhost_storage::{GroupId, ReplicaId};
use tokio::sync::Notify;

use super::config::{LaneLimits, TransportConfig};
use super::progress::Progress;
use super::stats::LaneStats;

/// A replica whose messages were dropped.
pub(super) type Dropped = (GroupId, ReplicaId);

/// A message with what it takes up in a frame.
#[derive(Debug)]
pub(super) struct Queued {
    message: GroupMessage,
    bytes: usize,
}

impl Queued {
    pub fn new(message: GroupMessage) -> Self {
        let length = message.encoded_len();
        let bytes = 1 + encoded_len_varint(length as u64) + length;
        Self { message, bytes }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn entries(&self) -> usize {
        self.message.entries.len()
    }

    /// The addressed replica; `None` when it is no valid id.
    pub fn addressee(&self) -> Option<Dropped> {
        let replica = ReplicaId::new(self.message.to_replica)?;
        Some((GroupId::new(self.message.group), replica))
    }
}

/// The bounds of a lane and of the frames made from it.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    open: LaneLimits,
    reconnecting: LaneLimits,
    grace: Duration,
    frame_bytes: usize,
    frame_messages: usize,
    frame_entries: usize,
}

/// The queue of one lane to one peer.
#[derive(Debug)]
pub(super) struct LaneQueue {
    bounds: Bounds,
    state: Mutex<State>,
    /// Notified when the present stream carries nothing any more.
    stalled: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Which stream may take frames; an older one that still lingers finds itself ended.
    stream: u64,
    waiting: VecDeque<Queued>,
    waiting_bytes: usize,
    heartbeat: Option<NodeHeartbeat>,
    /// The node's new advertisement; a heartbeat carries it.
    advertisement: Option<Advertisement>,
    taker: Option<Waker>,
    progress: Progress,
    given_up: bool,
    closing: bool,
    stats: LaneStats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No connection; it was lost, or first looked for, at this time.
    Reconnecting(Instant),
    /// No connection for longer than the grace.
    Down,
    /// The peer has sent its welcome.
    Open,
}

impl LaneQueue {
    pub fn new(config: &TransportConfig, open: LaneLimits) -> Self {
        let bounds = Bounds {
            open,
            reconnecting: config.reconnecting,
            grace: config.reconnect_grace,
            frame_bytes: config.frame_target_bytes,
            frame_messages: config.frame_max_messages,
            frame_entries: config.frame_max_entries,
        };
        Self { bounds, state: Mutex::new(State::new()), stalled: Notify::new() }
    }

    /// Takes what fits, in order, and leaves the addressees of the rest in `dropped`.
    pub fn push(&self, batch: Vec<Queued>, dropped: &mut Vec<Dropped>) {
        let taker = {
            let mut state = self.state.lock();
            let limits = state.limits(&self.bounds);
            for queued in batch {
                state.accept(queued, limits, dropped);
            }
            state.taker_if_due()
        };
        wake(taker);
    }

    /// Lets the next frame carry a heartbeat, with the node's last advertisement. Without a
    /// connection there is none.
    pub fn beat(&self, heartbeat: NodeHeartbeat) {
        let taker = {
            let mut state = self.state.lock();
            if state.phase == Phase::Open {
                state.heartbeat = Some(heartbeat);
            }
            state.taker_if_due()
        };
        wake(taker);
    }

    /// Lets the next heartbeat carry the node's new advertisement. A connection that is made
    /// meanwhile sends it twice, which is idempotent.
    pub fn say(&self, advertisement: Advertisement) {
        self.state.lock().advertisement = Some(advertisement);
    }

    /// A stream for a connection that is being made: first the greeting, then nothing until
    /// [`open`](Self::open), then frames. Any earlier stream of this lane ends.
    pub fn attach(self: &Arc<Self>, hello: Hello) -> FrameStream {
        let (number, taker) = {
            let mut state = self.state.lock();
            state.stream += 1;
            (state.stream, state.taker.take())
        };
        wake(taker);
        FrameStream { lane: Arc::clone(self), number, hello: Some(hello) }
    }

    /// The peer sent its welcome: frames may go. `tells_taken`: it reports how many it has taken.
    pub fn open(&self, tells_taken: bool) {
        let taker = {
            let mut state = self.state.lock();
            state.progress = Progress::begin(tells_taken);
            state.given_up = false;
            state.phase = Phase::Open;
            state.stats.connected = true;
            state.stats.connects += 1;
            state.taker.take()
        };
        wake(taker);
    }

    /// The peer reports how many frames of the present stream it has taken.
    pub fn taken(&self, frames: u64) {
        self.state.lock().progress.taken(frames, Instant::now());
    }

    /// Gives the present stream up when the peer has taken nothing of it for this long, although
    /// there was something.
    pub fn give_up_if_stalled(&self, now: Instant, limit: Duration) {
        let mut state = self.state.lock();
        if state.phase == Phase::Open && state.progress.is_stalled(now, limit) {
            state.stats.stalls += 1;
            state.progress = Progress::default();
            state.given_up = true;
            self.stalled.notify_waiters();
        }
    }

    /// What the peer has not taken of the present stream counts as handed to it now.
    pub fn excuse(&self, now: Instant) {
        self.state.lock().progress.excuse(now);
    }

    /// Waits until the present stream is given up.
    pub async fn stalled(&self) {
        loop {
            let mut stalled = std::pin::pin!(self.stalled.notified());
            stalled.as_mut().enable();
            if self.state.lock().given_up {
                return;
            }
            stalled.await;
        }
    }

    /// The connection is gone, or was never made. What waits is kept for the grace.
    pub fn detach(&self) {
        let taker = {
            let mut state = self.state.lock();
            state.stream += 1;
            state.heartbeat = None;
            state.stats.connected = false;
            if state.phase == Phase::Open {
                state.phase = Phase::Reconnecting(Instant::now());
            }
            state.taker.take()
        };
        wake(taker);
    }

    /// Drops what waits when there was no connection for longer than the grace.
    pub fn expire(&self, now: Instant, dropped: &mut Vec<Dropped>) {
        let mut state = self.state.lock();
        let Phase::Reconnecting(since) = state.phase else { return };
        if now.duration_since(since) > self.bounds.grace {
            state.phase = Phase::Down;
            state.drop_all(dropped);
        }
    }

    /// Takes nothing more; the stream ends when what waits was sent.
    pub fn close(&self) {
        let taker = {
            let mut state = self.state.lock();
            state.closing = true;
            state.taker.take()
        };
        wake(taker);
    }

    /// Drops all that waits.
    pub fn clear(&self, dropped: &mut Vec<Dropped>) {
        let mut state = self.state.lock();
        state.closing = true;
        state.drop_all(dropped);
    }

    pub fn stats(&self) -> LaneStats {
        let state = self.state.lock();
        LaneStats {
            waiting_messages: state.waiting.len() as u64,
            waiting_bytes: state.waiting_bytes as u64,
            ..state.stats
        }
    }
}

impl State {
    fn new() -> Self {
        Self {
            phase: Phase::Reconnecting(Instant::now()),
            stream: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            heartbeat: None,
            advertisement: None,
            taker: None,
            progress: Progress::default(),
            given_up: false,
            closing: false,
            stats: LaneStats::default(),
        }
    }

    fn limits(&self, bounds: &Bounds) -> LaneLimits {
        match self.phase {
            _ if self.closing => LaneLimits { bytes: 0, messages: 0 },
            Phase::Open => bounds.open,
            Phase::Reconnecting(_) => bounds.reconnecting,
            Phase::Down => LaneLimits { bytes: 0, messages: 0 },
        }
    }

    fn accept(&mut self, queued: Queued, limits: LaneLimits, dropped: &mut Vec<Dropped>) {
        let fits = self.waiting.len() < limits.messages
            && self.waiting_bytes + queued.bytes <= limits.bytes;
        if fits {
            self.waiting_bytes += queued.bytes;
            self.waiting.push_back(queued);
        } else {
            self.stats.dropped += 1;
            dropped.extend(queued.addressee());
        }
    }

    /// The task to wake when there is something to send. It is taken, so that a batch of pushes
    /// wakes it once.
    fn taker_if_due(&mut self) -> Option<Waker> {
        let due = !self.waiting.is_empty() || self.heartbeat.is_some();
        if due && self.phase == Phase::Open { self.taker.take() } else { None }
    }

    fn drop_all(&mut self, dropped: &mut Vec<Dropped>) {
        self.stats.dropped += self.waiting.len() as u64;
        self.waiting_bytes = 0;
        let waiting = std::mem::take(&mut self.waiting);
        dropped.extend(waiting.iter().filter_map(Queued::addressee));
    }

    fn next_frame(&mut self, bounds: &Bounds) -> Option<Frame> {
        let heartbeat = self.heartbeat.take();
        let heartbeat = heartbeat
            .map(|beat| NodeHeartbeat { advertisement: self.advertisement.take(), ..beat });
        let before = self.stats.bytes;
        let messages = self.take_messages(bounds);
        if heartbeat.is_none() && messages.is_empty() {
            return None;
        }
        self.stats.frames += 1;
        let bytes = self.stats.bytes - before;
        self.progress.handed(bytes, Instant::now());
        self.stats.messages += messages.len() as u64;
        Some(Frame { hello: None, heartbeat, messages })
    }

    fn take_messages(&mut self, bounds: &Bounds) -> Vec<GroupMessage> {
        let (count, bytes) = self.fitting(bounds);
        self.waiting_bytes -= bytes;
        self.stats.bytes += bytes as u64;
        let messages = self.waiting.drain(..count).map(|queued| queued.message).collect();
        if self.waiting.is_empty() && self.waiting.capacity() > KEPT_CAPACITY {
            self.waiting.shrink_to(KEPT_CAPACITY);
        }
        messages
    }

    /// How many messages the next frame takes, and their bytes: at least one, if any waits.
    fn fitting(&self, bounds: &Bounds) -> (usize, usize) {
        let (mut count, mut bytes, mut entries) = (0, 0, 0);
        for queued in self.waiting.iter().take(bounds.frame_messages) {
            let fits = bytes + queued.bytes <= bounds.frame_bytes
                && entries + queued.entries() <= bounds.frame_entries;
            if count > 0 && !fits {
                break;
            }
            count += 1;
            bytes += queued.bytes;
            entries += queued.entries();
        }
        (count, bytes)
    }
}

/// Room for this many messages stays allocated when a lane runs empty after a burst.
const KEPT_CAPACITY: usize = 4096;

/// Wakes outside the lock, so that the woken thread does not run into it.
fn wake(taker: Option<Waker>) {
    if let Some(taker) = taker {
        taker.wake();
    }
}

/// The frames of one connection of a lane, pulled by HTTP/2 as fast as the peer takes them.
#[derive(Debug)]
pub(super) struct FrameStream {
    lane: Arc<LaneQueue>,
    number: u64,
    hello: Option<Hello>,
}

impl Stream for FrameStream {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(Frame { hello: Some(hello), ..Frame::default() }));
        }
        let lane = &*self.lane;
        let mut state = lane.state.lock();
        if state.stream != self.number {
            return Poll::Ready(None);
        }
        if state.phase == Phase::Open {
            if let Some(frame) = state.next_frame(&lane.bounds) {
                return Poll::Ready(Some(frame));
            }
            if state.closing {
                return Poll::Ready(None);
            }
        }
        state.taker = Some(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, StreamExt};
    use shardhost_storage::NodeId;

    fn message(group: u64, payload: usize) -> Queued {
        Queued::new(GroupMessage {
            group,
            to_replica: 1,
            context: vec![0; payload].into(),
            ..GroupMessage::default()
        })
    }

    fn lane(change: impl FnOnce(&mut TransportConfig)) -> Arc<LaneQueue> {
        let mut config = TransportConfig::new("test", NodeId::must(1), 1, "");
        change(&mut config);
        Arc::new(LaneQueue::new(&config, config.bulk))
    }

    fn push(lane: &LaneQueue, batch: Vec<Queued>) -> Vec<u64> {
        let mut dropped = Vec::new();
        lane.push(batch, &mut dropped);
        dropped.into_iter().map(|(group, _)| group.get()).collect()
    }

    fn opened(lane: &Arc<LaneQueue>) -> FrameStream {
        let mut stream = lane.attach(Hello::default());
        assert!(stream.next().now_or_never().flatten().unwrap().hello.is_some());
        lane.open(false);
        stream
    }

    fn groups(frame: &Frame) -> Vec<u64> {
        frame.messages.iter().map(|message| message.group).collect()
    }

    fn heartbeat(sequence: u64, founding: u64) -> NodeHeartbeat {
        NodeHeartbeat { sequence, advertisement: None, founding, wall_ms: 0 }
    }

    #[test]
    fn what_the_node_says_of_itself_goes_with_the_next_heartbeat_and_with_no_other() {
        let lane = lane(|_| ());
        let mut stream = opened(&lane);
        let advertisement = |name: &str| Advertisement {
            capabilities: vec![name.into()],
            ..Advertisement::default()
        };
        lane.say(advertisement("ssd"));
        lane.say(advertisement("fifo"));
        push(&lane, vec![message(1, 0)]);
        let first = stream.next().now_or_never().flatten().unwrap();
        assert_eq!((groups(&first), first.heartbeat), (vec![1], None));
        let mut said = |sequence| {
            lane.beat(heartbeat(sequence, 0));
            let frame = stream.next().now_or_never().flatten().unwrap();
            frame.heartbeat.unwrap().advertisement
        };
        assert_eq!(said(1), Some(advertisement("fifo")));
        assert_eq!(said(2), None);
    }

    #[test]
    fn what_was_not_said_when_a_connection_broke_is_said_on_the_next() {
        let lane = lane(|_| ());
        drop(opened(&lane));
        lane.say(Advertisement {
            capabilities: Vec::new(),
            draining: true,
            ..Advertisement::default()
        });
        lane.detach();
        let mut stream = opened(&lane);
        lane.beat(heartbeat(1, 0));
        let frame = stream.next().now_or_never().flatten().unwrap();
        assert!(frame.heartbeat.unwrap().advertisement.unwrap().draining);
    }

    #[test]
    fn nothing_follows_the_hello_before_the_lane_is_opened() {
        let lane = lane(|_| ());
        let mut stream = lane.attach(Hello::default());
        push(&lane, vec![message(1, 0)]);
        assert!(stream.next().now_or_never().flatten().unwrap().hello.is_some());
        assert!(stream.next().now_or_never().is_none());
        lane.open(false);
        assert_eq!(groups(&stream.next().now_or_never().flatten().unwrap()), [1]);
    }

    #[test]
    fn what_waits_travels_in_order_in_one_frame() {
        let lane = lane(|_| ());
        let mut stream = opened(&lane);
        push(&lane, vec![message(1, 10), message(2, 10)]);
        push(&lane, vec![message(3, 10)]);
        assert_eq!(groups(&stream.next().now_or_never().flatten().unwrap()), [1, 2, 3]);
        assert!(stream.next().now_or_never().is_none());
    }

    #[test]
    fn a_frame_ends_at_its_target_and_a_larger_message_travels_alone() {
        let lane = lane(|config| config.frame_target_bytes = 100);
        let mut stream = opened(&lane);
        push(&lane, [30, 30, 500, 30].map(|size| message(size, size as usize)).into());
        let frames: Vec<_> =
            std::iter::from_fn(|| stream.next().now_or_never().flatten()).collect();
        assert_eq!(
            frames.iter().map(groups).collect::<Vec<_>>(),
            [vec![30, 30], vec![500], vec![30]]
        );
    }

    #[test]
    fn a_frame_is_as_long_as_the_lane_accounted_for_it() {
        let lane = lane(|_| ());
        let mut stream = opened(&lane);
        push(&lane, vec![message(1, 10), message(300, 200), message(70_000, 20_000)]);
        let accounted = lane.stats().waiting_bytes;
        let frame = stream.next().now_or_never().flatten().unwrap();
        assert_eq!(frame.encoded_len() as u64, accounted);
        assert_eq!(lane.stats().waiting_bytes, 0);
    }

    #[test]
    fn a_full_lane_drops_what_does_not_fit_and_names_it() {
        let lane = lane(|config| config.bulk = LaneLimits { bytes: 1 << 20, messages: 2 });
        let _stream = opened(&lane);
        assert_eq!(push(&lane, vec![message(1, 0), message(2, 0), message(3, 0)]), [3]);
        assert_eq!(lane.stats().dropped, 1);
    }

    #[test]
    fn bytes_are_a_bound_of_their_own() {
        let lane = lane(|config| config.bulk = LaneLimits { bytes: 200, messages: 100 });
        let _stream = opened(&lane);
        assert_eq!(push(&lane, vec![message(1, 150), message(2, 150), message(3, 10)]), [2]);
    }

    #[test]
    fn an_earlier_stream_ends_when_another_is_attached() {
        let lane = lane(|_| ());
        let mut first = opened(&lane);
        let mut second = opened(&lane);
        push(&lane, vec![message(1, 0)]);
        assert_eq!(first.next().now_or_never(), Some(None));
        assert_eq!(groups(&second.next().now_or_never().flatten().unwrap()), [1]);
    }

    #[test]
    fn a_lost_connection_keeps_a_little_for_the_grace_and_then_nothing() {
        let lane = lane(|config| config.reconnecting.messages = 1);
        let _stream = opened(&lane);
        lane.detach();
        assert_eq!(push(&lane, vec![message(1, 0), message(2, 0)]), [2]);
        let mut dropped = Vec::new();
        lane.expire(Instant::now(), &mut dropped);
        assert!(dropped.is_empty());
        lane.expire(Instant::now() + Duration::from_secs(5), &mut dropped);
        assert_eq!(dropped, [(GroupId::new(1), ReplicaId::must(1))]);
        assert_eq!(push(&lane, vec![message(3, 0)]), [3]);
    }

    #[test]
    fn a_heartbeat_joins_the_messages_that_wait() {
        let lane = lane(|_| ());
        let mut stream = opened(&lane);
        push(&lane, vec![message(1, 0)]);
        lane.beat(heartbeat(5, 8));
        let frame = stream.next().now_or_never().flatten().unwrap();
        assert_eq!(frame.heartbeat, Some(heartbeat(5, 8)));
        assert_eq!(groups(&frame), [1]);
    }

    #[test]
    fn a_closing_lane_sends_what_waits_and_ends() {
        let lane = lane(|_| ());
        let mut stream = opened(&lane);
        push(&lane, vec![message(1, 0)]);
        lane.close();
        assert_eq!(push(&lane, vec![message(2, 0)]), [2]);
        assert_eq!(groups(&stream.next().now_or_never().flatten().unwrap()), [1]);
        assert_eq!(stream.next().now_or_never(), Some(None));
    }
}
