//! How the catalog is read from elsewhere: one record, a page of them, or what changed.
//!
//! Pages are taken one after the other, and the catalog may change between them. A reader keeps
//! the revision of its *first* page and afterwards asks for the changes since then: it has seen
//! everything, some of it twice.

use bytes::Bytes;
use prost::Message;

use super::command::check_limit;
use super::convert::{
    key_from, key_to, kind_from, kind_to, present, read_versioned, record_from_message,
    record_to_message, versioned,
};
use super::error::{Refusal, Subject};
use super::feed::Compacted;
use super::record::{Record, RecordKey, RecordKind, Revision};
use super::state::Catalog;
use super::wire::answer::Answer as AnswerMessage;
use super::wire::query::Query as QueryMessage;
use super::{DEFAULT_PAGE_LIMIT, MAX_PAGE_BYTES, MAX_PAGE_LIMIT, wire};

/// A question to the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Query {
    Get(RecordKey),
    /// The records of a kind, by id.
    List {
        kind: RecordKind,
        /// Those with a greater id; `None`: from the first.
        after: Option<u64>,
        /// At most [`MAX_PAGE_LIMIT`]; 0: [`DEFAULT_PAGE_LIMIT`].
        limit: u32,
    },
    Changes {
        since: Revision,
        /// At most [`MAX_PAGE_LIMIT`]; 0: [`DEFAULT_PAGE_LIMIT`].
        limit: u32,
    },
}

/// What the catalog answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The revision of the catalog when it answered.
    pub revision: Revision,
    pub content: Content,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// The record, if there is one.
    Found(Option<Record>),
    Page {
        records: Vec<Record>,
        /// Whether there are more behind the last one.
        more: bool,
    },
    Changes {
        /// By revision. A record that changed again later is listed there, in its present state.
        changes: Vec<Change>,
        /// Everything up to this revision is listed; continue from it.
        through: Revision,
        /// Whether there are more behind it.
        more: bool,
    },
    /// Changes since then are not known. List the records anew.
    Compacted(Compacted),
}

/// A record that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub key: RecordKey,
    /// Its present state; `None`: it is gone. A removal may be listed more than once.
    pub record: Option<Record>,
}

impl Query {
    /// The question as it is given to a group.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let query = match *self {
            Self::Get(key) => QueryMessage::Get(key_to(key)),
            Self::List { kind, after, limit } => {
                QueryMessage::List(wire::List { kind: kind_to(kind), after, limit })
            }
            Self::Changes { since, limit } => {
                QueryMessage::Changes(wire::Changes { since: since.get(), limit })
            }
        };
        versioned(&wire::Query { query: Some(query) })
    }

    /// Reads a question.
    ///
    /// # Errors
    /// [`Refusal`], if it is no query of this version.
    pub fn decode(data: &Bytes) -> Result<Self, Refusal> {
        let message: wire::Query = read_versioned(data)?;
        Ok(match present(message.query, "question")? {
            QueryMessage::Get(key) => Self::Get(key_from(&key)?),
            QueryMessage::List(list) => {
                let (kind, after, limit) = (kind_from(list.kind)?, list.after, list.limit);
                Self::List { kind, after, limit }
            }
            QueryMessage::Changes(changes) => {
                let (since, limit) = (Revision::new(changes.since), changes.limit);
                Self::Changes { since, limit }
            }
        })
    }

    /// Answers the question.
    ///
    /// # Errors
    /// [`Refusal::OverLimit`].
    pub fn answer(&self, catalog: &Catalog) -> Result<Answer, Refusal> {
        let view = catalog.view();
        let content = match *self {
            Self::Get(key) => Content::Found(view.record(key)),
            Self::List { kind, after, limit } => {
                page(view.records(kind, after), records_of(limit)?)
            }
            Self::Changes { since, limit } => changes(catalog, since, records_of(limit)?),
        };
        Ok(Answer { revision: view.revision(), content })
    }
}

fn records_of(limit: u32) -> Result<usize, Refusal> {
    let records = if limit == 0 { DEFAULT_PAGE_LIMIT } else { limit } as usize;
    check_limit(Subject::Page, records, MAX_PAGE_LIMIT as usize)?;
    Ok(records)
}

