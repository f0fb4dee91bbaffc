//! A TCP proxy between client and host that loses answers, or holds up a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// One in so many chunks of answers is lost while the proxy is lossy.
const LOSS: u32 = 6;

pub struct Proxy {
    pub address: String,
    faults: Arc<Faults>,
}

struct Faults {
    target: String,
    is_lossy: AtomicBool,
    losses: AtomicUsize,
    rng: Mutex<SmallRng>,
    /// The next request that contains these bytes is held up.
    marker: Mutex<Option<Vec<u8>>>,
    held: Mutex<Option<Held>>,
    was_held: Notify,
}

/// A request that the host is yet to get, on a connection that the client believes broken.
struct Held {
    chunk: Vec<u8>,
    host: OwnedWriteHalf,
    /// Kept, so that the connection is.
    _answers: Arc<tokio::sync::Mutex<OwnedReadHalf>>,
}

impl Proxy {
    pub async fn start(target: String, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let faults = Arc::new(Faults {
            target,
            is_lossy: AtomicBool::new(false),
            losses: AtomicUsize::new(0),
            rng: Mutex::new(SmallRng::seed_from_u64(seed)),
            marker: Mutex::default(),
            held: Mutex::default(),
            was_held: Notify::new(),
        });
        let forwarding = Arc::clone(&faults);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&forwarding).forward(near));
            }
        });
        Self { address, faults }
    }

    /// From here on answers are lost, and their connections break.
    pub fn be_lossy(&self, is_lossy: bool) {
        self.faults.is_lossy.store(is_lossy, Ordering::SeqCst);
    }

    /// How often answers were lost.
    pub fn losses(&self) -> usize {
        self.faults.losses.load(Ordering::SeqCst)
    }

    /// Holds up the next request that contains `marker`, and breaks its connection to the client.
    pub fn hold_up(&self, marker: &[u8]) {
        *self.faults.marker.lock() = Some(marker.to_vec());
    }

    /// Waits until a request is held up.
    pub async fn held(&self) {
        self.faults.was_held.notified().await;
    }

    /// Lets the host have what was held up, on a connection that ends with what is returned.
    pub async fn release(&self) -> OwnedWriteHalf {
        let mut held = self.faults.held.lock().take().expect("a request is held up");
        held.host.write_all(&held.chunk).await.unwrap();
        held.host
    }
}

impl Faults {
    async fn forward(self: Arc<Self>, near: TcpStream) {
        let Ok(far) = TcpStream::connect(&self.target).await else { return };
        let (from_client, to_client) = near.into_split();
        let (from_host, to_host) = far.into_split();
        let answers = Arc::new(tokio::sync::Mutex::new(from_host));
        let ended = Arc::new(Notify::new());
        tokio::spawn(Arc::clone(&self).answer(Arc::clone(&answers), to_client, Arc::clone(&ended)));
        tokio::select! {
            () = self.request(from_client, to_host, answers) => ended.notify_one(),
            () = ended.notified() => {}
        }
    }

    /// Pours requests until either side ends.
    async fn request(
        &self,
        mut client: OwnedReadHalf,
        mut host: OwnedWriteHalf,
        answers: Arc<tokio::sync::Mutex<OwnedReadHalf>>,
    ) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = client.read(&mut buffer).await {
            let chunk = &buffer[..count];
            if self.is_marked(chunk) {
                let chunk = chunk.to_vec();
                *self.held.lock() = Some(Held { chunk, host, _answers: answers });
                self.was_held.notify_one();
                return;
            }
            if host.write_all(chunk).await.is_err() {
                return;
            }
        }
    }

    fn is_marked(&self, chunk: &[u8]) -> bool {
        let mut marker = self.marker.lock();
        let found = marker
            .as_ref()
            .is_some_and(|marker| chunk.windows(marker.len()).any(|window| window == marker));
        if found {
            *marker = None;
        }
        found
    }

    /// Pours answers until either side ends, the client's connection is to end, or one is lost.
    async fn answer(
        self: Arc<Self>,
        host: Arc<tokio::sync::Mutex<OwnedReadHalf>>,
        mut client: OwnedWriteHalf,
        ended: Arc<Notify>,
    ) {
        let mut buffer = vec![0; 64 << 10];
        let mut host = host.lock().await;
        loop {
            let count = tokio::select! {
                () = ended.notified() => break,
                read = host.read(&mut buffer) => match read {
                    Ok(count @ 1..) => count,
                    _ => break,
                },
            };
            if self.is_lossy.load(Ordering::SeqCst) && self.rng.lock().random_ratio(1, LOSS) {
                self.losses.fetch_add(1, Ordering::SeqCst);
                break;
            }
            if client.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        ended.notify_one();
    }
}
