//! Asking all shards of the queue side by side, so that one that does not answer holds up no other.
//!
//! A receive hides messages, and no more than were asked for may be hidden. So each shard is first asked
//! for nothing: only one that answers gets a part of what may still be taken.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{StreamExt, stream};
use shardhost_client::{ClientError, Received};
use tokio::time::{Instant, sleep_until};

/// Shards that are asked at once.
pub(super) const AT_ONCE: usize = 64;
/// Shards that answer within this are taken from in turns; others when they answer.
const GATHER: Duration = Duration::from_millis(250);
/// What came is shown after this at the latest, while others are waited for.
const SHOW_AFTER: Duration = Duration::from_millis(500);

/// Why a shard did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub text: String,
    /// It may have done it.
    pub unknown: bool,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self { unknown: !error.is_definite(), text: error.to_string() }
    }
}

impl Failure {
    fn definite(text: String) -> Self {
        Self { text, unknown: false }
    }
}

/// Shards that failed, and why.
pub(super) type Failures = BTreeMap<usize, Failure>;

/// The result of a receive.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub parts: Vec<Received>,
    pub failed: Failures,
}

/// How much is taken, and until when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub max: u32,
    pub within: Duration,
    pub visibility: Duration,
}

/// Takes up to `max` messages of all shards together. `order`: who comes first among those that answer.
/// `show` gets what came, a moment after it came.
pub(super) async fn take<A, R>(
    order: &[usize],
    bounds: Bounds,
    answers: impl Fn(usize) -> A,
    receive: impl Fn(usize, u32) -> R,
    mut show: impl FnMut(&[Received]),
) -> Taken
where
    A: Future<Output = Result<(), Failure>>,
    R: Future<Output = Result<Received, Failure>>,
{
    let began = Instant::now();
    let (mut until, gathered) = (began + bounds.within, began + GATHER);
    let asked = order.iter().enumerate().map(|(at, shard)| {
        let answer = answers(*shard);
        async move { (at, answer.await) }
    });
    let mut asked = stream::iter(asked).buffer_unordered(AT_ONCE);
    let (mut all_asked, mut unanswered) = (false, order.iter().copied().collect::<BTreeSet<_>>());
    let mut receiving = FuturesUnordered::new();
    let mut in_flight = BTreeSet::new();
    // By how often it gave something, and the order.
    let mut ready: BTreeSet<(u32, usize)> = BTreeSet::new();
    let (mut left, mut taken) = (bounds.max, Taken::default());
    let (mut shown, mut show_at) = (0, None);
    loop {
        let is_gathered = all_asked || Instant::now() >= gathered;
        while is_gathered
            && left > 0
            && let Some((turn, at)) = ready.pop_first()
        {
            let part = left.div_ceil(u32::try_from(ready.len() + 1).unwrap_or(u32::MAX));
            left -= part;
            let shard = order[at];
            in_flight.insert(shard);
            let received = receive(shard, part);
            receiving.push(async move { (turn, at, part, received.await) });
        }
        if receiving.is_empty() && (left == 0 || (all_asked && ready.is_empty())) {
            break;
        }
        tokio::select! {
            answer = asked.next(), if !all_asked => match answer {
                None => all_asked = true,
                Some((at, answer)) => {
                    unanswered.remove(&order[at]);
                    match answer {
                        Ok(()) => drop(ready.insert((0, at))),
                        Err(failure) => drop(taken.failed.insert(order[at], failure)),
                    }
                }
            },
            Some((turn, at, part, received)) = receiving.next() => {
                let shard = order[at];
                in_flight.remove(&shard);
                match received {
                    Ok(received) => {
                        let came = u32::try_from(received.messages.len()).unwrap_or(u32::MAX);
                        left += part.saturating_sub(came);
                        if received.more && came > 0 {
                            ready.insert((turn + 1, at));
                        }
                        if came > 0 {
                            // They are received again when that is over: their reader needs the rest.
                            until = until.min(Instant::now() + bounds.visibility / 2);
                            show_at.get_or_insert(Instant::now() + SHOW_AFTER);
                        }
                        taken.parts.push(received);
                    }
                    Err(failure) => {
                        left += part;
                        taken.failed.insert(shard, failure);
                    }
                }
            }
            () = sleep_until(gathered), if !is_gathered => {}
            () = sleep_until(show_at.unwrap_or(until)), if show_at.is_some() => {
                show(&taken.parts[shown..]);
                (shown, show_at) = (taken.parts.len(), None);
            }
            () = sleep_until(until) => {
                let waited = began.elapsed();
                for shard in in_flight {
                    let text = format!(
                        "no answer within {waited:.1?}; what it gave comes back when its visibility ends"
                    );
                    taken.failed.insert(shard, Failure { text, unknown: true });
                }
                let asked_late = ready.iter().map(|(_, at)| order[*at]);
                for shard in unanswered.into_iter().chain(asked_late) {
                    let text = format!("nothing was taken within {waited:.1?}");
                    taken.failed.entry(shard).or_insert_with(|| Failure::definite(text));
                }
                break;
            }
        }
    }
    show(&taken.parts[shown..]);
    taken
}

/// What there is of shards that were asked.
pub(super) enum News<T> {
    /// The answer of a shard.
    Of(usize, T),
    /// Others are waited for, and what came is to be shown.
    Pause,
}

