//! Whether a host that lacks what the queues require ever serves one, looked at all the while.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::observe::Observer;

/// What the queues require of the host that leads them.
pub const CAPABILITY: &str = "fifo";
const LOOK: Duration = Duration::from_millis(25);

#[derive(Debug, Default)]
struct Seen {
    looks: AtomicU64,
    served: AtomicU64,
}

/// Looks at one host until it is dropped or ended.
#[derive(Debug)]
pub struct ServiceWatch {
    pub node: u64,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

/// What was seen of a host that lacks something.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    pub node: u64,
    /// Times that the host answered.
    pub looks: u64,
    /// Queues that it reported to serve, over all looks.
    pub served: u64,
}

impl ServiceWatch {
    /// Looks at this host from here on.
    pub fn begin(node: u64, observer: &Observer) -> Self {
        let seen = Arc::new(Seen::default());
        let task = tokio::spawn(watch(node, observer.clone(), Arc::clone(&seen)));
        Self { node, seen, task }
    }

    /// Stops looking, and returns what was seen.
    pub fn end(self) -> Watched {
        let looks = self.seen.looks.load(Ordering::Relaxed);
        let served = self.seen.served.load(Ordering::Relaxed);
        Watched { node: self.node, looks, served }
    }
}

impl Drop for ServiceWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(node: u64, observer: Observer, seen: Arc<Seen>) {
    loop {
        if let Some(groups) = observer.shards(node).await {
            let served = groups.iter().filter(|group| group.kind == "queue" && group.serving);
            seen.served.fetch_add(served.count() as u64, Ordering::Relaxed);
            seen.looks.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(LOOK).await;
    }
}
