//! Three hosts restarted under load, and every write verified afterwards.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shardhost_client::Resend;

use super::CheckArguments;
use super::report::{Report, Step};
use crate::observe::Observer;
use crate::output::{number, seconds};
use crate::trial::balance::until_fair;
use crate::trial::input::Input;
use crate::trial::load::{self, Load};
use crate::trial::nodes::{Layout, Nodes};
use crate::trial::restart::restart;
use crate::trial::screen::Screen;
use crate::trial::under_load::under_load;
use crate::trial::verify::Verification;
use crate::trial::{TIMEOUT, interruption, temporary_directory};

/// How long the load runs before the first host is restarted, and after each.
const CALM: Duration = Duration::from_millis(500);

/// Runs the check. Whatever happens, no host and no data stay behind.
pub async fn run(arguments: &CheckArguments, json: bool) -> anyhow::Result<ExitCode> {
    let lines = arguments.lines.map(|lines| lines as usize);
    let input = Input::read(arguments.load.as_deref(), lines)?;
    let layout = Layout {
        nodes: 3,
        joining: 0,
        tables: arguments.shards,
        queues: arguments.shards,
        queues_require: None,
    };
    let directory = temporary_directory("shardhost-restart-", arguments.directory.as_deref())?;
    let mut nodes = Nodes::new(layout, directory.path());
    let screen = Screen::new(json);
    let checked = tokio::select! {
        checked = check(input, arguments.rate, layout, &mut nodes, &screen) => checked,
        interrupted = interruption() => Err(interrupted),
    };
    nodes.end().await;
    directory.close()?;
    let report = checked?;
    report.print(&screen, json);
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn check(
    input: Input,
    rate: u32,
    layout: Layout,
    nodes: &mut Nodes,
    screen: &Screen,
) -> anyhow::Result<Report> {
    nodes.start().await?;
    let ids = nodes.process_ids().into_iter();
    let each: Vec<_> = ids.map(|(node, id)| format!("node {node} (process {id})")).collect();
    screen.event(format!("hosts started: {}", each.join(", ")));
    let observer = Observer::new(nodes.addresses(), layout.shards())?;
    let leads = until_fair(&observer, None, TIMEOUT).await?;
    let each: Vec<_> = leads.iter().map(|(node, led)| format!("{led} by node {node}")).collect();
    screen.event(format!("all {} shards are led: {}", layout.shards(), each.join(", ")));
    // What fails although the client resends it, users see.
    let client = load::connect(nodes.addresses().values().cloned(), Resend::ExactlyOnce).await?;
    let load = Load::new(input, rate)?;
    screen.event(format!("writes begin, {} per second", number(rate.into())));
    let restarts = async |load: &Load| {
        tokio::time::sleep(CALM).await;
        restart_each(load, layout, nodes, &observer, screen).await
    };
    let (load, steps) = under_load(load, &client, screen, restarts).await?;
    let load = Arc::new(load);
    let addresses = nodes.addresses().values().cloned();
    let verification =
        Verification::new(Arc::clone(&load), layout, addresses, &observer, screen).await?;
    let verified = verification.run().await?;
    nodes.check()?;
    drop(verification);
    Ok(Report { steps, verified, layout, load })
}

async fn restart_each(
    load: &Load,
    layout: Layout,
    nodes: &mut Nodes,
    observer: &Observer,
    screen: &Screen,
) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for node in 1..=layout.nodes {
        let failed = load.tally.failed_tries();
        load.tally.take_longest();
        let began = Instant::now();
        let restarted = restart(node, nodes, observer).await?;
        screen.event(restarted.event());
        let leads = until_fair(observer, None, TIMEOUT).await?;
        let leads = leads.get(&node).copied().unwrap_or(0);
        let took = began.elapsed();
        screen.event(format!("node {node} leads {leads} again {} after its drain", seconds(took)));
        tokio::time::sleep(CALM).await;
        steps.push(Step {
            restarted,
            leads,
            took,
            pause: load.tally.take_longest(),
            failed: load.tally.failed_tries() - failed,
        });
    }
    Ok(steps)
}
