//! What commands cost a state machine, from encoding them to the written batch.
//!
//! The figures are CPU time of the whole process, flushes and compactions included, so that a
//! busy machine does not show. `cargo bench --bench apply`; to see that it runs:
//! `cargo bench --bench apply -- --test`.

use std::hint::black_box;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustix::time::{ClockId, clock_gettime};
use shardhost_groups::machine::{ApplyBatch, Command, StateMachine};
use shardhost_server::shards::queue::{MAX_RECEIVE, QueueCommand, QueueMachine, Receipt};
use shardhost_server::shards::table::TableCommand;
use shardhost_server::shards::{StateDb, StateDbOptions};
use shardhost_storage::{GroupId, LogPosition};
use tempfile::TempDir;

const GROUPS: u64 = 48;
/// Keys of one group that the puts go round in.
const KEYS: u64 = 20_000;
const BATCHES: [u64; 3] = [1, 64, 1_024];
const VALUE_BYTES: [usize; 2] = [16, 1_024];

/// The machines of several groups in one state, taking batches in turn.
struct Host<M> {
    machines: Vec<M>,
    index: u64,
    _state: Arc<StateDb>,
    _directory: TempDir,
}

impl<M: StateMachine> Host<M> {
    fn new(make: impl Fn(&Arc<StateDb>, GroupId) -> M) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let state =
            StateDb::open(directory.path(), StateDbOptions::default()).expect("an empty state");
        let machines = (0..GROUPS).map(|id| make(&state, GroupId::new(id))).collect();
        Self { machines, index: 0, _state: state, _directory: directory }
    }

    /// Encodes and applies one batch to a group.
    fn apply(&mut self, group: u64, commands: impl Iterator<Item = Bytes>) {
        let mut batch: Vec<Command> = commands
            .map(|data| {
                self.index += 1;
                Command::new(LogPosition::new(1, self.index), data)
            })
            .collect();
        let last = LogPosition::new(1, self.index);
        let machine = &mut self.machines[group as usize];
        let mut batch = ApplyBatch::new(GroupId::new(group), last, &mut batch);
        machine.apply(&mut batch).expect("an applied batch");
        black_box(batch);
    }
}

/// CPU time of this process so far, all threads together.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Scatters numbers over the keys as hashed clients would.
const fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20
}

fn table_puts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table_put");
    for value_bytes in VALUE_BYTES {
        let value = vec![7; value_bytes];
        for batch in BATCHES {
            let mut host = Host::new(|state, id| state.table(id));
            let (mut next, mut turn) = (0, 0);
            group.throughput(Throughput::Elements(batch));
            group.bench_function(BenchmarkId::new(format!("{value_bytes}B"), batch), |bencher| {
                bencher.iter_custom(|rounds| {
                    let started = cpu_time();
                    for _ in 0..rounds {
                        let puts = (next..next + batch).map(|number| {
                            let key = (scattered(number) % KEYS).to_be_bytes();
                            TableCommand::Put { key: &key, value: &value }.encode()
                        });
                        host.apply(turn % GROUPS, puts);
                        next += batch;
                        turn += 1;
                    }
                    cpu_time() - started
                });
            });
        }
    }
    group.finish();
}

fn queue_cycle(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue_send_receive_ack");
    for batch in BATCHES {
        let mut host = Host::new(|state, id| state.queue(id));
        let mut round = 0;
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::new("16B", batch), |bencher| {
            bencher.iter_custom(|rounds| {
                let started = cpu_time();
                for _ in 0..rounds {
                    send_receive_ack(&mut host, round, batch);
                    round += 1;
                }
                cpu_time() - started
            });
        });
    }
    group.finish();
}

/// Sends a batch, each message with an id and a partition key, receives it and acks it.
fn send_receive_ack(host: &mut Host<QueueMachine>, round: u64, batch: u64) {
    let first = round * batch;
    let sends = (first..first + batch).map(|number| {
        let key = (scattered(number) % 1_000).to_be_bytes();
        QueueCommand::send(round, &key, &[7; 16], &number.to_be_bytes())
    });
    host.apply(0, sends);
    let most = batch.min(MAX_RECEIVE.into());
    let receives =
        (0..batch.div_ceil(most)).map(|_| QueueCommand::receive(round, most as u32, 1_000, b""));
    host.apply(0, receives);
    let receipts: Vec<Receipt> =
        (first + 1..=first + batch).map(|sequence| Receipt::new(sequence, 1)).collect();
    host.apply(0, iter::once(QueueCommand::ack(round, receipts.into_iter())));
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = table_puts, queue_cycle
}
criterion_main!(benches);
