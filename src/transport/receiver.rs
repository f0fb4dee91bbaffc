//! The way in: a stream of frames from a peer, after its greeting was checked.
//!
//! Each frame becomes one delivery. What a stream carries can end that stream and nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shardhost_groups::nodes::Advertisement;
use shardhost_groups::transport::{Inbound, Lane};
use shardhost_proto::methods::Audience;
use shardhost_proto::peer::{self, Frame, Hello, NodeHeartbeat, Welcome};
use shardhost_security::Caller;
use shardhost_storage::NodeId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::handshake::{self, Greeting, Refusal};
use super::listener::Connection;
use super::liveness::Visit;
use super::memory;
use super::peer::Peer;
use super::shared::{Shared, TaskKind};
use super::{advertisement, clocks};

/// The answers to a stream: one welcome, how many frames were taken if the sender wants to know,
/// and how it ended.
pub(super) type Answers = ReceiverStream<Result<Welcome, Status>>;

/// Time between two words on how many frames were taken.
const TAKEN_INTERVAL: Duration = Duration::from_millis(100);
/// Answers that wait: the welcome, a word on what was taken, and how the stream ended.
const MOST_ANSWERS: usize = 3;

/// Shakes hands and starts to receive.
pub(super) async fn exchange(
    shared: Arc<Shared>,
    connection: Option<Connection>,
    mut frames: Streaming<Frame>,
) -> Result<Response<Answers>, Status> {
    let inbound = shared.inbound().ok_or_else(|| not_serving(&shared))?;
    let first = within_handshake(&shared, frames.message()).await?.unwrap_or_default();
    let claimed = first.hello.as_ref().map_or(0, |hello| hello.node);
    is_certified(connection.as_ref(), claimed)
        .inspect_err(|refusal| note_refusal(&shared, None, refusal))?;
    if let Ok((peer, known)) = known_by(&shared, &first) {
        memory::learn_known(&shared, peer, known).await?;
    }
    let claimed = first.hello.as_ref().and_then(|hello| NodeId::new(hello.node));
    let hello = first.hello.clone().unwrap_or_default();
    let (peer, visit) = admit(&shared, first, &inbound)
        .inspect_err(|refusal| note_refusal(&shared, claimed, refusal))?;
    count_as_peer(connection.as_ref())?;
    let (answers, receiver) = mpsc::channel(MOST_ANSWERS);
    let welcome = Ok(shared.identity.welcome(shared.memory.newest(peer.node), &hello));
    answers.try_send(welcome).map_err(|error| Status::internal(error.to_string()))?;
    let taken = hello.wants_taken.then(Taken::default);
    let reception = Reception { shared: Arc::clone(&shared), peer, visit, inbound, frames, taken };
    shared.spawn(TaskKind::Other, reception.run(answers));
    Ok(Response::new(ReceiverStream::new(receiver)))
}

/// Whether the greeting of a node may come over this connection: with TLS, its certificate names the node.
pub(super) fn is_certified(connection: Option<&Connection>, greets: u64) -> Result<(), Refusal> {
    match connection.map(Connection::caller) {
        None | Some(Caller::Unchecked) => Ok(()),
        Some(Caller::Node(node)) if node.get() == greets => Ok(()),
        Some(other) => Err(Refusal::OtherCertificate { greets, certified: other.to_string() }),
    }
}

/// The connection is a peer's, whose greeting was in order.
pub(super) fn count_as_peer(connection: Option<&Connection>) -> Result<(), Status> {
    let counted = connection.map_or(Ok(()), Connection::admit_peer);
    counted.map_err(|full| Status::resource_exhausted(full.to_string()))
}

/// What the sender of a valid greeting knows of this node.
fn known_by(shared: &Shared, first: &Frame) -> Result<(NodeId, u64), Refusal> {
    let hello = first.hello.as_ref().ok_or(Refusal::NoHello)?;
    let (peer, _) = known_peer(shared, hello)?;
    Ok((peer.node, hello.known_incarnation))
}

