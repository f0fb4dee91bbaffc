//! What a node says over HTTP: metrics in each form, whether it is well, and who is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use shardhost_client::security::channel::{Channel, Security, Token};
use shardhost_client::security::{Credentials, TlsFiles};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::codegen::http::{Request, StatusCode};
use tonic::codegen::{Body as _, Service};
use tonic::transport::Endpoint;

use super::http_client::{Answer, asked};
use super::security::Office;
use super::servers::Servers;

const TIMEOUT: Duration = Duration::from_secs(60);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0";

/// A port that is free at the IP address of a node.
fn free_beside(servers: &Servers, node: u64) -> String {
    let own: SocketAddr = servers.address(node).parse().unwrap();
    TcpListener::bind((own.ip(), 0)).unwrap().local_addr().unwrap().to_string()
}

async fn get(address: &str, path: &str) -> Option<Answer> {
    asked("GET", address, path, "*/*").await
}

/// The series of a text, by name with labels; each stands there once.
fn series(text: &str) -> BTreeMap<String, f64> {
    let mut series = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(series.insert(ordered(name), value).is_none(), "twice: {line}");
    }
    series
}

/// A series with its labels in one order: forms differ in where they put the bound of a bucket.
fn ordered(name: &str) -> String {
    let Some((family, labels)) = name.strip_suffix('}').and_then(|name| name.split_once('{'))
    else {
        return name.to_owned();
    };
    let mut labels: Vec<&str> = labels.split(',').collect();
    labels.sort_unstable();
    format!("{family}{{{}}}", labels.join(","))
}

