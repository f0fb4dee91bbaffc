//! The host processes: started, killed, stopped, started again, lost, ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpSocket;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::certificates::{CLUSTER, Certificates};
use crate::security::use_security;
use crate::supervised::{Order, Report};

/// How long a host may take for a step of its start.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Lines of a host's log that are shown when it fails.
const LOG_LINES: usize = 8;

/// How many of everything there are.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Hosts that hold the shards at first.
    pub nodes: u64,
    /// Hosts that join them later.
    pub joining: u64,
    pub tables: u64,
    pub queues: u64,
    /// What the queues require of the host that leads them. All have it but the last of the first.
    pub queues_require: Option<&'static str>,
}

impl Layout {
    /// The host that lacks what the queues require.
    pub fn lacking(&self) -> Option<u64> {
        self.queues_require.map(|_| self.nodes)
    }

    /// The hosts that join.
    pub const fn joiners(&self) -> std::ops::RangeInclusive<u64> {
        self.nodes + 1..=self.nodes + self.joining
    }

    /// All shards.
    pub const fn shards(&self) -> u64 {
        self.tables + self.queues
    }

    /// The command line of a host for its capabilities.
    fn capabilities(&self, node: u64) -> Vec<&'static str> {
        let Some(name) = self.queues_require else { return Vec::new() };
        let mut arguments = vec!["--queues-require", name];
        if Some(node) != self.lacking() {
            arguments.extend(["--capability", name]);
        }
        arguments
    }

    fn voters(&self) -> String {
        (1..=self.nodes).map(|node| node.to_string()).collect::<Vec<_>>().join(",")
    }
}

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
    /// Made with the first host.
    certificates: Option<Certificates>,
    running: BTreeMap<u64, Node>,
    /// Of all nodes, running or not.
    addresses: BTreeMap<u64, String>,
    /// Holds the addresses of those that join later or are lost: no other process gets them, and
    /// nothing answers.
    reserved: Vec<TcpSocket>,
}

impl Nodes {
    /// No process yet.
    pub fn new(layout: Layout, directory: &Path) -> Self {
        let (running, addresses, reserved) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let directory = directory.to_path_buf();
        Self { layout, directory, certificates: None, running, addresses, reserved }
    }

    /// Starts the first hosts: each binds a free port, then all get the addresses of each other,
    /// and of the later ones.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let (directory, layout) = (self.directory.join("certificates"), self.layout);
        let certificates = Certificates::make(directory, 1..=layout.nodes + layout.joining)?;
        use_security(certificates.security()?);
        self.certificates = Some(certificates);
        for number in 1..=self.layout.nodes {
            let node = self.spawn(number, "127.0.0.1:0").await?;
            self.addresses.insert(number, node.address.clone());
            self.running.insert(number, node);
        }
        for number in self.layout.joiners() {
            let socket = reserve(SocketAddr::from(([127, 0, 0, 1], 0)))?;
            self.addresses.insert(number, socket.local_addr()?.to_string());
            self.reserved.push(socket);
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

    /// Starts a host that does not run, at its address.
    pub async fn restart(&mut self, number: u64) -> anyhow::Result<()> {
        let address = self.address(number)?.to_owned();
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

    /// Ends a host as a crash does, for good: nothing answers at its address any more.
    pub async fn lose(&mut self, number: u64) -> anyhow::Result<()> {
        self.kill(number).await?;
        self.reserved.push(reserve(self.address(number)?.parse()?)?);
        Ok(())
    }

    /// Asks a host to end, and waits until it did in order.
    pub async fn stop(&mut self, number: u64) -> anyhow::Result<()> {
        let mut node = self.running.remove(&number).context("it does not run")?;
        let id = node.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        kill_process(id.context("it ended")?, Signal::TERM)?;
        let status = tokio::time::timeout(TIMEOUT, node.child.wait()).await;
        let status = status.with_context(|| format!("node {number} does not end"))??;
        if !status.success() {
            bail!("node {number} ended with {status}: {}", last_lines(&node.log));
        }
        Ok(())
    }

    /// Ends all hosts and waits until they are gone.
    pub async fn end(&mut self) {
        for (number, mut node) in std::mem::take(&mut self.running) {
            if let Err(error) = node.child.kill().await {
                eprintln!("warning: node {number} may still run: {error}");
            }
        }
    }

    /// Lets the hosts continue when this process ends.
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

    /// Where those that run are reached.
    pub fn running(&self) -> BTreeMap<u64, String> {
        let running = self.running.iter();
        running.map(|(number, node)| (*number, node.address.clone())).collect()
    }

    /// Where a host is reached, running or not.
    pub fn address(&self, number: u64) -> anyhow::Result<&str> {
        let address = self.addresses.get(&number).map(String::as_str);
        address.with_context(|| format!("there is no node {number}"))
    }

    /// The process ids of those that run.
    pub fn process_ids(&self) -> BTreeMap<u64, u32> {
        let running = self.running.iter();
        running.filter_map(|(number, node)| Some((*number, node.child.id()?))).collect()
    }

    /// An error when a host ended that was not killed.
    pub fn check(&mut self) -> anyhow::Result<()> {
        for (number, node) in &mut self.running {
            if let Some(status) = node.child.try_wait()? {
                bail!("node {number} ended unexpectedly ({status}): {}", last_lines(&node.log));
            }
        }
        Ok(())
    }

    /// What stands before the commands of a user of these hosts.
    pub fn environment(&self) -> String {
        self.certificates.as_ref().map(Certificates::environment).unwrap_or_default()
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
            .args(["serve", "--supervised", "--cluster", CLUSTER, "--listen", listen])
            .args(["--node", &number.to_string()])
            .args(["--tables", &self.layout.tables.to_string()])
            .args(["--queues", &self.layout.queues.to_string()])
            .args(["--voters", &self.layout.voters()])
            .args(self.layout.capabilities(number))
            .args(self.certificates.iter().flat_map(|all| all.arguments(number)))
            // All of it lasts seconds: there is no time for a planner's warm-up, or for groups to
            // rest.
            .args(["--planner-warm-up", "1", "--planner-rest", "1"])
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

/// Holds an address, or a free one where the port is 0, without answering there: a host may listen at
/// it.
fn reserve(address: SocketAddr) -> anyhow::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| format!("{address} cannot be held"))?;
    Ok(socket)
}

impl Node {
    async fn order(&mut self, order: &Order) -> anyhow::Result<()> {
        let line = format!("{}\n", serde_json::to_string(order)?);
        let written = self.orders.write_all(line.as_bytes()).await;
        written.map_err(|error| self.failed(&error.to_string()))?;
        Ok(self.orders.flush().await?)
    }

    async fn report(&mut self) -> anyhow::Result<Report> {
        let line = tokio::time::timeout(TIMEOUT, self.reports.next_line()).await;
        let line = line.map_err(|_| self.failed(&format!("no word within {TIMEOUT:?}")))??;
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
