//! Builds the index from the database when a store is opened.
//!
//! Every run is read and checked once. Damage inside a value concerns its group alone: the group is
//! remembered as damaged and the others continue. Damage that RocksDB itself cannot read concerns
//! all groups, because the missing keys are unknown.

use std::collections::BTreeMap;

use rocksdb::{DB, IteratorMode, ReadOptions};

use super::index::{Index, Record};
use super::keys::{self, Part};
use super::reading::{corrupt_run, read_run};
use super::writing::column_family;
use super::{database_error, values};
use crate::convert::Malformed;
use crate::ids::{GroupId, LogIndex};
use crate::store::LogError;
use crate::types::{Certainty, Doubt};

/// Damaged groups and their errors.
pub(super) type Damage = BTreeMap<GroupId, LogError>;

pub(super) fn recover(database: &DB) -> Result<(Index, Damage), LogError> {
    let mut recovery = Recovery::default();
    recovery.replicas(database)?;
    recovery.log(database)?;
    Ok(recovery.finish())
}

#[derive(Default)]
struct Recovery {
    groups: BTreeMap<GroupId, Found>,
    damage: Damage,
}

#[derive(Default)]
struct Found {
    record: Record,
    has_state: bool,
}

impl Recovery {
    fn replicas(&mut self, database: &DB) -> Result<(), LogError> {
        for item in scan(database, keys::REPLICAS)? {
            let (key, value) = item?;
            let (group, part) = keys::parse_replica(&key).ok_or_else(|| foreign_key(&key))?;
            let taken = match part {
                Part::Meta => self.meta(group, value.into_vec()),
                Part::State => self.state(group, value.into_vec()),
                Part::Doubt => self.doubt(group, value.into_vec()),
                Part::Tombstone => continue,
            };
            if let Err(error) = taken {
                self.damaged(group, corrupt_replica(group, &error.to_string()));
            }
        }
        Ok(())
    }

    fn meta(&mut self, group: GroupId, value: Vec<u8>) -> Result<(), Malformed> {
        let found = self.groups.entry(group).or_default();
        found.record.replica = Some(values::read_meta(group, value)?.replica);
        Ok(())
    }

    fn state(&mut self, group: GroupId, value: Vec<u8>) -> Result<(), Malformed> {
        let found = self.groups.entry(group).or_default();
        let (hard_state, base) = values::read_state(group, value)?;
        found.record.hard_state = hard_state;
        found.record.base = base;
        found.record.last = base.index;
        found.has_state = true;
        Ok(())
    }

    fn doubt(&mut self, group: GroupId, value: Vec<u8>) -> Result<(), Malformed> {
        let certainty = values::read_doubt(group, value);
        // Whatever its content, it would not exist if nothing were in doubt.
        let unreadable = Certainty::InDoubt(Doubt::TornTail);
        let known = certainty.as_ref().map_or(unreadable, |certainty| *certainty);
        self.groups.entry(group).or_default().record.certainty = known;
        certainty.map(|_| ())
    }

    fn log(&mut self, database: &DB) -> Result<(), LogError> {
        for item in scan(database, keys::LOG)? {
            let (key, value) = item?;
            let (group, first) = keys::parse_run(&key).ok_or_else(|| foreign_key(&key))?;
            if let Err(error) = self.run(group, first, value.into_vec()) {
                self.damaged(group, error);
            }
        }
        Ok(())
    }

    fn run(&mut self, group: GroupId, first: LogIndex, value: Vec<u8>) -> Result<(), LogError> {
        let record = &mut self.groups.entry(group).or_default().record;
        let follows = first <= record.last.next();
        let entries = read_run(group, first, value.into());
        // Also a run that cannot be used is known, so that it can be deleted.
        record.add_run(first, entries.iter().flatten());
        if !follows {
            return Err(corrupt_run(group, first, "the entries before it are missing"));
        }
        entries.map(|_| ())
    }

    /// The first thing that is wrong with a group explains the others.
    fn damaged(&mut self, group: GroupId, error: LogError) {
        self.damage.entry(group).or_insert(error);
    }

    fn finish(mut self) -> (Index, Damage) {
        let index = Index::new();
        for (group, Found { mut record, has_state }) in std::mem::take(&mut self.groups) {
            let complete = record.replica.is_some() && has_state;
            if !complete {
                self.damaged(group, corrupt_replica(group, "a part is missing"));
            } else if record.last < record.base.index {
                self.damaged(group, corrupt_replica(group, "the log ends before its base"));
            }
            if !self.damage.contains_key(&group) {
                record.trim_front();
            }
            index.insert(group, record);
        }
        (index, self.damage)
    }
}

type Item = (Box<[u8]>, Box<[u8]>);

/// Everything in a column family, in the order of the keys.
fn scan<'a>(
    database: &'a DB,
    name: &'static str,
) -> Result<impl Iterator<Item = Result<Item, LogError>> + 'a, LogError> {
    let column_family = column_family(database, name)?;
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_readahead_size(2 * 1024 * 1024);
    let items = database.iterator_cf_opt(column_family, options, IteratorMode::Start);
    let read = |item: Result<Item, rocksdb::Error>| {
        item.map_err(|error| database_error("recovering the log", &error))
    };
    Ok(items.map(read))
}

fn foreign_key(key: &[u8]) -> LogError {
    let place = format!("the key {}", key.escape_ascii());
    LogError::Corrupt { place, message: "no key of a log looks like this".to_owned() }
}

fn corrupt_replica(group: GroupId, message: &str) -> LogError {
    let place = format!("the replica of group {group}");
    LogError::Corrupt { place, message: message.to_owned() }
}
