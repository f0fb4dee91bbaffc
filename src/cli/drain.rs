//! `shardhost drain`: emptying a node of its leaderships, and taking it back.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::json;
use shardhost::NodeId;
use shardhost_policy::catalog::{DrainIntent, MAX_DRAIN_MS, Operation, Record, RecordKey};
use shardhost_proto::balance::balance_client::BalanceClient;
use shardhost_proto::balance::drain_status::State;
use shardhost_proto::balance::{DrainRequest, DrainStatus, GetDrainRequest, UndrainRequest};
use shardhost_security::channel::Channel;

use super::catalog::Catalog;
use super::change::confirmed;
use super::ended::{PARTLY, partly};
use super::output::{Cell, by_count, counted, facts, number, span};
use super::reached;
use super::target::{Node, Target, admin, all_groups, channel, promptly, said};

/// Between two looks at how far a drain is.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A drain lasts for a week at most.
const MAX_SECONDS: u64 = MAX_DRAIN_MS / 1_000;
/// Leaderships that stay, of which the reason is shown.
const SHOWN: usize = 20;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hand every leadership of a node to others, and wait until that is done. The node takes none
    /// until `drain end`, and hands on what falls to it. Exits with 0 only if the node leads nothing and
    /// others lead what it holds, and with 3 if that has no leader at all.
    Begin {
        /// The node.
        node: u64,
        /// How long it may take, in seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 60,
              value_parser = clap::value_parser!(u64).range(1..=MAX_SECONDS))]
        deadline: u64,
        /// When it takes longer, let the node take leaderships again.
        #[arg(long)]
        or_undrain: bool,
        /// When the drain expires, in seconds: its owner may be gone.
        #[arg(long, value_name = "SECONDS", default_value_t = 24 * 60 * 60,
              value_parser = clap::value_parser!(u64).range(1..=MAX_SECONDS))]
        expires: u64,
        /// Begin although groups would be left without an eligible leader.
        #[arg(long)]
        even_if_ineligible: bool,
        /// Do not wait.
        #[arg(long)]
        no_wait: bool,
        /// Who asks, for others who want to know.
        #[arg(long, default_value = "an operator")]
        owner: String,
        #[command(flatten)]
        target: Target,
    },
    /// Show how far the drain of a node is, and why the rest cannot move.
    Status {
        /// The node.
        node: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Let a node take leaderships again.
    End {
        /// The node.
        node: u64,
        #[command(flatten)]
        target: Target,
    },
}

