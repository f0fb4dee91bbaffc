//! What it costs to check a message from the wire before raft sees it.
//!
//! `cargo bench --bench validator`; to see that it runs: `cargo bench --bench validator -- --test`.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shardhost_groups::validate::{ReplicaView, validate};
use shardhost_proto::log::{Entry, EntryKind};
use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{Membership, NodeId, ReplicaId};

const TERM: u64 = 12;
const LAST: u64 = 1_000_000;

fn message(kind: MessageKind) -> GroupMessage {
    GroupMessage {
        group: 7,
        from_replica: 2,
        to_replica: 1,
        kind: kind.into(),
        term: TERM,
        commit: LAST,
        ..GroupMessage::default()
    }
}

fn append(entries: usize) -> GroupMessage {
    let entry = Entry {
        kind: EntryKind::Command.into(),
        term: TERM,
        data: Bytes::from_static(b"sixteen bytes of"),
        context: Bytes::new(),
    };
    GroupMessage {
        log_term: TERM,
        index: LAST,
        entries: vec![entry; entries],
        ..message(MessageKind::Append)
    }
}

fn validator(criterion: &mut Criterion) {
    let membership = Membership::initial((1..=3).map(NodeId::must));
    let view = ReplicaView {
        replica: ReplicaId::must(1),
        term: TERM,
        leader: 2,
        leads: false,
        last_index: LAST,
        persisted: LAST,
        committed: LAST - 64,
        contacts: &[],
        membership: &membership,
    };
    let shapes = [
        ("heartbeat", message(MessageKind::Heartbeat)),
        ("append_of_1", append(1)),
        ("append_of_64", append(64)),
    ];
    let mut group = criterion.benchmark_group("validate");
    for (name, message) in shapes {
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let message = black_box(&message);
                validate(&view, NodeId::must(2), message, |_| Some(TERM)).expect("a sound message")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, validator);
criterion_main!(benches);
