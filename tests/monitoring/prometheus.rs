//! A Prometheus of a test's own, with the alerts of the repository.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::http_client::asked;

/// Longer than anything takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A file of docs/monitoring.
pub fn document(name: &str) -> String {
    let path = format!("{}/../../docs/monitoring/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Whether the program is there.
pub fn is_installed() -> bool {
    let asked = std::process::Command::new("prometheus").arg("--version").output();
    asked.is_ok_and(|output| output.status.success())
}

/// The alerts, which fire as soon as their expression holds.
fn hasty_alerts() -> String {
    let hasty = |line: &str| match line.trim_start().strip_prefix("for: ") {
        Some(_) => String::new(),
        None => format!("{line}\n"),
    };
    document("alerts.yaml").lines().map(hasty).collect()
}

/// The names of all alerts.
pub fn alerts() -> BTreeSet<String> {
    let named = |line: &str| line.trim_start().strip_prefix("- alert: ").map(str::to_owned);
    document("alerts.yaml").lines().filter_map(named).collect()
}

/// A running Prometheus, which scrapes twice a second. Killed when dropped.
pub struct Prometheus {
    address: String,
    targets: usize,
    _process: Child,
    directory: TempDir,
}

impl Prometheus {
    /// One that scrapes these addresses.
    pub async fn start(targets: &[String]) -> Self {
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("alerts.yaml"), hasty_alerts()).unwrap();
        let mut config = String::from(
            "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\n\
             rule_files: [alerts.yaml]\nscrape_configs:\n  - job_name: shardhost\n    static_configs:\n",
        );
        writeln!(config, "      - targets: {targets:?}").unwrap();
        let file = directory.path().join("prometheus.yaml");
        std::fs::write(&file, config).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new("prometheus");
        command.arg("--config.file").arg(&file);
        command.arg("--storage.tsdb.path").arg(directory.path().join("data"));
        command.arg(format!("--web.listen-address={free}")).arg("--log.level=warn");
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let process = command.spawn().unwrap();
        let (address, targets) = (free.to_string(), targets.len());
        let started = Self { address, targets, _process: process, directory };
        let ready = async || {
            let answer = asked("GET", &started.address, "/-/ready", "*/*").await;
            answer.is_some_and(|answer| answer.status == 200)
        };
        started.until("Prometheus is ready", ready).await;
        started
    }

    /// Waits for a state of the cluster as Prometheus sees it.
    pub async fn until<F: AsyncFnMut() -> bool>(&self, what: &str, mut is: F) {
        let deadline = Instant::now() + TIMEOUT;
        let mut looks = tokio::time::interval(Duration::from_millis(200));
        while !is().await {
            let log = std::fs::read_to_string(self.directory.path().join("log"));
            assert!(Instant::now() < deadline, "not in time: {what}: {log:?}");
            looks.tick().await;
        }
    }

    async fn api(&self, path: &str) -> Value {
        let answer = asked("GET", &self.address, path, "application/json").await.unwrap();
        let said: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(said["status"], "success", "{path}: {said}");
        said["data"].clone()
    }

    /// The series that an expression gives now, as their labels and values.
    pub async fn query(&self, expression: &str) -> Vec<Value> {
        let data = self.api(&format!("/api/v1/query?query={}", escaped(expression))).await;
        data["result"].as_array().unwrap().clone()
    }

    /// The names of the alerts that fire.
    pub async fn firing(&self) -> BTreeSet<String> {
        let data = self.api("/api/v1/alerts").await;
        let alerts = data["alerts"].as_array().unwrap().iter();
        let firing = alerts.filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until all targets were scraped several times, and rules evaluated as often after that.
    pub async fn settle(&self) {
        // It looks for targets only some seconds after its start.
        let scraped = async || {
            let samples = self.query("count_over_time(up[1m]) > 4").await;
            samples.len() == self.targets
        };
        self.until("all targets are scraped", scraped).await;
        let evaluated = async || {
            let data = self.api("/api/v1/rules").await;
            data["groups"][0]["lastEvaluation"].as_str().unwrap().to_owned()
        };
        let mut seen = BTreeSet::new();
        let several = async || {
            seen.insert(evaluated().await);
            seen.len() > 6
        };
        self.until("rules are evaluated", several).await;
    }
}

/// As part of an address.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        match byte.is_ascii_alphanumeric() {
            true => escaped.push(byte.into()),
            false => write!(escaped, "%{byte:02X}").unwrap(),
        }
        escaped
    })
}