/// Drains, shows or ends.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Begin {
            node,
            deadline,
            or_undrain,
            expires,
            even_if_ineligible,
            no_wait,
            owner,
            target,
        } => {
            let request = DrainRequest {
                deadline_ms: deadline.saturating_mul(1_000),
                undrain_when_overdue: *or_undrain,
                owner: owner.clone(),
                expires_ms: expires.saturating_mul(1_000),
                accept_stranded: *even_if_ineligible,
            };
            begin(*node, request, !no_wait, target).await
        }
        Command::Status { node, target } => {
            match reach(*node, target).await? {
                Reached::Answers { mut balance, address } => {
                    let status = balance.get_drain(GetDrainRequest {}).await;
                    let status = status.map_err(|status| said(&address, &status))?.into_inner();
                    // The same judgement as that of `begin`.
                    let unled = match word(&status) {
                        "done" => Unled::look(&address, target).await?,
                        _ => None,
                    };
                    show(&status, unled.as_ref(), target);
                }
                Reached::Silent(silence) => {
                    let known = recorded(*node, target).await.with_context(|| silence)?;
                    show_recorded(*node, known.as_ref(), target);
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::End { node, target } => {
            match reach(*node, target).await? {
                Reached::Answers { mut balance, address } => {
                    let ended = balance.undrain(UndrainRequest {});
                    let status = confirmed(&address, target.timeout(), ended).await?;
                    show(&status, None, target);
                }
                Reached::Silent(silence) => {
                    let known = recorded(*node, target).await.with_context(|| silence)?;
                    if let Some(drain) = known {
                        let (node, intent) = (drain.node, drain.id);
                        let end = Operation::EndDrain { node, intent };
                        Catalog::reach(target).await?.apply(None, end).await?;
                    }
                    show_recorded(*node, None, target);
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn begin(
    node: u64,
    request: DrainRequest,
    wait: bool,
    target: &Target,
) -> anyhow::Result<ExitCode> {
    let (mut balance, address) = match reach(node, target).await? {
        Reached::Answers { balance, address } => (balance, address),
        Reached::Silent(silence) => bail!("{silence}; a node is drained while it runs"),
    };
    let gives_up = request.undrain_when_overdue;
    let mut status = confirmed(&address, target.timeout(), balance.drain(request)).await?;
    let mut overdue_since = None;
    let mut goes_on = |status: &DrainStatus| match status.state() {
        State::Running => true,
        // The catalog knows whether it is given up, a moment after the node.
        State::Overdue if gives_up && status.draining => {
            overdue_since.get_or_insert_with(Instant::now).elapsed() < target.timeout()
        }
        _ => false,
    };
    while wait && goes_on(&status) {
        tokio::time::sleep(LOOK_EVERY).await;
        let looked = promptly(&address, balance.get_drain(GetDrainRequest {})).await;
        status = looked.map_err(|error| {
            partly(format!("node {node} was ordered to drain, how far it is is unknown: {error:#}"))
        })?;
    }
    let missing = wait.then(|| what_is_missing(&status)).flatten();
    let doubt = status.in_doubt.then(|| in_doubt(node));
    if let Some(missing) = missing {
        show(&status, None, target);
        match doubt {
            Some(doubt) => return Err(partly(format!("{missing}; {doubt}"))),
            None => bail!(missing),
        }
    }
    let unled = match wait {
        true => Unled::look(&address, target).await?,
        false => None,
    };
    show(&status, unled.as_ref(), target);
    let whole = unled.is_none() && doubt.is_none();
    for words in unled.map(|unled| unled.words(node)).into_iter().chain(doubt) {
        eprintln!("{words}");
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) })
}

/// What is unknown of a drain whose record in the catalog was not confirmed.
fn in_doubt(node: u64) -> String {
    format!(
        "node {node} was ordered to drain, and whether the catalog recorded that is unknown. If it did, the \
         drain outlives the node's process: `shardhost drain status {node}` says so once the catalog answers"
    )
}

/// Groups without a leader on a node that was emptied.
struct Unled {
    groups: u64,
    /// Nodes that do not answer.
    silent: Vec<u64>,
}

impl Unled {
    /// Asks the node which of its groups have no leader; `None`: all are led. The leader of a group
    /// that was just transferred is known a moment later.
    async fn look(address: &str, target: &Target) -> anyhow::Result<Option<Self>> {
        let deadline = Instant::now() + NEWS_PATIENCE;
        let groups = loop {
            let mut admin = admin(address)?;
            let listed = promptly(address, all_groups(&mut admin)).await?;
            let unled =
                listed.iter().filter(|group| group.leader_node == 0 && group.fault.is_empty());
            match unled.count() as u64 {
                0 => return Ok(None),
                groups if Instant::now() > deadline => break groups,
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        };
        let silent = reached::Reached::all(target).await?.silent().keys().copied().collect();
        Ok(Some(Self { groups, silent }))
    }

    fn words(&self, node: u64) -> String {
        let groups = counted(self.groups, "group");
        let has = by_count(self.groups, "has", "have");
        let silent: Vec<_> = self.silent.iter().map(ToString::to_string).collect();
        let silent = match silent.is_empty() {
            true => String::new(),
            false => format!("; nodes that do not answer: {}", silent.join(", ")),
        };
        format!(
            "partly done: node {node} leads nothing, but {groups} {has} no leader of those that it \
             holds{silent}"
        )
    }
}

/// How long news of who leads may take.
const NEWS_PATIENCE: Duration = Duration::from_secs(3);

/// Why a node that was to be drained is not empty and kept empty; `None`: it is.
fn what_is_missing(status: &DrainStatus) -> Option<String> {
    let DrainStatus { node, left, draining, .. } = status;
    let left = counted(*left, "group");
    if !draining {
        return Some(format!(
            "the drain of node {node} is over, it was ended or given up: the node leads {left}, \
             and takes leaderships"
        ));
    }
    match status.state() {
        State::Done if status.left == 0 => None,
        State::Done => Some(format!(
            "node {node} still leads {left} that cannot move at present; it keeps trying: \
             `shardhost drain status {node}` says why"
        )),
        State::Overdue => Some(format!(
            "node {node} still leads {left} after its deadline; it keeps trying: `shardhost \
             drain status {node}` says why"
        )),
        _ => Some(format!("node {node} still leads {left}")),
    }
}

/// A node, or what keeps it from being asked.
enum Reached {
    Answers { balance: Box<BalanceClient<Channel>>, address: String },
    Silent(String),
}

async fn reach(number: u64, target: &Target) -> anyhow::Result<Reached> {
    let start = target.node().await?;
    let address = match start.status.node == number {
        true => start.address,
        false => {
            let Some(address) = start.address_of(number) else {
                bail!(
                    "{} knows no node {number}; `shardhost status` shows the nodes",
                    start.address
                )
            };
            match Node::connect(&address).await {
                Ok(node) => node.address,
                Err(error) => {
                    let silent = format!("node {number} does not answer ({error:#})");
                    return Ok(Reached::Silent(silent));
                }
            }
        }
    };
    Ok(Reached::Answers { balance: Box::new(BalanceClient::new(channel(&address)?)), address })
}

/// The drain of a node that the catalog intends; `None`: it intends none.
async fn recorded(node: u64, target: &Target) -> anyhow::Result<Option<Arc<DrainIntent>>> {
    let node = NodeId::new(node).context("nodes are numbered from 1")?;
    match Catalog::reach(target).await?.record(RecordKey::Drain(node)).await? {
        Some(Record::Drain(drain)) => Ok(Some(drain)),
        Some(other) => bail!("the catalog answers something else: {other:?}"),
        None => Ok(None),
    }
}

/// Shows the catalog's record of a node that does not answer.
fn show_recorded(node: u64, drain: Option<&Arc<DrainIntent>>, target: &Target) {
    let draining = drain.is_some_and(|drain| drain.keeps_leaders_away());
    let state = drain.map_or_else(|| "not draining".to_owned(), |drain| drain.state.to_string());
    let left = drain.map(|drain| drain.expires_ms.saturating_sub(drain.clock_ms));
    if target.json {
        let drain = json!({
            "node": node,
            "answers": false,
            "draining": draining,
            "state": state,
            "owner": drain.map(|drain| &drain.owner),
            "expires_in_ms": left,
            "durable": true,
        });
        return println!("{drain}");
    }
    let takes = if draining { "is to take no leaderships" } else { "is to take leaderships" };
    let mut rows = vec![
        ("node", format!("{node}, does not answer; {takes} when it is back")),
        ("drain", state),
    ];
    if let Some((drain, left)) = drain.zip(left) {
        rows.push(("asked by", drain.owner.to_string()));
        rows.push(("lasts", format!("until it is ended, or expires in {}", span(left))));
    }
    println!("{}", facts(rows));
}

/// How far a drain is: `blocked` is one that is done but for what cannot go.
const fn word(status: &DrainStatus) -> &'static str {
    match (status.draining, status.state) {
        (false, 0) => "not draining",
        (true, 0) => "draining",
        (_, 1) => "running",
        (_, 2) if status.left > 0 => "blocked",
        (_, 2) => "done",
        (_, 3) => "overdue",
        _ => "cancelled",
    }
}

/// The record of a drain in the catalog was not confirmed.
const IN_DOUBT: &str =
    "unknown: the catalog may have a drain of this node that the node does not know of";

/// How long a drain lasts, as far as the node knows.
fn lasts(status: &DrainStatus) -> String {
    match (status.durable, status.expires_in_ms) {
        (false, _) if status.in_doubt => {
            "until it is ended; whether it ends when the node stops is unknown".to_owned()
        }
        (false, _) => "until it is ended, or the node stops".to_owned(),
        (true, None) => "until it is ended, or expires".to_owned(),
        (true, Some(left)) => format!("until it is ended, or expires in {}", span(left)),
    }
}

fn show(status: &DrainStatus, unled: Option<&Unled>, target: &Target) {
    let word = if unled.is_some() { "partly done" } else { word(status) };
    if target.json {
        let undrainable: Vec<_> = status
            .undrainable
            .iter()
            .map(|one| json!({ "group": one.group, "reason": one.reason }))
            .collect();
        let drain = json!({
            "node": status.node,
            "draining": status.draining,
            "state": word,
            "owner": status.owner,
            "left": status.left,
            "moved": status.moved,
            "failed": status.failed,
            "window": status.window,
            "elapsed_ms": status.elapsed_ms,
            "undrainable": undrainable,
            "durable": status.durable,
            "in_doubt": status.in_doubt,
            "expires_in_ms": status.expires_in_ms,
            "answers": true,
            "groups_without_leader": unled.map(|unled| unled.groups),
            "silent_nodes": unled.map(|unled| &unled.silent),
        });
        return println!("{drain}");
    }
    let takes = if status.draining { "takes no leaderships" } else { "takes leaderships" };
    if status.state() == State::Unspecified {
        let mut rows = vec![
            ("node", format!("{}, {takes}", status.node)),
            ("drain", word.to_owned()),
            ("leads", number(status.left)),
        ];
        if status.in_doubt {
            rows.push(("recorded", IN_DOUBT.to_owned()));
        }
        return println!("{}", facts(rows));
    }
    let mut rows = vec![
        ("node", format!("{}, {takes}", status.node)),
        ("drain", word.to_owned()),
        ("left", number(status.left)),
        ("moved", number(status.moved)),
        ("took", format!("{:.1} s", status.elapsed_ms as f64 / 1e3)),
    ];
    if !status.owner.is_empty() {
        rows.insert(2, ("asked by", status.owner.clone()));
        rows.insert(3, ("lasts", lasts(status)));
    }
    if status.in_doubt {
        rows.push(("recorded", IN_DOUBT.to_owned()));
    }
    let stuck = status.undrainable.iter().take(SHOWN);
    let stuck: Vec<_> = stuck.map(|one| format!("group {}: {}", one.group, one.reason)).collect();
    let mut rows: Vec<(_, Cell)> = rows.into_iter().map(|(name, is)| (name, is.into())).collect();
    if !stuck.is_empty() {
        rows.push(("cannot go", Cell::of_lines(stuck)));
    }
    println!("{}", facts(rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: State, left: u64, draining: bool) -> DrainStatus {
        DrainStatus { node: 4, state: state.into(), left, draining, ..DrainStatus::default() }
    }

    #[test]
    fn a_drain_succeeded_only_if_the_node_is_empty_and_kept_empty() {
        assert_eq!(what_is_missing(&status(State::Done, 0, true)), None);
        for (state, left, draining, words) in [
            (State::Done, 3, true, "still leads 3 groups that cannot move"),
            (State::Overdue, 64, true, "still leads 64 groups after its deadline"),
            (State::Overdue, 4, false, "it was ended or given up: the node leads 4 groups"),
            (State::Cancelled, 0, false, "it was ended or given up: the node leads 0 groups"),
            (State::Unspecified, 64, false, "it was ended or given up: the node leads 64 groups"),
        ] {
            let missing = what_is_missing(&status(state, left, draining)).unwrap();
            assert!(missing.contains(words), "{missing}");
        }
    }

    #[test]
    fn a_drain_whose_record_is_in_doubt_is_not_said_to_end_with_the_node() {
        let known = status(State::Done, 0, true);
        assert_eq!(lasts(&known), "until it is ended, or the node stops");
        let doubtful = DrainStatus { in_doubt: true, ..known };
        assert!(lasts(&doubtful).contains("is unknown"), "{}", lasts(&doubtful));
    }
}
