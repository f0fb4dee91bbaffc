//! What broken streams left of snapshots, kept for a while so that they can be continued.
//!
//! Bounded in number, bytes and time; the oldest goes first. One per group: a snapshot that is
//! begun anew, or a later one, replaces what was paused.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::SnapshotFilesOptions;
use super::writer::Writer;
use crate::ids::{GroupId, LogPosition};
use crate::snapshot::SnapshotAnnouncement;

/// A reception that broke off. Its file goes when it is dropped.
pub(super) struct Paused {
    pub announced: SnapshotAnnouncement,
    pub writer: Box<Writer>,
    since: Instant,
}

pub(super) struct PausedReceptions {
    kept: Mutex<BTreeMap<GroupId, Paused>>,
    most: usize,
    most_bytes: u64,
    keep_for: Duration,
}

impl Paused {
    pub fn new(announced: SnapshotAnnouncement, writer: Box<Writer>) -> Self {
        Self { announced, writer, since: Instant::now() }
    }
}

impl PausedReceptions {
    pub fn new(options: &SnapshotFilesOptions) -> Self {
        Self {
            kept: Mutex::default(),
            most: options.most_paused,
            most_bytes: options.most_paused_bytes,
            keep_for: options.keep_paused_for,
        }
    }

    /// Keeps one; others go to make room for it. False when it is too large, and gone.
    pub fn put(&self, paused: Paused) -> bool {
        let size = paused.writer.size();
        if size > self.most_bytes || self.most == 0 {
            return false;
        }
        drop(self.take(paused.announced.group));
        while !self.has_room_for(size) {
            self.drop_oldest();
        }
        self.kept.lock().insert(paused.announced.group, paused);
        true
    }

    fn has_room_for(&self, size: u64) -> bool {
        let kept = self.kept.lock();
        let bytes: u64 = kept.values().map(|paused| paused.writer.size()).sum();
        kept.is_empty() || (kept.len() < self.most && bytes + size <= self.most_bytes)
    }

    /// The one of a group, which is no longer kept.
    pub fn take(&self, group: GroupId) -> Option<Paused> {
        self.kept.lock().remove(&group)
    }

    /// Drops the one that waits longest; false when there is none.
    pub fn drop_oldest(&self) -> bool {
        let mut kept = self.kept.lock();
        let oldest = kept.iter().min_by_key(|(_, paused)| paused.since).map(|(group, _)| *group);
        let oldest = oldest.and_then(|group| kept.remove(&group));
        drop(kept);
        oldest.is_some()
    }

    /// Drops the one of a group if it is of a snapshot at or below `position`.
    pub fn drop_up_to(&self, group: GroupId, position: LogPosition) {
        self.drop_if(group, |paused| paused <= position);
    }

    /// Drops the one of a group if it is of a snapshot below `keep`, or in any case with `None`.
    pub fn drop_below(&self, group: GroupId, keep: Option<LogPosition>) {
        self.drop_if(group, |paused| keep.is_none_or(|keep| paused < keep));
    }

    fn drop_if(&self, group: GroupId, goes: impl Fn(LogPosition) -> bool) {
        let mut kept = self.kept.lock();
        let goes = kept.get(&group).is_some_and(|paused| goes(paused.announced.position));
        let dropped = if goes { kept.remove(&group) } else { None };
        // Removing a large file takes time that no other caller should wait.
        drop(kept);
        drop(dropped);
    }

    /// Drops those that were not continued in time; returns when the next is due.
    pub fn drop_stale(&self, now: Instant) -> Option<Duration> {
        let mut kept = self.kept.lock();
        let age = |paused: &Paused| now.saturating_duration_since(paused.since);
        let (stale, fresh): (BTreeMap<_, _>, _) = std::mem::take(&mut *kept)
            .into_iter()
            .partition(|(_, paused)| age(paused) >= self.keep_for);
        *kept = fresh;
        let next = kept.values().map(|paused| self.keep_for.saturating_sub(age(paused))).min();
        drop(kept);
        drop(stale);
        next
    }
}
