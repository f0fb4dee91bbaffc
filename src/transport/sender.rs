//! The task that keeps one lane to one peer connected.
//!
//! It connects, greets, checks the answer, opens the lane, and waits for the end; frames flow
//! past it, pulled from the lane by the connection. It decides when to try again, with back-off;
//! where, `address` decides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use shardhost_groups::transport::Lane;
use shardhost_proto::peer::Welcome;
use shardhost_security::channel::Channel;
use shardhost_security::connect::wants_tls;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status, Streaming};

use super::address::{Course, Next, Outcome, Place};
use super::codec::SenderCodec;
use super::config::TransportConfig;
use super::connection;
use super::handshake::{self, Refusal};
use super::memory;
use super::peer::Peer;
use super::service::EXCHANGE_PATH;
use super::shared::Shared;

/// Why a lane has no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LaneError {
    #[error("{0:?} is no address: {1}")]
    Address(String, String),
    #[error("cannot connect to {0}: {1}")]
    Connect(String, String),
    #[error("the address leads to the wrong place: {0}")]
    WrongPlace(#[from] Refusal),
    #[error("the peer ended the stream: {:?}: {}", .0, .1)]
    Ended(tonic::Code, String),
    #[error("the peer closed the stream")]
    Closed,
    #[error("the peer sent a second welcome")]
    SecondWelcome,
    #[error("another process of the node greeted")]
    Displaced,
    #[error("the peer lives and takes nothing of this connection")]
    Stalled,
    #[error("the configured address of the peer has a listener, and is tried again")]
    ConfiguredListens,
    #[error("the peer's cluster turned out to be founded on other disks than this one")]
    OtherFounding,
    #[error("{0}")]
    Outgrown(Refusal),
}

impl From<Status> for LaneError {
    fn from(status: Status) -> Self {
        Self::Ended(status.code(), status.message().to_owned())
    }
}

