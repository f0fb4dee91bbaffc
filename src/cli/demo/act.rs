//! The demo itself: start, load, kill, join, lose, restart, verify, report.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use shardhost_client::Resend;

use super::join::{self, Joined, Shares};
use super::loss::{self, Loss};
use super::rates::Rates;
use super::report::Report;
use super::service::{CAPABILITY, ServiceWatch};
use super::{DemoArguments, Sabotage};
use crate::observe::{Leader, Observer};
use crate::output::{number, seconds};
use crate::trial::TIMEOUT;
use crate::trial::input::Input;
use crate::trial::load::{self, Load};
use crate::trial::nodes::{Layout, Nodes};
use crate::trial::restart::{self, Restarted};
use crate::trial::screen::Screen;
use crate::trial::shares::leads;
use crate::trial::under_load::under_load;
use crate::trial::verify::Verification;

/// How long the load runs before something happens.
const CALM: Duration = Duration::from_millis(500);

/// Runs all of it, on hosts that the caller ends.
pub async fn run(
    arguments: &DemoArguments,
    layout: Layout,
    input: Input,
    nodes: &mut Nodes,
    screen: &Screen,
) -> anyhow::Result<ExitCode> {
    let observer = start(layout, nodes, screen).await?;
    let watch = ServiceWatch::begin(layout.nodes, &observer);
    let client = load::connect(nodes.addresses().values().cloned(), Resend::Never).await?;
    let (lines, path) = (number(input.len() as u64), input.path.display());
    let rate = number(arguments.rate.into());
    screen.event(format!("{lines} lines of {path} go into table and queue, {rate} writes/s"));
    let load = Load::new(input, arguments.rate)?;
    let rates = Rates::new();
    let mut act = Act { nodes, observer: &observer, screen, layout };
    let play = async |load: &Load| {
        tokio::select! {
            played = act.play(load) => played,
            () = rates.watch(&observer) => bail!("the hosts are no longer watched"),
        }
    };
    let (mut load, mut played) = under_load(load, &client, screen, play).await?;
    rates.end(&observer).await;
    // What was lost is not asked any more.
    let observer = Observer::new(&nodes.running(), layout.shards())?;
    let placement = Shares::look(played.joined.node, &layout, &observer).await?;
    sabotage(&mut load, &mut played, arguments.sabotage);
    let load = Arc::new(load);
    let addresses = nodes.running().into_values();
    let verification =
        Verification::new(Arc::clone(&load), layout, addresses, &observer, screen).await?;
    let verified = verification.run().await?;
    nodes.check()?;
    let watched = watch.end();
    screen.event("verified");
    let report = Report {
        layout,
        load: &load,
        rates: &rates,
        verified: &verified,
        addresses: nodes.addresses(),
        screen,
        played: &played,
        placement: &placement,
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
    let each = ids.iter().map(|(node, process)| {
        let address = nodes.address(*node).unwrap_or_default();
        format!("node {node} at {address} (process {process})")
    });
    screen.event(format!(
        "{} hosts started: {}",
        layout.nodes,
        each.collect::<Vec<_>>().join(", ")
    ));
    let observer = Observer::new(nodes.addresses(), layout.shards())?;
    let leaders = observer.await_led(TIMEOUT).await?;
    screen.event(format!("all {} shards are led: {}", layout.shards(), shares(&leaders, layout)));
    screen.event(format!(
        "node {} has no capability `{CAPABILITY}`, which the {} queues require",
        layout.nodes, layout.queues
    ));
    Ok(observer)
}

fn shares(leaders: &BTreeMap<u64, Leader>, layout: Layout) -> String {
    let nodes: Vec<u64> = (1..=layout.nodes).collect();
    let leads = leads(leaders, &nodes);
    let each = leads.iter().map(|(node, count)| format!("{count} by node {node}"));
    each.collect::<Vec<_>>().join(", ")
}

fn sabotage(load: &mut Load, played: &mut Played, what: Option<Sabotage>) {
    match what {
        None => {}
        Some(Sabotage::Value) => load.book.flip_a_value(),
        Some(Sabotage::ForgottenMessage) => load.book.forget_a_message(),
        Some(Sabotage::InventedMessage) => load.book.invent_a_message(),
        Some(Sabotage::EmptyHost) => played.joined.shares.forget(),
        Some(Sabotage::MissingReplica) => played.loss.forget(),
    }
}

/// Events under load.
struct Act<'a> {
    nodes: &'a mut Nodes,
    observer: &'a Observer,
    screen: &'a Screen,
    layout: Layout,
}

