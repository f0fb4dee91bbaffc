//! Sends what has completed, and lets go of it once the connection has taken it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use prost::Message;
use shardhost_proto::client::{Failure, FailureReason};
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::sleep;
use tonic::Status;

use super::Protocol;
use super::reads::{ReadPlaces, refuse_late};
use super::stream::{Charge, Completed, Outcome, Stream};
use crate::service::STALL_TIMEOUT;
use crate::service::known_bugs::KnownBug;
use crate::service::{GroupLookup, failure};
use shardhost::transport::Connection;

/// A batch of replies ends with the reply that reaches this size.
const REPLY_BATCH_BYTES: usize = 256 * 1024;

/// What goes to the connection: a batch and what it holds, or how the stream ended.
pub(super) type Sent<P> = Result<(<P as Protocol>::Replies, Held), Status>;

/// What the replies of a batch hold until the connection has taken it.
pub(super) struct Held {
    stream: Arc<Stream>,
    requests: usize,
    charge: Charge,
    places: Vec<ReadPlaces>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // The permits first: a task that is woken finds them.
        let Charge { bytes, permit, .. } = std::mem::take(&mut self.charge);
        drop((permit, std::mem::take(&mut self.places)));
        self.stream.taken(self.requests, bytes);
    }
}

/// The batches of replies of one stream, as the connection takes them.
pub struct ReplyStream<P: Protocol> {
    batches: mpsc::Receiver<Sent<P>>,
    /// Of the batch that was taken last: it is on its way until the next one is asked for.
    held: Option<Held>,
}

impl<P: Protocol> ReplyStream<P> {
    pub(super) const fn new(batches: mpsc::Receiver<Sent<P>>) -> Self {
        Self { batches, held: None }
    }
}

impl<P: Protocol> Unpin for ReplyStream<P> {}

impl<P: Protocol> tokio_stream::Stream for ReplyStream<P> {
    type Item = Result<P::Replies, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.held = None;
        self.batches.poll_recv(cx).map(|sent| {
            sent.map(|sent| {
                sent.map(|(replies, held)| {
                    self.held = Some(held);
                    replies
                })
            })
        })
    }
}

/// Sends what has completed until nothing more can complete, or the client is gone.
pub(super) async fn write<P: Protocol>(
    stream: Arc<Stream>,
    replies: mpsc::Sender<Sent<P>>,
    connection: Option<Connection>,
) {
    tokio::select! {
        // From a seed it is the same run each time.
        biased;
        written = write_all::<P>(&stream, &replies) => if written.is_ok() {
            return;
        },
        () = replies.closed() => {}
        () = refuse_late(&stream) => {}
        () = until_stalled(&stream) => {
            tracing::warn!(kind = P::KIND, "a client takes no answers while others wait for memory or a stream");
            if let Some(connection) = connection {
                connection.cut();
            }
        }
    }
    stream.abandon();
}

/// Until the client has left its answers where they are for too long, and others need the memory or
/// the place.
async fn until_stalled(stream: &Stream) {
    loop {
        sleep(STALL_TIMEOUT / 4).await;
        if stream.is_stalled() {
            return;
        }
    }
}

async fn write_all<P: Protocol>(
    stream: &Arc<Stream>,
    replies: &mpsc::Sender<Sent<P>>,
) -> Result<(), ClientGone> {
    while !stream.is_over() {
        stream.completed.notified().await;
        // What completes together goes out together.
        yield_now().await;
        while let Some(completed) = stream.take_completed() {
            send_all::<P>(stream, completed, replies).await?;
        }
    }
    match stream.take_fault() {
        Some(fault) => replies.send(Err(fault)).await.map_err(|_| ClientGone),
        None => Ok(()),
    }
}

/// The client no longer takes replies.
struct ClientGone;

async fn send_all<P: Protocol>(
    stream: &Arc<Stream>,
    completed: Vec<Completed>,
    replies: &mpsc::Sender<Sent<P>>,
) -> Result<(), ClientGone> {
    let mut batch = Batch::<P>::default();
    let now = Instant::now();
    for one in completed {
        batch.add(one, stream, now);
        if batch.bytes >= REPLY_BATCH_BYTES {
            std::mem::take(&mut batch).send(stream, replies).await?;
        }
    }
    batch.send(stream, replies).await
}

/// Replies that go out together, and what they free when they are out.
struct Batch<P: Protocol> {
    replies: Vec<P::Reply>,
    bytes: usize,
    charge: Charge,
    places: Vec<ReadPlaces>,
}

impl<P: Protocol> Default for Batch<P> {
    fn default() -> Self {
        Self { replies: Vec::new(), bytes: 0, charge: Charge::default(), places: Vec::new() }
    }
}

impl<P: Protocol> Batch<P> {
    fn add(&mut self, completed: Completed, stream: &Stream, now: Instant) {
        let Completed { id, charge, outcome } = completed;
        let lookup: &dyn GroupLookup = &*stream.lookup;
        let reply = match outcome {
            Outcome::Write(Ok(applied)) => P::written(id, &applied),
            Outcome::Write(Err(error)) => P::failed(id, failure::of_proposal(&error, lookup)),
            Outcome::Unanswered => P::failed(id, failure::unanswered(P::UNANSWERED)),
            Outcome::Read(answer, places) => {
                self.places.push(places);
                match answer {
                    Ok(answer) => P::answered(id, &answer),
                    Err(error) => P::failed(id, failure::of_read(&error, lookup)),
                }
            }
            Outcome::TooManyReads => P::failed(id, failure::too_many_reads()),
            Outcome::WrongMap(map) => P::failed(id, failure::wrong_map(map.as_deref())),
            Outcome::UnknownGroup(group) => P::failed(id, failure::unknown_group(group, P::KIND)),
            Outcome::Invalid(message) => {
                P::failed(id, failure::failure(FailureReason::Invalid, message))
            }
        };
        if let Some(origin) = charge.origin {
            let failed = P::failure_of(&reply).map(Failure::reason);
            stream.budget.requests().of(P::KIND).count(origin, now, failed);
        }
        self.bytes += reply.encoded_len();
        self.charge.absorb(charge);
        self.replies.push(reply);
    }

    async fn send(
        self,
        stream: &Arc<Stream>,
        replies: &mpsc::Sender<Sent<P>>,
    ) -> Result<(), ClientGone> {
        let Self { replies: batch, mut charge, mut places, .. } = self;
        if batch.is_empty() {
            return Ok(());
        }
        if stream.budget.bugs.has(KnownBug::GiveBackWhenHanded) {
            (charge.permit, places) = (None, Vec::new());
        }
        stream.hand_over();
        let held = Held { stream: Arc::clone(stream), requests: batch.len(), charge, places };
        replies.send(Ok((P::replies(batch), held))).await.map_err(|_| ClientGone)
    }
}
