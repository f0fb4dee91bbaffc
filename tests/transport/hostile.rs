//! Input at the peer port harms no other peer.

use std::io::{Read, Write};
use std::net::TcpStream;

use prost::Message;
use shardhost_groups::transport::Lane;
use shardhost_proto::peer::{Frame, GroupMessage, Hello};
use tonic::Code;

use crate::fixture::{Cluster, Host, Stranger, hello, message, node};

/// A pair whose first lane is checked to have gone on undisturbed.
struct Bystanders {
    one: Host,
    two: Host,
}

impl Bystanders {
    /// Hosts 1 and 2, and a directory that also knows node 3, in whose name strangers greet.
    fn new() -> Self {
        let cluster = Cluster::new();
        cluster.directory.set(node(3), "127.0.0.1:1");
        let (one, two) = cluster.pair();
        Self { one, two }
    }

    fn assert_undisturbed(&self) {
        let before = self.two.recorder.read(|told| told.delivered.len());
        self.one.send(vec![message(2, Lane::Bulk, 1, 10), message(2, Lane::Urgent, 1, 10)]);
        self.two.recorder.wait("messages", |told| told.delivered.len() == before + 2);
        let peer = self.one.peer(2).unwrap();
        assert_eq!((peer.bulk.connects, peer.urgent.connects), (1, 1));
    }
}

fn hello_of_node_3() -> Hello {
    Hello { node: 3, ..hello() }
}

#[test]
fn bytes_that_are_no_http2_end_their_connection_only() {
    let pair = Bystanders::new();
    let http1 = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    let tls = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let preface_and_half_a_frame = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\xff\x04".to_vec();
    let noise = (0..1 << 16).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [http1, tls, preface_and_half_a_frame, noise] {
        let mut socket = TcpStream::connect(&pair.two.address).unwrap();
        let sent = socket.write_all(&bytes).and_then(|()| {
            socket.shutdown(std::net::Shutdown::Write)?;
            socket.read_to_end(&mut Vec::new())
        });
        // Whether the host answers or resets is its choice; that it continues is not.
        drop(sent);
        pair.assert_undisturbed();
    }
}

#[test]
fn frames_that_cannot_be_read_end_their_stream_with_a_reason() {
    let pair = Bystanders::new();
    let whole = Frame { messages: vec![GroupMessage::default(); 3], ..Frame::default() };
    let message = GroupMessage { context: vec![7; 100].into(), ..GroupMessage::default() };
    let truncated = Frame { messages: vec![message], ..Frame::default() }.encode_to_vec();
    let crowd = Frame { messages: vec![GroupMessage::default(); 1 << 15], ..whole.clone() };
    let cases = [
        (vec![0xff; 64], Code::InvalidArgument),
        (truncated[..truncated.len() - 1].to_vec(), Code::InvalidArgument),
        (crowd.encode_to_vec(), Code::InvalidArgument),
        (vec![0; (16 << 20) + 1], Code::OutOfRange),
        (Frame { hello: Some(hello()), ..whole }.encode_to_vec(), Code::InvalidArgument),
    ];
    for (number, (bytes, code)) in cases.into_iter().enumerate() {
        let status = Stranger::at(&pair.two).exchange_bytes(hello_of_node_3(), vec![bytes]);
        assert_eq!(status.code(), code, "case {number}: {status}");
        assert!(!status.message().is_empty());
        pair.assert_undisturbed();
    }
    assert_eq!(pair.two.transport.stats().broken_streams, 5);
}

#[test]
fn what_came_before_a_bad_frame_was_delivered_and_nothing_after_it_is() {
    let pair = Bystanders::new();
    let frame = |index| {
        let message = GroupMessage { index, term: 1, ..GroupMessage::default() };
        Frame { messages: vec![message], ..Frame::default() }.encode_to_vec()
    };
    let frames = vec![frame(1), frame(2), vec![0xff; 9], frame(3)];
    Stranger::at(&pair.two).exchange_bytes(hello_of_node_3(), frames);
    assert_eq!(pair.two.recorder.read(|told| told.indexes(Lane::Bulk)), [1, 2]);
    pair.assert_undisturbed();
}