async fn one() -> (Servers, String) {
    let mut servers = Servers::new(1, "", "tables = 2\nqueues = 1");
    let http = free_beside(&servers, 1);
    servers.start(1, &["--http-listen", &http]);
    let ready = || async { get(&http, "/readyz").await.is_some_and(|answer| answer.status == 200) };
    servers.until("the node is ready", ready).await;
    // All families are there once what runs beside the catalog does.
    let plans = || async {
        let answer = get(&http, "/metrics").await.unwrap();
        let series = series(answer.text());
        ["shardhost_planner_in_flight", "shardhost_allocator_moving", "shardhost_catalog_revision"]
            .iter()
            .all(|name| series.contains_key(*name))
    };
    servers.until("the node plans", plans).await;
    (servers, http)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_counts_is_scraped_in_each_form() {
    let (servers, http) = one().await;
    servers.run(1, &["table", "put", "color", "red"]).await.ok();
    let all_led = || async {
        let answer = get(&http, "/metrics").await.unwrap();
        series(answer.text()).get("shardhost_leaders_serving") == Some(&4.0)
    };
    servers.until("all groups are led", all_led).await;
    let text = get(&http, "/metrics").await.unwrap();
    assert_eq!(text.status, 200);
    assert!(text.headers.contains("content-type: text/plain; version=0.0.4"), "{}", text.headers);
    let before = series(text.text());
    let written = r#"shardhost_requests_total{access="write",kind="table",outcome="answered"}"#;
    assert!(before[written] >= 1.0, "{before:#?}");
    for (name, value) in [
        ("shardhost_host_serving", 1.0),
        ("shardhost_leaders", 4.0),
        ("shardhost_replicas", 4.0),
        ("shardhost_replicas_failed", 0.0),
        ("shardhost_catalog_known", 1.0),
        ("shardhost_planner_runs", 1.0),
    ] {
        assert_eq!(before.get(name), Some(&value), "{name}");
    }
    for name in [
        "process_cpu_seconds_total",
        "process_open_fds",
        "shardhost_disk_free_bytes",
        "shardhost_log_write_duration_seconds_count",
        "shardhost_worker_round_duration_seconds_sum",
        "shardhost_proposal_duration_seconds_bucket{le=\"+Inf\"}",
        "shardhost_database_memtable_bytes{database=\"log\"}",
        "shardhost_database_cache_bytes{database=\"state\"}",
    ] {
        assert!(before.get(name).is_some_and(|value| *value > 0.0), "{name}: {before:#?}");
    }
    servers.run(1, &["table", "put", "color", "blue"]).await.ok();
    let open = asked("GET", &http, "/metrics", OPEN_METRICS).await.unwrap();
    assert!(open.headers.contains("application/openmetrics-text"), "{}", open.headers);
    assert!(open.text().ends_with("# EOF\n"));
    let after = series(open.text());
    assert_eq!(after[written], before[written] + 1.0);
    let names = |of: &BTreeMap<String, f64>| of.keys().cloned().collect::<BTreeSet<_>>();
    let (before, after) = (names(&before), names(&after));
    let differ: Vec<&String> = before.symmetric_difference(&after).collect();
    assert!(differ.is_empty(), "two forms of the same: {differ:?}");
    let protobuf =
        asked("GET", &http, "/metrics", "application/vnd.google.protobuf").await.unwrap();
    assert!(protobuf.headers.contains("io.prometheus.client.metricfamily"), "{}", protobuf.headers);
    let name = b"shardhost_requests";
    assert!(protobuf.body.windows(name.len()).any(|found| found == name));
    for answer in [&text, &open, &protobuf] {
        assert!(answer.body.len() < 1 << 20, "{} bytes", answer.body.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_has_its_line_in_the_documentation() {
    let (_servers, http) = one().await;
    let open = get(&http, "/metrics").await.unwrap();
    let mut kinds = BTreeMap::new();
    let mut helps = BTreeMap::new();
    for line in open.text().lines() {
        if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            kinds.insert(name.to_owned(), kind.to_owned());
        } else if let Some((name, help)) =
            line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '))
        {
            helps.insert(name.to_owned(), help.to_owned());
        }
    }
    assert_eq!(kinds.keys().collect::<Vec<_>>(), helps.keys().collect::<Vec<_>>());
    assert!(kinds.len() > 100, "{} families", kinds.len());
    let rows: String = kinds
        .iter()
        .map(|(name, kind)| format!("| `{name}` | {kind} | {} |\n", helps[name]))
        .collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/monitoring.md");
    let document = std::fs::read_to_string(path).unwrap();
    let begin = "| name | kind | meaning |\n|---|---|---|\n";
    let end = "\n<!-- end of the metrics -->";
    let from = document.find(begin).expect("a table") + begin.len();
    let to = document.find(end).expect("its end");
    if std::env::var_os("REWRITE").is_some() {
        let renewed = format!("{}{rows}{}", &document[..from], &document[to..]);
        std::fs::write(path, renewed).unwrap();
        return;
    }
    assert_eq!(&document[from..to], rows, "run this test with REWRITE=1 in the environment");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_serve_says_why() {
    let mut servers = Servers::new(3, "", "tables = 1");
    let http = free_beside(&servers, 1);
    servers.start(1, &["--http-listen", &http]);
    let waits = || async {
        let answer = get(&http, "/readyz").await;
        answer.is_some_and(|answer| answer.status == 503 && answer.text().contains("node 2"))
    };
    servers.until("the node waits for the other founders, and says so", waits).await;
    let well = get(&http, "/healthz").await.unwrap();
    assert_eq!((well.status, well.text()), (200, "ok\n"), "it can go on");
    servers.start(2, &[]);
    servers.start(3, &[]);
    let ready = || async { get(&http, "/readyz").await.is_some_and(|answer| answer.status == 200) };
    servers.until("the node is ready", ready).await;
    for (method, path, status) in [
        ("GET", "/nowhere", 404),
        ("POST", "/metrics", 405),
        ("GET", "/shardhost.admin.v1.Admin/Status", 404),
    ] {
        let answer = asked(method, &http, path, "*/*").await.unwrap();
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
    }
}

/// Asks over TLS, as this user.
async fn over_tls(
    http: &str,
    security: &Security,
    path: &str,
    token: Option<&str>,
) -> (StatusCode, String) {
    let endpoint = Endpoint::from_shared(format!("http://{http}")).unwrap();
    let mut channel: Channel = security.now(&endpoint, None).await.unwrap();
    let mut request = Request::get(format!("https://{http}{path}"));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Body::empty()).unwrap();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let answer = channel.call(request).await.unwrap();
    let (parts, mut body) = answer.into_parts();
    let mut held = Vec::new();
    while let Some(frame) =
        std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await
    {
        let data: Bytes = frame.unwrap().into_data().unwrap_or_default();
        held.extend_from_slice(&data);
    }
    (parts.status, String::from_utf8(held).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_certificates_only_readers_get_metrics_and_anyone_asks_whether_the_node_is_well() {
    let office = Office::new("shardhost", 1).await;
    let mut servers = Servers::new(1, "", "tables = 1");
    let http = free_beside(&servers, 1);
    office.start_with(&mut servers, 1, &["--http-listen", &http]);
    office.until(&servers, "bob", &["status"]).await;
    let ca = office.path("ca.pem");
    let as_user = |name: &str| {
        let own = (office.path(&format!("{name}.pem")), office.path(&format!("{name}.key")));
        let files = TlsFiles { ca: ca.clone(), own: Some(own) };
        Security::without_token(Credentials::load(files).unwrap())
    };
    let nobody = TlsFiles { ca: ca.clone(), own: None };
    let nobody = Security::without_token(Credentials::load(nobody).unwrap());
    // Tokens need a version of the cluster to which it is raised after the start.
    let made = std::sync::Mutex::new(String::new());
    let make = ["token", "make", "scraper", "--grants", "reader", "--json"];
    let is_made = || async {
        let ended = office.run(&servers, "root", &make).await;
        made.lock().unwrap().clone_from(&ended.stdout);
        ended.code == 0
    };
    servers.until("a token is made", is_made).await;
    let made: serde_json::Value = serde_json::from_str(&made.lock().unwrap()).unwrap();
    let token = made["token"].as_str().unwrap().to_owned();
    assert!(Token::new(&token).is_some());
    let known = || async {
        let (status, _) = over_tls(&http, &nobody, "/metrics", Some(&token)).await;
        status == StatusCode::OK
    };
    servers.until("the token is known", known).await;
    for (who, security, token, expected) in [
        ("a reader", as_user("bob"), None, StatusCode::OK),
        ("an administrator", as_user("root"), None, StatusCode::OK),
        ("a client", as_user("shop"), None, StatusCode::FORBIDDEN),
        ("nobody", nobody.clone(), None, StatusCode::UNAUTHORIZED),
        ("a wrong token", nobody.clone(), Some("wrong"), StatusCode::UNAUTHORIZED),
        ("a token", nobody.clone(), Some(token.as_str()), StatusCode::OK),
    ] {
        let (status, text) = over_tls(&http, &security, "/metrics", token).await;
        assert_eq!(status, expected, "{who}: {text}");
        assert_eq!(text.contains("shardhost_leaders"), expected == StatusCode::OK, "{who}: {text}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(over_tls(&http, &nobody, path, None).await.0, StatusCode::OK, "{path}");
    }
    let (status, _) = over_tls(&http, &as_user("root"), "/nowhere", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let plain = tokio::time::timeout(TIMEOUT, asked_plainly(&http)).await.unwrap();
    assert!(plain.is_empty() || !plain.contains("shardhost_leaders"), "{plain}");
}

/// What a listener with TLS says to one who speaks without.
async fn asked_plainly(address: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // It may be reset before the answer is read.
    match stream.read_to_end(&mut answer).await {
        Ok(_) | Err(_) => String::from_utf8_lossy(&answer).into_owned(),
    }
}
