//! The sessions of one shard in memory, and the decision what becomes of a write.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use rocksdb::WriteBatch;

use super::record::{self, HEADER, Header, SESSION};
use super::{
    EXPIRY_MS, MAX_ANSWER_BYTES, MAX_SESSIONS, MAX_SESSIONS_BYTES, MAX_START_LEAD_MS,
    SessionRefusal, SessionTag,
};
use crate::shards::state_db::{GroupState, Space, StateDbError};

/// What a session counts for beside its answers.
const SESSION_BYTES: usize = 256;
/// What an answer counts for beside its bytes.
const ANSWER_BYTES: usize = 64;
/// Sessions that one write removes because they expired: no single command pays for a long pause.
const EXPIRIES_PER_WRITE: usize = 8;

/// What becomes of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It was not applied before: apply it, then [`Sessions::remember`] its answer.
    Fresh,
    /// It was applied; this is the first answer.
    Duplicate(Bytes),
    Refused(SessionRefusal),
}

/// How much a shard keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) sessions: usize,
    pub(super) bytes: usize,
    pub(super) expiry_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sessions: MAX_SESSIONS, bytes: MAX_SESSIONS_BYTES, expiry_ms: EXPIRY_MS }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) start: u64,
    /// The shard's time at the newest write.
    pub(super) used_ms: u64,
    /// Log index of the newest write.
    pub(super) used_index: u64,
    /// The client waits for no number below.
    pub(super) lowest_unanswered: u64,
    /// Answers by sequence number; none below `lowest_unanswered`.
    pub(super) answers: BTreeMap<u64, Bytes>,
}

impl Session {
    fn bytes(&self) -> usize {
        SESSION_BYTES + self.answers.values().map(bytes_of).sum::<usize>()
    }

    /// Drops the answers below a number, and returns what they counted for.
    fn settle(&mut self, below: u64) -> usize {
        if below <= self.lowest_unanswered {
            return 0;
        }
        self.lowest_unanswered = below;
        let mut freed = 0;
        while let Some(first) = self.answers.first_entry()
            && *first.key() < below
        {
            freed += bytes_of(&first.remove());
        }
        freed
    }
}

fn bytes_of(answer: &Bytes) -> usize {
    ANSWER_BYTES + answer.len()
}

/// The time of a shard that has no other clock than its sessions; 0: none.
pub(crate) fn time_ms(state: &GroupState) -> Result<u64, StateDbError> {
    Ok(header(state)?.now_ms)
}

fn header(state: &GroupState) -> Result<Header, StateDbError> {
    match state.get(&state.space().prefix(HEADER))? {
        Some(header) => {
            Header::decode(&header).map_err(|cause| state.corrupt("the sessions", cause))
        }
        None => Ok(Header::default()),
    }
}

/// The sessions of a shard. All that happens here follows from the commands alone, one by one, so
/// replicas agree however the commands are batched.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    limits: Limits,
    header: Header,
    sessions: HashMap<u64, Session>,
    order: BTreeSet<(u64, u64)>,
    bytes: usize,
    /// Sessions that changed since the last [`Self::write`].
    changed: BTreeSet<u64>,
    header_changed: bool,
}

