//! From drafts to one batch of the database.

use rocksdb::{ColumnFamily, DB, WriteBatch};
use shardhost_proto::log;

use super::index::Index;
use super::keys::{self, Part};
use super::values;
use crate::draft::Draft;
use crate::ids::LogIndex;
use crate::run;
use crate::store::LogError;
use crate::types::{Certainty, Entry};

/// Entries after which a run is ended, however small they are.
const RUN_ENTRIES: usize = 4096;

/// A batch of the database in the making.
pub(super) struct Staging<'a> {
    index: &'a Index,
    replicas: &'a ColumnFamily,
    log: &'a ColumnFamily,
    run_bytes: u64,
    batch: WriteBatch,
    value: Vec<u8>,
}

impl<'a> Staging<'a> {
    pub fn new(database: &'a DB, index: &'a Index, run_bytes: u64) -> Result<Self, LogError> {
        Ok(Self {
            index,
            replicas: column_family(database, keys::REPLICAS)?,
            log: column_family(database, keys::LOG)?,
            run_bytes,
            batch: WriteBatch::default(),
            value: Vec::new(),
        })
    }

    /// Adds what a draft changes; returns the first indexes of the runs it adds.
    pub fn add(&mut self, draft: &Draft<'_>) -> Vec<LogIndex> {
        self.replica(draft);
        self.certainty(draft);
        self.delete_stale_runs(draft);
        self.put_runs(draft)
    }

    pub fn finish(self) -> WriteBatch {
        self.batch
    }

    fn replica(&mut self, draft: &Draft<'_>) {
        let (group, then) = (draft.group, &draft.then);
        if draft.destroyed {
            self.batch.delete_cf(self.replicas, keys::replica(group, Part::Meta));
            self.batch.delete_cf(self.replicas, keys::replica(group, Part::State));
            if let Some(tombstone) = then.tombstone {
                values::tombstone(group, tombstone, &mut self.value);
                self.put(draft, Part::Tombstone);
            }
        }
        if let Some(meta) = draft.meta {
            values::meta(meta, &mut self.value);
            self.put(draft, Part::Meta);
        }
        if draft.state_changed {
            values::state(group, &then.hard_state, then.base, &mut self.value);
            self.put(draft, Part::State);
        }
    }

    fn certainty(&mut self, draft: &Draft<'_>) {
        match draft.then.certainty {
            _ if !draft.certainty_changed => {}
            Certainty::Sure => {
                self.batch.delete_cf(self.replicas, keys::replica(draft.group, Part::Doubt));
            }
            Certainty::InDoubt(doubt) => self.doubt(draft, values::cause_of(doubt)),
            Certainty::Differs => self.doubt(draft, log::doubt::Cause::Differs),
        }
    }

    fn doubt(&mut self, draft: &Draft<'_>, cause: log::doubt::Cause) {
        values::doubt(draft.group, cause, &mut self.value);
        self.put(draft, Part::Doubt);
    }

    fn put(&mut self, draft: &Draft<'_>, part: Part) {
        self.batch.put_cf(self.replicas, keys::replica(draft.group, part), &self.value);
    }

    fn delete_stale_runs(&mut self, draft: &Draft<'_>) {
        let stale = self.index.look(draft.group, |record| record.stale_runs(draft).collect());
        let stale: Vec<LogIndex> = stale.unwrap_or_default();
        for run in stale {
            self.batch.delete_cf(self.log, keys::run(draft.group, run));
        }
    }

    fn put_runs(&mut self, draft: &Draft<'_>) -> Vec<LogIndex> {
        let mut runs = Vec::new();
        let mut rest = draft.fresh().peekable();
        while let Some(first) = rest.peek().map(|entry| entry.index) {
            let entries = take_run(&mut rest, self.run_bytes);
            run::encode(draft.group, entries.into_iter(), &mut self.value);
            self.batch.put_cf(self.log, keys::run(draft.group, first), &self.value);
            runs.push(first);
        }
        runs
    }
}

/// The entries of the next run: until the bound in bytes is reached.
fn take_run<'a>(rest: &mut impl Iterator<Item = &'a Entry>, run_bytes: u64) -> Vec<&'a Entry> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    for entry in rest {
        bytes += entry.payload_bytes();
        entries.push(entry);
        if bytes >= run_bytes || entries.len() >= RUN_ENTRIES {
            break;
        }
    }
    entries
}

/// A column family that every store has.
pub(super) fn column_family<'a>(
    database: &'a DB,
    name: &'static str,
) -> Result<&'a ColumnFamily, LogError> {
    database.cf_handle(name).ok_or_else(|| {
        let message = format!("column family {name} does not exist");
        LogError::Io { action: "finding a column family", message }
    })
}
