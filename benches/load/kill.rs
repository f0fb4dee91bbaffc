//! How long groups are without a leader that serves when the node that leads all of them is killed.
//!
//! The survivors note when they see that the node is gone, and when each group serves again. The
//! time between the two is the group's: an election, and the application of inherited entries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shardhost::leadership::{HookGuard, HookKind, LeadershipEvent};
use shardhost::{GroupSelector, Host, NodeId};

use super::crowd::{CrowdArguments, LEADER, OTHERS, TIMEOUT};
use super::flow::{Flow, FlowTask};
use super::member::Member;
use super::nodes::{Nodes, Order, Usage};
use super::part::Part;
use super::process::now_ns;
use super::report::{self, Latencies};
use super::task::Task;

/// How the benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct KillArguments {
    /// Writes per second to groups by chance, which keeps some of them awake; 0: all hibernate.
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
    #[command(flatten)]
    pub crowd: CrowdArguments,
}

/// Between two looks at whether all groups serve.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Between two looks at whether a node is gone: the error of that moment.
const DETECT_EVERY: Duration = Duration::from_micros(500);
/// How long writes flow before the kill.
const WARM_UP: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillTask {
    /// Note when this node is gone, and when groups serve here.
    Watch {
        node: u64,
    },
    /// Say how many groups serve here that did not.
    Count,
    Report,
}

/// What a survivor noted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Noted {
    /// When it saw that the node is gone, on the clock of this machine; 0: not yet.
    detected_ns: u64,
    /// How many groups serve here, and how many of them did before.
    count: u64,
    before: u64,
    /// When each of them did; only in the last report.
    served_ns: BTreeMap<u64, u64>,
    /// How long a follower waits for its leader at least.
    election_timeout_ms: u64,
}

/// A survivor's part.
#[derive(Default)]
pub struct KillNode {
    watch: Option<Watch>,
}

struct Watch {
    detected_ns: Arc<AtomicU64>,
    served_ns: Arc<Mutex<BTreeMap<u64, u64>>>,
    /// Groups that served here already.
    before: u64,
    stop: Arc<AtomicBool>,
    _hook: HookGuard,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Task for KillTask {
    const NAME: &'static str = "kill";
    type Answer = Noted;
}

impl Part for KillNode {
    type Task = KillTask;

    async fn execute(&mut self, task: KillTask, node: &mut Member) -> anyhow::Result<Noted> {
        let host = &node.running()?.host;
        if let KillTask::Watch { node } = task {
            let node = NodeId::new(node).context("nodes are numbered from 1")?;
            self.watch = Some(Watch::begin(host, node)?);
            return Ok(Noted::default());
        }
        let watch = self.watch.as_ref().context("nothing is watched")?;
        let config = &host.config().groups;
        let served = watch.served_ns.lock();
        Ok(Noted {
            detected_ns: watch.detected_ns.load(Ordering::Relaxed),
            count: watch.before + served.len() as u64,
            before: watch.before,
            served_ns: match task {
                KillTask::Report => served.clone(),
                KillTask::Watch { .. } | KillTask::Count => BTreeMap::new(),
            },
            election_timeout_ms: u64::try_from(config.tick.as_millis())?
                * u64::from(config.election_ticks),
        })
    }
}

impl Watch {
    fn begin(host: &Host, node: NodeId) -> anyhow::Result<Self> {
        let detected_ns = Arc::new(AtomicU64::new(0));
        let (served_ns, stop) = (Arc::<Mutex<BTreeMap<u64, u64>>>::default(), Arc::default());
        let served = Arc::clone(&served_ns);
        let note = move |event: &LeadershipEvent| {
            if let (LeadershipEvent::Ready(ready), Ok(now)) = (event, now_ns()) {
                served.lock().entry(ready.group.get()).or_insert(now);
            }
        };
        let hook = host.on_leadership(GroupSelector::All, HookKind::Inline, note);
        // Groups that were led here before are reported at once, and are nothing new.
        let before = std::mem::take(&mut *served_ns.lock()).len() as u64;
        let watch = Self { detected_ns, served_ns, before, stop, _hook: hook };
        let (host, detected) = (host.clone(), Arc::clone(&watch.detected_ns));
        let stop = Arc::clone(&watch.stop);
        let look = move || await_gone(&host, node, &detected, &stop);
        std::thread::Builder::new().name("detect".to_owned()).spawn(look)?;
        Ok(watch)
    }
}

fn await_gone(host: &Host, node: NodeId, detected_ns: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let stats = host.transport_stats();
        let lives = stats.peers.iter().any(|peer| peer.node == node && peer.live);
        if let (false, Ok(now)) = (lives, now_ns()) {
            return detected_ns.store(now, Ordering::Relaxed);
        }
        std::thread::sleep(DETECT_EVERY);
    }
}