impl Sessions {
    #[cfg(test)]
    pub(super) fn with_limits(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Reads the sessions of a group.
    pub(crate) fn load(state: &GroupState) -> Result<Self, StateDbError> {
        let mut loaded = Self { header: header(state)?, ..Self::default() };
        let corrupt = |cause| state.corrupt("the sessions", cause);
        let mut records = state.scan(SESSION, &[], None);
        while let Some((key, value)) = records.next()? {
            let id = record::id_of(key).map_err(corrupt)?;
            loaded.insert(id, Session::decode(value).map_err(corrupt)?);
        }
        Ok(loaded)
    }

    /// The time of the shard, from writes of sessions.
    pub(crate) const fn time_ms(&self) -> u64 {
        self.header.now_ms
    }

    fn insert(&mut self, id: u64, session: Session) {
        self.bytes += session.bytes();
        self.order.insert((session.used_index, id));
        self.sessions.insert(id, session);
    }

    /// Decides about the write at `index` of the log. Registers its session if it is unknown.
    pub(crate) fn admit(&mut self, tag: &SessionTag, index: u64) -> Admission {
        let now_ms = self.advance(tag.now_ms);
        self.expire();
        let known = self.sessions.get(&tag.id).map(|session| session.start);
        match known {
            Some(start) if start == tag.start => {}
            None if self.may_start(tag.start) => {
                let session = Session {
                    start: tag.start,
                    used_index: index,
                    lowest_unanswered: tag.lowest_unanswered,
                    ..Session::default()
                };
                self.insert(tag.id, session);
            }
            _ => {
                let next_start = self.header.horizon.saturating_add(1).max(now_ms).max(1);
                return Admission::Refused(SessionRefusal::Over { next_start });
            }
        }
        let admission = self.look_up(tag, index, now_ms);
        self.trim();
        admission
    }

    /// Answers a write of a registered session, which is used by it.
    fn look_up(&mut self, tag: &SessionTag, index: u64, now_ms: u64) -> Admission {
        let Some(session) = self.sessions.get_mut(&tag.id) else {
            return Admission::Fresh;
        };
        self.changed.insert(tag.id);
        self.order.remove(&(session.used_index, tag.id));
        self.order.insert((index, tag.id));
        (session.used_index, session.used_ms) = (index, now_ms);
        self.bytes -= session.settle(tag.lowest_unanswered);
        if tag.sequence < session.lowest_unanswered {
            return Admission::Refused(SessionRefusal::Settled);
        }
        match session.answers.get(&tag.sequence) {
            Some(answer) => Admission::Duplicate(answer.clone()),
            None => Admission::Fresh,
        }
    }

    /// Keeps the answer of a write that [`Self::admit`] took as fresh. At most
    /// [`MAX_ANSWER_BYTES`].
    pub(crate) fn remember(&mut self, tag: &SessionTag, answer: Bytes) {
        debug_assert!(answer.len() <= MAX_ANSWER_BYTES, "{} bytes", answer.len());
        if let Some(session) = self.sessions.get_mut(&tag.id) {
            self.bytes += bytes_of(&answer);
            session.answers.insert(tag.sequence, answer);
        }
        self.trim();
    }

    fn advance(&mut self, now_ms: u64) -> u64 {
        if now_ms > self.header.now_ms {
            self.header.now_ms = now_ms;
            self.header_changed = true;
        }
        self.header.now_ms
    }

    fn may_start(&self, start: u64) -> bool {
        let latest = self.header.now_ms.saturating_add(MAX_START_LEAD_MS);
        let horizon = self.header.horizon;
        start > horizon && start <= latest.max(horizon.saturating_add(1))
    }

    fn expire(&mut self) {
        for _ in 0..EXPIRIES_PER_WRITE {
            let Some(&(_, id)) = self.order.first() else { return };
            let used_ms = self.sessions.get(&id).map_or(0, |session| session.used_ms);
            if self.header.now_ms.saturating_sub(used_ms) < self.limits.expiry_ms {
                return;
            }
            self.drop_first();
        }
    }

    /// Drops the least recently used sessions while there are too many. The one in use is the most
    /// recent, and one alone is never too many.
    fn trim(&mut self) {
        while self.order.len() > 1
            && (self.order.len() > self.limits.sessions || self.bytes > self.limits.bytes)
        {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        let Some((_, id)) = self.order.pop_first() else { return };
        let Some(session) = self.sessions.remove(&id) else { return };
        self.bytes -= session.bytes();
        self.header.horizon = self.header.horizon.max(session.start);
        self.header_changed = true;
        self.changed.insert(id);
    }

    /// Adds what changed to the batch that holds the effects of the writes.
    pub(crate) fn write(&mut self, space: Space, writes: &mut WriteBatch) {
        while let Some(id) = self.changed.pop_first() {
            let key = space.number_key(SESSION, id);
            match self.sessions.get(&id) {
                Some(session) => writes.put(key, session.encode()),
                None => writes.delete(key),
            }
        }
        if std::mem::take(&mut self.header_changed) {
            writes.put(space.prefix(HEADER), self.header.encode());
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.bytes, self.sessions.values().map(Session::bytes).sum::<usize>());
        assert_eq!(self.order.len(), self.sessions.len());
        self.sessions.len()
    }
}
