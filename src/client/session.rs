//! The sessions of a client: one per shard that it writes to, begun with the first write there.
//!
//! A write takes a number ([`Ticket`]) and keeps it however often it is sent. The number counts as
//! unanswered until its answer came, or the ticket is dropped. A write names the lowest unanswered
//! number, and the shard refuses copies of everything below.
//!
//! **Given up.** A write that was given up without an answer may have a copy on its way, which must
//! not overwrite a later write. So no write begins before all numbers up to that of the given-up
//! one are answered: then each later write names a higher one as the lowest unanswered.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use shardhost_proto::client;
use tokio::sync::Notify;

use shardhost_proto::limits::SESSION_WINDOW as WINDOW;

/// The sessions of one client and kind of shard, by group.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_group: Mutex<HashMap<u64, Arc<Session>>>,
}

impl Sessions {
    /// A number for a write to `group`. Waits while too many are unanswered.
    pub(super) async fn ticket(&self, group: u64) -> Ticket {
        let session = Arc::clone(
            self.by_group.lock().entry(group).or_insert_with(|| Session::begin(group, now_ms())),
        );
        session.ticket().await
    }

    /// Replaces the session of a ticket, unless another write did; `start` is one that the shard
    /// accepts.
    pub(super) fn renew(&self, over: &Ticket, start: u64) {
        let group = over.session.group;
        let mut by_group = self.by_group.lock();
        if by_group.get(&group).is_some_and(|current| Arc::ptr_eq(current, &over.session)) {
            by_group.insert(group, Session::begin(group, start));
        }
    }
}

/// The start of a session by this machine's clock. A clock that is wrong costs one refusal.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[derive(Debug)]
struct Session {
    group: u64,
    id: u64,
    start: u64,
    numbers: Mutex<Numbers>,
    room: Notify,
}

#[derive(Debug)]
struct Numbers {
    next: u64,
    unanswered: BTreeSet<u64>,
    /// The largest number that was given up; 0: none.
    given_up: u64,
}

/// How a number ceases to be unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its outcome is known, and no copy can take effect any more.
    Answered,
    /// A copy may be on its way.
    GivenUp,
}

impl Numbers {
    fn lowest_unanswered(&self) -> u64 {
        self.unanswered.first().copied().unwrap_or(self.next)
    }

    /// Whether another write may begin.
    fn has_room(&self) -> bool {
        let lowest = self.lowest_unanswered();
        self.next - lowest < WINDOW && lowest > self.given_up
    }
}

impl Session {
    fn begin(group: u64, start: u64) -> Arc<Self> {
        let numbers = Mutex::new(Numbers { next: 1, unanswered: BTreeSet::new(), given_up: 0 });
        Arc::new(Self { group, id: rand::random(), start, numbers, room: Notify::new() })
    }

    async fn ticket(self: Arc<Self>) -> Ticket {
        loop {
            if let Some(sequence) = self.take_number() {
                return Ticket { session: self, sequence };
            }
            // A number that becomes free in between leaves a permit.
            self.room.notified().await;
        }
    }

    fn take_number(&self) -> Option<u64> {
        let mut numbers = self.numbers.lock();
        if !numbers.has_room() {
            return None;
        }
        let sequence = numbers.next;
        numbers.next += 1;
        numbers.unanswered.insert(sequence);
        if numbers.has_room() {
            // The next one that waits, if one does.
            self.room.notify_one();
        }
        Some(sequence)
    }

    fn release(&self, sequence: u64, end: End) {
        let mut numbers = self.numbers.lock();
        let before = numbers.has_room();
        if numbers.unanswered.remove(&sequence) && end == End::GivenUp {
            numbers.given_up = numbers.given_up.max(sequence);
        }
        if !before && numbers.has_room() {
            self.room.notify_one();
        }
    }
}

/// The number of one write, unanswered until this is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    session: Arc<Session>,
    sequence: u64,
}

impl Ticket {
    /// The shard that it is for.
    pub(super) fn group(&self) -> u64 {
        self.session.group
    }

    /// The session as it is sent.
    pub(super) fn session(&self) -> client::Session {
        let Session { id, start, .. } = *self.session;
        let lowest = self.session.numbers.lock().lowest_unanswered();
        // Below it only when an answer came and its receiver had just given up waiting.
        let lowest_unanswered = lowest.min(self.sequence);
        client::Session { id, start, sequence: self.sequence, lowest_unanswered }
    }