/// Waits for a part of the handshake.
pub(super) async fn within_handshake<T>(
    shared: &Shared,
    part: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let within = shared.config.handshake_timeout;
    tokio::time::timeout(within, part).await.unwrap_or_else(|_| {
        let refusal = Refusal::Late { within };
        note_refusal(shared, None, &refusal);
        Err(refusal.into())
    })
}

/// Checks a greeting, and that this host knows the peer.
pub(super) fn known_peer(shared: &Shared, hello: &Hello) -> Result<(Arc<Peer>, Greeting), Refusal> {
    let greeting = shared.identity.check_hello(hello)?;
    let unknown = Refusal::UnknownNode { node: hello.node, by: shared.config.node };
    let peer = shared.peer(greeting.node).ok_or(unknown)?;
    Ok((peer, greeting))
}

/// Counts and logs a refused greeting, and remembers it of the node that it claims to be from.
pub(super) fn note_refusal(shared: &Shared, claimed: Option<NodeId>, refusal: &Refusal) {
    shared.counters.refused_greetings.add(1);
    if let Some(peer) = claimed.and_then(|node| shared.peer(node)) {
        peer.refusals.refused(refusal.to_string(), Instant::now());
    }
    tracing::warn!(%refusal, "refused a peer");
}

pub(super) fn not_serving(shared: &Shared) -> Status {
    Status::unavailable(format!("node {} takes no messages", shared.config.node))
}

pub(super) fn admit(
    shared: &Shared,
    first: Frame,
    inbound: &Arc<dyn Inbound>,
) -> Result<(Arc<Peer>, Visit), Refusal> {
    let mut hello = handshake::hello_of(first)?;
    let lane = handshake::lane_of(&hello)?;
    let (peer, greeting) = known_peer(shared, &hello)?;
    let said = hello.advertisement.take().and_then(|said| readable(shared, &peer, said));
    let latest = shared.horizon.latest();
    let visit = peer.liveness.admit(&greeting, latest, lane, said, Instant::now(), inbound)?;
    peer.said_founding(hello.founding);
    peer.said_newest_version(hello.newest_version);
    peer.greeted_from(greeting.incarnation, &hello.address);
    peer.greeted_for(Audience::Clients, &hello.client_address);
    peer.greeted_for(Audience::Operators, &hello.admin_address);
    peer.greeted.notify_waiters();
    Ok((peer, visit))
}

/// A peer's advertisement. One that cannot be read affects no messages: it is ignored.
fn readable(shared: &Shared, peer: &Peer, said: peer::Advertisement) -> Option<Advertisement> {
    let read = advertisement::from_wire(said);
    if let Err(error) = &read {
        shared.counters.refused_advertisements.add(1);
        tracing::warn!(node = %peer.node, %error, "cannot read what a peer says of itself");
    }
    read.ok()
}

/// A stream of frames that passed the handshake.
struct Reception {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    visit: Visit,
    inbound: Arc<dyn Inbound>,
    frames: Streaming<Frame>,
    /// What the sender wants to know.
    taken: Option<Taken>,
}

/// How many frames of a stream were taken.
#[derive(Debug, Default)]
struct Taken {
    frames: u64,
    /// The last report to the sender.
    told: u64,
    /// When the next report is due.
    due: Option<Instant>,
}

impl Taken {
    fn count(&mut self) {
        self.frames += 1;
        self.due.get_or_insert_with(|| Instant::now() + TAKEN_INTERVAL);
    }

