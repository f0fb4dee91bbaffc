//! The demo itself: start, load, kill, restart, verify, report.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::task::JoinSet;

use super::drain::{self, Drained};
use super::input::Input;
use super::load::{self, Load};
use super::nodes::{Layout, Nodes};
use super::observe::{Leader, Observer};
use super::rates::Rates;
use super::report::Report;
use super::screen::{Progress, Screen};
use super::service::{CAPABILITY, ServiceWatch};
use super::verify::Verification;
use super::{DemoArguments, PATIENCE, Sabotage};
use crate::cli::output::{number, seconds};

/// The host is killed when this part of the load is acknowledged, and started again at the next.
const KILL_AT_PERCENT: u64 = 35;
const RESTART_AT_PERCENT: u64 = 60;
/// Another one is drained at this part.
const DRAIN_AT_PERCENT: u64 = 75;
/// However little of the load goes on, a killed host is started again after this.
const RESTART_AFTER: Duration = Duration::from_secs(5);
/// Between two looks at the load.
const LOOK: Duration = Duration::from_millis(20);

/// Runs all of it, on hosts that the caller ends.
pub async fn run(
    arguments: &DemoArguments,
    layout: Layout,
    input: Input,
    nodes: &mut Nodes,
    screen: &Screen,
) -> anyhow::Result<ExitCode> {
    let observer = start(layout, nodes, screen).await?;
    let watch = ServiceWatch::begin(layout.lacking(), &observer);
    let load = Load::new(input)?;
    let act = Act { nodes, observer: &observer, screen, drained: None };
    let Played { mut load, rates, killed, drained } = act.play(load).await?;
    sabotage(&mut load, arguments.sabotage);
    let load = Arc::new(load);
    let addresses = || nodes.addresses().values().cloned();
    let verification =
        Verification::new(Arc::clone(&load), layout, addresses(), &observer, screen).await?;
    let verified = verification.run().await?;
    nodes.check()?;
    let statuses = observer.statuses().await;
    let watched = watch.end();
    screen.event("verified");
    let report = Report {
        layout,
        load: &load,
        rates: &rates,
        verified: &verified,
        statuses: &statuses,
        addresses: nodes.addresses(),
        screen,
        killed,
        drained,
        watched,
    };
    if arguments.json {
        println!("{}", report.json());
    } else {
        report.print();
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn start(layout: Layout, nodes: &mut Nodes, screen: &Screen) -> anyhow::Result<Observer> {
    nodes.start().await?;
    let ids = nodes.process_ids();
    let each = nodes.addresses().iter().map(|(node, address)| {
        format!("node {node} at {address} (process {})", ids.get(node).copied().unwrap_or(0))
    });
    screen.event(format!(
        "{} hosts started: {}",
        layout.nodes,
        each.collect::<Vec<_>>().join(", ")
    ));
    let observer = Observer::new(nodes.addresses(), layout.groups())?;
    let all: Vec<u64> = observer.nodes().collect();
    let leaders = observer.await_led(&all, PATIENCE).await?;
    screen.event(format!("all {} groups are led: {}", layout.groups(), shares(&leaders, &all)));
    let lacking = layout.lacking();
    screen.event(format!(
        "node {lacking} has no capability `{CAPABILITY}`, which the {} queues require",
        layout.queues
    ));
    Ok(observer)
}

fn shares(leaders: &BTreeMap<u64, Leader>, nodes: &[u64]) -> String {
    let each = nodes.iter().map(|node| format!("{} by node {node}", led_by(leaders, *node)));
    each.collect::<Vec<_>>().join(", ")
}

fn led_by(leaders: &BTreeMap<u64, Leader>, node: u64) -> usize {
    leaders.values().filter(|leader| leader.node == node).count()
}

fn sabotage(load: &mut Load, what: Option<Sabotage>) {
    match what {
        None => {}
        Some(Sabotage::Value) => load.book.flip_a_value(),
        Some(Sabotage::ForgottenMessage) => load.book.forget_a_message(),
        Some(Sabotage::InventedMessage) => load.book.invent_a_message(),
    }
}

/// The load and what happens meanwhile.
struct Act<'a> {
    nodes: &'a mut Nodes,
    observer: &'a Observer,
    screen: &'a Screen,
    drained: Option<Drained>,
}

/// What came of it.
struct Played {
    load: Load,
    rates: Rates,
    killed: u64,
    drained: Option<Drained>,
}

impl Act<'_> {
    /// Loads, kills, restarts; returns when the load is done and the killed host has caught up.
    async fn play(mut self, load: Load) -> anyhow::Result<Played> {
        let client = load::connect(self.nodes.addresses().values().cloned()).await?;
        let (lines, path) = (number(load.input.len() as u64), load.input.path.display());
        self.screen.event(format!("loading {lines} lines of {path} into table and queue"));
        let load = Arc::new(load);
        let rates = Rates::new();
        let running = load.start(&client);
        let observer = self.observer;
        let killed = tokio::select! {
            killed = self.disturb(&load, running) => killed?,
            () = rates.watch(observer) => bail!("the hosts are no longer watched"),
        };
        rates.end(observer).await;
        self.loaded(&load, &rates);
        observer.await_caught_up(killed, PATIENCE).await?;
        self.screen.event(format!("node {killed} has caught up with every group"));
        let load = Arc::into_inner(load).context("the load goes on")?;
        Ok(Played { load, rates, killed, drained: self.drained })
    }

    fn loaded(&self, load: &Load, rates: &Rates) {
        let acknowledged = number(load.tally.acknowledged());
        self.screen.event(format!("loaded: {acknowledged} writes in {}", seconds(rates.took())));
    }

    /// Kills the host that leads most and starts it again, then waits for the load to end.
    async fn disturb(
        &mut self,
        load: &Load,
        mut running: JoinSet<anyhow::Result<()>>,
    ) -> anyhow::Result<u64> {
        let mut progress = self.screen.progress("load", load.total());
        self.until(load, &mut progress, &mut running, KILL_AT_PERCENT, PATIENCE).await?;
        let killed = self.kill_the_busiest(load).await?;
        self.until(load, &mut progress, &mut running, RESTART_AT_PERCENT, RESTART_AFTER).await?;
        self.nodes.restart(killed).await?;
        self.screen.event(format!("node {killed} is back, at {}", percent(load)));
        self.until(load, &mut progress, &mut running, DRAIN_AT_PERCENT, RESTART_AFTER).await?;
        self.drain_another_than(killed, load).await?;
        while !running.is_empty() {
            self.until(load, &mut progress, &mut running, 101, PATIENCE).await?;
        }
        Ok(killed)
    }

    /// Until a part of the load is acknowledged, the load ended, or the time is over.
    async fn until(
        &mut self,
        load: &Load,
        progress: &mut Progress<'_>,
        running: &mut JoinSet<anyhow::Result<()>>,
        percent: u64,
        within: Duration,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        while load.tally.acknowledged() * 100 < load.total() * percent
            && !running.is_empty()
            && Instant::now() < deadline
        {
            self.nodes.check()?;
            progress.set(load.tally.acknowledged());
            while let Some(ended) = running.try_join_next() {
                ended.context("the load broke off")??;
            }
            tokio::time::sleep(LOOK).await;
        }
        progress.set(load.tally.acknowledged());
        Ok(())
    }

    /// Drains a host that has what the queues require while the load goes on, and lets it take
    /// leaderships again.
    async fn drain_another_than(&mut self, killed: u64, load: &Load) -> anyhow::Result<()> {
        let lacking = self.observer.nodes().max();
        let node = self.observer.nodes().find(|node| *node != killed && Some(*node) != lacking);
        let node = node.context("there is no host to drain")?;
        let address = self.nodes.addresses().get(&node).context("it has no address")?;
        let drained = drain::drain(node, address).await?;
        let at = percent(load);
        self.screen.event(format!(
            "node {node} handed {} leaderships on in {}, at {at}, and has {} left",
            number(drained.moved),
            seconds(drained.took),
            number(drained.left)
        ));
        self.drained = Some(drained);
        Ok(())
    }

    async fn kill_the_busiest(&mut self, load: &Load) -> anyhow::Result<u64> {
        let all: Vec<u64> = self.observer.nodes().collect();
        let leaders = self.observer.leaders(&all).await;
        let busiest = all.iter().copied().max_by_key(|node| led_by(&leaders, *node));
        let busiest = busiest.context("there is no node")?;
        let led = led_by(&leaders, busiest);
        self.nodes.kill(busiest).await?;
        let at = Instant::now();
        self.screen
            .event(format!("SIGKILL to node {busiest}, leader of {led}, at {}", percent(load)));
        let others: Vec<u64> = all.into_iter().filter(|node| *node != busiest).collect();
        let leaders = self.observer.await_led(&others, PATIENCE).await?;
        let (took, shares) = (seconds(at.elapsed()), shares(&leaders, &others));
        self.screen.event(format!("every group is led again {took} after the kill: {shares}"));
        Ok(busiest)
    }
}

fn percent(load: &Load) -> String {
    format!("{} % of the load", load.tally.acknowledged() * 100 / load.total().max(1))
}
