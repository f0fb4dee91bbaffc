//! Calls that take as long as a state is large, as restores and checksums do, never hold all apply
//! threads: there is one place less than there are threads, and such work waits for a place. With a
//! single thread nothing can be kept free: there is one place.
//!
//! Places go to groups in the order in which they asked. A group has one at a time.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::Token;
use crate::runtime::GroupShared;

pub(super) struct Places {
    count: usize,
    line: Mutex<Line>,
    tokens: Sender<Token>,
}

#[derive(Default)]
struct Line {
    taken: usize,
    /// Those who wait, if all are taken. At most one entry per open replica.
    waiting: VecDeque<Arc<GroupShared>>,
}

/// May be at a long call. Goes to the next when it is dropped, so not under the lock of a mailbox.
pub(super) struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.pass_on();
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}

impl Places {
    pub(super) fn new(threads: usize, tokens: Sender<Token>) -> Arc<Self> {
        Arc::new(Self { count: (threads - 1).max(1), line: Mutex::default(), tokens })
    }

    /// A place for a long call of this group; `None`: it stands in line, and is scheduled when it has
    /// its place.
    pub(super) fn take(self: &Arc<Self>, group: &Arc<GroupShared>) -> Option<Place> {
        if let Some(granted) = group.mailbox.take_place() {
            return Some(granted);
        }
        let mut line = self.line.lock();
        if line.taken < self.count {
            line.taken += 1;
            return Some(Place(Arc::clone(self)));
        }
        if group.mailbox.stand_in_line() {
            line.waiting.push_back(Arc::clone(group));
        }
        None
    }

    /// A place is free, for the next who did not end.
    fn pass_on(self: &Arc<Self>) {
        loop {
            let mut line = self.line.lock();
            let Some(next) = line.waiting.pop_front() else {
                line.taken -= 1;
                return;
            };
            drop(line);
            match next.mailbox.grant(|| Place(Arc::clone(self))) {
                None => {}
                Some(false) => return,
                Some(true) => {
                    if self.tokens.send(Token::Group(next)).is_err() {
                        tracing::debug!("a place was free after the apply pool had ended");
                    }
                    return;
                }
            }
        }
    }

    /// The replica ends.
    pub(super) fn forget(&self, group: &Arc<GroupShared>) {
        if group.mailbox.is_in_line() {
            self.line.lock().waiting.retain(|other| !Arc::ptr_eq(other, group));
        }
    }

    /// The threads have ended: those that wait are let go of.
    pub(super) fn clear(&self) {
        let waiting = std::mem::take(&mut self.line.lock().waiting);
        drop(waiting);
    }
}
