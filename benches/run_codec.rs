//! What it costs to write a run of entries as one value of the log, and to read it.
//!
//! `cargo bench --bench run_codec`; to see that it runs: `cargo bench --bench run_codec -- --test`.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shardhost_storage::run::{decode, encode};
use shardhost_storage::{Entry, EntryKind, GroupId, LogIndex, Term};

const GROUP: GroupId = GroupId::new(7);
/// Entries of a run: what 48 groups get of a batch of 4,096.
const ENTRIES: u64 = 85;
const PAYLOAD_BYTES: [usize; 2] = [16, 1_024];

fn run(payload_bytes: usize) -> Vec<Entry> {
    let entry = |index: u64| Entry {
        term: Term::new(12),
        index: LogIndex::new(1_000_000 + index),
        kind: EntryKind::Command,
        data: Bytes::from(vec![u8::try_from(index % 251).unwrap_or(0); payload_bytes]),
        context: Bytes::new(),
    };
    (0..ENTRIES).map(entry).collect()
}

fn run_codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("run_of_85");
    group.throughput(Throughput::Elements(ENTRIES));
    for payload_bytes in PAYLOAD_BYTES {
        let entries = run(payload_bytes);
        let mut value = Vec::new();
        encode(GROUP, entries.iter(), &mut value);
        let value = Bytes::from(value);
        let name = format!("{payload_bytes}B");
        group.bench_function(BenchmarkId::new("encode", &name), |bencher| {
            let mut out = Vec::with_capacity(value.len());
            bencher.iter(|| {
                encode(GROUP, entries.iter(), &mut out);
                out.len()
            });
        });
        group.bench_function(BenchmarkId::new("decode", &name), |bencher| {
            bencher.iter(|| decode(GROUP, &value).expect("what was encoded"));
        });
    }
    group.finish();
}

criterion_group!(benches, run_codec);
criterion_main!(benches);
