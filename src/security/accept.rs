//! The side that accepts: TLS on a connection, and who is at the other end.
//!
//! The first bytes say what the other side speaks. One that speaks TLS where there is none, or none where
//! there is, gets a word in its own language before the connection ends.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use super::caller::Caller;
use super::credentials::Credentials;
use super::identity::CertificateFacts;

/// A connection that was accepted. TLS begins when it is first read or written.
pub struct Accepting {
    state: State,
    caller: Arc<OnceLock<Caller>>,
    certified_until: Option<SystemTime>,
}

enum State {
    /// Its first byte was not seen yet.
    New {
        stream: TcpStream,
        acceptor: Option<TlsAcceptor>,
    },
    Plain(TcpStream),
    Greeting(Box<Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
    /// The other side got the reason why it is refused, and may send so many bytes more before it closes.
    Leaving {
        stream: TcpStream,
        why: &'static str,
        left: usize,
    },
    /// It ended so.
    Failed(io::ErrorKind),
}

/// First byte of a TLS record that begins a connection.
const TLS_BEGINS: u8 = 0x16;
/// First byte of HTTP/2.
const HTTP_BEGINS: u8 = b'P';
/// What ends a TLS connection of a version that is not spoken: a fatal alert.
const NO_TLS: &[u8] = &[0x15, 3, 3, 0, 2, 2, 70];
/// What ends an HTTP/2 connection that must not be open to all: settings, and `GOAWAY` with
/// `INADEQUATE_SECURITY` and a text.
const WANTS_TLS: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x2d\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0cthis node speaks TLS; connect with it";

/// Bytes that are read, and dropped, of one that is refused.
const MOST_LEFT_BYTES: usize = 64 << 10;

/// The text at the end of it.
pub(super) const WANTS_TLS_TEXT: &[u8] = b"this node speaks TLS; connect with it";

impl Accepting {
    /// A connection of a listener: over TLS with these credentials, or without.
    ///
    /// # Errors
    /// They are not those of a node.
    pub fn new(stream: TcpStream, credentials: Option<&Credentials>) -> io::Result<Self> {
        let acceptor = match credentials {
            Some(credentials) => {
                let config =
                    credentials.server().ok_or_else(|| io::Error::other("no certificate"))?;
                Some(TlsAcceptor::from(config))
            }
            None => None,
        };
        Ok(Self {
            state: State::New { stream, acceptor },
            caller: Arc::default(),
            certified_until: None,
        })
    }

    /// Who is at the other end, once that is known: before the first request is.
    #[must_use]
    pub fn caller(&self) -> Arc<OnceLock<Caller>> {
        Arc::clone(&self.caller)
    }

    /// Whether it is known who is at the other end.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.caller.get().is_some()
    }

    /// How long the certificate of the other side is valid still; `None`: there is none, or it is not known
    /// yet.
    #[must_use]
    pub fn certified_for(&self) -> Option<Duration> {
        let until = self.certified_until?;
        Some(until.duration_since(SystemTime::now()).unwrap_or_default())
    }

    fn know(&self, caller: Caller) {
        // Known once and for all.
        let _known = self.caller.get_or_init(|| caller);
    }

