//! Servers from configuration files, on addresses of their own, with what they log.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::process::{Ended, run, signal};

/// Longer than anything takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Sets the soft limit of open files of a process, which may have ended.
#[allow(dead_code, reason = "only some tests need it")]
fn limit_files(process: u32, current: impl FnOnce(Option<u64>) -> Option<u64>) {
    let id = process.try_into().ok().and_then(Pid::from_raw);
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let maximum = line.split_whitespace().nth(4).and_then(|hard| hard.parse().ok());
    let limit = Rlimit { current: current(maximum), maximum };
    if let Err(error) = prlimit(id, Resource::Nofile, limit) {
        println!("the limit of process {process} stays as it is: {error}");
    }
}

/// Clusters of this process so far: each has addresses of its own.
static CLUSTERS: AtomicU64 = AtomicU64::new(0);

/// Servers from configuration files. Killed when dropped.
pub struct Servers {
    directory: TempDir,
    addresses: BTreeMap<u64, String>,
    running: BTreeMap<u64, Child>,
    /// What stands in the environment of each node.
    environment: BTreeMap<u64, Vec<(OsString, OsString)>>,
    /// Where a node reaches another one, if not at its address.
    routes: BTreeMap<(u64, u64), String>,
    /// What the files say beside node, directory and addresses.
    pub settings: String,
    pub shards: String,
}

impl Servers {
    pub fn new(nodes: u64, settings: &str, shards: &str) -> Self {
        let number = CLUSTERS.fetch_add(1, Ordering::Relaxed) % 100 + 100;
        let network = std::process::id() % 200 + 1;
        let address = |node| {
            // No other connection takes the port of a node that is down.
            let own = format!("127.{number}.{network}.{node}:0");
            let free = TcpListener::bind(own).unwrap();
            (node, free.local_addr().unwrap().to_string())
        };
        Self {
            directory: TempDir::new().unwrap(),
            addresses: (1..=nodes).map(address).collect(),
            running: BTreeMap::new(),
            environment: BTreeMap::new(),
            routes: BTreeMap::new(),
            settings: settings.to_owned(),
            shards: shards.to_owned(),
        }
    }

    pub fn address(&self, node: u64) -> &str {
        &self.addresses[&node]
    }

    /// Another port where a node is, which is free.
    #[allow(dead_code, reason = "only some tests need it")]
    pub fn free_beside(&self, node: u64) -> String {
        let own: SocketAddr = self.addresses[&node].parse().unwrap();
        TcpListener::bind((own.ip(), 0)).unwrap().local_addr().unwrap().to_string()
    }

    pub fn data_dir(&self, node: u64) -> PathBuf {
        self.directory.path().join(format!("node-{node}"))
    }

    fn log_path(&self, node: u64) -> PathBuf {
        self.directory.path().join(format!("log-{node}"))
    }

