//! Batches of requests on their way from the connection.
//!
//! A batch says how long it is before it comes. It is taken from the connection only when what clients
//! may hold together has room for all of it and for what its requests cost: until then it stays in the
//! stream's window, and its client waits; the windows of all other streams of a connection leave room in
//! that of the connection, so those that have their turn go on. So tonic never gets the bytes:
//! [`Unread`] keeps the body of a request from it, and hands it to the pipeline as it comes from the connection.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::codegen::{Body as HttpBody, Service, StdError};
use tonic::server::NamedService;

use super::counted::decode;
use crate::service::REQUEST_OVERHEAD_BYTES;
use crate::service::budget::ClientBudget;
use crate::service::known_bugs::KnownBug;
use crate::service::stream_places::{Arrivals, StreamPlace};
use shardhost_proto::limits::{MAX_BATCH_BYTES, MAX_BATCH_REQUESTS};

/// In front of each message: whether it is compressed, and its length.
const HEADER_BYTES: usize = 5;
/// The shortest that a request in a batch can be.
const LEAST_REQUEST_BYTES: usize = 2;

/// Gives the next bytes of a body; `None` behind the last.
type NextBytes = Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> + Send>;

/// The body of a request, for the first who takes it.
#[derive(Clone)]
struct RawBody(Arc<Mutex<Option<NextBytes>>>);

impl RawBody {
    fn of<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError>,
    {
        let mut body = Box::pin(body);
        let next: NextBytes = Box::new(move |cx| {
            loop {
                match ready!(body.as_mut().poll_frame(cx)) {
                    None => return Poll::Ready(None),
                    Some(Err(error)) => {
                        return Poll::Ready(Some(Err(Status::from_error(error.into()))));
                    }
                    Some(Ok(frame)) => {
                        // What follows the data says nothing that counts.
                        if let Ok(data) = frame.into_data() {
                            return Poll::Ready(Some(Ok(data)));
                        }
                    }
                }
            }
        });
        Self(Arc::new(Mutex::new(Some(next))))
    }
}

/// A pipelined service, whose bodies it reads itself.
#[derive(Clone, Debug)]
pub struct Unread<S>(pub(crate) S);

impl<S, B> Service<Request<B>> for Unread<S>
where
    S: Service<Request<Body>>,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(RawBody::of(body));
        self.0.call(Request::from_parts(parts, Body::empty()))
    }
}

impl<S: NamedService> NamedService for Unread<S> {
    const NAME: &'static str = S::NAME;
}

/// The batches of one stream.
pub(super) struct Batches {
    next: NextBytes,
    budget: Arc<ClientBudget>,
    /// Those of the connection that are on their way.
    arrivals: Option<Arrivals>,
    /// What came last, as far as it is not taken.
    rest: Bytes,
    arrival: Arc<Mutex<Arrival>>,
}

/// How the next batch of a stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Arrival {
    /// None is on its way.
    #[default]
    Nothing,
    /// It was announced, and waits for its turn or for memory.
    Waits,
    /// It has its room since then, and comes as fast as its client sends it.
    Comes(Instant),
}

