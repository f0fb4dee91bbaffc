//! The host processes of the demo: started, killed, started again, ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::service::CAPABILITY;
use crate::cli::supervised::{Order, Report};

/// How long a host may take for a step of its start.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of a host's log that are shown when it fails.
const LOG_LINES: usize = 8;

/// How many of everything there are.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub nodes: u64,
    pub tables: u64,
    pub queues: u64,
}

impl Layout {
    /// The host that lacks what the queues require.
    pub const fn lacking(&self) -> u64 {
        self.nodes
    }

    fn capability_of(&self, node: u64) -> Vec<&'static str> {
        if node == self.lacking() { Vec::new() } else { vec!["--capability", CAPABILITY] }
    }

    /// All groups.
    pub const fn groups(&self) -> u64 {
        self.tables + self.queues
    }
}

/// One host process.
#[derive(Debug)]
struct Node {
    child: Child,
    orders: ChildStdin,
    reports: Lines<BufReader<ChildStdout>>,
    address: String,
    log: PathBuf,
}

/// All host processes. Those that still run when it is dropped are killed.
#[derive(Debug)]
pub struct Nodes {
    layout: Layout,
    directory: PathBuf,
    running: BTreeMap<u64, Node>,
    /// Of all nodes, running or not.
    addresses: BTreeMap<u64, String>,
}

impl Nodes {
    /// No process yet.
    pub fn new(layout: Layout, directory: &Path) -> Self {
        let (running, addresses) = (BTreeMap::new(), BTreeMap::new());
        Self { layout, directory: directory.to_path_buf(), running, addresses }
    }

    /// Starts all hosts: each binds a free port, then all are told of each other.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        for number in 1..=self.layout.nodes {
            let node = self.spawn(number, "127.0.0.1:0").await?;
            self.addresses.insert(number, node.address.clone());
            self.running.insert(number, node);
        }
        let order = self.start_order();
        for node in self.running.values_mut() {
            node.order(&order).await?;
        }
        for node in self.running.values_mut() {
            node.await_started().await?;
        }
        Ok(())
    }

    /// Starts a host again that was killed, at the address it had.
    pub async fn restart(&mut self, number: u64) -> anyhow::Result<()> {
        let address = self.addresses.get(&number).context("it was never started")?.clone();
        let mut node = self.spawn(number, &address).await?;
        node.order(&self.start_order()).await?;
        node.await_started().await?;
        self.running.insert(number, node);
        Ok(())
    }

    /// Ends a host as a crash does: with SIGKILL, in the middle of whatever it does.
    pub async fn kill(&mut self, number: u64) -> anyhow::Result<()> {
        let mut node = self.running.remove(&number).context("it does not run")?;
        Ok(node.child.kill().await?)
    }

    /// Ends all hosts and waits until they are gone.
    pub async fn end(&mut self) {
        for (number, mut node) in std::mem::take(&mut self.running) {
            if let Err(error) = node.child.kill().await {
                eprintln!("warning: node {number} may still run: {error}");
            }
        }
    }

    /// Lets the hosts go on when this process ends.
    pub async fn release(mut self) -> anyhow::Result<()> {
        for (_, mut node) in std::mem::take(&mut self.running) {
            node.order(&Order::Release).await?;
            // Dropping it would kill the process.
            std::mem::forget(node.child);
        }
        Ok(())
    }

    /// Where the hosts are reached, running or not.
    pub const fn addresses(&self) -> &BTreeMap<u64, String> {
        &self.addresses
    }

    /// The process ids of those that run.
    pub fn process_ids(&self) -> BTreeMap<u64, u32> {
        let running = self.running.iter();
        running.filter_map(|(number, node)| Some((*number, node.child.id()?))).collect()
    }

    /// An error when a host ended that nobody killed.
    pub fn check(&mut self) -> anyhow::Result<()> {
        for (number, node) in &mut self.running {
            if let Some(status) = node.child.try_wait()? {
                bail!("node {number} ended by itself ({status}): {}", last_lines(&node.log));
            }
        }
        Ok(())
    }

    fn start_order(&self) -> Order {
        let nodes = self.addresses.iter();
        Order::Start { nodes: nodes.map(|(node, at)| (node.to_string(), at.clone())).collect() }
    }

    async fn spawn(&self, number: u64, listen: &str) -> anyhow::Result<Node> {
        let log = self.directory.join(format!("node-{number}.log"));
        let errors = File::options().create(true).append(true).open(&log);
        let errors = errors.with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = Command::new(std::env::current_exe().context("cannot find this program")?)
            .args(["serve", "--supervised", "--cluster", "demo", "--listen", listen])
            .args(["--node", &number.to_string()])
            .args(["--tables", &self.layout.tables.to_string()])
            .args(["--queues", &self.layout.queues.to_string()])
            .args(["--queues-require", CAPABILITY])
            .args(self.layout.capability_of(number))
            .arg("--data-dir")
            .arg(self.directory.join(format!("node-{number}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            // Ctrl-C is for this process; it ends the others.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a host")?;
        let orders = child.stdin.take().context("a host without standard input")?;
        let output = child.stdout.take().context("a host without standard output")?;
        let reports = BufReader::new(output).lines();
        let mut node = Node { child, orders, reports, address: String::new(), log };
        node.address = node.await_listening().await?;
        Ok(node)
    }
}

impl Node {
    async fn order(&mut self, order: &Order) -> anyhow::Result<()> {
        let line = format!("{}\n", serde_json::to_string(order)?);
        let written = self.orders.write_all(line.as_bytes()).await;
        written.map_err(|error| self.failed(&error.to_string()))?;
        Ok(self.orders.flush().await?)
    }

    async fn report(&mut self) -> anyhow::Result<Report> {
        let line = tokio::time::timeout(PATIENCE, self.reports.next_line()).await;
        let line = line.map_err(|_| self.failed(&format!("no word within {PATIENCE:?}")))??;
        let line = line.ok_or_else(|| self.failed("it ended"))?;
        serde_json::from_str(&line).with_context(|| format!("a host said {line}"))
    }

    async fn await_listening(&mut self) -> anyhow::Result<String> {
        match self.report().await? {
            Report::Listening { address } => Ok(address),
            other @ Report::Started { .. } => bail!("a host said {other:?} too early"),
        }
    }

    async fn await_started(&mut self) -> anyhow::Result<u64> {
        match self.report().await? {
            Report::Started { groups } => Ok(groups),
            other @ Report::Listening { .. } => bail!("a host said {other:?} twice"),
        }
    }

    fn failed(&self, what: &str) -> anyhow::Error {
        anyhow!("a host does not start: {what}: {}", last_lines(&self.log))
    }
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LOG_LINES);
    format!("{}\n{}", log.display(), lines[from..].join("\n"))
}
