//! The way from one host to another: a proxy that can be closed and slowed down.
//!
//! Every stream of a host goes over connections that it makes itself, so closing the road from one
//! to another cuts one direction.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Bytes that are carried at once.
const CHUNK_BYTES: usize = 16 << 10;

/// A road between two hosts. Ends when it is dropped.
pub struct Road {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    end: CancellationToken,
}

struct State {
    to: SocketAddr,
    /// Ends the connections of the road while it is open; `None`: it is closed.
    open: Option<CancellationToken>,
    bytes_per_second: Option<u64>,
    late_by: Duration,
}

impl Road {
    /// A proxy to an address, on a separate port.
    pub async fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let end = CancellationToken::new();
        let open = Some(end.child_token());
        let state = State { to, open, bytes_per_second: None, late_by: Duration::ZERO };
        let shared = Arc::new(Shared { state: Mutex::new(state), end });
        tokio::spawn(accept(Arc::clone(&shared), listener));
        Self { address, shared }
    }

    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections and takes no others.
    pub fn close(&self) {
        if let Some(open) = self.shared.state.lock().open.take() {
            open.cancel();
        }
    }

    /// Takes connections again.
    pub fn open(&self) {
        let mut state = self.shared.state.lock();
        state.open.get_or_insert_with(|| self.shared.end.child_token());
    }

    /// What each connection carries from here on, and how late.
    pub fn limit(&self, bytes_per_second: Option<u64>, late_by: Duration) {
        let mut state = self.shared.state.lock();
        (state.bytes_per_second, state.late_by) = (bytes_per_second, late_by);
    }
}

impl Drop for Road {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = shared.end.run_until_cancelled(listener.accept()).await;
        let Some(accepted) = accepted else { return };
        let (to, open) = {
            let state = shared.state.lock();
            (state.to, state.open.clone())
        };
        // While it is closed the connection is dropped at once.
        if let (Ok((from, _)), Some(open)) = (accepted, open) {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                open.run_until_cancelled(carry(&shared, from, to)).await;
            });
        }
    }
}

async fn carry(shared: &Shared, from: TcpStream, to: SocketAddr) {
    let Ok(to) = TcpStream::connect(to).await else { return };
    if from.set_nodelay(true).is_err() || to.set_nodelay(true).is_err() {
        return;
    }
    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
    tokio::join!(one_way(shared, from_read, to_write), one_way(shared, to_read, from_write));
}

async fn one_way(
    shared: &Shared,
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        let (rate, late_by) = {
            let state = shared.state.lock();
            (state.bytes_per_second, state.late_by)
        };
        let takes = rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(count as f64 / rate.max(1) as f64)
        });
        tokio::time::sleep(takes + late_by).await;
        if to.write_all(&chunk[..count]).await.is_err() {
            break;
        }
    }
    // The reader there learns that nothing more comes.
    drop(to.shutdown().await);
}