/// A batch, and what it holds of the budget.
pub(super) struct Arrived<B> {
    pub(super) batch: B,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl Batches {
    /// Of a request that came through [`Unread`].
    pub(super) fn of<T>(
        request: &mut tonic::Request<T>,
        budget: &Arc<ClientBudget>,
        place: &StreamPlace,
    ) -> Result<Self, Status> {
        let body = request.extensions_mut().remove::<RawBody>();
        let next = body.and_then(|body| body.0.lock().take());
        let next =
            next.ok_or_else(|| Status::internal("the body of the request was read before"))?;
        let mut batches = Self::new(next, budget);
        batches.arrivals = place.arrivals();
        Ok(batches)
    }

    /// Those of which a test sends the bytes.
    #[cfg(test)]
    pub(super) fn fed(
        mut bytes: tokio::sync::mpsc::UnboundedReceiver<Bytes>,
        budget: &Arc<ClientBudget>,
        place: &StreamPlace,
    ) -> Self {
        let next: NextBytes = Box::new(move |cx| bytes.poll_recv(cx).map(|bytes| bytes.map(Ok)));
        let mut batches = Self::new(next, budget);
        batches.arrivals = place.arrivals();
        batches
    }

    fn new(next: NextBytes, budget: &Arc<ClientBudget>) -> Self {
        let budget = Arc::clone(budget);
        Self { next, budget, arrivals: None, rest: Bytes::new(), arrival: Arc::default() }
    }

    /// How the next batch is, from here on.
    pub(super) fn arrival(&self) -> Arc<Mutex<Arrival>> {
        Arc::clone(&self.arrival)
    }

    /// The next batch, when all of it is there; `None` behind the last.
    ///
    /// # Errors
    /// The connection broke, or what came is no batch, or too large.
    pub(super) async fn next<B: Message + Default>(
        &mut self,
    ) -> Result<Option<Arrived<B>>, Status> {
        let Some(length) = self.header().await? else { return Ok(None) };
        let room = room_for(length);
        *self.arrival.lock() = Arrival::Waits;
        // Until the batch is there: what it needs then is a matter of its own.
        let _turn = match &self.arrivals {
            Some(arrivals) => arrivals.turn(room).await,
            None => None,
        };
        let permit = match self.budget.bugs.has(KnownBug::ReadBeforeRoom) {
            true => None,
            false => self.budget.commands(room).await,
        };
        *self.arrival.lock() = Arrival::Comes(Instant::now());
        let message = self.message(length).await?;
        *self.arrival.lock() = Arrival::Nothing;
        Ok(Some(Arrived { batch: decode(message)?, permit }))
    }

    /// The length of the next message.
    async fn header(&mut self) -> Result<Option<usize>, Status> {
        let mut header = [0; HEADER_BYTES];
        let mut came = 0;
        while came < HEADER_BYTES {
            if !self.more().await? {
                return if came == 0 { Ok(None) } else { Err(cut_off()) };
            }
            let count = self.rest.len().min(HEADER_BYTES - came);
            self.rest.copy_to_slice(&mut header[came..came + count]);
            came += count;
        }
        let [compressed, length @ ..] = header;
        if compressed != 0 {
            return Err(Status::unimplemented("batches are not taken compressed"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_BATCH_BYTES {
            return Err(Status::out_of_range(format!(
                "it has {length} bytes, the limit is {MAX_BATCH_BYTES}"
            )));
        }
        Ok(Some(length))
    }

    async fn message(&mut self, length: usize) -> Result<Bytes, Status> {
        if self.rest.len() >= length {
            return Ok(self.rest.split_to(length));
        }
        let mut message = BytesMut::with_capacity(length);
        while message.len() < length {
            if !self.more().await? {
                return Err(cut_off());
            }
            let count = self.rest.len().min(length - message.len());
            message.extend_from_slice(&self.rest.split_to(count));
        }
        Ok(message.freeze())
    }

    /// Sees to it that something is there; false: nothing comes any more.
    async fn more(&mut self) -> Result<bool, Status> {
        while self.rest.is_empty() {
            match poll_fn(|cx| (self.next)(cx)).await {
                Some(bytes) => self.rest = bytes?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        *self.arrival.lock() = Arrival::Nothing;
    }
}

/// What a batch of this length can cost, with all its requests: taken at once, for one that waited
/// for the rest while it holds a part would keep it from others that do the same.
fn room_for(length: usize) -> usize {
    let requests = (length / LEAST_REQUEST_BYTES).min(MAX_BATCH_REQUESTS);
    length + requests * REQUEST_OVERHEAD_BYTES
}

fn cut_off() -> Status {
    Status::internal("the stream ended within a batch")
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use shardhost_proto::client::{TableBatch, TableRequest};
    use tokio::sync::mpsc;

    use super::*;
    use crate::service::budget::MIN_CLIENT_BYTES;

    fn batch(requests: usize) -> TableBatch {
        let request = |id| TableRequest { id, ..TableRequest::default() };
        TableBatch { requests: (1..=requests as u64).map(request).collect() }
    }

    fn encoded(batch: &TableBatch) -> Vec<u8> {
        let message = batch.encode_to_vec();
        let mut bytes = vec![0];
        bytes.extend((message.len() as u32).to_be_bytes());
        bytes.extend(message);
        bytes
    }

    /// Batches of which the test sends the bytes.
    fn batches(budget: &Arc<ClientBudget>) -> (mpsc::UnboundedSender<Vec<u8>>, Batches) {
        let (bytes, mut received) = mpsc::unbounded_channel::<Vec<u8>>();
        let next: NextBytes =
            Box::new(move |cx| received.poll_recv(cx).map(|bytes| bytes.map(|b| Ok(b.into()))));
        (bytes, Batches::new(next, budget))
    }

    #[tokio::test]
    async fn batches_come_whole_however_their_bytes_come() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        let sent = [batch(3), batch(0), batch(200)];
        let bytes: Vec<u8> = sent.iter().flat_map(encoded).collect();
        for step in [1, 4, 7, bytes.len()] {
            let (sender, mut batches) = batches(&budget);
            bytes.chunks(step).for_each(|chunk| sender.send(chunk.to_vec()).unwrap());
            drop(sender);
            for one in &sent {
                let came = batches.next::<TableBatch>().await.unwrap().expect("another one");
                assert_eq!(came.batch, *one, "in steps of {step}");
            }
            assert!(batches.next::<TableBatch>().await.unwrap().is_none());
        }
        assert_eq!(budget.used_bytes(), 0);
    }

    /// A batch that is half there holds the room for all of it, and one for which there is none is not read.
    #[tokio::test]
    async fn a_batch_is_read_when_there_is_room_for_all_of_it() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        let bytes = encoded(&batch(1_000));
        let (sender, mut half) = batches(&budget);
        sender.send(bytes[..20].to_vec()).unwrap();
        let arrival = half.arrival();
        {
            let mut coming = Box::pin(half.next::<TableBatch>());
            assert!((&mut coming).now_or_never().is_none());
            assert_eq!(budget.used_bytes(), room_for(bytes.len() - HEADER_BYTES));
            assert!(matches!(*arrival.lock(), Arrival::Comes(_)));
        }
        drop(half);
        assert_eq!(*arrival.lock(), Arrival::Nothing);
        assert_eq!(budget.used_bytes(), 0, "who goes away holds nothing");

        let all = budget.commands(usize::MAX).await;
        let (sender, mut later) = batches(&budget);
        sender.send(bytes.clone()).unwrap();
        let arrival = later.arrival();
        let mut coming = Box::pin(later.next::<TableBatch>());
        assert!((&mut coming).now_or_never().is_none(), "there is no room");
        assert_eq!(*arrival.lock(), Arrival::Waits);
        drop(all);
        let came = coming.await.unwrap().unwrap();
        assert_eq!(came.batch.requests.len(), 1_000);
    }

    #[tokio::test]
    async fn what_is_no_batch_is_refused() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        let whole = encoded(&batch(3));
        let long = [&[0][..], &(MAX_BATCH_BYTES as u32 + 1).to_be_bytes()].concat();
        let compressed = [&[1][..], &whole[1..]].concat();
        let garbage = vec![0, 0, 0, 0, 1, 0xff];
        let cases = [
            (long, tonic::Code::OutOfRange),
            (compressed, tonic::Code::Unimplemented),
            (garbage, tonic::Code::InvalidArgument),
            (whole[..3].to_vec(), tonic::Code::Internal),
            (whole[..whole.len() - 1].to_vec(), tonic::Code::Internal),
        ];
        for (bytes, code) in cases {
            let (sender, mut batches) = batches(&budget);
            sender.send(bytes).unwrap();
            drop(sender);
            let refused = batches.next::<TableBatch>().await.map(drop).unwrap_err();
            assert_eq!(refused.code(), code, "{refused}");
        }
        assert_eq!(budget.used_bytes(), 0);
    }
}