    fn config(&self, node: u64) -> PathBuf {
        let path = self.directory.path().join(format!("config-{node}"));
        let (data, own) = (self.data_dir(node), &self.addresses[&node]);
        let reached = |other: &u64, at: &String| {
            let at = self.routes.get(&(node, *other)).unwrap_or(at);
            format!("{other} = \"{at}\"\n")
        };
        let nodes: String = self.addresses.iter().map(|(other, at)| reached(other, at)).collect();
        let text = format!(
            "node = {node}\ndata-dir = {data:?}\nlisten = \"{own}\"\n{}\n[nodes]\n{nodes}\n\
             [shards]\n{}\n",
            self.settings, self.shards
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, node: u64, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shardhost"));
        command.env_remove("SHARDHOST_AT").env("SHARDHOST_LOG", "warn").kill_on_drop(true);
        command.arg("serve").arg("--config").arg(self.config(node)).args(more);
        let environment = self.environment.get(&node).into_iter().flatten();
        command.envs(environment.map(|(name, value)| (name, value)));
        command
    }

    /// What a node has in its environment from its next start on.
    #[allow(dead_code, reason = "only some tests need it")]
    pub fn set_environment<N, V>(&mut self, node: u64, variables: impl IntoIterator<Item = (N, V)>)
    where
        N: Into<OsString>,
        V: Into<OsString>,
    {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        self.environment.insert(node, variables.collect());
    }

    /// Where a node reaches another one from its next start on.
    #[allow(dead_code, reason = "only some tests need it")]
    pub fn set_route(&mut self, from: u64, to: u64, address: String) {
        self.routes.insert((from, to), address);
    }

    /// Starts a node. What it logs replaces what it logged before, which goes to another file.
    pub fn start(&mut self, node: u64, more: &[&str]) {
        self.keep_log(node);
        let log = File::create(self.log_path(node)).unwrap();
        let mut command = self.command(node, more);
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.running.insert(node, command.spawn().unwrap());
    }

    fn keep_log(&self, node: u64) {
        let logged = std::fs::read(self.log_path(node)).unwrap_or_default();
        let kept = self.directory.path().join(format!("log-{node}-before"));
        let kept = File::options().create(true).append(true).open(kept);
        kept.unwrap().write_all(&logged).unwrap();
    }

    /// Runs a node that ends, and returns its output.
    pub async fn refused(&self, node: u64) -> String {
        let mut command = self.command(node, &[]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = tokio::time::timeout(TIMEOUT, command.output()).await;
        let output = output.expect("it ends in time").unwrap();
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    #[allow(dead_code, reason = "only some tests need it")]
    pub fn signal(&self, node: u64, which: Signal) {
        signal(self.running[&node].id().unwrap(), which);
    }

    /// The process of a node that runs, as far as is known.
    #[allow(dead_code, reason = "only some tests need it")]
    pub fn process(&self, node: u64) -> Option<u32> {
        self.running.get(&node)?.id()
    }

    /// Lets a node open only so many files more than it has open.
    #[allow(dead_code, reason = "only some tests need it")]
    pub fn allow_more_files(&self, node: u64, more: usize) {
        let Some(process) = self.process(node) else { return };
        let files = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
        let number = |file: std::fs::DirEntry| file.file_name().to_str()?.parse().ok();
        let open: BTreeSet<u64> = files.filter_map(|file| number(file.ok()?)).collect();
        // The limit is one of numbers, and a new file gets the lowest that is free.
        let first_too_many = (0..).filter(|number| !open.contains(number)).nth(more);
        limit_files(process, |_| first_too_many);
    }

    /// Lets it open as many again as it may have at most.
    #[allow(dead_code, reason = "only some tests need it")]
    pub fn allow_files(&self, node: u64) {
        if let Some(process) = self.process(node) {
            limit_files(process, |maximum| maximum);
        }
    }

    /// How a node ended, if it did.
    #[allow(dead_code, reason = "only some tests need it")]
    pub fn ended(&mut self, node: u64) -> Option<ExitStatus> {
        self.running.get_mut(&node)?.try_wait().unwrap()
    }

    /// Waits for the end of a node.
    #[allow(dead_code, reason = "only some tests need it")]
    pub async fn end(&mut self, node: u64) -> ExitStatus {
        let mut child = self.running.remove(&node).unwrap();
        let ended = tokio::time::timeout(TIMEOUT, child.wait()).await;
        ended.unwrap_or_else(|_| panic!("node {node} does not end: {}", self.log(node))).unwrap()
    }

    pub async fn kill(&mut self, node: u64) {
        self.running.remove(&node).unwrap().kill().await.unwrap();
    }

    pub async fn kill_all(&mut self) {
        for mut child in std::mem::take(&mut self.running).into_values() {
            child.kill().await.unwrap();
        }
    }

    pub fn lose_disk(&self, node: u64) {
        std::fs::remove_dir_all(self.data_dir(node)).unwrap();
    }

    pub async fn run(&self, node: u64, arguments: &[&str]) -> Ended {
        run(&[arguments, &["--at", &self.addresses[&node]]].concat()).await
    }

    /// Where everything of the cluster stands.
    #[allow(dead_code, reason = "only some tests need it")]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves everything in place, for the search for a cause.
    #[allow(dead_code, reason = "only some tests need it")]
    pub fn keep_directory(&mut self) {
        self.directory.disable_cleanup(true);
    }

    pub fn log(&self, node: u64) -> String {
        std::fs::read_to_string(self.log_path(node)).unwrap_or_default()
    }

    /// Waits until a node logged all of this.
    pub async fn await_log(&self, node: u64, words: &[&str]) {
        let logged = || async { words.iter().all(|words| self.log(node).contains(words)) };
        self.until(&format!("node {node} logs {words:?}"), logged).await;
    }

    pub async fn until<F: Future<Output = bool>>(&self, what: &str, mut is: impl FnMut() -> F) {
        let deadline = Instant::now() + TIMEOUT;
        let mut looks = tokio::time::interval(Duration::from_millis(50));
        while !is().await {
            let logs: Vec<String> = self.addresses.keys().map(|node| self.log(*node)).collect();
            assert!(Instant::now() < deadline, "not in time: {what}: {logs:#?}");
            looks.tick().await;
        }
    }

    /// What a node says of itself, once it answers.
    pub async fn status(&self, node: u64) -> Value {
        let shown = self.run(node, &["status", "--json"]).await;
        let nodes = shown.json()["nodes"].as_array().cloned().unwrap_or_default();
        nodes.into_iter().find(|one| one["node"] == node).unwrap_or_default()
    }

    /// Waits until a key has this value.
    pub async fn await_value(&self, node: u64, key: &str, value: &str) {
        self.until(&format!("{key} is {value}"), || async {
            let got = self.run(node, &["table", "get", key]).await;
            got.code == 0 && got.stdout.contains(value)
        })
        .await;
    }

    /// Writes a key, as soon as a node takes it.
    pub async fn put(&self, node: u64, key: &str, value: &str) {
        self.until(&format!("{key} is written"), || async {
            self.run(node, &["table", "put", key, value]).await.code == 0
        })
        .await;
    }
}
