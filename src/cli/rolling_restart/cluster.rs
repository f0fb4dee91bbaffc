//! The hosts of a running cluster, restarted by an operator's command.
//!
//! It stops at the first failure, and reports its progress: at most one host is drained or down,
//! and all others serve.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::observe::Observer;
use crate::output::{counted, seconds};
use crate::target::{Node, Target};
use crate::trial::drain::{self, Drained};

/// Who asks for the drains.
const OWNER: &str = "a rolling restart";
/// Between two looks at a host that starts.
const LOOK: Duration = Duration::from_millis(100);

/// Restarts all hosts, one after the other.
pub async fn run(command: &str, deadline: Duration, target: &Target) -> anyhow::Result<ExitCode> {
    let mut fleet = Fleet::meet(target, deadline).await?;
    let numbers: Vec<u64> = fleet.nodes.keys().copied().collect();
    let mut done = Vec::new();
    for node in numbers {
        let restarted = fleet.restart(node, command).await;
        let restarted = restarted.with_context(|| fleet.stands(node, &done))?;
        if !target.json {
            println!("{}", restarted.line());
        }
        done.push(restarted);
    }
    if target.json {
        println!("{}", json!(done.iter().map(Restarted::json).collect::<Vec<_>>()));
    }
    Ok(ExitCode::SUCCESS)
}

/// A host that is back.
struct Restarted {
    node: u64,
    drained: Drained,
    /// From the beginning of the command until the host answered again.
    down: Duration,
    /// From then until it had everything.
    caught_up: Duration,
}

impl Restarted {
    fn line(&self) -> String {
        format!(
            "node {} handed {} on in {}, was back after {}, and had caught up {} later",
            self.node,
            counted(self.drained.moved, "leadership"),
            seconds(self.drained.took),
            seconds(self.down),
            seconds(self.caught_up)
        )
    }

    fn json(&self) -> Value {
        json!({
            "node": self.node,
            "moved": self.drained.moved,
            "drain_seconds": self.drained.took.as_secs_f64(),
            "down_seconds": self.down.as_secs_f64(),
            "catch_up_seconds": self.caught_up.as_secs_f64(),
        })
    }
}

/// All hosts of a cluster.
struct Fleet {
    nodes: BTreeMap<u64, Node>,
    observer: Observer,
    deadline: Duration,
}

impl Fleet {
    /// All hosts, which must answer and lead every shard before any of them is touched.
    async fn meet(target: &Target, deadline: Duration) -> anyhow::Result<Self> {
        let first = target.node().await?;
        let mut nodes = BTreeMap::new();
        for address in first.all_addresses() {
            let node = Node::connect(&address).await.context(
                "a rolling restart begins when all hosts answer; start this one, or take it out of \
                 the configuration",
            )?;
            if node
                .status
                .advertisement
                .as_ref()
                .is_some_and(|advertisement| advertisement.draining)
            {
                let number = node.status.node;
                bail!("node {number} is draining; `shardhost drain end {number}` ends that");
            }
            nodes.insert(node.status.node, node);
        }
        let addresses = nodes.iter().map(|(id, node)| (*id, node.address.clone())).collect();
        let observer = Observer::new(&addresses, 0)?;
        observer.await_led(target.timeout()).await?;
        Ok(Self { nodes, observer, deadline })
    }

    async fn restart(&mut self, number: u64, command: &str) -> anyhow::Result<Restarted> {
        let node = self.nodes.get(&number).context("it is gone")?;
        let drained = drain::drain(number, &node.address, OWNER).await?;
        if drained.left > 0 {
            let why = drained.why.as_deref().unwrap_or("look at its drain");
            bail!("{} cannot go, {why}", counted(drained.left, "leadership"));
        }
        let began = Instant::now();
        carry_out(command, node).await?;
        let back = self.await_back(node).await?;
        let down = began.elapsed();
        // It may have another configuration now.
        self.observer.set(number, &back.address)?;
        self.observer.await_caught_up(number, self.deadline).await?;
        drain::end(number, &back.address).await?;
        self.nodes.insert(number, back);
        Ok(Restarted { node: number, drained, down, caught_up: began.elapsed() - down })
    }

    /// Waits until the host answers as another process than before, to operators or where nodes reach it: it may
    /// have another listener for operators now, or none.
    async fn await_back(&self, node: &Node) -> anyhow::Result<Node> {
        let deadline = Instant::now() + self.deadline;
        let before = node.status.incarnation;
        let mut addresses = [node.address.as_str(), node.address_of_nodes()].into_iter().cycle();
        loop {
            let address = addresses.next().unwrap_or_default();
            let trouble = match Node::connect(address).await {
                Ok(node) if node.status.incarnation != before => return Ok(node),
                Ok(_) => "the command ended, but the process that ran before still answers".into(),
                Err(error) => format!("the command ended, but {error:#}"),
            };
            if Instant::now() > deadline {
                bail!("{trouble}, {:?} later", self.deadline);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The progress of a restart that stopped at a node, and what to do.
    fn stands(&self, node: u64, done: &[Restarted]) -> String {
        let list = |nodes: Vec<u64>| match nodes.is_empty() {
            true => "none".to_owned(),
            false => nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
        };
        let restarted = list(done.iter().map(|one| one.node).collect());
        let untouched = list(self.nodes.keys().copied().filter(|one| *one > node).collect());
        format!(
            "stopped at node {node}, which may still be draining: mend it, then `shardhost drain end \
             {node}`; restarted: {restarted}; not touched: {untouched}"
        )
    }
}

/// Runs the command for a host, with its output on this one's standard error.
async fn carry_out(command: &str, node: &Node) -> anyhow::Result<()> {
    let status = Command::new("sh")
        .args(["-c", command])
        .env("SHARDHOST_NODE", node.status.node.to_string())
        .env("SHARDHOST_ADDRESS", node.address_of_nodes())
        .stdin(std::process::Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .await
        .context("the shell does not start")?;
    if !status.success() {
        bail!("`{command}` ended with {status}");
    }
    Ok(())
}
