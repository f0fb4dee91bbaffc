//! The program as child processes, with a deadline for everything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Longer than anything takes on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// What it printed, as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What it printed, if all went well.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// The processes that it said it started.
    pub fn processes(&self) -> Vec<u32> {
        let parts = self.stdout.split("(process ").skip(1);
        parts.filter_map(|part| part.split(')').next()?.parse().ok()).collect()
    }
}

/// A running process. Killed when dropped.
pub struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    errors: ChildStderr,
    seen: String,
}

/// Starts the program.
pub fn start(arguments: &[&str]) -> Running {
    let mut command = program();
    command.args(arguments);
    spawn(command)
}

fn spawn(mut command: Command) -> Running {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let errors = child.stderr.take().unwrap();
    Running { child, lines, errors, seen: String::new() }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardhost"));
    command.env_remove("SHARDHOST_AT").env("SHARDHOST_LOG", "error").kill_on_drop(true);
    command
}

/// Runs the program to its end.
pub async fn run(arguments: &[&str]) -> Ended {
    start(arguments).end().await
}

impl Running {
    /// Reads until a line contains `words`.
    pub async fn await_line(&mut self, words: &str) {
        loop {
            let line = timeout(TIMEOUT, self.lines.next_line()).await.unwrap().unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended without {words:?}: {}", self.seen));
            self.keep(&line);
            if line.contains(words) {
                return;
            }
        }
    }

    /// Waits until it has printed something, and takes nothing of that but what a buffer holds.
    pub async fn await_output(&mut self) {
        let printed = timeout(TIMEOUT, self.lines.get_mut().fill_buf()).await.unwrap().unwrap();
        assert!(!printed.is_empty(), "it ended");
    }

    fn keep(&mut self, line: &str) {
        self.seen.push_str(line);
        self.seen.push('\n');
    }

    /// Sends a signal.
    pub fn signal(&self, which: Signal) {
        signal(self.child.id().unwrap(), which);
    }

    /// Waits for its end.
    pub async fn end(mut self) -> Ended {
        let mut stderr = String::new();
        let ended = timeout(TIMEOUT, async {
            // Both at once: a pipe without a reader stops the process.
            let output = async {
                while let Some(line) = self.lines.next_line().await.unwrap() {
                    self.seen.push_str(&line);
                    self.seen.push('\n');
                }
            };
            let ((), errors) = tokio::join!(output, self.errors.read_to_string(&mut stderr));
            errors.unwrap();
            self.child.wait().await.unwrap()
        });
        let status = ended.await.expect("it ends in time");
        Ended { code: status.code().unwrap_or(-1), stdout: self.seen, stderr }
    }
}

/// Sends a signal to a process.
pub fn signal(process: u32, which: Signal) {
    let id = Pid::from_raw(process.try_into().unwrap()).unwrap();
    kill_process(id, which).unwrap();
}

/// Waits until a process is gone, or dead and not yet buried.
pub async fn await_gone(process: u32) {
    until(&format!("process {process} is gone"), || {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{process}/stat")) else {
            return true;
        };
        status.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    })
    .await;
}

/// Waits for a state.
pub async fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    let mut look = tokio::time::interval(Duration::from_millis(10));
    while !reached() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        look.tick().await;
    }
}

/// A node alone, with two shards of the table and one of the queue.
pub struct Node {
    running: Running,
    address: String,
    number: u64,
}

impl Node {
    /// Starts it on a free port.
    pub async fn start(data_dir: &str, arguments: &[&str]) -> Self {
        Self::started(start(&Self::arguments(data_dir, arguments))).await
    }

    /// Starts it so that its files cannot grow beyond this many blocks of 512 bytes.
    pub async fn with_file_limit(data_dir: &str, blocks: u32) -> Self {
        let mut command = Command::new("sh");
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_shardhost")]);
        command.args(Self::arguments(data_dir, &[]));
        command.env("SHARDHOST_LOG", "error").kill_on_drop(true);
        Self::started(spawn(command)).await
    }

    async fn started(mut running: Running) -> Self {
        let line = timeout(TIMEOUT, running.lines.next_line()).await.unwrap().unwrap();
        let Some(line) = line else { panic!("it does not start: {:?}", running.end().await) };
        let started: Value = serde_json::from_str(&line).unwrap();
        let address = started["address"].as_str().unwrap().to_owned();
        Self { running, address, number: started["node"].as_u64().unwrap() }
    }

    /// Starts one that joins a cluster, or joined it before, on a free port.
    #[allow(dead_code, reason = "only some tests need it")]
    pub async fn joining(data_dir: &str, more: &[&str]) -> Self {
        let serve = ["serve", "--json", "--data-dir", data_dir, "--listen", "127.0.0.1:0"];
        Self::started(start(&[&serve[..], more].concat())).await
    }