/// Runs the benchmark and reports.
pub async fn run(arguments: &KillArguments) -> anyhow::Result<()> {
    let (mut nodes, _data) = arguments.crowd.gather().await?;
    if arguments.rate == 0 {
        nodes.all(&Order::AwaitHibernation, TIMEOUT).await?;
    } else {
        let flow = Flow::to_counters(arguments.crowd.groups, now_ns()?);
        let flow = Flow { rate: arguments.rate, ..flow };
        nodes.all_do(&FlowTask::Begin(flow), TIMEOUT).await?;
        tokio::time::sleep(WARM_UP).await;
    }
    for node in OTHERS {
        nodes.one_does(node, &KillTask::Watch { node: LEADER }, TIMEOUT).await?;
    }
    nodes.usage().await?;
    let killed_ns = now_ns()?;
    nodes.kill_one(LEADER).await?;
    await_served(&mut nodes, arguments.crowd.groups).await?;
    let usage = nodes.usage().await?;
    let mut told = Vec::new();
    for node in OTHERS {
        told.push(nodes.one_does(node, &KillTask::Report, TIMEOUT).await?);
    }
    nodes.end().await?;
    report::print(&figures(arguments, killed_ns, &told, &usage)?, arguments.crowd.output.json);
    Ok(())
}

async fn await_served(nodes: &mut Nodes, groups: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let mut served = 0;
        for node in OTHERS {
            served += nodes.one_does(node, &KillTask::Count, TIMEOUT).await?.count;
        }
        if served >= groups {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{served} of {groups} groups serve again");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn figures(
    arguments: &KillArguments,
    killed_ns: u64,
    told: &[Noted],
    usage: &[Usage],
) -> anyhow::Result<serde_json::Value> {
    let mut first: BTreeMap<u64, u64> = BTreeMap::new();
    for (group, at) in told.iter().flat_map(|noted| &noted.served_ns) {
        first.entry(*group).and_modify(|known| *known = (*known).min(*at)).or_insert(*at);
    }
    let before: u64 = told.iter().map(|noted| noted.before).sum();
    ensure!(
        first.len() as u64 + before >= arguments.crowd.groups,
        "only {} groups served",
        first.len()
    );
    let detected: Vec<u64> = told.iter().map(|noted| noted.detected_ns).collect();
    ensure!(!detected.contains(&0), "a survivor never saw that the node was gone");
    // A candidate needs the vote of the other survivor, which must know too.
    let known = detected.iter().copied().max().unwrap_or(killed_ns);
    let since = |from: u64| Latencies::of(first.values().map(|at| (at.saturating_sub(from), 1)));
    let (of_kill, beyond) = (since(killed_ns), since(known));
    let ms = |nanoseconds: u64| nanoseconds as f64 / 1e6;
    let sum = |pick: &dyn Fn(&Usage) -> f64| usage.iter().map(pick).sum::<f64>();
    Ok(json!({
        "groups": arguments.crowd.groups,
        "led_by_the_killed": first.len(),
        "rate": arguments.rate,
        "detected_first_ms": ms(detected.iter().min().unwrap_or(&0).saturating_sub(killed_ns)),
        "detected_last_ms": ms(known.saturating_sub(killed_ns)),
        "served_after_kill_p50_ms": ms(of_kill.quantile(0.5)),
        "served_after_kill_p99_ms": ms(of_kill.quantile(0.99)),
        "served_after_kill_max_ms": ms(of_kill.quantile(1.0)),
        "beyond_detection_p50_ms": ms(beyond.quantile(0.5)),
        "beyond_detection_p99_ms": ms(beyond.quantile(0.99)),
        "beyond_detection_max_ms": ms(beyond.quantile(1.0)),
        "election_timeout_ms": told.iter().map(|noted| noted.election_timeout_ms).max(),
        "led_by_second": told.first().map(|noted| noted.count),
        "led_by_third": told.last().map(|noted| noted.count),
        "cpu_seconds_of_survivors": sum(&|one| one.cpu_seconds),
        "log_writes_of_survivors": sum(&|one| one.log_writes as f64),
        "groups_per_log_write": sum(&|one| one.log_group_writes as f64)
            / sum(&|one| one.log_writes as f64).max(1.0),
    }))
}