/// What a page has room for, in records and in bytes.
struct Room {
    records: usize,
    bytes: usize,
    taken: usize,
}

impl Room {
    const fn new(records: usize) -> Self {
        Self { records, bytes: MAX_PAGE_BYTES, taken: 0 }
    }

    /// Takes the room of a record; `false`: there is none. The first one always finds some.
    fn take(&mut self, record: Option<&Record>) -> bool {
        let bytes = record.map_or(0, |record| record_to_message(record).encoded_len());
        let fits = self.taken == 0 || (self.taken < self.records && bytes <= self.bytes);
        if fits {
            self.taken += 1;
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        fits
    }
}

fn page(found: impl Iterator<Item = Record>, limit: usize) -> Content {
    let mut room = Room::new(limit);
    let mut records = Vec::new();
    for record in found {
        if !room.take(Some(&record)) {
            return Content::Page { records, more: true };
        }
        records.push(record);
    }
    Content::Page { records, more: false }
}

fn changes(catalog: &Catalog, since: Revision, limit: usize) -> Content {
    let found = match catalog.changes(since) {
        Ok(found) => found,
        Err(compacted) => return Content::Compacted(compacted),
    };
    let mut room = Room::new(limit);
    let (mut changes, mut through) = (Vec::new(), since);
    for (revision, key) in found {
        let record = catalog.view().record(key);
        let later = record.as_ref().is_some_and(|record| record.revision() > revision);
        if !later {
            if !room.take(record.as_ref()) {
                return Content::Changes { changes, through, more: true };
            }
            changes.push(Change { revision, key, record });
        }
        through = revision;
    }
    Content::Changes { changes, through, more: false }
}

impl Answer {
    /// The answer as the state machine gives it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let answer = match &self.content {
            Content::Found(record) => {
                let record = record.as_ref().map(record_to_message);
                AnswerMessage::Found(wire::Found { record })
            }
            Content::Page { records, more } => {
                let records = records.iter().map(record_to_message).collect();
                AnswerMessage::Page(wire::Page { records, more: *more })
            }
            Content::Changes { changes, through, more } => {
                let changes = changes.iter().map(change_to).collect();
                let through = through.get();
                AnswerMessage::Changes(wire::ChangePage { changes, through, more: *more })
            }
            Content::Compacted(compacted) => {
                AnswerMessage::Compacted(wire::Compacted { oldest: compacted.oldest.get() })
            }
        };
        versioned(&wire::Answer { revision: self.revision.get(), answer: Some(answer) })
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// [`Refusal`], if it is no answer of this version.
    pub fn decode(data: &Bytes) -> Result<Self, Refusal> {
        let message: wire::Answer = read_versioned(data)?;
        let content = match present(message.answer, "answer")? {
            AnswerMessage::Found(found) => {
                Content::Found(found.record.map(record_from_message).transpose()?)
            }
            AnswerMessage::Page(page) => {
                let records: Result<_, _> =
                    page.records.into_iter().map(record_from_message).collect();
                Content::Page { records: records?, more: page.more }
            }
            AnswerMessage::Changes(page) => {
                let changes: Result<_, _> = page.changes.into_iter().map(change_from).collect();
                let through = Revision::new(page.through);
                Content::Changes { changes: changes?, through, more: page.more }
            }
            AnswerMessage::Compacted(compacted) => {
                Content::Compacted(Compacted { oldest: Revision::new(compacted.oldest) })
            }
        };
        Ok(Self { revision: Revision::new(message.revision), content })
    }
}

fn change_to(change: &Change) -> wire::Change {
    wire::Change {
        revision: change.revision.get(),
        key: Some(key_to(change.key)),
        record: change.record.as_ref().map(record_to_message),
    }
}

fn change_from(message: wire::Change) -> Result<Change, Refusal> {
    Ok(Change {
        revision: Revision::new(message.revision),
        key: key_from(&present(message.key, "record's key")?)?,
        record: message.record.map(record_from_message).transpose()?,
    })
}