    /// Waits until a report to the sender is due.
    async fn is_due(taken: &Option<Self>) {
        match taken.as_ref().and_then(|taken| taken.due) {
            Some(due) => tokio::time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Reports to the sender. Leaves the last place for the end of the stream; a sender that does
    /// not read gets the report later.
    fn tell(&mut self, answers: &mpsc::Sender<Result<Welcome, Status>>) {
        let welcome = Welcome { taken_frames: self.frames, ..Welcome::default() };
        let told = answers.capacity() > 1 && answers.try_send(Ok(welcome)).is_ok();
        if told {
            self.told = self.frames;
        }
        self.due = (self.told < self.frames).then(|| Instant::now() + TAKEN_INTERVAL);
    }
}

impl Reception {
    async fn run(mut self, answers: mpsc::Sender<Result<Welcome, Status>>) {
        if let Err(status) = self.receive(&answers).await {
            tracing::debug!(visit = ?self.visit, %status, "a stream from a peer ended");
            self.shared.counters.broken_streams.add(1);
            if answers.try_send(Err(status)).is_err() {
                tracing::debug!(node = %self.visit.node, "the peer left before it was answered");
            }
        }
        if self.visit.lane == Lane::Urgent && !self.visit.ended.is_cancelled() {
            self.peer.liveness.suspect();
        }
    }

    async fn receive(
        &mut self,
        answers: &mpsc::Sender<Result<Welcome, Status>>,
    ) -> Result<(), Status> {
        let Visit { node, incarnation, .. } = self.visit;
        let mut confirmed = false;
        let ended = self.visit.ended.clone();
        let ended = ended.cancelled();
        tokio::pin!(ended);
        loop {
            let frame = tokio::select! {
                biased;
                () = &mut ended => {
                    return Err(Status::aborted("superseded by a newer stream, or not wanted"));
                }
                () = Taken::is_due(&self.taken) => {
                    if let Some(taken) = &mut self.taken {
                        taken.tell(answers);
                    }
                    continue;
                }
                frame = self.frames.message() => frame?,
            };
            match frame {
                Some(frame) => {
                    if !std::mem::replace(&mut confirmed, true) {
                        memory::confirm(&self.shared, node, incarnation).await?;
                        self.peer.liveness.confirm(incarnation);
                    }
                    take(&self.shared, &self.peer, &self.visit, &self.inbound, frame)?;
                    if let Some(taken) = &mut self.taken {
                        taken.count();
                    }
                }
                None => return Ok(()),
            }
        }
    }
}

/// Takes one frame of a stream that passed the handshake.
pub(super) fn take(
    shared: &Shared,
    peer: &Peer,
    visit: &Visit,
    inbound: &Arc<dyn Inbound>,
    frame: Frame,
) -> Result<(), Status> {
    if frame.hello.is_some() {
        return Err(Status::invalid_argument("a second hello in a stream"));
    }
    if let Some(heartbeat) = &frame.heartbeat {
        note_heartbeat(peer, heartbeat);
    }
    check_cluster(shared, peer, visit)?;
    peer.liveness.heard(visit, Instant::now(), inbound);
    if let Some(said) = frame.heartbeat.and_then(|heartbeat| heartbeat.advertisement)
        && let Some(said) = readable(shared, peer, said)
    {
        peer.liveness.said(visit, said, inbound);
    }
    peer.received.frames.add(1);
    if !frame.messages.is_empty() {
        peer.received.messages.add(frame.messages.len());
        let dropped = inbound.deliver(visit.node, frame.messages);
        peer.received.inbox_drops.add(dropped);
    }
    Ok(())
}

fn note_heartbeat(peer: &Peer, heartbeat: &NodeHeartbeat) {
    if heartbeat.founding != 0 {
        peer.said_founding(heartbeat.founding);
    }
    if heartbeat.wall_ms != 0 {
        peer.clock.said(heartbeat.wall_ms, clocks::wall_ms(), Instant::now());
    }
}

/// Both sides may have greeted before they knew which founding their clusters come from, and which version
/// they are at.
fn check_cluster(shared: &Shared, peer: &Peer, visit: &Visit) -> Result<(), Refusal> {
    let version = || shared.identity.versions.check(peer.newest_version(), 0);
    let said = shared.identity.check_founding(peer.founding()).and_then(|()| version());
    said.inspect_err(|refusal| note_refusal(shared, Some(visit.node), refusal))
}
