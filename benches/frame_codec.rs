//! What a frame of the peer protocol costs to encode and to decode, per message.
//!
//! Run with `cargo bench --bench frame_codec`.

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message;
use shardhost::transport::codec::{FrameBounds, decode, encode};
use shardhost_proto::log::Entry;
use shardhost_proto::peer::{Frame, GroupMessage, MessageKind};

const BOUNDS: FrameBounds = FrameBounds { messages: 1 << 14, entries: 1 << 17 };

/// Messages of as many groups, each with the entries of one append.
fn frame(messages: u64, entries: usize, payload: usize) -> Frame {
    let kind = if entries > 0 { MessageKind::Append } else { MessageKind::Heartbeat };
    let entry =
        Entry { kind: 1, term: 12, data: Bytes::from(vec![b'x'; payload]), context: Bytes::new() };
    let message = |group| GroupMessage {
        group,
        from_replica: 1,
        to_replica: 2,
        kind: kind.into(),
        term: 12,
        log_term: 12,
        index: 1_000_000 + group,
        commit: 1_000_000,
        entries: vec![entry.clone(); entries],
        ..GroupMessage::default()
    };
    Frame { messages: (0..messages).map(message).collect(), ..Frame::default() }
}

fn frame_codec(criterion: &mut Criterion) {
    let shapes = [
        ("heartbeats_of_1000_groups", frame(1000, 0, 0)),
        ("48_appends_of_40_entries_of_16_bytes", frame(48, 40, 16)),
        ("16_appends_of_4_entries_of_1_kib", frame(16, 4, 1024)),
        ("one_append_of_one_entry_of_16_bytes", frame(1, 1, 16)),
    ];
    for (name, frame) in shapes {
        let bytes = Bytes::from(frame.encode_to_vec());
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function("encode", |bencher| {
            let mut buffer = BytesMut::with_capacity(bytes.len());
            bencher.iter(|| {
                buffer.clear();
                encode(&frame, &mut buffer).expect("the buffer grows");
                buffer.len()
            });
        });
        group.bench_function("decode", |bencher| {
            bencher.iter_batched(
                || bytes.clone(),
                |bytes| decode(bytes, BOUNDS).expect("the frame is in order"),
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, frame_codec);
criterion_main!(benches);
