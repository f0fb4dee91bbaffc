//! Accepts connections, and watches over each as it is read.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_security::Credentials;
use shardhost_security::accept::Accepting;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::table::{Connection, Connections};

/// A pause after an accept that failed: it would fail again at once, for as long as no descriptor is
/// free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Timers do not reach further. A certificate is looked at again then.
const LONGEST_SLEEP: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// A failing accept is logged so often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The connections of a listener, within the shares that the process has of open files. Services
/// beside those of the peers must be behind [`admit_clients`](super::admit_clients): connections on
/// which nothing was admitted end after ten seconds.
#[must_use]
pub fn incoming(listener: TcpListener) -> Incoming {
    let limits = crate::Descriptors::current().connections;
    incoming_within(listener, &Connections::new(limits), None)
}

/// The connections of a listener, counted in `connections`, over TLS with these credentials or without.
/// Never ends, and never fails.
#[must_use]
pub fn incoming_within(
    listener: TcpListener,
    connections: &Arc<Connections>,
    credentials: Option<Credentials>,
) -> Incoming {
    let connections = Arc::clone(connections);
    Incoming {
        listener,
        connections,
        credentials,
        pause: None,
        logged: None,
        refusals: Arc::default(),
    }
}

/// See [`incoming`].
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    connections: Arc<Connections>,
    credentials: Option<Credentials>,
    pause: Option<Pin<Box<Sleep>>>,
    /// When a failure was logged last.
    logged: Option<Instant>,
    refusals: Arc<Refusals>,
}

/// Logs connections that were refused before who is there was known, a few of them: anyone can make many.
#[derive(Debug, Default)]
struct Refusals {
    logged: Mutex<Option<Instant>>,
}

impl Refusals {
    fn note(&self, connection: &Connection, far: SocketAddr, error: &io::Error) {
        let so_far = connection.note_refused_handshake();
        let mut logged = self.logged.lock();
        let now = Instant::now();
        if logged.is_none_or(|logged| now.duration_since(logged) >= LOG_INTERVAL) {
            *logged = Some(now);
            tracing::warn!(from = %far, %error, so_far, "refused a connection");
        }
    }
}

impl Incoming {
    fn accept(&self, stream: TcpStream, far: SocketAddr) -> io::Result<Accepted> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's delay");
        }
        let stream = Accepting::new(stream, self.credentials.as_ref())?;
        Ok(Accepted::new(stream, far, &self.connections, &self.refusals))
    }

    fn note_failure(&mut self, error: &io::Error) {
        let now = Instant::now();
        if self.logged.is_none_or(|logged| now.duration_since(logged) >= LOG_INTERVAL) {
            self.logged = Some(now);
            let open = self.connections.stats();
            tracing::warn!(%error, ?open, "a connection cannot be accepted; trying on");
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Accepted>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, far)) => match self.accept(stream, far) {
                    Ok(accepted) => return Poll::Ready(Some(Ok(accepted))),
                    Err(error) => self.note_failure(&error),
                },
                Err(error) => {
                    self.note_failure(&error);
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// One connection. It is counted until this is dropped.
#[derive(Debug)]
pub struct Accepted {
    stream: Accepting,
    far: SocketAddr,
    connection: Connection,
    connections: Arc<Connections>,
    refusals: Arc<Refusals>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until when its first request must be let in; `None`: it was.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Until the certificate of the other side ends, once that is known.
    certified: Option<Pin<Box<Sleep>>>,
    /// It was refused, and that is noted.
    refused: bool,
}

impl Accepted {
    fn new(
        stream: Accepting,
        far: SocketAddr,
        connections: &Arc<Connections>,
        refusals: &Arc<Refusals>,
    ) -> Self {
        let (connection, cut): (Connection, CancellationToken) = connections.enter();
        let connection = connection.of(stream.caller());
        let deadline = Some(Box::pin(sleep(connections.first_request())));
        let connections = Arc::clone(connections);
        let (cut, refusals) = (Box::pin(cut.cancelled_owned()), Arc::clone(refusals));
        Self {
            stream,
            far,
            connection,
            connections,
            refusals,
            cut,
            deadline,
            certified: None,
            refused: false,
        }
    }

    /// Whether the connection is over, whatever the other side does. Asked whenever it is read or written:
    /// while the other side takes nothing, nothing is read.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(io::ErrorKind::ConnectionAborted.into());
        }
        // Asked for its keepalive at the latest.
        if self.connection.outlived_a_token() {
            return Poll::Ready(io::ErrorKind::ConnectionAborted.into());
        }
        if self.certified.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(io::ErrorKind::ConnectionAborted.into());
        }
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        if deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.deadline = None;
        if !self.connection.is_silent() {
            return Poll::Pending;
        }
        self.connection.note_ended();
        self.connection.cut();
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

