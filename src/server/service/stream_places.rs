//! The streams that clients may have, of the host and of each connection. While others are refused one, a stream
//! that does nothing for [`STALL_TIMEOUT`] ends.
//!
//! Of the batches that are on their way, or wait for room, those of one connection have a share: they come
//! one after the other, and keep no other connection waiting for more than one of theirs.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::Status;

use super::known_bugs::{KnownBug, KnownBugs};
use super::{REQUEST_OVERHEAD_BYTES, STALL_TIMEOUT};
use shardhost::transport::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use shardhost_proto::limits::{MAX_BATCH_BYTES, MAX_BATCH_REQUESTS};

/// Streams that clients may have open at a host.
pub const MAX_STREAMS: usize = 1_024;
/// Those that one connection may have of them.
pub const MAX_STREAMS_PER_CONNECTION: usize = MAX_STREAMS / 32;
// A batch that waits for its turn stays in the window of its stream. If such batches filled the window of
// their connection, the one that has its turn could not come, and all would wait for ever.
const _: () = assert!(
    MAX_STREAMS_PER_CONNECTION * (STREAM_WINDOW_BYTES as usize) < CONNECTION_WINDOW_BYTES as usize
);

/// The places of the streams of a host.
#[derive(Debug)]
pub(super) struct StreamPlaces {
    streams: Mutex<Streams>,
    /// What the batches of one connection may take that are on their way.
    share: usize,
    bugs: KnownBugs,
}

/// The streams that are open.
#[derive(Debug, Default)]
struct Streams {
    open: usize,
    of: HashMap<u64, OfConnection>,
    /// When one was refused last.
    refused: Option<Instant>,
}

/// The streams of one connection.
#[derive(Debug)]
struct OfConnection {
    open: usize,
    arrivals: Arrivals,
}

impl StreamPlaces {
    /// The batches of one connection that are on their way may take `share` bytes, the largest one at least.
    pub(super) fn new(share: usize, bugs: KnownBugs) -> Self {
        let largest = MAX_BATCH_BYTES + MAX_BATCH_REQUESTS * REQUEST_OVERHEAD_BYTES;
        Self { streams: Mutex::default(), share: share.max(largest), bugs }
    }

    /// A place for one more stream of a connection; `None`: the connection is unknown.
    pub(super) fn enter(self: &Arc<Self>, connection: Option<u64>) -> Result<StreamPlace, Status> {
        let mut streams = self.streams.lock();
        if streams.open >= MAX_STREAMS {
            streams.refused = Some(Instant::now());
            return Err(Status::resource_exhausted(format!(
                "this node has {MAX_STREAMS} streams of clients and takes no more; close some, or ask \
                 another node"
            )));
        }
        let mut arrivals = None;
        if let Some(connection) = connection {
            let new = || OfConnection { open: 0, arrivals: Arrivals::new(self.share, self.bugs) };
            let of_connection = streams.of.entry(connection).or_insert_with(new);
            if of_connection.open >= MAX_STREAMS_PER_CONNECTION
                && !self.bugs.has(KnownBug::NoBoundOfStreams)
            {
                return Err(Status::resource_exhausted(format!(
                    "this connection has {MAX_STREAMS_PER_CONNECTION} streams and gets no more; close \
                     some"
                )));
            }
            of_connection.open += 1;
            arrivals = Some(of_connection.arrivals.clone());
        }
        streams.open += 1;
        Ok(StreamPlace { places: Arc::clone(self), connection, arrivals })
    }

    /// Whether a client was refused a stream not long ago.
    pub(super) fn are_lacking(&self) -> bool {
        self.streams.lock().refused.is_some_and(|refused| refused.elapsed() < STALL_TIMEOUT)
    }

    /// Streams that are open.
    pub(super) fn open(&self) -> usize {
        self.streams.lock().open
    }

