//! The same over TLS, where it differs: handshakes that never become whole, callers without a name, and
//! clients that take nothing or go away behind a layer that keeps bytes of its own.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shardhost_client::security::channel::{Channel, Security};
use shardhost_client::security::connect::{TlsStream, connect};
use shardhost_client::security::{Credentials, TlsFiles};
use shardhost_proto::client::directory_client::DirectoryClient;
use shardhost_proto::client::table_client::TableClient;
use shardhost_proto::client::table_request::Operation;
use shardhost_proto::client::{Get, ShardsRequest, TableBatch, TableReplies, TableRequest};
use shardhost_proto::shard_map::TABLE_KIND;
use shardhost_server::service::STALL_TIMEOUT;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use super::host::{Host, command, open_files, peak_memory, resident_memory};
use super::needs::{Need, are_there};

/// Open files that the host is allowed.
const LIMIT: usize = 256;
const SOON: Duration = Duration::from_secs(30);
const MIB: usize = 1024 * 1024;
const CLIENT_MEMORY_MIB: usize = 96;
/// What may come in addition: buffers of TLS and of connections, and what the allocator keeps.
const BESIDE_MIB: usize = 64;
/// The record that begins a handshake says that it has 512 bytes, and has four.
const HALF_HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc];
/// What a client of HTTP/2 begins with that speaks no TLS.
const PLAIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Certificates of a node and a user, made by the program.
struct Certificates {
    directory: TempDir,
}

impl Certificates {
    fn make() -> Self {
        let directory = TempDir::new().unwrap();
        let made = Self { directory };
        let path = made.path("").display().to_string();
        let user = ["user", "shop", "--grants", "client"];
        for arguments in [&["ca", "--cluster", "shardhost"][..], &["node", "1"], &user] {
            let arguments = [&["cert"], arguments, &["--dir", &path]].concat();
            let ended = command(&arguments).output().unwrap();
            assert!(ended.status.success(), "{ended:?}");
        }
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Of the user, or of one who has no certificate.
    fn credentials(&self, own: Option<&str>) -> Credentials {
        let file = |name: &str, end: &str| self.path(&format!("{name}.{end}"));
        let own = own.map(|name| (file(name, "pem"), file(name, "key")));
        Credentials::load(TlsFiles { ca: self.path("ca.pem"), own }).unwrap()
    }

    fn user(&self) -> Security {
        Security { credentials: Some(self.credentials(Some("shop"))), token: None }
    }

    /// A node alone that speaks TLS, and the client of a user.
    fn start(&self, data_dir: &Path, before: &str, more: &[&str]) -> Host {
        let [ca, certificate, key] = ["ca.pem", "node-1.pem", "node-1.key"]
            .map(|name| self.path(name).display().to_string());
        let own = ["--tls-ca", &ca, "--tls-cert", &certificate, "--tls-key", &key];
        let flags = [&own[..], more].concat();
        Host::secured(data_dir, before, &flags, self.user())
    }
}

/// A connection that will say no more.
enum Idle {
    Raw(TcpStream),
    Secured(Box<TlsStream<TcpStream>>),
}

impl Idle {
    async fn begin(host: &Host, number: usize, unknown: &Credentials) -> Option<Self> {
        if number % 4 == 3 {
            let connected = connect(&host.client_address, unknown, None).await.ok()?;
            return Some(Self::Secured(Box::new(connected)));
        }
        let mut raw = TcpStream::connect(&host.client_address).await.ok()?;
        let said = [&[][..], HALF_HELLO, PLAIN][number % 4];
        // It may have been closed to make way.
        drop(raw.write_all(said).await);
        Some(Self::Raw(raw))
    }

