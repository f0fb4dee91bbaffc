//! How far one group's state is written, and how far it would survive a crash.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by the machine of a group, which advances `applied`, and the flush, which advances
/// `durable`. All orderings are sequentially consistent: the two race on `queued` and `applied`,
/// and a batch must never be missed by a flush that its group is no longer queued for.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Index whose effect the last write holds. 0: none, or a restore is under way.
    applied: AtomicU64,
    /// Index whose effect is on disk for certain.
    durable: AtomicU64,
    /// Waits for the next flush.
    queued: AtomicBool,
    /// Written in this process: what is read may not be on disk yet.
    touched: AtomicBool,
    /// Destroyed: must not be written any more.
    retired: AtomicBool,
}

impl Progress {
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::SeqCst)
    }

    /// Takes over what was found on disk, unless this process wrote since.
    pub(crate) fn found_on_disk(&self, index: u64) {
        if !self.touched.load(Ordering::SeqCst) {
            self.durable.fetch_max(index, Ordering::SeqCst);
        }
    }

    /// To be called before a write.
    pub(crate) fn touch(&self) {
        self.touched.store(true, Ordering::SeqCst);
    }

    /// Notes a finished write; `true` when the group must be queued for the next flush.
    pub(crate) fn written(&self, index: u64) -> bool {
        self.applied.store(index, Ordering::SeqCst);
        !self.queued.swap(true, Ordering::SeqCst)
    }

    /// Leaves the queue and says what a flush that starts after this call makes durable.
    pub(crate) fn start_flush(&self) -> u64 {
        self.queued.store(false, Ordering::SeqCst);
        self.applied.load(Ordering::SeqCst)
    }

    pub(crate) fn flushed(&self, index: u64) {
        self.durable.fetch_max(index, Ordering::SeqCst);
    }

    /// Nothing is applied and nothing is durable until a restore ends. Must not run during a
    /// flush.
    pub(crate) fn start_restore(&self) {
        self.touch();
        self.applied.store(0, Ordering::SeqCst);
        self.durable.store(0, Ordering::SeqCst);
    }

    /// Queues the group again after a flush that failed; `false` when it is queued already.
    pub(crate) fn requeue(&self) -> bool {
        !self.queued.swap(true, Ordering::SeqCst)
    }

    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }
}