/// The result.
#[derive(Clone, Debug)]
pub struct Played {
    pub killed: u64,
    pub joined: Joined,
    pub loss: Loss,
    /// All hosts that are left, one after the other.
    pub restarted: Vec<Restarted>,
}

impl Act<'_> {
    async fn play(&mut self, load: &Load) -> anyhow::Result<Played> {
        tokio::time::sleep(CALM).await;
        let killed = self.kill_the_busiest(load).await?;
        let joiner = *self.layout.joiners().start();
        let joined =
            join::join(joiner, self.nodes, &self.layout, self.observer, self.screen).await?;
        let lost = self.one_to_lose(killed).await?;
        let loss = loss::lose(lost, self.nodes, &self.layout, load, self.screen).await?;
        let restarted = self.restart_each().await?;
        Ok(Played { killed, joined, loss, restarted })
    }

    /// The busiest of the first hosts that was not killed before and can lead everything: it holds a
    /// replica of the catalog, too.
    async fn one_to_lose(&self, killed: u64) -> anyhow::Result<u64> {
        let leaders = self.observer.await_led(TIMEOUT).await?;
        let first = (1..=self.layout.nodes).filter(|node| Some(*node) != self.layout.lacking());
        let nodes: Vec<u64> = first.filter(|node| *node != killed).collect();
        let leads = leads(&leaders, &nodes);
        let busiest = nodes.into_iter().max_by_key(|node| leads.get(node).copied());
        busiest.context("there is no node to lose")
    }

    /// Kills the host that leads most, waits until the others lead everything, and starts it again.
    async fn kill_the_busiest(&mut self, load: &Load) -> anyhow::Result<u64> {
        let leaders = self.observer.await_led(TIMEOUT).await?;
        let nodes: Vec<u64> = (1..=self.layout.nodes).collect();
        let leads = leads(&leaders, &nodes);
        let busiest = leads.into_iter().max_by_key(|(_, count)| *count);
        let (busiest, led) = busiest.context("there is no node")?;
        self.nodes.kill(busiest).await?;
        let at = Instant::now();
        let writes = number(load.tally.acknowledged());
        self.screen
            .event(format!("SIGKILL to node {busiest}, leader of {led}, after {writes} writes"));
        let leaders = self.observer.await_led(TIMEOUT).await?;
        let (took, shares) = (seconds(at.elapsed()), shares(&leaders, self.layout));
        self.screen.event(format!("every shard is led again {took} after the kill: {shares}"));
        self.nodes.restart(busiest).await?;
        self.observer.await_caught_up(busiest, TIMEOUT).await?;
        self.screen.event(format!("node {busiest} is back and has caught up with every shard"));
        Ok(busiest)
    }

    /// Restarts the hosts that are left, one after the other, without client-visible errors: a group that
    /// lacked a replica would not serve meanwhile.
    async fn restart_each(&mut self) -> anyhow::Result<Vec<Restarted>> {
        let left = self.nodes.running();
        let observer = Observer::new(&left, self.layout.shards())?;
        let mut all = Vec::new();
        for node in left.into_keys() {
            let restarted = restart::restart(node, self.nodes, &observer).await?;
            self.screen.event(restarted.event());
            all.push(restarted);
        }
        let lacking = self.layout.lacking();
        join::spread(lacking, &observer, self.screen).await?;
        Ok(all)
    }
}