    /// Until the host ended it.
    async fn end(&mut self) {
        let mut said = [0; 1_024];
        let ended = async {
            match self {
                Self::Raw(raw) => while matches!(raw.read(&mut said).await, Ok(1..)) {},
                Self::Secured(stream) => while matches!(stream.read(&mut said).await, Ok(1..)) {},
            }
        };
        timeout(SOON, ended).await.expect("the host ends it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_never_become_whole_end_and_keep_nobody_out() {
    if !are_there(
        "handshakes_that_never_become_whole_end_and_keep_nobody_out",
        &[Need::Limits, Need::Proc],
    ) {
        return;
    }
    let (directory, certificates) = (TempDir::new().unwrap(), Certificates::make());
    let mut host = certificates.start(directory.path(), &format!("ulimit -n {LIMIT};"), &[]);
    let unknown = certificates.credentials(None);
    let mut idle = Vec::new();
    for number in 0..LIMIT + 64 {
        let begun = timeout(SOON, Idle::begin(&host, number, &unknown)).await;
        idle.extend(begun.expect("the listener accepts"));
    }
    let began = Instant::now();
    for number in 0..20 {
        host.serves(&format!("among many {number}")).await;
    }
    assert!(began.elapsed() < SOON / 3, "it takes {:?}", began.elapsed());
    assert!(open_files(host.process()) < LIMIT * 3 / 4, "{}", open_files(host.process()));
    for one in &mut idle {
        one.end().await;
    }
    host.serves("afterwards").await;
}

/// How long a connection may be there before its first request, with some time to spare.
const SILENT_FOR: Duration = Duration::from_secs(7);

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_at_the_listener_of_clients_end_none_at_that_of_nodes() {
    if !are_there(
        "handshakes_at_the_listener_of_clients_end_none_at_that_of_nodes",
        &[Need::Limits, Need::Proc],
    ) {
        return;
    }
    let (directory, certificates) = (TempDir::new().unwrap(), Certificates::make());
    let more = ["--client-listen", "127.0.0.1:0"];
    let before = format!("ulimit -n {LIMIT};");
    let mut host = certificates.start(directory.path(), &before, &more);
    assert_ne!(host.address, host.client_address);
    let unknown = certificates.credentials(None);
    let mut idle = Vec::new();
    let mut begun = loop {
        // One that has begun where nodes do, and is slow.
        let mut begun = TcpStream::connect(&host.address).await.unwrap();
        begun.write_all(HALF_HELLO).await.unwrap();
        let began = Instant::now();
        for number in 0..LIMIT / 2 {
            let one = timeout(SOON, Idle::begin(&host, number, &unknown)).await;
            idle.extend(one.expect("the listener accepts"));
        }
        host.serves("among many").await;
        // Else its own time may be over, which says nothing.
        if began.elapsed() < SILENT_FOR {
            break begun;
        }
    };
    let ended = timeout(Duration::from_millis(200), begun.read(&mut [0; 64])).await;
    assert!(ended.is_err(), "it made way for one of another listener: {ended:?}");
    assert!(open_files(host.process()) < LIMIT * 3 / 4, "{}", open_files(host.process()));
    let endpoint = Endpoint::from_shared(format!("http://{}", host.address)).unwrap();
    let channel = certificates.user().now(&endpoint, None).await.unwrap();
    let request = ShardsRequest { kind: TABLE_KIND.to_owned() };
    let refused = DirectoryClient::new(channel).shards(request).await.unwrap_err();
    assert!(refused.message().contains(&host.client_address), "{refused}");
    for one in &mut idle {
        one.end().await;
    }
    host.serves("afterwards").await;
}

/// One stream of gets of a key.
struct Calls {
    batches: mpsc::Sender<TableBatch>,
    _replies: Streaming<TableReplies>,
}

async fn channel(host: &Host, security: &Security) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", host.client_address)).unwrap();
    security.now(&endpoint, None).await.unwrap()
}

async fn ask(host: &Host, security: &Security, group: u64, gets: u64) -> Calls {
    let mut client = TableClient::new(channel(host, security).await);
    let (batches, receiver) = mpsc::channel(1);
    let get = |id| TableRequest {
        id,
        group,
        operation: Some(Operation::Get(Get { key: "large".into(), ..Get::default() })),
        ..TableRequest::default()
    };
    batches.try_send(TableBatch { requests: (1..=gets).map(get).collect() }).unwrap();
    let replies = client.pipeline(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    Calls { batches, _replies: replies }
}

/// Puts a value of a MiB, and returns the group of its key.
async fn with_a_large_value(host: &Host, security: &Security) -> u64 {
    let table = host.client().await.table();
    table.put("large", vec![7; MIB - 64]).await.unwrap();
    let mut directory = DirectoryClient::new(channel(host, security).await);
    let request = ShardsRequest { kind: TABLE_KIND.to_owned() };
    assert!(!directory.shards(request).await.unwrap().into_inner().shards.is_empty());
    table.group_of(b"large").unwrap().get()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_take_nothing_over_tls_hold_no_more_than_they_may() {
    if !are_there("clients_that_take_nothing_over_tls_hold_no_more_than_they_may", &[Need::Proc]) {
        return;
    }
    let (directory, certificates) = (TempDir::new().unwrap(), Certificates::make());
    let security = certificates.user();
    let config = directory.path().join("configuration.toml");
    let memory = format!("node = 1\nalone = true\nclient-memory-mib = {CLIENT_MEMORY_MIB}\n");
    std::fs::write(&config, memory).unwrap();
    let more = ["--config", config.to_str().unwrap()];
    let mut host = certificates.start(&directory.path().join("data"), "", &more);
    let group = with_a_large_value(&host, &security).await;
    let before = resident_memory(host.process());
    let mut mute = Vec::new();
    for _ in 0..8 {
        mute.push(ask(&host, &security, group, 250).await);
    }
    let served = host.serves("beside them");
    timeout(3 * STALL_TIMEOUT, served).await.expect("others are served");
    // Those that take nothing are in the way of others that ask for the same, and lose their connections.
    let lost = async {
        let mut others = Vec::new();
        loop {
            others.push(ask(&host, &security, group, 250).await);
            let lost = mute[0].batches.closed();
            if timeout(STALL_TIMEOUT / 4, lost).await.is_ok() {
                return others;
            }
        }
    };
    let others = timeout(2 * SOON, lost).await.expect("it loses its connection");
    let took = peak_memory(host.process()).saturating_sub(before) / MIB;
    assert!(took < CLIENT_MEMORY_MIB + BESIDE_MIB, "clients took {took} MiB");
    drop((mute, others));
    host.serves("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_go_away_over_tls_leave_nothing_behind() {
    if !are_there("clients_that_go_away_over_tls_leave_nothing_behind", &[Need::Proc]) {
        return;
    }
    let (directory, certificates) = (TempDir::new().unwrap(), Certificates::make());
    let (security, unknown) = (certificates.user(), certificates.credentials(None));
    let mut host = certificates.start(directory.path(), "", &[]);
    let group = with_a_large_value(&host, &security).await;
    let before = open_files(host.process());
    for number in 0..100 {
        match number % 5 {
            4 => drop(ask(&host, &security, group, 100).await),
            _ => drop(timeout(SOON, Idle::begin(&host, number, &unknown)).await),
        }
    }
    let began = Instant::now();
    // As before, but for a connection of the client of this test.
    while open_files(host.process()) > before + 2 {
        assert!(began.elapsed() < SOON, "{} files are open", open_files(host.process()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    host.serves("after").await;
}
