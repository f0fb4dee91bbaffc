//! What the demo says at the end: a table per node, the events, the verdict.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use shardhost::proto::admin::HostStatus;

use super::drain::Drained;
use super::findings::Fault;
use super::load::Load;
use super::nodes::Layout;
use super::rates::Rates;
use super::screen::Screen;
use super::service::Watched;
use super::verify::Verified;
use crate::cli::output::{Column, millis, number, seconds, table};

/// Faults that are shown one by one.
const SHOWN_FAULTS: usize = 10;

/// Everything that is reported.
pub struct Report<'a> {
    pub layout: Layout,
    pub load: &'a Load,
    pub rates: &'a Rates,
    pub verified: &'a Verified,
    pub statuses: &'a BTreeMap<u64, HostStatus>,
    pub addresses: &'a BTreeMap<u64, String>,
    pub screen: &'a Screen,
    pub killed: u64,
    pub drained: Option<Drained>,
    pub watched: Watched,
}

impl Report<'_> {
    /// Whether the demo showed what it should.
    pub fn is_good(&self) -> bool {
        let given_up = self.load.tally.given_up.load(Ordering::Relaxed);
        let writes = self.verified.findings.is_clean() && self.verified.unequal.is_empty();
        let emptied = self.drained.is_some_and(|drained| drained.left == 0);
        let gated = self.watched.served == 0 && self.watched.looks > 0;
        writes && given_up == 0 && emptied && gated
    }

    /// The verdict in a line.
    pub fn verdict(&self) -> String {
        let findings = &self.verified.findings;
        let count = |fault| number(findings.count(fault));
        let mut verdict = format!(
            "VERDICT: {} acknowledged writes, {} lost, {} wrong, {} out of order; ",
            number(self.load.tally.acknowledged()),
            count(Fault::Lost),
            count(Fault::Wrong),
            count(Fault::OutOfOrder),
        );
        let (nodes, groups) = (self.layout.nodes, number(self.layout.groups()));
        verdict += &match self.verified.unequal.len() {
            0 => format!("{nodes} replicas of {groups} groups equal"),
            unequal => format!("the replicas of {unequal} of {groups} groups differ"),
        };
        let Watched { node, looks, served } = self.watched;
        verdict += &match served {
            0 => format!("; node {node} never served a queue in {} looks", number(looks)),
            _ => format!("; node {node} served queues that require what it lacks"),
        };
        match self.drained {
            Some(drained) if drained.left == 0 => {}
            Some(drained) => verdict += &format!("; the drain left {}", number(drained.left)),
            None => verdict += "; nobody was drained",
        }
        let given_up = self.load.tally.given_up.load(Ordering::Relaxed);
        if given_up > 0 {
            verdict += &format!("; {} writes were never acknowledged", number(given_up));
        }
        verdict
    }

    /// Prints it for people.
    pub fn print(&self) {
        println!("\n{}", self.nodes_table());
        println!("{}", self.summary());
        for line in self.faults() {
            println!("{line}");
        }
        println!("{}", self.verdict());
    }

    fn faults(&self) -> Vec<String> {
        let unequal = self.verified.unequal.iter();
        let unequal = unequal.map(|(group, difference)| format!("group {group}: {difference}"));
        self.verified.findings.lines().chain(unequal).take(SHOWN_FAULTS).collect()
    }

    fn nodes_table(&self) -> String {
        let columns = [
            Column::Right("node"),
            Column::Left("address"),
            Column::Right("groups"),
            Column::Right("leaders"),
            Column::Right("most leaders"),
            Column::Right("acknowledged"),
            Column::Right("ops/s"),
            Column::Right("p50"),
            Column::Right("p99"),
            Column::Left(""),
        ];
        table(&columns, self.addresses.iter().map(|(node, address)| self.row(*node, address)))
    }

    fn row(&self, node: u64, address: &str) -> Vec<String> {
        let status = self.statuses.get(&node).cloned().unwrap_or_default();
        let rate = self.rates.node(node);
        vec![
            node.to_string(),
            address.to_owned(),
            number(status.groups),
            number(status.leaders),
            number(rate.most_leaders),
            number(rate.acknowledged),
            number(rate.ops_per_second as u64),
            millis(rate.p50_us),
            millis(rate.p99_us),
            self.part_of(node).to_owned(),
        ]
    }

    /// What happened to a node.
    fn part_of(&self, node: u64) -> &'static str {
        let drained = self.drained.is_some_and(|drained| drained.node == node);
        match (node == self.killed, drained, node == self.watched.node) {
            (true, _, false) => "killed and restarted",
            (true, _, true) => "killed and restarted; lacks fifo",
            (_, true, _) => "drained",
            (_, _, true) => "lacks fifo",
            _ => "",
        }
    }

    fn summary(&self) -> String {
        let tally = &self.load.tally;
        let took = self.rates.took();
        let rate = tally.acknowledged() as f64 / took.as_secs_f64().max(0.001);
        let (p50, p99, longest) = tally.quantiles_us();
        format!(
            "load: {} writes in {}, {} per second; as the client saw it p50 {}, p99 {}, longest \
             {}\nunknown outcomes, written again: {}; refused for {} s and written again: {}; \
             messages delivered twice: {}",
            number(tally.acknowledged()),
            seconds(took),
            number(rate as u64),
            millis(p50),
            millis(p99),
            millis(longest),
            number(tally.unknown.load(Ordering::Relaxed)),
            super::load::TRY_FOR.as_secs(),
            number(tally.refused.load(Ordering::Relaxed)),
            number(self.verified.findings.redelivered),
        )
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let tally = &self.load.tally;
        let findings = &self.verified.findings;
        let (p50_us, p99_us, longest_us) = tally.quantiles_us();
        let events = self.screen.events();
        let events: Vec<Value> = events
            .iter()
            .map(|event| json!({ "seconds": event.at.as_secs_f64(), "event": event.text }))
            .collect();
        json!({
            "good": self.is_good(),
            "verdict": self.verdict(),
            "input": self.load.input.path.display().to_string(),
            "lines": self.load.input.len(),
            "acknowledged_puts": tally.puts.load(Ordering::Relaxed),
            "acknowledged_sends": tally.sends.load(Ordering::Relaxed),
            "acknowledged": tally.acknowledged(),
            "unknown_outcomes": tally.unknown.load(Ordering::Relaxed),
            "refused": tally.refused.load(Ordering::Relaxed),
            "never_acknowledged": tally.given_up.load(Ordering::Relaxed),
            "lost": findings.count(Fault::Lost),
            "wrong": findings.count(Fault::Wrong),
            "out_of_order": findings.count(Fault::OutOfOrder),
            "redelivered": findings.redelivered,
            "faults": self.faults(),
            "reads": self.verified.reads,
            "linearizable_reads": self.verified.linearizable_reads,
            "peeked": self.verified.peeked,
            "received": self.verified.received,
            "equal_groups": self.verified.equal_groups,
            "lacking_node": self.watched.node,
            "looks_at_it": self.watched.looks,
            "queues_it_served": self.watched.served,
            "drained_node": self.drained.map(|drained| drained.node),
            "drain_moved": self.drained.map(|drained| drained.moved),
            "drain_left": self.drained.map(|drained| drained.left),
            "load_seconds": self.rates.took().as_secs_f64(),
            "client_p50_us": p50_us,
            "client_p99_us": p99_us,
            "client_longest_us": longest_us,
            "seconds": self.screen.elapsed().as_secs_f64(),
            "nodes": self.addresses.keys().map(|node| self.node_json(*node)).collect::<Vec<_>>(),
            "events": events,
        })
    }

    fn node_json(&self, node: u64) -> Value {
        let status = self.statuses.get(&node).cloned().unwrap_or_default();
        let rate = self.rates.node(node);
        json!({
            "node": node,
            "address": self.addresses.get(&node),
            "killed": node == self.killed,
            "groups": status.groups,
            "leaders": status.leaders,
            "most_leaders": rate.most_leaders,
            "acknowledged": rate.acknowledged,
            "ops_per_second": rate.ops_per_second,
            "p50_us": rate.p50_us,
            "p99_us": rate.p99_us,
        })
    }
}
