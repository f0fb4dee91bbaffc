//! What late work of one replica holds while it changes something that outlives the replica.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Held by work that was ordered for one opening of a replica and is done later, on a thread that
/// nothing orders: removing its old snapshots, finishing a new one. Once the replica ended, such
/// work does nothing, so it never touches what belongs to the next replica.
#[derive(Default)]
pub(crate) struct LifeLock {
    over: AtomicBool,
    work: Mutex<()>,
}

impl fmt::Debug for LifeLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LifeLock(over: {})", self.is_over())
    }
}

impl LifeLock {
    /// Does `work` unless the replica ended; its end waits for the work.
    pub(crate) fn while_alive<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let _held = self.work.lock();
        (!self.is_over()).then(work)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Marks the replica as ended; waits for work that has begun.
    pub(crate) fn end(&self) {
        let _held = self.work.lock();
        self.over.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;

    #[test]
    fn nothing_is_done_after_the_end() {
        let lock = LifeLock::default();
        assert_eq!(lock.while_alive(|| 7), Some(7));
        lock.end();
        assert_eq!(lock.while_alive(|| 7), None);
    }

    #[test]
    fn the_end_waits_for_work_that_has_begun() {
        let lock = Arc::new(LifeLock::default());
        let (begun, is_begun) = mpsc::channel();
        let (go, gate) = mpsc::channel::<()>();
        let worker = thread::spawn({
            let lock = Arc::clone(&lock);
            move || {
                lock.while_alive(|| {
                    begun.send(()).unwrap();
                    gate.recv().unwrap();
                    assert!(!lock.is_over(), "it ended under the work");
                })
            }
        });
        is_begun.recv().unwrap();
        let ender = thread::spawn(move || lock.end());
        go.send(()).unwrap();
        assert!(worker.join().unwrap().is_some());
        ender.join().unwrap();
    }
}