    /// Its number.
    #[allow(dead_code, reason = "only some tests need it")]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// What it says when it does not start.
    pub async fn refused(data_dir: &str, arguments: &[&str]) -> String {
        let ended = run(&Self::arguments(data_dir, arguments)).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        ended.stderr
    }

    fn arguments<'a>(data_dir: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let defaults =
            [("--node", "1"), ("--listen", "127.0.0.1:0"), ("--tables", "2"), ("--queues", "1")];
        let mut arguments = vec!["serve", "--json", "--data-dir", data_dir];
        for (flag, value) in defaults {
            if !more.contains(&flag) {
                arguments.extend([flag, value]);
            }
        }
        arguments.extend(more);
        arguments
    }

    /// Runs a command against it.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        run(&[arguments, &["--at", &self.address]].concat()).await
    }

    /// Begins a command against it, whose output is not read before [`Running::end`].
    pub fn begin(&self, arguments: &[&str]) -> Running {
        start(&[arguments, &["--at", &self.address]].concat())
    }

    /// Waits until it leads a group and has decided about serving it, and returns what it says.
    pub async fn await_leading(&self, group: &str) -> Value {
        let leads = |shown: &Value| {
            shown["role"] == "leader" && (shown["serving"] == true || !shown["caretaker"].is_null())
        };
        self.await_json(&["group", "show", group, "--json"], leads).await
    }

    /// Repeats a command that looks until what it prints as JSON is so. What one screen shows, another
    /// one may show a moment later.
    pub async fn await_json(&self, arguments: &[&str], is: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let shown = self.run(arguments).await.json();
            if is(&shown) {
                return shown;
            }
            assert!(Instant::now() < deadline, "not in time: {arguments:?}: {shown}");
        }
    }

    /// Repeats a command that looks until what it prints contains all of this.
    pub async fn await_text(&self, arguments: &[&str], parts: &[&str]) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let shown = self.run(arguments).await.ok();
            let missing = parts.iter().find(|part| !shown.contains(**part));
            let Some(missing) = missing else { return };
            assert!(Instant::now() < deadline, "not in time: {arguments:?}: {missing}: {shown}");
        }
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.running.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub async fn end(self) -> Ended {
        self.running.end().await
    }

    /// Stops it as an operator does.
    pub async fn stop(self) {
        self.running.signal(Signal::TERM);
        let ended = self.running.end().await;
        assert_eq!(ended.code, 0, "{ended:?}");
    }
}

/// One host of a cluster that this process supervises.
struct Host {
    child: Child,
    orders: ChildStdin,
    reports: Lines<BufReader<ChildStdout>>,
}

impl Host {
    async fn order(&mut self, order: &Value) {
        self.orders.write_all(format!("{order}\n").as_bytes()).await.unwrap();
    }

    async fn report(&mut self) -> Value {
        let line = timeout(TIMEOUT, self.reports.next_line()).await.unwrap().unwrap();
        serde_json::from_str(&line.expect("the host runs")).unwrap()
    }
}

fn start_order(addresses: &BTreeMap<u64, String>) -> Value {
    let nodes: BTreeMap<String, &String> =
        addresses.iter().map(|(node, at)| (node.to_string(), at)).collect();
    json!({ "start": { "nodes": nodes } })
}

/// Hosts of one cluster. Killed when dropped.
pub struct Supervised {
    directory: PathBuf,
    tables: u64,
    queues: u64,
    /// Who holds the shards at first; the others are spare.
    voters: u64,
    hosts: BTreeMap<u64, Host>,
    addresses: BTreeMap<u64, String>,
}

impl Supervised {
    /// Starts three hosts on free ports.
    pub async fn start(directory: &Path, tables: u64, queues: u64) -> Self {
        Self::with_spares(directory, tables, queues, 0).await
    }

    /// Starts three hosts that hold the shards, and some more that hold nothing yet.
    pub async fn with_spares(directory: &Path, tables: u64, queues: u64, spares: u64) -> Self {
        let (hosts, addresses) = (BTreeMap::new(), BTreeMap::new());
        let directory = directory.to_path_buf();
        let mut cluster = Self { directory, tables, queues, voters: 3, hosts, addresses };
        for node in 1..=3 + spares {
            cluster.addresses.insert(node, "127.0.0.1:0".to_owned());
        }
        cluster.restart_all().await;
        cluster
    }

    /// Sends a signal to one of them.
    #[allow(dead_code, reason = "only some tests need it")]
    pub fn signal(&self, node: u64, which: Signal) {
        signal(self.hosts[&node].child.id().unwrap(), which);
    }

    /// Kills one of them.
    pub async fn kill(&mut self, node: u64) {
        let mut host = self.hosts.remove(&node).unwrap();
        host.child.start_kill().unwrap();
        timeout(TIMEOUT, host.child.wait()).await.unwrap().unwrap();
    }

