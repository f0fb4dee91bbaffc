//! Who waits for an answer or for the outcome of a proposal, and how it reaches them.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use shardhost_storage::{GroupId, LogIndex, Term};
use tokio::sync::oneshot;

use crate::error::{ProposeError, UnknownCause};
use crate::panics::{contain, let_go, wake};

/// A place for one answer, and who waits for it.
#[must_use]
pub fn answer<T>() -> (Reply<T>, oneshot::Receiver<T>) {
    let (sender, receiver) = oneshot::channel();
    (Reply(Some(sender)), receiver)
}

/// Whose answer is awaited. It is woken by code of whatever executor it waits in, both by the answer and when
/// this is dropped without one: a panic there costs the caller, and not the thread that answers.
pub struct Reply<T>(Option<oneshot::Sender<T>>);

impl<T> Reply<T> {
    /// Answers. A caller that went away is no error.
    pub fn send(mut self, answer: T) {
        if let Some(sender) = self.0.take() {
            wake("who waits for an answer", || drop(sender.send(answer)));
        }
    }

    /// Whether the caller went away.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            wake("who waits for an answer", || drop(sender));
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// A proposal that was committed and applied here.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied {
    /// Its place in the log.
    pub index: LogIndex,
    /// The term it was committed in.
    pub term: Term,
    /// What the state machine answered.
    pub response: Bytes,
}

impl Applied {
    /// An outcome from its parts.
    #[must_use]
    pub const fn new(index: LogIndex, term: Term, response: Bytes) -> Self {
        Self { index, term, response }
    }
}

/// What became of a proposal.
pub type ProposeOutcome = Result<Applied, ProposeError>;

/// Takes the outcomes of many proposals, for callers that pipeline. Called from apply and Raft
/// threads: must not block.
pub trait ProposalSink: Send + Sync + 'static {
    /// The proposal that was submitted with `token` ended. Called exactly once per proposal.
    fn complete(&self, token: u64, outcome: ProposeOutcome);
}

/// The caller of one proposal. Completed exactly once; when it is dropped before (its worker is
/// gone), the caller sees a closed channel and reports an unknown outcome.
pub enum Completion {
    One(Reply<ProposeOutcome>),
    /// One of many proposals of a sink.
    Sink {
        sink: Arc<dyn ProposalSink>,
        token: u64,
    },
}

impl Completion {
    /// Hands over the outcome. A caller that went away is no error.
    pub fn resolve(self, outcome: ProposeOutcome) {
        match self {
            Self::One(reply) => reply.send(outcome),
            Self::Sink { sink, token } => {
                // A user's code: its panic must not end the thread of all groups.
                if let Err(panic) = contain(|| sink.complete(token, outcome)) {
                    tracing::error!(token, %panic, "a sink of proposals panicked");
                }
                let_go("a sink of proposals", sink);
            }
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(_) => f.write_str("Completion::One"),
            Self::Sink { token, .. } => write!(f, "Completion::Sink({token})"),
        }
    }
}

/// A completion together with the bytes that its proposal takes from the budget in flight. The
/// bytes are given back when it is dropped, however that happens; a caller without an answer then
/// learns that the outcome is unknown.
#[derive(Debug)]
pub struct Pending {
    group: GroupId,
    completion: Option<Completion>,
    submitted: Instant,
    _charge: Charge,
}

impl Pending {
    /// Binds a completion to its charge.
    #[must_use]
    pub const fn new(
        group: GroupId,
        completion: Completion,
        charge: Charge,
        submitted: Instant,
    ) -> Self {
        Self { group, completion: Some(completion), submitted, _charge: charge }
    }
    /// When it was submitted.
    #[must_use]
    pub const fn submitted(&self) -> Instant {
        self.submitted
    }
    /// Hands over the outcome and gives the bytes back.
    pub fn resolve(mut self, outcome: ProposeOutcome) {
        if let Some(completion) = self.completion.take() {
            completion.resolve(outcome);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(completion) = self.completion.take() {
            let cause = UnknownCause::Stopped;
            completion.resolve(Err(ProposeError::Unknown { group: self.group, cause }));
        }
    }
}

/// A completion whose proposal is in a state machine. It is answered by the machine, or by the
/// timeout: by whichever is first.
#[derive(Debug)]
pub(crate) struct Handed(Arc<Mutex<Option<Pending>>>);

/// The other end of a [`Handed`], without a caller.
#[derive(Debug)]
pub(crate) struct HandedWatch(Weak<Mutex<Option<Pending>>>);

impl Handed {
    pub(crate) fn new(pending: Pending) -> (Self, HandedWatch) {
        let place = Arc::new(Mutex::new(Some(pending)));
        let watch = HandedWatch(Arc::downgrade(&place));
        (Self(place), watch)
    }

