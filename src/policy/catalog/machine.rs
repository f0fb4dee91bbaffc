//! The state machine of the system group. Keeps the catalog in memory; the host makes snapshots.

use std::io::{self, Read, Write};

use bytes::Bytes;
use shardhost_groups::error::QueryError;
use shardhost_groups::machine::{
    ApplyBatch, ApplyFault, ConsistencyView, Progress, SnapshotWriter, StateChecksum, StateMachine,
};
use shardhost_storage::LogPosition;

use super::command::Command;
use super::query::Query;
use super::reply::{Reply, encode_reply};
use super::snapshot::{read_snapshot, write_snapshot};
use super::state::Catalog;

/// Replicas are compared where they digest the same; raised when the digest of an equal catalog changes.
const COMPARED_FORMAT: u32 = 2;

/// The system group's replicated state.
#[derive(Debug, Default)]
pub struct CatalogMachine {
    catalog: Catalog,
    applied: Option<LogPosition>,
}

impl CatalogMachine {
    /// What it holds.
    #[must_use]
    pub const fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn run(&mut self, data: &Bytes) -> Reply {
        self.catalog.apply(&Command::decode(data)?)
    }
}

impl StateMachine for CatalogMachine {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        for command in batch.commands() {
            let reply = self.run(command.data());
            command.respond(encode_reply(&reply));
        }
        self.applied = Some(batch.last());
        Ok(())
    }

    fn query(&self, request: &Bytes) -> Result<Bytes, QueryError> {
        let query = Query::decode(request);
        let answer = query.and_then(|query| query.answer(&self.catalog));
        Ok(answer.map_err(|refusal| QueryError::Invalid(refusal.to_string()))?.encode())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(Writer(self.catalog.clone())))
    }

    /// Its digest is compared: the bytes of a snapshot may differ between versions.
    fn consistency_view(&mut self) -> Result<Option<ConsistencyView>, ApplyFault> {
        let writer = Box::new(DigestWriter(self.catalog.clone()));
        Ok(Some(ConsistencyView { format: COMPARED_FORMAT, writer }))
    }

    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        self.catalog = read_snapshot(source).map_err(ApplyFault::new)?;
        self.applied = Some(at);
        Ok(())
    }

    fn checksum(&self, _: &Progress) -> Result<StateChecksum, QueryError> {
        let items = self.catalog.view().all().count() as u64;
        Ok(StateChecksum { items, checksum: self.catalog.digest() })
    }
}

/// Writes the digest of a view.
struct DigestWriter(Catalog);

impl SnapshotWriter for DigestWriter {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> io::Result<()> {
        sink.write_all(&self.0.digest().to_le_bytes())
    }
}

/// A view that shares its records with the machine, which continues.
struct Writer(Catalog);

impl SnapshotWriter for Writer {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> io::Result<()> {
        write_snapshot(&self.0, sink)
    }
}
