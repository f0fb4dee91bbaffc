//! The children of a benchmark, as the parent sees them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::arguments::{MachineKind, Threads, WriteArguments};
use super::certificates;
use super::tally::Counted;
use super::task::Task;

/// How long a child may take for an answer that needs no work.
const TIMEOUT: Duration = Duration::from_secs(120);

/// An order of the parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    Be {
        node: u64,
        nodes: u64,
        directory: PathBuf,
        workers: usize,
        apply_threads: usize,
        /// Where the certificates are; `None`: without TLS.
        certificates: Option<PathBuf>,
    },
    /// Start, and create or open the groups.
    Join(Setup),
    /// Start the server of as many tables as there are groups.
    Serve(Setup),
    /// Wait until every group has a leader that this node knows.
    AwaitLeaders,
    /// Hand over what another node should lead.
    Spread,
    /// Wait until every group hibernates.
    AwaitHibernation,
    /// Report what was used since the last time.
    Usage,
    /// Execute a task of a benchmark.
    Do {
        name: String,
        task: Value,
    },
    End,
}

/// The answer of a node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Listening { address: String },
    Done,
    Usage(Usage),
    Did(Value),
    Failed { message: String },
}

/// The groups of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    pub addresses: BTreeMap<u64, String>,
    /// Nodes 1 to this one hold a voter of every group; those above hold nothing at first.
    pub voters: u64,
    pub groups: u64,
    pub machine: MachineKind,
    /// Whether servers keep a catalog. Without one the groups alone are measured.
    pub catalog: bool,
    /// Watch what the machines are given.
    pub watched: bool,
    /// Who is to lead everything at first: all others say that they are draining.
    pub leader: Option<u64>,
    /// Seconds after which servers replace a node that does not answer; `None`: their default.
    pub replace_after: Option<u64>,
}
/// What a child used between two questions.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub log_writes: u64,
    pub log_group_writes: u64,
    pub log_entries: u64,
    pub messages: u64,
    pub frames: u64,
    pub rounds: u64,
}

impl Usage {
    /// What was used since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            seconds: self.seconds - earlier.seconds,
            cpu_seconds: self.cpu_seconds - earlier.cpu_seconds,
            resident_bytes: self.resident_bytes,
            log_writes: self.log_writes - earlier.log_writes,
            log_group_writes: self.log_group_writes - earlier.log_group_writes,
            log_entries: self.log_entries - earlier.log_entries,
            messages: self.messages - earlier.messages,
            frames: self.frames - earlier.frames,
            rounds: self.rounds - earlier.rounds,
        }
    }
}

/// What one child measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    pub acknowledged: u64,
    pub failed: u64,
    pub usage: Usage,
    /// Latencies in microseconds, with how often each was seen.
    pub latencies: Vec<(u64, u64)>,
}

impl Measured {
    /// What was counted, and what that took.
    pub fn new(counted: &Counted, usage: Usage) -> Self {
        let (acknowledged, failed) = (counted.succeeded, counted.failed);
        Self { acknowledged, failed, usage, latencies: counted.latencies_us() }
    }

    /// Of a node that was written to from outside.
    pub const fn of_usage(usage: Usage) -> Self {
        Self { acknowledged: 0, failed: 0, usage, latencies: Vec::new() }
    }
}

/// One child.
#[derive(Debug)]
pub struct Node {
    pub number: u64,
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Node {
    /// Starts a child that has no role yet.
    pub async fn start(number: u64) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .arg("node")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a node")?;
        let orders = child.stdin.take().context("a node without standard input")?;
        let output = child.stdout.take().context("a node without standard output")?;
        let answers = BufReader::new(output).lines();
        Ok(Self { number, child, orders, answers })
    }

    /// Gives an order without waiting for the answer.
    pub async fn order(&mut self, order: &Order) -> anyhow::Result<()> {
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        self.orders.write_all(line.as_bytes()).await.context("a node went away")?;
        Ok(self.orders.flush().await?)
    }

