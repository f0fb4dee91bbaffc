//! What refused connections cost: one process begins as many TLS connections as it can that a node
//! refuses, while a client writes to the cluster.
//!
//! A certificate of another authority ends the handshake. A connection without one is let in until its
//! first request, which needs a name: this one goes away before.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use shardhost_client::{Client, ClientOptions};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::arguments::{Mode, Output, Threads, WriteArguments};
use super::certificates;
use super::client::Load;
use super::member::Member;
use super::nodes::{Layout, Node, Nodes, Usage};
use super::part::Part;
use super::process::cpu_time;
use super::report::{self, Latencies};
use super::task::Task;

/// How long writes flow before they are measured: the first ones wait for connections.
const WARM_UP: Duration = Duration::from_secs(5);

/// How the benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct HandshakesArguments {
    /// Number of host processes. All connections go to the first.
    #[arg(long, default_value_t = 3)]
    pub nodes: u64,
    /// Number of groups.
    #[arg(long, default_value_t = 48)]
    pub groups: u64,
    /// Writes per second to offer; 0: as fast as answers come.
    #[arg(long, default_value_t = 2_000)]
    pub rate: u64,
    /// Writes under way at any moment.
    #[arg(long, default_value_t = 1_024)]
    pub outstanding: usize,
    /// Connections that are begun at any moment.
    #[arg(long, default_value_t = 64)]
    pub at_once: usize,
    /// Connections per second to begin at most; 0: as many as the process can.
    #[arg(long, default_value_t = 0)]
    pub handshakes: u64,
    /// Seconds to measure the writers without connections, and with each kind of them.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    #[command(flatten)]
    pub threads: Threads,
    #[command(flatten)]
    pub output: Output,
}

/// What is wrong with the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wrong {
    /// The certificate is of another authority.
    Authority,
    /// There is no certificate.
    Nameless,
}

/// Begin connections for so long.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HandshakesTask {
    address: String,
    /// A certificate of another authority, and its key.
    stranger: (PathBuf, PathBuf),
    wrong: Wrong,
    at_once: usize,
    per_second: u64,
    seconds: u64,
}

/// How the connections ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Handshakes {
    /// Refused by the node for what is wrong; without a certificate: let in.
    as_expected: u64,
    /// That did not come so far.
    failed: u64,
    seconds: f64,
    cpu_seconds: f64,
    /// Why the last one failed.
    why: Option<String>,
}

impl Task for HandshakesTask {
    const NAME: &'static str = "handshakes";
    type Answer = Handshakes;
}

/// Begins connections.
#[derive(Default)]
pub struct HandshakesNode;

impl Part for HandshakesNode {
    type Task = HandshakesTask;

    async fn execute(
        &mut self,
        task: HandshakesTask,
        _node: &mut Member,
    ) -> anyhow::Result<Handshakes> {
        let own = (task.wrong == Wrong::Authority).then_some(&task.stranger);
        let connector = TlsConnector::from(Arc::new(config(own)?));
        let begun = Arc::new(AtomicU64::new(0));
        let (began, cpu) = (Instant::now(), cpu_time());
        let until = began + Duration::from_secs(task.seconds);
        let mut callers = JoinSet::new();
        for _ in 0..task.at_once {
            let caller = Caller {
                task: task.clone(),
                connector: connector.clone(),
                begun: Arc::clone(&begun),
            };
            callers.spawn(caller.run(began, until));
        }
        let mut all = Handshakes::default();
        while let Some(some) = callers.join_next().await {
            let some = some?;
            all.as_expected += some.as_expected;
            all.failed += some.failed;
            all.why = all.why.or(some.why);
        }
        all.seconds = began.elapsed().as_secs_f64();
        all.cpu_seconds = (cpu_time() - cpu).as_secs_f64();
        Ok(all)
    }
}

/// Begins one connection after the other.
struct Caller {
    task: HandshakesTask,
    connector: TlsConnector,
    /// Connections that all callers began.
    begun: Arc<AtomicU64>,
}

impl Caller {
    async fn run(self, began: Instant, until: Instant) -> Handshakes {
        let mut ended = Handshakes::default();
        while Instant::now() < until {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            if self.task.per_second > 0 {
                let due = Duration::from_secs_f64(number as f64 / self.task.per_second as f64);
                tokio::time::sleep_until((began + due).into()).await;
            }
            match self.call().await {
                Ok(()) => ended.as_expected += 1,
                Err(why) => {
                    ended.failed += 1;
                    ended.why = Some(why);
                }
            }
        }
        ended
    }

    async fn call(&self) -> Result<(), String> {
        let mut stream = self.connect().await.map_err(|error| error.to_string())?;
        if self.task.wrong == Wrong::Nameless {
            return Ok(());
        }
        // The node judges the certificate when this side is done, and says so by an alert.
        match stream.read_u8().await {
            Ok(_) => Err("the node speaks to it".to_owned()),
            Err(_) => Ok(()),
        }
    }

