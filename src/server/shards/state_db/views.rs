//! Stable views of the database, for snapshots of groups.
//!
//! A RocksDB snapshot borrows the database, but the writer of a group's snapshot must own what it
//! writes and may run on any thread, at any later time. So one thread of the host, the keeper,
//! holds the open views on its stack and answers questions about them, a chunk at a time. A view
//! costs no thread and no file; while one is open, RocksDB keeps what was overwritten since.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use rocksdb::{ReadOptions, Snapshot};
use tracing::error;

use super::error::StateDbError;
use super::keys::{APPLIED, PREFIX_BYTES, Space};
use super::shared::Shared;
use super::stream;

/// Views open at the same time, host-wide.
pub const MAX_OPEN_VIEWS: usize = 64;
/// Questions that may wait for the keeper.
const MAX_WAITING: usize = 64;
/// A chunk ends with the record that reaches this size.
const CHUNK_BYTES: usize = 256 * 1024;

/// Some records of a view, as they stand in a snapshot's stream.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) bytes: Vec<u8>,
    pub(crate) records: u64,
    /// Where the next chunk starts; `None` after the last.
    pub(crate) next: Option<Vec<u8>>,
}

type Reply<T> = Sender<Result<T, StateDbError>>;

enum Request {
    Open { reply: Reply<u64> },
    Read { view: u64, space: Space, from: Vec<u8>, reply: Reply<Chunk> },
    Close { view: u64 },
    Stop,
}

/// The running keeper. Ends, and is waited for, on drop; views that are still open then fail.
#[derive(Debug)]
pub(crate) struct Keeper {
    requests: Sender<Request>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(crate) fn start(shared: Arc<Shared>) -> Result<Self, StateDbError> {
        let (requests, receiver) = bounded(MAX_WAITING);
        let thread = thread::Builder::new()
            .name("state-views".into())
            .spawn(move || run(&shared, &receiver))
            .map_err(|error| StateDbError::Io {
                action: "starting the thread of snapshot views",
                message: error.to_string(),
            })?;
        Ok(Self { requests, thread: Some(thread) })
    }

    /// Opens a view of everything written so far.
    pub(crate) fn open(&self, space: Space) -> Result<View, StateDbError> {
        let id = ask(&self.requests, |reply| Request::Open { reply })?;
        Ok(View { requests: self.requests.clone(), id, space })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let stopped = self.requests.send(Request::Stop).is_err();
        let ended = self.thread.take().map(JoinHandle::join);
        if stopped || matches!(ended, Some(Err(_))) {
            error!("the thread of snapshot views had ended unexpectedly");
        }
    }
}

/// One group as it was when the view was opened.
#[derive(Debug)]
pub(crate) struct View {
    requests: Sender<Request>,
    id: u64,
    space: Space,
}

impl View {
    /// Where the first chunk starts: behind the applied position, which a restore sets anew.
    pub(crate) fn start(&self) -> Vec<u8> {
        self.space.prefix(APPLIED + 1).to_vec()
    }

    pub(crate) fn read(&self, from: Vec<u8>) -> Result<Chunk, StateDbError> {
        let (view, space) = (self.id, self.space);
        ask(&self.requests, |reply| Request::Read { view, space, from, reply })
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // Refused only when the keeper has ended, and its views with it.
        drop(self.requests.send(Request::Close { view: self.id }));
    }
}

fn ask<T>(
    requests: &Sender<Request>,
    request: impl FnOnce(Reply<T>) -> Request,
) -> Result<T, StateDbError> {
    let (reply, answer) = bounded(1);
    requests.send(request(reply)).map_err(|_| StateDbError::Closed)?;
    answer.recv().map_err(|_| StateDbError::Closed)?
}

fn run(shared: &Shared, requests: &Receiver<Request>) {
    let mut open = HashMap::new();
    let mut last_id = 0;
    for request in requests {
        match request {
            Request::Open { reply } if open.len() >= MAX_OPEN_VIEWS => {
                answer(&reply, Err(StateDbError::TooManyViews { limit: MAX_OPEN_VIEWS }));
            }
            Request::Open { reply } => {
                last_id += 1;
                open.insert(last_id, shared.db.snapshot());
                answer(&reply, Ok(last_id));
            }
            Request::Read { view, space, from, reply } => {
                let chunk = open
                    .get(&view)
                    .ok_or(StateDbError::Closed)
                    .and_then(|view| read_chunk(view, space, &from));
                shared.note_failure(&chunk);
                answer(&reply, chunk);
            }
            Request::Close { view } => drop(open.remove(&view)),
            Request::Stop => return,
        }
    }
}

/// The caller may have gone away; then the answer is not needed.
fn answer<T>(reply: &Reply<T>, result: Result<T, StateDbError>) {
    drop(reply.send(result));
}

fn read_chunk(view: &Snapshot<'_>, space: Space, from: &[u8]) -> Result<Chunk, StateDbError> {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(space.whole().1);
    options.fill_cache(false);
    let mut records = view.raw_iterator_opt(options);
    records.seek_to_first();
    let mut chunk = Chunk::default();
    while let Some((key, value)) = records.item() {
        if chunk.bytes.len() >= CHUNK_BYTES {
            chunk.next = Some(key.to_vec());
            break;
        }
        stream::put_record(&mut chunk.bytes, &key[PREFIX_BYTES - 1..], value);
        chunk.records += 1;
        records.next();
    }
    records.status().map_err(StateDbError::io("reading a snapshot view"))?;
    Ok(chunk)
}
