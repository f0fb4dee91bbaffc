//! How much of one stream is in flight, and the wait until it is less.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// A gauge of requests and bytes with one completion, the stream's reader.
#[derive(Debug)]
pub(super) struct InFlight {
    requests: AtomicUsize,
    bytes: AtomicUsize,
    max_requests: usize,
    max_bytes: usize,
    freed: Notify,
}

impl InFlight {
    pub(super) fn new(max_requests: usize, max_bytes: usize) -> Self {
        Self {
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            max_requests,
            max_bytes,
            freed: Notify::new(),
        }
    }

    pub(super) fn add(&self, bytes: usize) {
        self.requests.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    /// More bytes of what was added before.
    pub(super) fn grow(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    pub(super) fn remove(&self, requests: usize, bytes: usize) {
        self.requests.fetch_sub(requests, Ordering::SeqCst);
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.freed.notify_one();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.load(Ordering::SeqCst) == 0
    }

    fn has_room(&self) -> bool {
        self.requests.load(Ordering::SeqCst) < self.max_requests
            && self.bytes.load(Ordering::SeqCst) < self.max_bytes
    }

    /// Waits until the next batch may be read. It may exceed the limits alone, once.
    pub(super) async fn room(&self) {
        while !self.has_room() {
            // A removal between the look and the wait leaves its permit.
            self.freed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_full_stream_has_no_room_until_something_is_removed() {
        let gauge = InFlight::new(2, 100);
        gauge.add(10);
        assert!(gauge.room().now_or_never().is_some());
        gauge.add(10);
        assert!(gauge.room().now_or_never().is_none());
        gauge.remove(1, 10);
        assert!(gauge.room().now_or_never().is_some());
        gauge.add(200);
        gauge.remove(1, 10);
        assert!(gauge.room().now_or_never().is_none());
        gauge.remove(1, 200);
        assert!(gauge.room().now_or_never().is_some() && gauge.is_empty());
    }
}