impl Accepted {
    /// Notes who is at the other end, or that the connection was refused before that was known. Whichever is
    /// first of a read and a write meets it.
    fn watched<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        match &outcome {
            Poll::Ready(Ok(_)) if self.certified.is_none() => {
                if let Some(left) = self.stream.certified_for() {
                    let mut end = Box::pin(sleep(left.min(LONGEST_SLEEP)));
                    // So that its end is noticed.
                    if end.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                    }
                    self.certified = Some(end);
                }
            }
            Poll::Ready(Err(error))
                if !self.refused
                    && !self.stream.is_known()
                    && error.kind() != io::ErrorKind::UnexpectedEof =>
            {
                self.refused = true;
                self.refusals.note(&self.connection, self.far, error);
            }
            _ => {}
        }
        outcome
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.connections.leave(self.connection.id());
    }
}

impl Connected for Accepted {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.watched(read, cx)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buffer);
        self.watched(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        self.watched(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    use super::*;
    use crate::transport::ConnectionLimits;

    async fn listen(limits: ConnectionLimits) -> (Incoming, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (incoming_within(listener, &Connections::new(limits), None), address)
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_ends_and_one_that_was_let_in_stays() {
        let first_request = Duration::from_millis(50);
        let limits = ConnectionLimits { first_request, ..ConnectionLimits::of(64) };
        let (mut incoming, address) = listen(limits).await;
        let (_silent, _known) = (
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        );
        let mut silent = incoming.next().await.unwrap().unwrap();
        let mut known = incoming.next().await.unwrap().unwrap();
        known.connection.admit_client().unwrap();
        let ended = silent.read_u8().await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        let read = tokio::time::timeout(4 * first_request, known.read_u8()).await;
        assert!(read.is_err(), "it waits: {read:?}");
        drop((silent, known));
        let stats = incoming.connections.stats();
        assert_eq!((stats.silent, stats.clients, stats.ended), (0, 0, 1));
    }

    #[tokio::test]
    async fn a_connection_whose_other_side_takes_nothing_ends_all_the_same() {
        let first_request = Duration::from_millis(50);
        let limits = ConnectionLimits { first_request, ..ConnectionLimits::of(64) };
        let (mut incoming, address) = listen(limits).await;
        let _far = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        let much = vec![0; 64 << 20];
        let ended = tokio::time::timeout(Duration::from_secs(20), accepted.write_all(&much)).await;
        let ended = ended.expect("it is written on and on").unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_connection_ends_with_a_token_that_was_used_over_it() {
        let (mut incoming, address) = listen(ConnectionLimits::of(64)).await;
        let mut far = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        let (one, other) = (CancellationToken::new(), CancellationToken::new());
        assert!(accepted.connection.uses(&one) && accepted.connection.uses(&other));
        far.write_all(b"ab").await.unwrap();
        assert_eq!(accepted.read_u8().await.unwrap(), b'a');
        other.cancel();
        let ended = accepted.read_u8().await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn a_connection_can_be_cut_while_it_is_read() {
        let (mut incoming, address) = listen(ConnectionLimits::of(64)).await;
        let _far = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        let connection = accepted.connection.clone();
        let read = tokio::spawn(async move { accepted.read_u8().await.map_err(|e| e.kind()) });
        tokio::task::yield_now().await;
        connection.cut();
        assert_eq!(read.await.unwrap(), Err(io::ErrorKind::ConnectionAborted));
    }
}