    pub(crate) fn take(self) -> Option<Pending> {
        self.0.lock().take()
    }
}

impl HandedWatch {
    /// Takes a caller that still waits from the state machine.
    pub(crate) fn take(&self) -> Option<Pending> {
        self.0.upgrade()?.lock().take()
    }
}

/// Bytes in flight, bounded for a group and for the host that the group belongs to.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
    parent: Option<Arc<Budget>>,
}

impl Budget {
    /// A budget of `limit` bytes, within that of `parent`.
    #[must_use]
    pub const fn new(limit: usize, parent: Option<Arc<Self>>) -> Self {
        Self { used: AtomicUsize::new(0), limit, parent }
    }

    /// Takes `bytes`, or nothing when they do not fit. A budget that is not in use takes one
    /// charge of any size, so that a command as large as the limit is not refused for ever.
    #[must_use]
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        if !self.take(bytes) {
            return None;
        }
        Some(Charge { budget: Some(Arc::clone(self)), bytes })
    }

    /// Bytes taken.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before == 0 || before.saturating_add(bytes) <= self.limit;
        if fits && self.parent.as_ref().is_none_or(|parent| parent.take(bytes)) {
            return true;
        }
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        false
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.give_back(bytes);
        }
    }
}

/// Bytes taken from a [`Budget`], given back on drop.
#[derive(Debug, Default)]
pub struct Charge {
    budget: Option<Arc<Budget>>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.give_back(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Outcomes(Mutex<Vec<(u64, ProposeOutcome)>>);

    impl ProposalSink for Outcomes {
        fn complete(&self, token: u64, outcome: ProposeOutcome) {
            self.0.lock().push((token, outcome));
        }
    }

    const GROUP: GroupId = GroupId::new(7);

    fn applied() -> ProposeOutcome {
        Ok(Applied::new(LogIndex::new(3), Term::new(2), Bytes::from_static(b"done")))
    }

    fn pending(sink: &Arc<Outcomes>, token: u64, charge: Charge) -> Pending {
        let sink: Arc<dyn ProposalSink> = sink.clone();
        Pending::new(GROUP, Completion::Sink { sink, token }, charge, Instant::now())
    }

    fn unknown(outcome: &ProposeOutcome) -> bool {
        let cause = UnknownCause::Stopped;
        *outcome == Err(ProposeError::Unknown { group: GROUP, cause })
    }

    #[test]
    fn a_pending_that_is_dropped_completes_its_sink_once_with_an_unknown_outcome() {
        let sink = Arc::new(Outcomes::default());
        drop(pending(&sink, 5, Charge::default()));
        let outcomes = sink.0.lock();
        assert_eq!(outcomes.len(), 1);
        assert_eq!(outcomes[0].0, 5);
        assert!(unknown(&outcomes[0].1), "{:?}", outcomes[0]);
    }

    #[test]
    fn a_pending_that_is_resolved_completes_its_sink_once_with_the_outcome() {
        let sink = Arc::new(Outcomes::default());
        pending(&sink, 5, Charge::default()).resolve(applied());
        assert_eq!(*sink.0.lock(), [(5, applied())]);
    }

    #[test]
    fn a_completion_in_a_machines_hands_is_answered_by_whoever_is_first() {
        let sink = Arc::new(Outcomes::default());
        let (handed, watch) = Handed::new(pending(&sink, 1, Charge::default()));
        handed.take().unwrap().resolve(applied());
        assert!(watch.take().is_none());
        let (handed, watch) = Handed::new(pending(&sink, 2, Charge::default()));
        let timeout = ProposeError::Unknown { group: GROUP, cause: UnknownCause::Timeout };
        watch.take().unwrap().resolve(Err(timeout.clone()));
        assert!(handed.take().is_none());
        assert_eq!(*sink.0.lock(), [(1, applied()), (2, Err(timeout))]);
        let (handed, _watch) = Handed::new(pending(&sink, 3, Charge::default()));
        drop(handed);
        assert!(unknown(&sink.0.lock()[2].1), "the watch keeps nobody waiting");
    }

    #[test]
    fn a_future_learns_either_outcome_and_may_go_away() {
        for dropped in [false, true] {
            let (sender, mut receiver) = answer();
            let completion = Completion::One(sender);
            let pending = Pending::new(GROUP, completion, Charge::default(), Instant::now());
            if dropped {
                drop(pending);
                assert!(unknown(&receiver.try_recv().unwrap()));
            } else {
                pending.resolve(applied());
                assert_eq!(receiver.try_recv().unwrap(), applied());
            }
        }
        let (sender, receiver) = answer();
        drop(receiver);
        Pending::new(GROUP, Completion::One(sender), Charge::default(), Instant::now())
            .resolve(applied());
    }

    #[test]
    fn a_budget_takes_what_fits_and_gets_it_back() {
        let budget = Arc::new(Budget::new(100, None));
        let first = budget.charge(60).unwrap();
        assert!(budget.charge(41).is_none());
        assert_eq!(budget.used(), 60, "what did not fit is not taken");
        let second = budget.charge(40).unwrap();
        assert_eq!(budget.used(), 100);
        drop(first);
        assert_eq!(budget.used(), 40);
        drop(second);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_budget_that_is_not_in_use_takes_one_charge_of_any_size() {
        let budget = Arc::new(Budget::new(100, None));
        let large = budget.charge(1_000).unwrap();
        assert!(budget.charge(1).is_none());
        drop(large);
        assert!(budget.charge(1).is_some());
    }

    #[test]
    fn groups_share_the_budget_of_their_host() {
        let host = Arc::new(Budget::new(100, None));
        let one = Arc::new(Budget::new(80, Some(Arc::clone(&host))));
        let other = Arc::new(Budget::new(80, Some(Arc::clone(&host))));
        let charge = one.charge(80).unwrap();
        assert!(other.charge(30).is_none(), "the host is full");
        assert_eq!((other.used(), host.used()), (0, 80), "a refusal takes nothing anywhere");
        let small = other.charge(20).unwrap();
        assert_eq!(host.used(), 100);
        drop((charge, small));
        assert_eq!((one.used(), other.used(), host.used()), (0, 0, 0));
    }

    #[test]
    fn a_pending_gives_its_bytes_back_however_it_goes() {
        let sink = Arc::new(Outcomes::default());
        let budget = Arc::new(Budget::new(100, None));
        let resolved = pending(&sink, 1, budget.charge(50).unwrap());
        let dropped = pending(&sink, 2, budget.charge(50).unwrap());
        assert_eq!(budget.used(), 100);
        resolved.resolve(applied());
        drop(dropped);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn threads_that_charge_together_never_exceed_the_bound() {
        let budget = Arc::new(Budget::new(10, None));
        let charged: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..2_000)
                            .filter(|_| {
                                let charge = budget.charge(4);
                                let taken = charge.is_some();
                                drop(charge);
                                taken
                            })
                            .count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(charged > 0);
        assert_eq!(budget.used(), 0, "everything came back");
    }

    #[test]
    fn an_executor_that_panics_when_no_answer_comes_harms_no_thread() {
        struct Bad(AtomicUsize);
        impl Wake for Bad {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
                panic!("a test");
            }
        }
        let bad = Arc::new(Bad(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&bad));
        let (reply, receiver) = answer::<()>();
        let mut receiver = pin!(receiver);
        assert!(receiver.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(reply);
        assert_eq!(bad.0.load(Ordering::Relaxed), 1);
        assert!(receiver.try_recv().is_err());
    }
}