/// Keeps a lane connected until the peer is removed or the transport ends.
pub(super) async fn run(shared: Arc<Shared>, peer: Arc<Peer>, lane: Lane) {
    let mut backoff = Backoff::new(shared.config.backoff_min, shared.config.backoff_max);
    let mut address = peer.address.subscribe();
    let mut course = Course::new(shared.config.configured_look_after);
    let mut logged = None;
    loop {
        let configured = address.borrow_and_update().clone();
        let learnt = peer.moved_to();
        let place = course.place(learnt.is_some());
        let target = match place {
            Place::Configured => configured.clone(),
            Place::Learnt => learnt.unwrap_or_else(|| configured.clone()),
        };
        let mut attempt = Attempt {
            shared: &shared,
            peer: &peer,
            lane,
            backoff: &mut backoff,
            place,
            was_there: false,
        };
        let ended = tokio::select! {
            () = peer.stop.cancelled() => break,
            _ = address.changed() => None,
            error = attempt.run(&target) => Some(explained(&shared.config, &target, error).await),
            () = listens(&shared.config, &configured, course.look_after()),
                if place == Place::Learnt => Some(LaneError::ConfiguredListens),
        };
        let was_there = attempt.was_there;
        peer.lane(lane).detach();
        if shared.draining.is_cancelled() {
            break;
        }
        let Some(error) = ended else {
            course = Course::new(shared.config.configured_look_after);
            continue;
        };
        if lane == Lane::Urgent {
            peer.liveness.suspect();
        }
        log(&peer, lane, &error, &mut logged);
        let outcome = match &error {
            LaneError::ConfiguredListens => Outcome::ConfiguredListens,
            _ if was_there => Outcome::WasThere,
            _ => Outcome::NotThere,
        };
        if course.ended(outcome, peer.moved_to().is_some()) == Next::AtOnce {
            continue;
        }
        tokio::select! {
            () = peer.stop.cancelled() => break,
            () = shared.draining.cancelled() => break,
            _ = address.changed() => backoff.reset(),
            () = peer.greeted.notified() => {}
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
    peer.lane(lane).detach();
}

/// Waits until a process listens at an address; the first probe is after `wait`.
async fn listens(config: &TransportConfig, address: &str, wait: Duration) {
    loop {
        tokio::time::sleep(wait).await;
        let connected = tokio::net::TcpStream::connect(address);
        if let Ok(Ok(_)) = tokio::time::timeout(config.connect_timeout, connected).await {
            return;
        }
    }
}

/// The same error, unless the node there speaks TLS and this one does not: HTTP/2 says that in riddles.
async fn explained(config: &TransportConfig, address: &str, error: LaneError) -> LaneError {
    let unclear =
        matches!(error, LaneError::Connect(..) | LaneError::Ended(..) | LaneError::Closed);
    if unclear && config.credentials.is_none() && wants_tls(address, config.connect_timeout).await {
        let cause = "it speaks TLS, and this node has no certificates".to_owned();
        return LaneError::Connect(address.to_owned(), cause);
    }
    error
}

/// Warns once per cause, not once per attempt.
fn log(peer: &Peer, lane: Lane, error: &LaneError, logged: &mut Option<LaneError>) {
    let node = peer.node;
    if logged.as_ref() == Some(error) {
        tracing::debug!(%node, ?lane, %error, "still no connection to a peer");
    } else {
        tracing::warn!(%node, ?lane, %error, "no connection to a peer");
        *logged = Some(error.clone());
    }
}

/// One connection of a lane, from the first packet to the end.
struct Attempt<'a> {
    shared: &'a Arc<Shared>,
    peer: &'a Arc<Peer>,
    lane: Lane,
    backoff: &'a mut Backoff,
    place: Place,
    /// The node that is meant answered.
    was_there: bool,
}

impl Attempt<'_> {
    async fn run(&mut self, address: &str) -> LaneError {
        match self.greet(address).await {
            Ok((answers, welcome)) => self.stay(answers, &welcome).await,
            Err(error) => {
                if let LaneError::WrongPlace(refusal) = &error {
                    self.peer.refusals.refused(refusal.to_string(), Instant::now());
                }
                error
            }
        }
    }

    async fn greet(&mut self, address: &str) -> Result<(Streaming<Welcome>, Welcome), LaneError> {
        let channel = connection::connect(&self.shared.config, self.peer.node, address).await?;
        let asked = self.peer.liveness.incarnation();
        let within = self.shared.config.handshake_timeout;
        let (answers, welcome) = tokio::time::timeout(within, self.exchange(channel))
            .await
            .map_err(|_| Refusal::Late { within })??;
        let greeting = self.shared.identity.check_welcome(&welcome, self.peer.node)?;
        memory::learn_known(self.shared, greeting.node, welcome.known_incarnation).await?;
        self.peer.liveness.welcomed(&greeting, asked, self.shared.horizon.latest())?;
        // Only a process that may have the node's place says where the node is.
        self.found_at(address, welcome.incarnation).await;
        self.peer.said_founding(welcome.founding);
        Ok((answers, welcome))
    }

    /// The node answers at this address.
    async fn found_at(&mut self, address: &str, incarnation: u64) {
        self.was_there = true;
        let moved_to = match self.place {
            Place::Configured => {
                self.peer.is_where_it_should_be(incarnation);
                None
            }
            Place::Learnt => Some(address),
        };
        self.shared.directory.note_found(self.peer.node, moved_to);
        memory::found(self.shared, self.peer.node, moved_to).await;
    }

    async fn exchange(&self, channel: Channel) -> Result<(Streaming<Welcome>, Welcome), LaneError> {
        let advertisement = Some(self.shared.advertisement());
        let known = self.shared.memory.newest(self.peer.node);
        let hello =
            self.shared.identity.hello(self.peer.node, Some(self.lane), advertisement, known);
        let frames = self.peer.lane(self.lane).attach(hello);
        let mut client = tonic::client::Grpc::new(channel)
            .max_decoding_message_size(WELCOME_MAX_BYTES)
            .max_encoding_message_size(self.shared.config.frame_max_bytes);
        client.ready().await.map_err(|error| {
            LaneError::Ended(tonic::Code::Unavailable, connection::chain(&error))
        })?;
        let path = PathAndQuery::from_static(EXCHANGE_PATH);
        let codec = SenderCodec { buffer_bytes: self.shared.config.frame_target_bytes };
        let response = match client.streaming(Request::new(frames), path, codec).await {
            Ok(response) => response,
            Err(status) => {
                self.note_refusal(&status);
                let known = handshake::known_of_refusal(&status);
                memory::learn_known(self.shared, self.peer.node, known).await?;
                return Err(status.into());
            }
        };
        let mut answers = response.into_inner();
        match answers.message().await? {
            Some(welcome) => Ok((answers, welcome)),
            None => Err(LaneError::Closed),
        }
    }

    /// A refusal of the greeting stays in the status of this node until it is let in.
    fn note_refusal(&self, status: &Status) {
        if status.code() == tonic::Code::FailedPrecondition {
            let cause = status.message().chars().take(LONGEST_CAUSE).collect();
            self.peer.refusals.refused_by_peer(Some(cause));
        }
    }

    /// Lets the lane flow until the peer ends it, another process takes its place, or the
    /// connection breaks.
    async fn stay(&mut self, answers: Streaming<Welcome>, welcome: &Welcome) -> LaneError {
        let (node, lane) = (self.peer.node, self.lane);
        match self.place {
            Place::Configured => tracing::info!(%node, ?lane, "connected to a peer"),
            Place::Learnt => tracing::warn!(
                %node,
                ?lane,
                address = self.shared.directory.address(node),
                configured = *self.peer.address.borrow(),
                "connected to a peer at the address that its greeting names, which is not the configured \
                 one; correct the configuration"
            ),
        }
        self.backoff.reset();
        self.peer.refusals.refused_by_peer(None);
        let lane = self.peer.lane(self.lane);
        lane.open(welcome.tells_taken);
        tokio::select! {
            error = self.listen(answers, welcome) => error,
            () = self.peer.liveness.displaced(welcome.incarnation) => LaneError::Displaced,
            () = lane.stalled() => LaneError::Stalled,
            () = self.shared.identity.founded.differs(welcome.founding) => LaneError::OtherFounding,
            refusal = self.shared.identity.versions.outgrow(welcome.newest_version) => LaneError::Outgrown(refusal),
        }
    }

    /// Takes over the peer's reports about the stream, until it ends.
    async fn listen(&self, mut answers: Streaming<Welcome>, welcome: &Welcome) -> LaneError {
        loop {
            match answers.message().await {
                Ok(Some(answer)) if welcome.tells_taken && answer.taken_frames > 0 => {
                    self.peer.lane(self.lane).taken(answer.taken_frames);
                }
                Ok(Some(_)) => return LaneError::SecondWelcome,
                Ok(None) => return LaneError::Closed,
                Err(status) => return status.into(),
            }
        }
    }
}

/// Characters of a peer's message that are kept.
const LONGEST_CAUSE: usize = 512;

/// A welcome is a name and three numbers.
const WELCOME_MAX_BYTES: usize = 64 << 10;

/// The waits between attempts: doubling, bounded, and spread so that hosts do not come together.
#[derive(Debug)]
struct Backoff {
    min: Duration,
    max: Duration,
    wait: Duration,
}

impl Backoff {
    fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, wait: min }
    }

    fn reset(&mut self) {
        self.wait = self.min;
    }

    fn next(&mut self) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(self.max);
        wait.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_lose_at_most_half() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        for full in [100, 200, 300, 300] {
            let wait = backoff.next();
            let full = Duration::from_millis(full);
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(100));
    }
}
