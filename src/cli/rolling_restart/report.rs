//! The output of a check of a rolling restart at the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use crate::output::{Column, millis, number, seconds, table};
use crate::trial::findings::Fault;
use crate::trial::load::Load;
use crate::trial::nodes::Layout;
use crate::trial::restart::Restarted;
use crate::trial::screen::Screen;
use crate::trial::verify::Verified;

/// Faults that are shown one by one.
const SHOWN_FAULTS: usize = 10;

/// One host.
#[derive(Clone, Debug)]
pub struct Step {
    pub restarted: Restarted,
    /// The groups that it leads at the end, when each host has a fair part again.
    pub leads: u64,
    /// All of it, from the begin of the drain.
    pub took: Duration,
    /// The longest time that a client waited for a write meanwhile.
    pub pause: Duration,
    /// Operations of clients that failed meanwhile.
    pub failed: u64,
}

impl Step {
    /// Whether the host was emptied before it stopped, and leads again.
    const fn is_good(&self) -> bool {
        self.restarted.left == 0 && self.leads > 0
    }
}

/// All of it.
pub struct Report {
    pub steps: Vec<Step>,
    pub verified: Verified,
    pub layout: Layout,
    pub load: Arc<Load>,
}

impl Report {
    /// Whether no client noticed.
    pub fn is_good(&self) -> bool {
        let writes = self.verified.findings.is_clean() && self.verified.unequal.is_empty();
        let emptied = self.steps.iter().all(Step::is_good);
        let all = self.steps.len() as u64 == self.layout.nodes;
        writes && self.failed() == 0 && emptied && all
    }

    /// Operations of clients that did not end with an acknowledgement, each time they were tried.
    fn failed(&self) -> u64 {
        self.load.tally.failed_tries() + self.load.tally.given_up.load(Ordering::Relaxed)
    }

    fn verdict(&self) -> String {
        let findings = &self.verified.findings;
        let count = |fault| number(findings.count(fault));
        let again = self.steps.iter().filter(|step| step.is_good()).count();
        let (nodes, shards) = (self.layout.nodes, number(self.layout.shards()));
        let replicas = match self.verified.unequal.len() {
            0 => format!("{nodes} replicas of {shards} shards equal"),
            unequal => format!("the replicas of {unequal} of {shards} shards differ"),
        };
        format!(
            "VERDICT: {again} of {nodes} hosts were drained, restarted and lead again; {} \
             operations failed; {} acknowledged writes, {} lost, {} wrong, {} out of order; \
             {replicas}",
            number(self.failed()),
            number(self.load.tally.acknowledged()),
            count(Fault::Lost),
            count(Fault::Wrong),
            count(Fault::OutOfOrder),
        )
    }

    /// Prints it for people or for programs.
    pub fn print(&self, screen: &Screen, as_json: bool) {
        if as_json {
            return println!("{}", self.json(screen));
        }
        println!("\n{}", self.table());
        let unequal = self.verified.unequal.iter();
        let unequal = unequal.map(|(group, difference)| format!("group {group}: {difference}"));
        for line in self.verified.findings.lines().chain(unequal).take(SHOWN_FAULTS) {
            println!("{line}");
        }
        println!("{}", self.verdict());
    }

    fn table(&self) -> String {
        let columns = [
            Column::Right("node"),
            Column::Right("leaders moved"),
            Column::Right("drained in"),
            Column::Right("down for"),
            Column::Right("caught up in"),
            Column::Right("leads again"),
            Column::Right("all of it"),
            Column::Right("longest pause"),
            Column::Right("failed"),
        ];
        let rows = self.steps.iter().map(|Step { restarted, leads, took, pause, failed }| {
            vec![
                restarted.node.to_string(),
                number(restarted.moved),
                seconds(restarted.drain),
                seconds(restarted.down),
                seconds(restarted.catch_up),
                number(*leads),
                seconds(*took),
                millis(u64::try_from(pause.as_micros()).unwrap_or(u64::MAX)),
                number(*failed),
            ]
        });
        table(&columns, rows)
    }

    fn json(&self, screen: &Screen) -> Value {
        let findings = &self.verified.findings;
        let steps = self.steps.iter().map(|Step { restarted, leads, took, pause, failed }| {
            json!({
                "node": restarted.node,
                "moved": restarted.moved,
                "left": restarted.left,
                "leads": leads,
                "drain_seconds": restarted.drain.as_secs_f64(),
                "down_seconds": restarted.down.as_secs_f64(),
                "catch_up_seconds": restarted.catch_up.as_secs_f64(),
                "seconds": took.as_secs_f64(),
                "longest_pause_seconds": pause.as_secs_f64(),
                "failed_operations": failed,
            })
        });
        json!({
            "good": self.is_good(),
            "verdict": self.verdict(),
            "acknowledged": self.load.tally.acknowledged(),
            "failed_operations": self.failed(),
            "lost": findings.count(Fault::Lost),
            "wrong": findings.count(Fault::Wrong),
            "out_of_order": findings.count(Fault::OutOfOrder),
            "equal_shards": self.verified.equal_groups,
            "seconds": screen.elapsed().as_secs_f64(),
            "nodes": steps.collect::<Vec<_>>(),
        })
    }
}