    async fn connect(&self) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.task.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
        self.connector.connect(name, stream).await
    }
}

/// What a stranger presents. It believes any node, so that it has less to do than the node.
fn config(own: Option<&(PathBuf, PathBuf)>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(provider)));
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate)?.collect();
            builder.with_client_auth_cert(chain?, PrivateKeyDer::from_pem_file(key)?)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// Believes any node.
#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Runs the benchmark and reports.
pub async fn run(arguments: &HandshakesArguments) -> anyhow::Result<()> {
    let data = arguments.output.data()?;
    let writing = writing(arguments);
    let others = data.path().join("others");
    certificates::make(&others, 1)?;
    let stranger = certificates::of_stranger(&others)?;
    let limit = Duration::from_secs(arguments.seconds + 120);
    let layout = Layout::of(&writing);
    let (mut nodes, addresses) = Nodes::start_servers(&layout, data.path(), |_| {}).await?;
    nodes.spread(limit).await?;
    let certificates = Nodes::certificates(data.path());
    let task = |wrong| HandshakesTask {
        address: addresses[0].clone(),
        stranger: stranger.clone(),
        wrong,
        at_once: arguments.at_once,
        per_second: arguments.handshakes,
        seconds: arguments.seconds,
    };
    let security = certificates::of_client(&certificates)?;
    let options = ClientOptions { security, ..ClientOptions::default() };
    let client = Client::connect(addresses.clone(), options).await?;
    let load = Load::start(client.table(), &writing)?;
    let mut stranger = Node::start(0).await?;
    let mut figures = Map::new();
    figures.insert("nodes".to_owned(), json!(arguments.nodes));
    figures.insert("writes_offered_per_second".to_owned(), json!(arguments.rate));
    tokio::time::sleep(WARM_UP).await;
    let calm = Duration::from_secs(arguments.seconds);
    let mut phase = Phase::begin(&load, &mut nodes).await?;
    tokio::time::sleep(calm).await;
    let before = phase.end(&load, &mut nodes, "before", &mut figures).await?;
    // More than was offered is what waited.
    let offered = if arguments.rate > 0 { arguments.rate as f64 } else { f64::MAX };
    let calm_rate = before.min(offered);
    for (wrong, name) in [(Wrong::Authority, "other_authority"), (Wrong::Nameless, "nameless")] {
        phase = Phase::begin(&load, &mut nodes).await?;
        let ended = stranger.does(&task(wrong), limit).await?;
        let during = phase.end(&load, &mut nodes, name, &mut figures).await?;
        let mut put = |figure: &str, value: Value| {
            figures.insert(format!("{figure}_{name}"), value);
        };
        put("handshakes_per_second", json!(ended.as_expected as f64 / ended.seconds));
        put("handshakes_failed", json!(ended.failed));
        put("stranger_cores", json!(ended.cpu_seconds / ended.seconds));
        put("percent_of_writes_lost", json!((1.0 - during / calm_rate.max(1.0)) * 100.0));
        if let Some(why) = ended.why {
            put("a_handshake_failed_because", json!(why));
        }
    }
    load.end().await;
    nodes.end().await?;
    report::print(&Value::Object(figures), arguments.output.json);
    Ok(())
}

fn writing(arguments: &HandshakesArguments) -> WriteArguments {
    WriteArguments {
        mode: Mode::Client,
        groups: arguments.groups,
        outstanding: arguments.outstanding,
        rate: arguments.rate,
        machine: super::arguments::MachineKind::Table,
        nodes: arguments.nodes,
        threads: arguments.threads,
        tls: true,
        ..WriteArguments::default()
    }
}

/// A time for which the writers are measured.
struct Phase {
    began: Instant,
}

impl Phase {
    async fn begin(load: &Load, nodes: &mut Nodes) -> anyhow::Result<Self> {
        nodes.usage().await?;
        drop(load.take());
        Ok(Self { began: Instant::now() })
    }

    /// Adds the figures; returns the writes per second.
    async fn end(
        &self,
        load: &Load,
        nodes: &mut Nodes,
        name: &str,
        figures: &mut Map<String, Value>,
    ) -> anyhow::Result<f64> {
        let counted = load.take();
        let rate = counted.succeeded as f64 / self.began.elapsed().as_secs_f64();
        let took = Latencies::of(counted.latencies_ns.iter().copied());
        let mut put = |figure: &str, value: Value| {
            figures.insert(format!("{figure}_{name}"), value);
        };
        put("writes_per_second", json!(rate));
        put("writes_failed", json!(counted.failed));
        put("write_p50_ms", json!(took.quantile(0.5) as f64 / 1e6));
        put("write_p99_ms", json!(took.quantile(0.99) as f64 / 1e6));
        let cores = |usage: &Usage| usage.cpu_seconds / usage.seconds;
        let used = nodes.usage().await?;
        put("cores_of_the_first_host", json!(used.first().map(cores)));
        put("cores_of_all_hosts", json!(used.iter().map(cores).sum::<f64>()));
        Ok(rate)
    }
}