    /// The answer to the last order.
    pub async fn answer(&mut self, within: Duration) -> anyhow::Result<Answer> {
        let line = tokio::time::timeout(within, self.answers.next_line())
            .await
            .with_context(|| format!("node {} gave no answer within {within:?}", self.number))??;
        let line = line.with_context(|| format!("node {} ended", self.number))?;
        match serde_json::from_str(&line).with_context(|| format!("what is this: {line}"))? {
            Answer::Failed { message } => bail!("node {}: {message}", self.number),
            answer => Ok(answer),
        }
    }

    /// Has it execute a task, and waits for the answer.
    pub async fn does<T: Task>(&mut self, task: &T, within: Duration) -> anyhow::Result<T::Answer> {
        self.order(&order_of(task)?).await?;
        self.done::<T>(within).await
    }

    async fn done<T: Task>(&mut self, within: Duration) -> anyhow::Result<T::Answer> {
        match self.answer(within).await? {
            Answer::Did(answer) => Ok(serde_json::from_value(answer)?),
            other => bail!("node {} answered {other:?}", self.number),
        }
    }
}

fn order_of<T: Task>(task: &T) -> anyhow::Result<Order> {
    Ok(Order::Do { name: T::NAME.to_owned(), task: serde_json::to_value(task)? })
}

/// All children of a benchmark.
#[derive(Debug)]
pub struct Nodes {
    pub nodes: Vec<Node>,
}

/// How the children of a benchmark are started.
#[derive(Clone, Debug)]
pub struct Layout {
    pub nodes: u64,
    pub groups: u64,
    pub machine: MachineKind,
    pub threads: Threads,
    /// Whether everything is sent over TLS.
    pub tls: bool,
}

impl Layout {
    /// Of a write benchmark.
    pub const fn of(arguments: &WriteArguments) -> Self {
        Self {
            nodes: arguments.nodes,
            groups: arguments.groups,
            machine: arguments.machine,
            threads: arguments.threads,
            tls: arguments.tls,
        }
    }

    /// What each child holds: a voter of every group.
    fn setup(&self, addresses: BTreeMap<u64, String>) -> Setup {
        Setup {
            addresses,
            voters: self.nodes,
            groups: self.groups,
            machine: self.machine,
            catalog: false,
            watched: false,
            leader: None,
            replace_after: None,
        }
    }
}

impl Nodes {
    /// Starts the children, lets them find each other, and creates or opens the groups.
    pub async fn start(layout: &Layout, directory: &Path) -> anyhow::Result<Self> {
        Self::start_as(layout, directory, |_| {}).await
    }

    /// The same, where the children hold what `change` makes of the usual.
    pub async fn start_as(
        layout: &Layout,
        directory: &Path,
        change: impl FnOnce(&mut Setup),
    ) -> anyhow::Result<Self> {
        let (mut started, addresses) = Self::introduce(layout, directory).await?;
        let mut setup = layout.setup(addresses);
        change(&mut setup);
        started.all(&Order::Join(setup), TIMEOUT).await?;
        Ok(started)
    }

    /// The same for children that run servers; also returns their addresses.
    pub async fn start_servers(
        layout: &Layout,
        directory: &Path,
        change: impl FnOnce(&mut Setup),
    ) -> anyhow::Result<(Self, Vec<String>)> {
        let (mut started, addresses) = Self::introduce(layout, directory).await?;
        let mut setup = layout.setup(addresses.clone());
        change(&mut setup);
        started.all(&Order::Serve(setup), TIMEOUT).await?;
        Ok((started, addresses.into_values().collect()))
    }

    /// Starts the children; also returns what each is to hold.
    pub async fn prepare(layout: &Layout, directory: &Path) -> anyhow::Result<(Self, Setup)> {
        let (started, addresses) = Self::introduce(layout, directory).await?;
        Ok((started, layout.setup(addresses)))
    }

    /// Where the certificates of a benchmark are.
    pub fn certificates(directory: &Path) -> PathBuf {
        directory.join("certificates")
    }

