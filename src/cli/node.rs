//! `shardhost node`: the nodes of the cluster.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use serde_json::{Value, json};
use shardhost_proto::admin::{HostStatus, KnownNode, ListNodesRequest, RemoveNodeRequest};

use super::change::confirmed;
use super::decommission::{self, DecommissionArguments};
use super::ended::PARTLY;
use super::output::{Column, address_for, number, reached_at, span, table};
use super::reached::Reached;
use super::target::{Target, in_time};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// All nodes that the catalog knows, and what those say that answer.
    ///
    /// Ends with exit code 3 when some do not answer.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Move every replica of a node to other nodes, so that it can be stopped for good. Also of a node
    /// that is gone.
    ///
    /// The node is drained meanwhile, for a week at most. A replica goes to a node that holds none of its
    /// group and has what its leader needs, in another zone than the other members if it can be. Groups
    /// that have no such place stay, and are named. Run it again for those.
    ///
    /// Ends with exit code 3 when some stay, or may, when groups have fewer voters than at the beginning,
    /// and when other nodes do not answer: all are named.
    Decommission(DecommissionArguments),
    /// Remove a node for good that was stopped and holds no replicas any more. Its number is never given
    /// again.
    Remove {
        /// The node.
        node: u64,
        #[command(flatten)]
        target: Target,
    },
}

/// Shows the nodes.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List { target } => list(target).await,
        Command::Decommission(arguments) => decommission::run(arguments).await,
        Command::Remove { node, target } => remove(*node, target).await,
    }
}

async fn remove(node: u64, target: &Target) -> anyhow::Result<ExitCode> {
    // The node itself is no one to ask.
    let cluster = Reached::all(target).await?;
    let others = cluster.nodes().iter().find(|(number, _)| **number != node);
    let Some((_, asked)) = others else { bail!("no other node than node {node} answers") };
    if let Some(running) = cluster.nodes().get(&node) {
        bail!(
            "node {node} runs at {}; move its replicas away (`shardhost node decommission {node}`), and stop it \
             first",
            running.address
        );
    }
    let mut admin = asked.admin.clone();
    let removed = admin.remove_node(RemoveNodeRequest { node });
    confirmed(&asked.address, target.timeout(), removed).await?;
    if target.json {
        println!("{}", json!({ "removed": node }));
    } else {
        println!("node {node} is removed for good");
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(target: &Target) -> anyhow::Result<ExitCode> {
    let first = target.node().await?;
    let mut admin = first.admin.clone();
    let known = in_time(&first.address, admin.list_nodes(ListNodesRequest {})).await?;
    let reached = Reached::all(target).await?;
    let rows: Vec<Row<'_>> = known.nodes.iter().map(|node| Row::of(node, &reached)).collect();
    if target.json {
        let nodes: Vec<Value> = rows.iter().map(Row::json).collect();
        println!("{}", json!({ "revision": known.revision, "nodes": nodes }));
    } else {
        println!("{}", table(&COLUMNS, rows.iter().map(Row::cells)));
    }
    let whole = rows.iter().all(|row| row.status.is_some());
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) })
}

const COLUMNS: [Column; 11] = [
    Column::Right("node"),
    Column::Left("state"),
    Column::Left("last seen"),
    Column::Left("address"),
    Column::Left("zone"),
    Column::Right("weight"),
    Column::Right("replicas"),
    Column::Right("leaders"),
    Column::Right("ops/s"),
    Column::Left("version"),
    Column::Left("capabilities"),
];

/// A node as the catalog knows it, and its own status.
struct Row<'a> {
    known: &'a KnownNode,
    /// `None`: it does not answer.
    status: Option<&'a HostStatus>,
}

impl<'a> Row<'a> {
    fn of(known: &'a KnownNode, reached: &'a Reached) -> Self {
        let nodes: &BTreeMap<u64, _> = reached.nodes();
        Self { known, status: nodes.get(&known.node).map(|node| &node.status) }
    }

    /// As it says itself; the catalog may learn of it a moment later.
    fn replicas(&self) -> u64 {
        self.status.map_or(self.known.replicas, |status| status.groups)
    }

    fn state(&self) -> &'static str {
        match (self.known.seen, self.status, self.known.draining) {
            (false, ..) => "never seen",
            (true, None, _) => "no answer",
            (true, Some(_), true) => "draining",
            (true, Some(status), false) if !status.impaired.is_empty() => "impaired",
            (true, Some(_), false) => "serves",
        }
    }

    /// For how long it has been silent; `None`: the node that was asked has not heard of it yet.
    const fn silent_ms(&self) -> Option<u64> {
        if self.status.is_some() { Some(0) } else { self.known.silent_ms }
    }

    fn last_seen(&self) -> String {
        match self.silent_ms() {
            Some(0) => "now".to_owned(),
            Some(ms) => format!("{} ago", span(ms)),
            None => "-".to_owned(),
        }
    }

    /// Where operators and clients reach it, as it says itself, or said to the node that was asked; empty: at
    /// its address.
    fn apart(&self) -> (&str, &str) {
        let known = (&self.known.admin_address, &self.known.client_address);
        let (admin, client) =
            self.status.map_or(known, |status| (&status.admin_address, &status.client_address));
        (admin, client)
    }

    fn cells(&self) -> Vec<String> {
        let KnownNode { node, address, zone, weight, capabilities, .. } = self.known;
        let (admin, client) = self.apart();
        let of_status = |text: fn(&HostStatus) -> String| self.status.map_or("-".to_owned(), text);
        vec![
            node.to_string(),
            self.state().to_owned(),
            self.last_seen(),
            reached_at(address, admin, client),
            if zone.is_empty() { "-".to_owned() } else { zone.clone() },
            weight.to_string(),
            number(self.replicas()),
            of_status(|status| number(status.leaders)),
            of_status(|status| number(status.ops_per_second as u64)),
            of_status(|status| status.version.clone()),
            capabilities.join(", "),
        ]
    }

    fn json(&self) -> Value {
        let KnownNode { node, address, zone, weight, capabilities, .. } = self.known;
        let (admin, client) = self.apart();
        json!({
            "node": node,
            "state": self.state(),
            "silent_ms": self.silent_ms(),
            "address": address,
            "admin_address": address_for(address, admin),
            "client_address": address_for(address, client),
            "zone": zone,
            "weight": weight,
            "replicas": self.replicas(),
            "leaders": self.status.map(|status| status.leaders),
            "ops_per_second": self.status.map(|status| status.ops_per_second),
            "version": self.status.map(|status| &status.version),
            "capabilities": capabilities,
        })
    }
}