    /// Until bytes can be read and written.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Plain(_) | State::Tls(_) => return Poll::Ready(Ok(())),
                State::Failed(kind) => return Poll::Ready(Err((*kind).into())),
                State::New { stream, .. } => {
                    let mut first = [0];
                    let mut first = ReadBuf::new(&mut first);
                    let seen = ready!(stream.poll_peek(cx, &mut first));
                    let first = first.filled().first().copied();
                    if let Err(error) = seen.and_then(|_| self.begin(first)) {
                        return Poll::Ready(Err(self.fail(error)));
                    }
                }
                State::Leaving { stream, why, left } => {
                    let error = ready!(poll_left(stream, left, cx)).err();
                    let refused = || io::Error::new(io::ErrorKind::InvalidData, *why);
                    let error = error.unwrap_or_else(refused);
                    return Poll::Ready(Err(self.fail(error)));
                }
                State::Greeting(accept) => match ready!(Pin::new(accept.as_mut()).poll(cx)) {
                    Ok(stream) => {
                        let caller = caller_of(&stream);
                        self.state = State::Tls(Box::new(stream));
                        match caller {
                            Ok((caller, until)) => {
                                self.certified_until = until;
                                self.know(caller);
                            }
                            Err(error) => return Poll::Ready(Err(self.fail(error))),
                        }
                    }
                    Err(error) => return Poll::Ready(Err(self.fail(error))),
                },
            }
        }
    }

    fn fail(&mut self, error: io::Error) -> io::Error {
        self.state = State::Failed(error.kind());
        error
    }

    /// The first byte is there; `None`: the other side closed.
    fn begin(&mut self, first: Option<u8>) -> io::Result<()> {
        let before = std::mem::replace(&mut self.state, State::Failed(io::ErrorKind::NotConnected));
        let State::New { stream, acceptor } = before else {
            self.state = before;
            return Ok(());
        };
        let Some(first) = first else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let refused = |stream: TcpStream, said: &[u8], why| {
            // It is the first that is written: there is room for it.
            stream.try_write(said)?;
            Ok::<_, io::Error>(State::Leaving { stream, why, left: MOST_LEFT_BYTES })
        };
        self.state = match (acceptor, first) {
            (None, TLS_BEGINS) => refused(stream, NO_TLS, "it speaks TLS, and this node does not")?,
            (None, _) => {
                self.know(Caller::Unchecked);
                State::Plain(stream)
            }
            (Some(acceptor), TLS_BEGINS) => State::Greeting(Box::new(acceptor.accept(stream))),
            (Some(_), HTTP_BEGINS) => {
                refused(stream, WANTS_TLS, "it does not speak TLS, and this node does")?
            }
            (Some(_), _) => {
                let why = "it speaks neither TLS nor HTTP/2";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        };
        Ok(())
    }
}

/// Until the other side of a connection that is refused has closed it. One that is closed while bytes are there that
/// were not read loses what was said last: the other side would not know why.
fn poll_left(
    stream: &mut TcpStream,
    left: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
    loop {
        let mut part = [0; 1_024];
        let mut part = ReadBuf::new(&mut part);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut part))?;
        let length = part.filled().len();
        if length == 0 || length > *left {
            return Poll::Ready(Ok(()));
        }
        *left -= length;
    }
}

fn caller_of(stream: &TlsStream<TcpStream>) -> io::Result<(Caller, Option<SystemTime>)> {
    let (_, session) = stream.get_ref();
    let Some(certificate) = session.peer_certificates().and_then(<[_]>::first) else {
        return Ok((Caller::Unknown, None));
    };
    let facts = CertificateFacts::read(certificate).map_err(io::Error::other)?;
    Ok((Caller::of(facts.identity), Some(facts.not_after)))
}

impl AsyncRead for Accepting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_ready(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            State::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
            State::New { .. } | State::Greeting(_) | State::Leaving { .. } | State::Failed(_) => {
                not_ready()
            }
        }
    }
}

fn not_ready<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl AsyncWrite for Accepting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_ready(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            State::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
            State::New { .. } | State::Greeting(_) | State::Leaving { .. } | State::Failed(_) => {
                not_ready()
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_ready(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            State::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bytes),
            State::New { .. } | State::Greeting(_) | State::Leaving { .. } | State::Failed(_) => {
                not_ready()
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        // Either writes several at once; what is not known yet writes nothing.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_flush(cx),
            State::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            // Nothing was written.
            State::New { .. } | State::Greeting(_) | State::Leaving { .. } => Poll::Ready(Ok(())),
            State::Failed(_) => not_ready(),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            State::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            // It is closed when this is dropped.
            State::New { .. } | State::Greeting(_) | State::Leaving { .. } | State::Failed(_) => {
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl std::fmt::Debug for Accepting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match self.state {
            State::New { .. } => "new",
            State::Plain(_) => "plain",
            State::Greeting(_) => "greeting",
            State::Tls(_) => "TLS",
            State::Leaving { .. } => "leaving",
            State::Failed(_) => "failed",
        };
        f.debug_struct("Accepting").field("state", &state).field("caller", &self.caller).finish()
    }
}