    /// Starts the children and gives each its role; returns their addresses.
    pub async fn introduce(
        layout: &Layout,
        directory: &Path,
    ) -> anyhow::Result<(Self, BTreeMap<u64, String>)> {
        let mut started = Self { nodes: Vec::new() };
        let mut addresses = BTreeMap::new();
        let certificates = layout.tls.then(|| Self::certificates(directory));
        if let Some(certificates) = &certificates {
            certificates::make(certificates, layout.nodes)?;
        }
        for number in 1..=layout.nodes {
            let mut node = Node::start(number).await?;
            let be = Order::Be {
                node: number,
                nodes: layout.nodes,
                directory: directory.join(format!("node-{number}")),
                workers: layout.threads.workers,
                apply_threads: layout.threads.apply_threads,
                certificates: certificates.clone(),
            };
            node.order(&be).await?;
            match node.answer(TIMEOUT).await? {
                Answer::Listening { address } => addresses.insert(number, address),
                other => bail!("node {number} answered {other:?}"),
            };
            started.nodes.push(node);
        }
        Ok((started, addresses))
    }

    /// Has all execute a task, each its own, and waits for all answers.
    pub async fn each<T: Task>(
        &mut self,
        tasks: impl IntoIterator<Item = T>,
        within: Duration,
    ) -> anyhow::Result<Vec<T::Answer>> {
        let mut asked = Vec::new();
        for (node, task) in self.nodes.iter_mut().zip(tasks) {
            node.order(&order_of(&task)?).await?;
            asked.push(node);
        }
        let mut answers = Vec::new();
        for node in asked {
            answers.push(node.done::<T>(within).await?);
        }
        Ok(answers)
    }

    /// Has all execute the same task, and waits for all answers.
    pub async fn all_do<T: Task>(
        &mut self,
        task: &T,
        within: Duration,
    ) -> anyhow::Result<Vec<T::Answer>> {
        let order = order_of(task)?;
        for node in &mut self.nodes {
            node.order(&order).await?;
        }
        let mut answers = Vec::new();
        for node in &mut self.nodes {
            answers.push(node.done::<T>(within).await?);
        }
        Ok(answers)
    }

    /// Has one execute a task, by its number, and waits for its answer.
    pub async fn one_does<T: Task>(
        &mut self,
        number: u64,
        task: &T,
        within: Duration,
    ) -> anyhow::Result<T::Answer> {
        self.one(number)?.does(task, within).await
    }

    /// One child, by its number.
    pub fn one(&mut self, number: u64) -> anyhow::Result<&mut Node> {
        let node = self.nodes.iter_mut().find(|node| node.number == number);
        node.with_context(|| format!("there is no node {number}"))
    }

    /// Waits until every group has a leader, each node its share of them.
    pub async fn spread(&mut self, within: Duration) -> anyhow::Result<()> {
        for order in [Order::AwaitLeaders, Order::Spread, Order::AwaitLeaders] {
            self.all(&order, within).await?;
        }
        Ok(())
    }

    /// Gives an order to all and waits for all answers.
    pub async fn all(&mut self, order: &Order, within: Duration) -> anyhow::Result<Vec<Answer>> {
        for node in &mut self.nodes {
            node.order(order).await?;
        }
        let mut answers = Vec::new();
        for node in &mut self.nodes {
            answers.push(node.answer(within).await?);
        }
        Ok(answers)
    }

    /// What all used since they were last asked.
    pub async fn usage(&mut self) -> anyhow::Result<Vec<Usage>> {
        let answers = self.all(&Order::Usage, TIMEOUT).await?;
        let usage = answers.into_iter().filter_map(|answer| match answer {
            Answer::Usage(usage) => Some(usage),
            _ => None,
        });
        Ok(usage.collect())
    }

    /// Kills one child, by its number, as a crash does.
    pub async fn kill_one(&mut self, number: u64) -> anyhow::Result<()> {
        let place = self.nodes.iter().position(|node| node.number == number);
        let place = place.with_context(|| format!("there is no node {number}"))?;
        Ok(self.nodes.remove(place).child.kill().await?)
    }

    /// Kills all children as a power cut does.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            node.child.kill().await?;
        }
        Ok(())
    }

    /// Ends all children in order.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.all(&Order::End, TIMEOUT).await?;
        for node in &mut self.nodes {
            node.child.wait().await?;
        }
        Ok(())
    }
}
