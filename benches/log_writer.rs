//! The shared log alone, beside the raft-engine crate on the same disk: batches of entries of
//! 16 random bytes, one sync each.
//!
//! Both append to the same groups and truncate behind themselves in the same way. Compression is
//! off in raft-engine, as random payload would not shrink. A figure is the time of one batch.
//! `cargo bench --bench log_writer`; to see that it runs: `cargo bench --bench log_writer -- --test`.
//! `TMPDIR` chooses the disk.

use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use raft_engine::{Engine, MessageExt, ReadableSize};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use shardhost_storage::{
    Entry, EntryKind, GroupId, GroupMeta, GroupWrite, HardState, Identity, LogBatch, LogIndex,
    LogPosition, LogStore, Membership, NodeId, ReplicaId, RocksOptions, RocksStore, Term,
};
use tempfile::TempDir;

const PAYLOAD_BYTES: usize = 16;
/// Entries of a group that are kept behind its end.
const TRAIL: u64 = 10_000;
/// Batches after which a group's log is truncated.
const TRUNCATE_EVERY: u64 = 500;
/// The size of a batch: groups, and entries of all together.
const SHAPES: [(&str, u64, u64); 4] = [
    ("1", 1, 1),
    ("48_as_48_runs", 48, 48),
    ("256_as_48_runs", 48, 256),
    ("4096_as_48_runs", 48, 4_096),
];

/// A log that takes batches.
trait Log {
    /// Appends the payloads, so many to each group, and syncs once.
    fn append(&mut self, payloads: &[Vec<Bytes>]);
}

/// Where the log of each group ends.
struct Ends {
    last: Vec<u64>,
    batches: u64,
}

impl Ends {
    fn new(groups: u64) -> Self {
        Self { last: (0..groups).map(|_| 0).collect(), batches: 0 }
    }

    /// Up to which entries the groups are truncated with this batch.
    fn truncate(&self) -> Option<Vec<u64>> {
        let due = self.batches > 0 && self.batches.is_multiple_of(TRUNCATE_EVERY);
        let behind = self.last.iter().map(|last| last.saturating_sub(TRAIL));
        (due && self.last.iter().all(|&last| last > TRAIL)).then(|| behind.collect())
    }

    fn advance(&mut self, payloads: &[Vec<Bytes>]) {
        self.batches += 1;
        for (last, payloads) in self.last.iter_mut().zip(payloads) {
            *last += payloads.len() as u64;
        }
    }
}

/// RocksDB, as the host uses it.
struct Rocks {
    store: Arc<RocksStore>,
    ends: Ends,
    _directory: TempDir,
}

impl Rocks {
    fn new(groups: u64) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let identity = Identity { cluster: "bench".to_owned(), node: NodeId::must(1) };
        let store = RocksStore::open(directory.path(), identity, RocksOptions::default())
            .expect("an empty log");
        let writes = (1..=groups).map(first_write).collect();
        store.write(&LogBatch { writes }).expect("new groups");
        Self { store: Arc::new(store), ends: Ends::new(groups), _directory: directory }
    }
}

fn first_write(group: u64) -> GroupWrite {
    let group = GroupId::new(group);
    let mut write = GroupWrite::new(group);
    write.meta = Some(GroupMeta {
        group,
        replica: ReplicaId::must(1),
        membership: Membership::initial((1..=3).map(NodeId::must)),
        snapshot: None,
        labels: Default::default(),
        kind: String::new(),
        skipping: None,
    });
    write.hard_state = Some(hard_state());
    write.reset = Some(LogPosition::default());
    write
}

fn hard_state() -> HardState {
    HardState { term: Term::new(1), vote: None, commit: LogIndex::new(0) }
}

impl Log for Rocks {
    fn append(&mut self, payloads: &[Vec<Bytes>]) {
        let truncate = self.ends.truncate();
        let write = |(number, payloads): (usize, &Vec<Bytes>)| {
            let mut write = GroupWrite::new(GroupId::new(number as u64 + 1));
            let entry = |(index, data): (u64, &Bytes)| Entry {
                term: Term::new(1),
                index: LogIndex::new(index),
                kind: EntryKind::Command,
                data: data.clone(),
                context: Bytes::new(),
            };
            write.entries = (self.ends.last[number] + 1..).zip(payloads).map(entry).collect();
            write.compact = truncate.as_ref().map(|to| LogPosition::new(1, to[number]));
            write
        };
        let writes = payloads.iter().enumerate().map(write).collect();
        self.store.write(&LogBatch { writes }).expect("a healthy disk");
        self.ends.advance(payloads);
    }
}

struct OtherEngine {
    engine: Engine,
    ends: Ends,
    _directory: TempDir,
}

#[derive(Clone)]
struct EngineEntry;

impl MessageExt for EngineEntry {
    type Entry = raft::eraftpb::Entry;

    fn index(entry: &Self::Entry) -> u64 {
        entry.index
    }
}

impl OtherEngine {
    fn new(groups: u64) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let config = raft_engine::Config {
            dir: directory.path().to_string_lossy().into_owned(),
            batch_compression_threshold: ReadableSize(0),
            ..raft_engine::Config::default()
        };
        let engine = Engine::open(config).expect("an empty log");
        Self { engine, ends: Ends::new(groups), _directory: directory }
    }
}

impl Log for OtherEngine {
    fn append(&mut self, payloads: &[Vec<Bytes>]) {
        let mut batch = raft_engine::LogBatch::default();
        for (number, payloads) in payloads.iter().enumerate() {
            let entry = |(index, data): (u64, &Bytes)| {
                let mut entry = raft::eraftpb::Entry::new();
                (entry.term, entry.index) = (1, index);
                entry.data = data.clone();
                entry
            };
            let first = self.ends.last[number] + 1;
            let entries: Vec<_> = (first..).zip(payloads).map(entry).collect();
            batch.add_entries::<EngineEntry>(number as u64 + 1, &entries).expect("contiguous");
        }
        self.engine.write(&mut batch, true).expect("a healthy disk");
        if let Some(truncate) = self.ends.truncate() {
            for (group, index) in (1..).zip(truncate) {
                self.engine.compact_to(group, index);
            }
            self.engine.purge_expired_files().expect("a healthy disk");
        }
        self.ends.advance(payloads);
    }
}

/// Payloads of one batch, without any pattern that a compressor could use.
fn payloads(random: &mut SmallRng, groups: u64, entries: u64) -> Vec<Vec<Bytes>> {
    let mut payload = || {
        let mut bytes = vec![0; PAYLOAD_BYTES];
        random.fill_bytes(&mut bytes);
        Bytes::from(bytes)
    };
    let share = |group| entries / groups + u64::from(group < entries % groups);
    (0..groups).map(|group| (0..share(group)).map(|_| payload()).collect()).collect()
}

fn log_writer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("log_writer");
    for (name, groups, entries) in SHAPES {
        group.throughput(Throughput::Elements(entries));
        let mut random = SmallRng::seed_from_u64(7);
        let batch = payloads(&mut random, groups, entries);
        let mut rocks = Rocks::new(groups);
        group.bench_function(BenchmarkId::new("rocksdb", name), |bencher| {
            bencher.iter(|| rocks.append(&batch));
        });
        drop(rocks);
        let mut other = OtherEngine::new(groups);
        group.bench_function(BenchmarkId::new("raft_engine", name), |bencher| {
            bencher.iter(|| other.append(&batch));
        });
    }
    group.finish();
}

criterion_group!(benches, log_writer);
criterion_main!(benches);