    /// The same, and the most that one connection has.
    #[cfg(test)]
    pub(super) fn open_and_most(&self) -> (usize, usize) {
        let streams = self.streams.lock();
        let most = streams.of.values().map(|of_connection| of_connection.open).max();
        (streams.open, most.unwrap_or(0))
    }
}

/// The place of a stream among those of the host and of its connection.
#[derive(Debug)]
pub(super) struct StreamPlace {
    places: Arc<StreamPlaces>,
    connection: Option<u64>,
    arrivals: Option<Arrivals>,
}

impl StreamPlace {
    /// What the batches of its connection take that are on their way; `None`: it is not known whose
    /// stream it is.
    pub(super) fn arrivals(&self) -> Option<Arrivals> {
        self.arrivals.clone()
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut streams = self.places.streams.lock();
        streams.open -= 1;
        if let Some(connection) = self.connection
            && let Some(of_connection) = streams.of.get_mut(&connection)
        {
            of_connection.open -= 1;
            if of_connection.open == 0 {
                streams.of.remove(&connection);
            }
        }
    }
}

/// The bytes of batches of one connection that may be on their way.
#[derive(Clone, Debug)]
pub(super) struct Arrivals {
    free: Arc<Semaphore>,
    share: usize,
    bugs: KnownBugs,
}

impl Arrivals {
    fn new(share: usize, bugs: KnownBugs) -> Self {
        Self { free: Arc::new(Semaphore::new(share)), share, bugs }
    }

    /// Waits until it is the turn of a batch of this size among those of its connection.
    pub(super) async fn turn(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let mut bytes = u32::try_from(bytes.min(self.share)).unwrap_or(u32::MAX);
        if self.bugs.has(KnownBug::NoShareOfConnection) {
            bytes = 0;
        }
        // The semaphore is never closed.
        // Waiting for oneself is no lack of memory.
        Arc::clone(&self.free).acquire_many_owned(bytes).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// With a share that fits one of the largest batches.
    fn places() -> Arc<StreamPlaces> {
        Arc::new(StreamPlaces::new(0, KnownBugs::default()))
    }

    #[tokio::test]
    async fn one_connection_gets_a_part_of_the_streams() {
        let places = places();
        let mut first: Vec<_> =
            (0..MAX_STREAMS_PER_CONNECTION).map(|_| places.enter(Some(1)).unwrap()).collect();
        let refused = places.enter(Some(1)).unwrap_err();
        assert!(refused.message().contains("this connection has"), "{refused}");
        assert!(!places.are_lacking(), "others find one");
        let connections = (MAX_STREAMS / MAX_STREAMS_PER_CONNECTION) as u64;
        let others: Vec<_> = (2..=connections)
            .flat_map(|connection| (0..MAX_STREAMS_PER_CONNECTION).map(move |_| connection))
            .collect();
        let others: Vec<_> =
            others.into_iter().map(|connection| places.enter(Some(connection)).unwrap()).collect();
        let refused = places.enter(Some(0)).unwrap_err();
        assert!(refused.message().contains("this node has"), "{refused}");
        assert!(places.are_lacking());
        first.pop();
        let last = places.enter(Some(0)).unwrap();
        drop((first, others, last));
        let streams = places.streams.lock();
        assert!(streams.open == 0 && streams.of.is_empty(), "{streams:?}");
    }

    #[tokio::test]
    async fn batches_of_one_connection_leave_room_for_those_of_others() {
        let places = places();
        let (one, other) = (places.enter(Some(1)).unwrap(), places.enter(Some(2)).unwrap());
        let again = places.enter(Some(1)).unwrap();
        let turn =
            async |place: &StreamPlace| place.arrivals().unwrap().turn(usize::MAX).await.unwrap();
        tokio::time::pause();
        let first = turn(&one).await;
        assert!(timeout(STALL_TIMEOUT, turn(&again)).await.is_err(), "one after the other");
        let second = turn(&other).await;
        drop(first);
        drop((turn(&again).await, second));
    }
}
