//! The state database.
//!
//! | file | what |
//! |---|---|
//! | `durability` | what is flushed, and what a crash leaves |
//! | `snapshots` | views, and restores that are interrupted |
//! | `lives` | groups that end, and come again; whose a directory is |
//! | `damage` | what damage costs, and how a cell is written anew |
//! | `room` | what waits for room on the disk |

mod damage;
mod durability;
mod lives;
mod room;
mod snapshots;

use std::time::{Duration, Instant};

use bytes::Bytes;
use shardhost_groups::machine::{Progress, StateMachine};
use shardhost_storage::{GroupId, LogPosition};

use super::*;
use crate::shards::table::TableCommand;
use crate::shards::testing::{GROUP, Scratch, apply};

fn put(key: u64) -> Bytes {
    TableCommand::Put { key: &key.to_be_bytes(), value: b"value" }.encode()
}

fn put_all(table: &mut TableMachine, indexes: std::ops::RangeInclusive<u64>) {
    let first = *indexes.start();
    apply(table, first, &indexes.map(put).collect::<Vec<_>>());
}

fn applied(machine: &impl StateMachine) -> Option<u64> {
    machine.applied().unwrap().map(|at| at.index.get())
}

fn durable(machine: &impl StateMachine) -> u64 {
    machine.durable_index().unwrap().get()
}

fn apply_nothing(table: &mut TableMachine, index: u64) {
    use shardhost_groups::machine::ApplyBatch;
    let last = LogPosition::new(1, index);
    table.apply(&mut ApplyBatch::new(GROUP, last, &mut [])).unwrap();
}

fn becomes_durable(options: StateDbOptions) {
    let directory = tempfile::TempDir::new().unwrap();
    let state = StateDb::open(directory.path(), options).unwrap();
    let mut flushes = state.flushes();
    let mut table = state.table(GROUP);
    put_all(&mut table, 1..=3);
    let deadline = Instant::now() + Duration::from_secs(20);
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
        while durable(&table) < 3 {
            let left = deadline.saturating_duration_since(Instant::now());
            tokio::time::timeout(left, flushes.changed()).await.unwrap().unwrap();
        }
    });
}

/// Two groups of one cell, each with more than a block of records, closed and on disk. Returns the
/// directory and the file that holds them.
fn two_on_disk() -> (tempfile::TempDir, PathBuf) {
    let scratch = Scratch::new();
    for group in [GROUP, NEIGHBOUR] {
        let mut table = scratch.state.table(group);
        let value = noise(group.get(), 1_000);
        let put = |key: u64| TableCommand::Put { key: &key.to_be_bytes(), value: &value }.encode();
        apply(&mut table, 1, &(1..=100).map(put).collect::<Vec<_>>());
    }
    assert_eq!(scratch.state.cell_of(GROUP), scratch.state.cell_of(NEIGHBOUR));
    let cell = scratch.path().join(format!("cell-{:02}", scratch.state.cell_of(GROUP)));
    let directory = scratch.close();
    let is_table = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "sst");
    let files = std::fs::read_dir(&cell).unwrap().map(|file| file.unwrap().path());
    let largest = files.filter(is_table).max_by_key(|path| path.metadata().unwrap().len());
    (directory, largest.unwrap())
}

const NEIGHBOUR: GroupId = GroupId::new(GROUP.get() + 2);

/// Bytes that no compression makes smaller.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[3]
    };
    (0..count).map(|_| next()).collect()
}

/// Damages the first block that holds this value.
fn damage(file: &Path, value: &[u8]) {
    let mut bytes = std::fs::read(file).unwrap();
    let at = bytes.windows(value.len()).position(|window| window == value).expect("the value");
    bytes[at] ^= 0xff;
    std::fs::write(file, bytes).unwrap();
}

fn items(state: &Arc<StateDb>, group: GroupId) -> Result<u64, String> {
    let sum = state.table(group).checksum(&Progress::default());
    sum.map(|sum| sum.items).map_err(|error| error.to_string())
}

/// A compaction of the damaged cell meets the damage, and stops it.
fn meet_damage(state: &Arc<StateDb>) {
    // A second file, of some of the same keys: the first is read to be merged with it.
    apply(&mut state.table(NEIGHBOUR), 101, &(1..=100).map(put).collect::<Vec<_>>());
    state.flush_now().unwrap();
    state.cells.of(NEIGHBOUR).unwrap().shared.db.compact_range(None::<&[u8]>, None::<&[u8]>);
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