    /// For the caller that gets the answer.
    pub(super) fn receipt(&self) -> AnswerReceipt {
        AnswerReceipt { session: Arc::clone(&self.session), sequence: self.sequence }
    }

    /// The outcome is known, and no copy can take effect any more.
    pub(super) fn answered(&self) {
        self.session.release(self.sequence, End::Answered);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.session.release(self.sequence, End::GivenUp);
    }
}

/// Where the answer of a write is noted when it comes, whether or not its caller looks at it soon.
#[derive(Clone, Debug)]
pub(super) struct AnswerReceipt {
    session: Arc<Session>,
    sequence: u64,
}

impl AnswerReceipt {
    pub(super) fn answered(&self) {
        self.session.release(self.sequence, End::Answered);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_lowest_unanswered_number_is_that_of_the_oldest_write_under_way() {
        let sessions = Sessions::default();
        let (first, second) = (sessions.ticket(7).await, sessions.ticket(7).await);
        let other = sessions.ticket(8).await;
        assert_ne!(first.session().id, other.session().id);
        assert_eq!((second.session().sequence, second.session().lowest_unanswered), (2, 1));
        first.answered();
        assert_eq!(second.session().lowest_unanswered, 2);
        assert_eq!(first.session().lowest_unanswered, 1, "never above its own number");
        second.receipt().answered();
        let third = sessions.ticket(7).await.session();
        assert_eq!((third.sequence, third.lowest_unanswered), (3, 3));
    }

    #[tokio::test]
    async fn a_write_beyond_the_window_waits_until_the_oldest_one_is_answered() {
        let sessions = Sessions::default();
        let oldest = sessions.ticket(7).await;
        let mut others = Vec::new();
        for _ in 1..WINDOW {
            others.push(sessions.ticket(7).now_or_never().unwrap());
        }
        let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(sessions.ticket(7))).collect();
        assert!(waiting.iter_mut().all(|ticket| ticket.now_or_never().is_none()));
        others.pop().unwrap().answered();
        assert!(waiting.iter_mut().all(|ticket| ticket.now_or_never().is_none()));
        oldest.answered();
        for ticket in waiting.drain(..1) {
            assert_eq!(ticket.await.session().sequence, WINDOW + 1);
        }
    }

    /// The shard must know of each later write that the one given up is settled.
    #[tokio::test]
    async fn after_a_write_was_given_up_the_next_one_waits_for_those_before_it() {
        let sessions = Sessions::default();
        let (older, given_up, newer) =
            (sessions.ticket(7).await, sessions.ticket(7).await, sessions.ticket(7).await);
        drop(given_up);
        let mut later = Box::pin(sessions.ticket(7));
        assert!((&mut later).now_or_never().is_none());
        assert!(sessions.ticket(8).now_or_never().is_some(), "another shard is not held up");
        newer.answered();
        assert!((&mut later).now_or_never().is_none());
        older.answered();
        let later = later.await.session();
        assert_eq!((later.sequence, later.lowest_unanswered), (4, 4));
    }

    #[tokio::test]
    async fn a_write_that_was_answered_or_is_the_oldest_holds_up_nothing() {
        let sessions = Sessions::default();
        let (oldest, second, third) =
            (sessions.ticket(7).await, sessions.ticket(7).await, sessions.ticket(7).await);
        third.answered();
        drop(third);
        sessions.ticket(7).now_or_never().expect("nothing was given up").answered();
        drop(oldest);
        let later = sessions.ticket(7).now_or_never().unwrap().session();
        assert_eq!(later.lowest_unanswered, second.session().sequence);
    }

    #[tokio::test]
    async fn a_session_that_is_over_is_replaced_once() {
        let sessions = Sessions::default();
        let (first, second) = (sessions.ticket(7).await, sessions.ticket(7).await);
        sessions.renew(&first, 77);
        let renewed = sessions.ticket(7).await.session();
        assert_eq!((renewed.start, renewed.sequence), (77, 1));
        assert_ne!(renewed.id, first.session().id);
        sessions.renew(&second, 78);
        assert_eq!(sessions.ticket(7).await.session().id, renewed.id);
    }
}
