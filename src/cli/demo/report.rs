//! The output of the demo at the end: a table per node, the events, the verdict.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::act::Played;
use super::join::{Joined, Shares};
use super::loss::Loss;
use super::rates::Rates;
use super::service::Watched;
use crate::output::{Column, millis, number, seconds, table};
use crate::trial::findings::Fault;
use crate::trial::load::{self, Load};
use crate::trial::nodes::Layout;
use crate::trial::restart::Restarted;
use crate::trial::screen::Screen;
use crate::trial::verify::Verified;

/// Faults that are shown one by one.
const SHOWN_FAULTS: usize = 10;

/// Everything that is reported.
pub struct Report<'a> {
    pub layout: Layout,
    pub load: &'a Load,
    pub rates: &'a Rates,
    pub verified: &'a Verified,
    pub addresses: &'a BTreeMap<u64, String>,
    pub screen: &'a Screen,
    pub played: &'a Played,
    pub placement: &'a Shares,
    pub watched: Watched,
}

impl Report<'_> {
    /// Whether the demo showed what it should.
    pub fn is_good(&self) -> bool {
        let given_up = self.load.tally.given_up.load(Ordering::Relaxed);
        let writes = self.verified.findings.is_clean() && self.verified.unequal.is_empty();
        let gated = self.watched.served == 0 && self.watched.looks > 0;
        let placed = self.played.joined.shares.are_fair() && self.again() == self.left();
        writes && given_up == 0 && gated && placed && self.is_healed()
    }

    /// Whether what was on the host that was lost is elsewhere, and nothing came back to it.
    fn is_healed(&self) -> bool {
        let loss = &self.played.loss;
        loss.is_healed() && self.placement.held_by(loss.node) == 0
    }

    /// Hosts that are left at the end.
    fn left(&self) -> u64 {
        self.addresses.len() as u64 - 1
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
        let (replicas, shards) = (self.layout.nodes, number(self.layout.shards()));
        verdict += &match self.verified.unequal.len() {
            0 => format!("{replicas} replicas of {shards} shards equal"),
            unequal => format!("the replicas of {unequal} of {shards} shards differ"),
        };
        let Watched { node, looks, served } = self.watched;
        verdict += &match served {
            0 => format!("; node {node} never served a queue in {} looks", number(looks)),
            _ => format!("; node {node} served queues that require what it lacks"),
        };
        verdict += &self.placed();
        let given_up = self.load.tally.given_up.load(Ordering::Relaxed);
        if given_up > 0 {
            verdict += &format!("; {} writes were never acknowledged", number(given_up));
        }
        verdict
    }

    /// What the hosts that joined, were lost and were restarted came to.
    fn placed(&self) -> String {
        let Joined { node, shares, .. } = &self.played.joined;
        let (held, led) = (shares.held_by(*node), shares.led_by(*node));
        let unfair = if shares.are_fair() { "" } else { ", which is not its part" };
        format!(
            "; node {node} joined, held {held} and led {led}{unfair}; {}; {} of {} hosts were drained, \
             restarted and lead again",
            self.healed(),
            self.again(),
            self.left()
        )
    }

    fn healed(&self) -> String {
        let Loss { node, replicas, replaced, healed, .. } = self.played.loss;
        let (replicas, replaced) = (number(replicas), number(replaced));
        match self.is_healed() {
            true => format!(
                "node {node} was lost for good, and its {replicas} replicas were replaced in {}",
                seconds(healed)
            ),
            false => format!(
                "node {node} was lost for good, and {replaced} of its {replicas} replicas are elsewhere"
            ),
        }
    }

    /// Hosts that were emptied before they were restarted, and lead again.
    fn again(&self) -> u64 {
        let restarted = self.played.restarted.iter();
        let good = |one: &&Restarted| one.left == 0 && self.placement.led_by(one.node) > 0;
        restarted.filter(good).count() as u64
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
            Column::Right("shards"),
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
        let rate = self.rates.node(node);
        vec![
            node.to_string(),
            address.to_owned(),
            number(self.placement.held_by(node)),
            number(self.placement.led_by(node)),
            number(rate.most_leaders),
            number(rate.acknowledged),
            number(rate.ops_per_second as u64),
            millis(rate.p50_us),
            millis(rate.p99_us),
            self.part_of(node),
        ]
    }

    fn was_restarted(&self, node: u64) -> bool {
        self.played.restarted.iter().any(|one| one.node == node)
    }

    /// What happened to a node.
    fn part_of(&self, node: u64) -> String {
        let parts = [
            (node == self.played.killed, "killed"),
            (node == self.played.joined.node, "joined"),
            (node == self.played.loss.node, "lost for good"),
            (self.was_restarted(node), "drained and restarted"),
            (node == self.watched.node, "lacks fifo"),
        ];
        let happened = parts.into_iter().filter(|(happened, _)| *happened);
        happened.map(|(_, what)| what).collect::<Vec<_>>().join("; ")
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
            load::TRY_FOR.as_secs(),
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
            "joined": self.joined_json(),
            "loss": self.loss_json(),
            "restarted": self.restarted_json(),
            "load_seconds": self.rates.took().as_secs_f64(),
            "client_p50_us": p50_us,
            "client_p99_us": p99_us,
            "client_longest_us": longest_us,
            "seconds": self.screen.elapsed().as_secs_f64(),
            "nodes": self.addresses.keys().map(|node| self.node_json(*node)).collect::<Vec<_>>(),
            "events": events,
        })
    }

    fn joined_json(&self) -> Value {
        let Joined { node, shares, filled, balanced } = &self.played.joined;
        json!({
            "node": node,
            "held": shares.held_by(*node),
            "led": shares.led_by(*node),
            "is_fair": shares.are_fair(),
            "filled_seconds": filled.as_secs_f64(),
            "balanced_seconds": balanced.as_secs_f64(),
        })
    }

    fn loss_json(&self) -> Value {
        let Loss { node, replicas, replaced, led_again, healed } = self.played.loss;
        json!({
            "node": node,
            "replicas": replicas,
            "replaced": replaced,
            "is_healed": self.is_healed(),
            "led_again_seconds": led_again.as_secs_f64(),
            "healed_seconds": healed.as_secs_f64(),
        })
    }

    fn restarted_json(&self) -> Value {
        let each = self.played.restarted.iter().map(|one| {
            json!({
                "node": one.node,
                "leads": self.placement.led_by(one.node),
                "moved": one.moved,
                "left": one.left,
                "drain_seconds": one.drain.as_secs_f64(),
                "down_seconds": one.down.as_secs_f64(),
                "catch_up_seconds": one.catch_up.as_secs_f64(),
            })
        });
        each.collect()
    }

    fn node_json(&self, node: u64) -> Value {
        let rate = self.rates.node(node);
        json!({
            "node": node,
            "address": self.addresses.get(&node),
            "killed": node == self.played.killed,
            "lost": node == self.played.loss.node,
            "shards": self.placement.held_by(node),
            "leaders": self.placement.led_by(node),
            "most_leaders": rate.most_leaders,
            "acknowledged": rate.acknowledged,
            "ops_per_second": rate.ops_per_second,
            "p50_us": rate.p50_us,
            "p99_us": rate.p99_us,
        })
    }
}