    /// Starts one of them where it was.
    #[allow(dead_code, reason = "only some tests need it")]
    pub async fn restart(&mut self, node: u64) {
        self.restart_with(node, &[]).await;
    }

    /// The same with more arguments.
    #[allow(dead_code, reason = "only some tests need it")]
    pub async fn restart_with(&mut self, node: u64, more: &[&str]) {
        let address = self.addresses[&node].clone();
        let (mut host, _) = self.spawn(node, &address, more).await;
        host.order(&self.start_order()).await;
        host.report().await;
        self.hosts.insert(node, host);
    }

    /// Starts one of them where it was, with a configuration that says where the others were.
    #[allow(dead_code, reason = "only some tests need it")]
    pub async fn restart_configured(&mut self, node: u64, others: &BTreeMap<u64, String>) {
        let address = self.addresses[&node].clone();
        let (mut host, _) = self.spawn(node, &address, &[]).await;
        host.order(&start_order(others)).await;
        host.report().await;
        self.hosts.insert(node, host);
    }

    /// Starts one of them at another port, unknown to the others.
    #[allow(dead_code, reason = "only some tests need it")]
    pub async fn restart_elsewhere(&mut self, node: u64) {
        let others = self.addresses.clone();
        self.restart_elsewhere_configured(node, others).await;
    }

    /// The same, with a configuration that says where the others were.
    #[allow(dead_code, reason = "only some tests need it")]
    pub async fn restart_elsewhere_configured(
        &mut self,
        node: u64,
        mut all: BTreeMap<u64, String>,
    ) {
        let (mut host, address) = self.spawn(node, "127.0.0.1:0", &[]).await;
        all.insert(node, address.clone());
        assert_ne!(self.addresses.insert(node, address.clone()), Some(address));
        host.order(&start_order(&all)).await;
        host.report().await;
        self.hosts.insert(node, host);
    }

    /// Runs a command against all of them.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        let at: Vec<&str> = self.addresses.values().map(String::as_str).collect();
        run(&[arguments, &["--at", &at.join(",")]].concat()).await
    }

    fn start_order(&self) -> Value {
        start_order(&self.addresses)
    }

    /// Where the hosts are reached.
    pub const fn addresses(&self) -> &BTreeMap<u64, String> {
        &self.addresses
    }

    /// Adds or removes a member. On a busy machine the leadership may go in the middle: then the outcome is
    /// unknown, and the members say whether it took effect.
    pub async fn change_member(&self, change: &str, group: &str, node: u64) {
        let (began, number) = (Instant::now(), node.to_string());
        loop {
            let changed = self.run(&["member", change, group, &number, "--timeout", "60"]).await;
            if changed.code != 3 {
                changed.ok();
                return;
            }
            let list = ["member", "list", group, "--json", "--timeout", "60"];
            let listed = self.run(&list).await.json();
            let votes = |member: &Value| member["node"] == node && member["role"] == "voter";
            if listed["members"].as_array().unwrap().iter().any(votes) == (change == "add") {
                return;
            }
            assert!(began.elapsed() < TIMEOUT, "{changed:?}: {listed}");
        }
    }

    /// Kills all of them at once.
    pub async fn kill_all(&mut self) {
        for host in self.hosts.values_mut() {
            host.child.start_kill().unwrap();
        }
        for host in self.hosts.values_mut() {
            timeout(TIMEOUT, host.child.wait()).await.unwrap().unwrap();
        }
        self.hosts.clear();
    }

    /// Starts all of them where they were.
    pub async fn restart_all(&mut self) {
        for (node, address) in self.addresses.clone() {
            let (host, address) = self.spawn(node, &address, &[]).await;
            self.hosts.insert(node, host);
            self.addresses.insert(node, address);
        }
        let order = self.start_order();
        for host in self.hosts.values_mut() {
            host.order(&order).await;
        }
        for host in self.hosts.values_mut() {
            let started = host.report().await;
            assert!(started["started"]["groups"].is_u64(), "{started}");
        }
    }

    fn voters(&self) -> String {
        let voters: Vec<String> = (1..=self.voters).map(|node| node.to_string()).collect();
        voters.join(",")
    }

    async fn spawn(&self, node: u64, listen: &str, more: &[&str]) -> (Host, String) {
        let mut child = program()
            .args(["serve", "--supervised", "--listen", listen])
            .args(["--node", &node.to_string()])
            .args(["--tables", &self.tables.to_string(), "--queues", &self.queues.to_string()])
            .args(["--voters", &self.voters()])
            .args(more)
            .arg("--data-dir")
            .arg(self.directory.join(format!("node-{node}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let reports = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut host = Host { child, orders, reports };
        let listening = host.report().await;
        let address = listening["listening"]["address"].as_str().unwrap().to_owned();
        (host, address)
    }
}
