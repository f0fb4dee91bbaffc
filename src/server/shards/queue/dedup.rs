//! The window of de-duplication ids: bounded by count, by time and by bytes. An id counts for one
//! partition key: the same id of another key is another one, whether or not the keys share a shard.
//!
//! Ids leave in the order they came, a few per insertion, so that no single command pays for a
//! long pause; one that is too old but has not left yet counts as unknown. What leaves when
//! depends on the commands alone, so replicas hold the same window.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::{DEDUP_WINDOW_BYTES, DEDUP_WINDOW_IDS, DEDUP_WINDOW_MS};
use crate::shards::codec;

/// Ids that leave for each that comes: more than one, so that the old ones run out.
const EVICTIONS_PER_ID: usize = 4;

/// An id and the partition key that it counts for, as one.
pub(super) fn scoped(partition_key: &[u8], id: &[u8]) -> Vec<u8> {
    let mut scoped = Vec::with_capacity(2 + partition_key.len() + id.len());
    codec::put_bytes(&mut scoped, partition_key);
    scoped.extend_from_slice(id);
    scoped
}

/// One id in the window.
#[derive(Clone, Debug)]
struct Entry {
    id: Arc<[u8]>,
    sent_ms: u64,
}

/// Where an id was last used.
#[derive(Clone, Copy, Debug)]
struct Use {
    ordinal: u64,
    sequence: u64,
    sent_ms: u64,
}

/// The window of one queue. Ordinals count the ids that came in; they are the keys on disk.
#[derive(Debug, Default)]
pub(super) struct DedupWindow {
    uses: HashMap<Arc<[u8]>, Use>,
    order: VecDeque<Entry>,
    /// Ordinal of the first entry of `order`.
    first: u64,
    /// Of the ids in `order`.
    bytes: usize,
}

impl DedupWindow {
    /// An empty window whose next ordinal is `first`.
    pub(super) fn at(first: u64) -> Self {
        Self { first, ..Self::default() }
    }

    /// The ordinals in the window.
    pub(super) fn ordinals(&self) -> Range<u64> {
        self.first..self.first + self.order.len() as u64
    }

    /// The sequence of the message that was sent with this id, while the window remembers it.
    pub(super) fn find(&self, id: &[u8], now_ms: u64) -> Option<u64> {
        let found = self.uses.get(id)?;
        (!is_over(found.sent_ms, now_ms)).then_some(found.sequence)
    }

    /// Remembers an id and returns its ordinal.
    pub(super) fn insert(&mut self, id: &[u8], sequence: u64, sent_ms: u64) -> u64 {
        let ordinal = self.ordinals().end;
        let id: Arc<[u8]> = id.into();
        // The newest use counts; an older, expired one leaves the order later.
        self.uses.insert(Arc::clone(&id), Use { ordinal, sequence, sent_ms });
        self.bytes += id.len();
        self.order.push_back(Entry { id, sent_ms });
        ordinal
    }

    /// Lets a few ids go that are too old or too many, and returns their ordinals.
    pub(super) fn evict(&mut self, now_ms: u64) -> Range<u64> {
        let start = self.first;
        while ((self.first - start) as usize) < EVICTIONS_PER_ID && self.front_is_over(now_ms) {
            self.drop_front();
        }
        start..self.first
    }

    fn front_is_over(&self, now_ms: u64) -> bool {
        self.order.len() > DEDUP_WINDOW_IDS
            || self.bytes > DEDUP_WINDOW_BYTES
            || self.order.front().is_some_and(|entry| is_over(entry.sent_ms, now_ms))
    }

    fn drop_front(&mut self) {
        let Some(entry) = self.order.pop_front() else {
            return;
        };
        self.bytes -= entry.id.len();
        if self.uses.get(&entry.id).is_some_and(|newest| newest.ordinal == self.first) {
            self.uses.remove(&entry.id);
        }
        self.first += 1;
    }
}

/// Whether an id sent at `sent_ms` is too old.
const fn is_over(sent_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(sent_ms) >= DEDUP_WINDOW_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(window: &mut DedupWindow, id: u64, now_ms: u64) -> Range<u64> {
        window.insert(&id.to_be_bytes(), id, now_ms);
        window.evict(now_ms)
    }

    #[test]
    fn an_id_is_remembered_until_the_window_of_time_ends() {
        let mut window = DedupWindow::default();
        insert(&mut window, 1, 1_000);
        let end = 1_000 + DEDUP_WINDOW_MS;
        assert_eq!(window.find(&1u64.to_be_bytes(), end - 1), Some(1));
        assert_eq!(window.find(&1u64.to_be_bytes(), end), None);
    }

    #[test]
    fn the_oldest_id_leaves_when_there_are_too_many() {
        let mut window = DedupWindow::default();
        for id in 0..DEDUP_WINDOW_IDS as u64 {
            assert!(insert(&mut window, id, 0).is_empty());
        }
        assert_eq!(insert(&mut window, u64::MAX, 0), 0..1);
        assert_eq!(window.find(&0u64.to_be_bytes(), 0), None);
        assert_eq!(window.find(&1u64.to_be_bytes(), 0), Some(1));
        assert_eq!(window.ordinals().count(), DEDUP_WINDOW_IDS);
    }

    #[test]
    fn ids_leave_when_they_are_too_large_together() {
        let mut window = DedupWindow::default();
        let id = |number: u64| [&number.to_be_bytes()[..], &[0; 1024]].concat();
        let fit = DEDUP_WINDOW_BYTES / id(0).len();
        for number in 0..fit as u64 {
            window.insert(&id(number), number, 0);
            assert!(window.evict(0).is_empty());
        }
        window.insert(&id(u64::MAX), 7, 0);
        assert_eq!(window.evict(0), 0..1);
        assert_eq!((window.find(&id(0), 0), window.find(&id(1), 0)), (None, Some(1)));
    }

    #[test]
    fn an_id_counts_for_its_key_alone() {
        let all = [("k", "id"), ("ki", "d"), ("", "kid"), ("kid", ""), ("k", "di")];
        for (at, (key, id)) in all.iter().enumerate() {
            for (other, other_id) in &all[at + 1..] {
                let [one, two] = [(key, id), (other, other_id)]
                    .map(|(key, id)| scoped(key.as_bytes(), id.as_bytes()));
                assert_ne!(one, two);
            }
        }
    }

    #[test]
    fn after_a_pause_old_ids_leave_a_few_at_a_time() {
        let mut window = DedupWindow::default();
        for id in 0..10 {
            assert!(insert(&mut window, id, 0).is_empty());
        }
        assert_eq!(insert(&mut window, 10, DEDUP_WINDOW_MS), 0..4);
        assert_eq!(insert(&mut window, 11, DEDUP_WINDOW_MS), 4..8);
        assert_eq!(insert(&mut window, 12, DEDUP_WINDOW_MS), 8..10);
        assert_eq!(window.ordinals(), 10..13);
    }

    #[test]
    fn an_id_used_again_outlives_its_first_use() {
        let mut window = DedupWindow::default();
        insert(&mut window, 1, 0);
        window.insert(&1u64.to_be_bytes(), 77, DEDUP_WINDOW_MS);
        assert_eq!(window.evict(DEDUP_WINDOW_MS), 0..1);
        assert_eq!(window.find(&1u64.to_be_bytes(), DEDUP_WINDOW_MS), Some(77));
    }
}