/// Asks shards side by side, until all have answered or `heard` says that it is enough.
pub(super) async fn ask<T, F: Future<Output = T>>(
    shards: impl IntoIterator<Item = usize>,
    ask: impl Fn(usize) -> F,
    mut heard: impl FnMut(News<T>) -> bool,
) {
    let asked = shards.into_iter().map(|shard| {
        let answer = ask(shard);
        async move { (shard, answer.await) }
    });
    let mut asked = stream::iter(asked).buffer_unordered(AT_ONCE);
    let mut show_at: Option<Instant> = None;
    loop {
        let is_enough = tokio::select! {
            answer = asked.next() => match answer {
                None => return,
                Some((shard, answer)) => {
                    show_at.get_or_insert(Instant::now() + SHOW_AFTER);
                    heard(News::Of(shard, answer))
                }
            },
            () = sleep_until(show_at.unwrap_or_else(Instant::now)), if show_at.is_some() => {
                show_at = None;
                heard(News::Pause)
            }
        };
        if is_enough {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use shardhost_proto::client::Delivery;

    use super::*;

    const BOUNDS: Bounds =
        Bounds { max: 10, within: Duration::from_secs(10), visibility: Duration::from_secs(30) };

    /// Shards with so many messages; `None`: it never answers.
    struct World {
        shards: RefCell<Vec<Option<u32>>>,
        shown: RefCell<Vec<(Duration, usize)>>,
        began: Instant,
    }

    impl World {
        fn new(shards: &[Option<u32>]) -> Self {
            let (shards, shown) = (RefCell::new(shards.to_vec()), RefCell::default());
            Self { shards, shown, began: Instant::now() }
        }

        async fn take(&self, bounds: Bounds) -> Taken {
            let order: Vec<usize> = (0..self.shards.borrow().len()).collect();
            let answers = async |shard: usize| {
                let answers = self.shards.borrow()[shard].is_some();
                if !answers {
                    std::future::pending::<()>().await;
                }
                Ok(())
            };
            let receive = async |shard: usize, part: u32| {
                let mut shards = self.shards.borrow_mut();
                let there = shards[shard].as_mut().unwrap();
                let count = part.min(*there);
                *there -= count;
                let messages = (0..count).map(|_| Delivery::default()).collect();
                Ok(Received { shard, messages, more: *there > 0 })
            };
            let show = |parts: &[Received]| {
                let messages = parts.iter().map(|part| part.messages.len()).sum();
                if messages > 0 {
                    self.shown.borrow_mut().push((self.began.elapsed(), messages));
                }
            };
            take(&order, bounds, answers, receive, show).await
        }
    }

    fn count(taken: &Taken) -> usize {
        taken.parts.iter().map(|part| part.messages.len()).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn shards_that_do_not_answer_are_waited_for_together_and_hold_up_no_message() {
        let world = World::new(&[None, Some(2), None, Some(3), None, None, Some(1), Some(0)]);
        let taken = world.take(BOUNDS).await;
        assert_eq!(count(&taken), 6);
        assert_eq!(taken.failed.keys().copied().collect::<Vec<_>>(), [0, 2, 4, 5]);
        assert!(taken.failed.values().all(|failure| !failure.unknown), "{taken:?}");
        assert!(world.began.elapsed() <= BOUNDS.within, "{:?}", world.began.elapsed());
        let shown = world.shown.borrow();
        assert_eq!(shown.len(), 1);
        assert!(shown[0].0 < Duration::from_secs(1) && shown[0].1 == 6, "{shown:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_is_not_hidden_until_it_comes_back() {
        let world = World::new(&[None, Some(2)]);
        let taken = world.take(Bounds { visibility: Duration::from_secs(4), ..BOUNDS }).await;
        assert_eq!(count(&taken), 2);
        assert!(world.began.elapsed() < Duration::from_secs(3), "{:?}", world.began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_taken_than_was_asked_for_and_no_less_than_there_is() {
        for (shards, there) in [
            (&[Some(100), Some(100), Some(100)][..], 10),
            (&[Some(0), Some(0), Some(100)], 10),
            (&[Some(1), Some(9), Some(0), None], 10),
            (&[Some(1), Some(2)], 3),
        ] {
            let taken = World::new(shards).take(BOUNDS).await;
            assert_eq!(count(&taken), there, "{shards:?}");
        }
        let enough = World::new(&[Some(100), None]);
        let taken = enough.take(Bounds { max: 1, ..BOUNDS }).await;
        assert!(count(&taken) == 1 && taken.failed.is_empty(), "nothing more is waited for");
        assert!(enough.began.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_shard_took_without_an_answer_is_unknown() {
        let never = async |_: usize, _: u32| std::future::pending().await;
        let taken = take(&[0], BOUNDS, async |_| Ok(()), never, |_| {}).await;
        assert!(taken.failed[&0].unknown, "{taken:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_heard_as_they_come() {
        let began = Instant::now();
        let mut heard = Vec::new();
        let after =
            async |shard: usize| tokio::time::sleep(Duration::from_secs(shard as u64)).await;
        ask([3, 0, 9], after, |news| {
            heard.push(match news {
                News::Of(shard, ()) => shard.to_string(),
                News::Pause => "pause".to_owned(),
            });
            heard.len() == 5
        })
        .await;
        assert_eq!(heard, ["0", "pause", "3", "pause", "9"]);
        assert_eq!(began.elapsed(), Duration::from_secs(9));
    }
}
