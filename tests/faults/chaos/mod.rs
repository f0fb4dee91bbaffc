//! A cluster of real processes under load, while things go wrong that are drawn from a seed.
//!
//! The table as clients saw it must be linearizable, no acknowledged message may be lost, doubled
//! or removed twice (`queues.rs`), no process may end that the test did not end, and when all is
//! healed every shard must be served within [`SERVED_WITHIN`].
//!
//! | variable | what it says | default |
//! |---|---|---|
//! | `CHAOS_SECONDS` | for how long things go wrong | 40 |
//! | `CHAOS_SEED` | the seed | 1 |
//! | `CHAOS_FAULTS` | what may go wrong, separated by commas ([`Kind::name`]) | all |
//! | `CHAOS_NODES` | hosts, 3 or more | 3 |
//!
//! What goes wrong and when depends on the seed only; what the processes make of it on the machine, too. A run
//! that fails keeps the data directories.

mod damage;
mod flood;
mod load;
mod mute;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use rustix::io::Errno;
use rustix::process::Signal;
use shardhost_client::Client;

use crate::cluster::Cluster;
use crate::road::Road;
use crate::shim::{Effect, Operations, Slot};
use damage::Damages;
use flood::Flood;
use load::Load;
use mute::Mute;
use plan::{Kind, Plan, Step};

/// After everything is healed.
const SERVED_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks whether a host gave up meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Until nothing is wrong with the cluster any more, after the last healing.
const WELL_WITHIN: Duration = Duration::from_secs(90);
/// The variant of a log that hangs in which it does not go on, but fails.
const FAILS_AT_LAST: u32 = 7;
/// What a host says that ends because its state does not go on.
const GAVE_UP: &str = "there is room again";
/// And what one says that is started meanwhile, and finds no room to open its state.
const NO_ROOM_AT_START: &str = "does not start: the state in";
/// A command of an operator, which may get no answer.
const COMMAND: Duration = Duration::from_secs(10);
/// What failed ends the host within.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
const TABLES: u64 = 4;
const QUEUES: u64 = 3;
/// Things that go wrong at a time.
const AT_A_TIME: usize = 2;
const CHECKING: Duration = Duration::from_secs(180);
/// A key whose value is large, for those who do not read it.
const LARGE_KEY: &str = "large";
const LARGE_BYTES: usize = 200 << 10;

/// How long, with what.
struct Settings {
    seconds: u64,
    seed: u64,
    kinds: Vec<Kind>,
    nodes: u64,
}

impl Settings {
    fn of_environment() -> Self {
        let number = |name: &str, default: u64| {
            std::env::var(name).map_or(default, |value| {
                value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}"))
            })
        };
        let kinds = std::env::var("CHAOS_FAULTS").ok().filter(|names| !names.is_empty());
        Self {
            seconds: number("CHAOS_SECONDS", 40),
            seed: number("CHAOS_SEED", 1),
            kinds: kinds.map_or_else(|| Kind::ALL.to_vec(), |names| Kind::parse(&names)),
            nodes: number("CHAOS_NODES", 3),
        }
    }

    /// How the run is repeated.
    fn command(&self) -> String {
        let Self { seconds, seed, nodes, .. } = self;
        let names: Vec<&str> = self.kinds.iter().map(|kind| kind.name()).collect();
        let faults = names.join(",");
        format!(
            "make chaos CHAOS_SECONDS={seconds} CHAOS_SEED={seed} CHAOS_NODES={nodes} \
             CHAOS_FAULTS={faults}"
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chaos_loses_nothing_and_ends_served() {
    let mut settings = Settings::of_environment();
    println!("{}", settings.command());
    let test = "chaos_loses_nothing_and_ends_served";
    let Some(mut cluster) = Cluster::new(test, settings.nodes, TABLES, QUEUES).await else {
        return;
    };
    if settings.kinds.contains(&Kind::Power)
        && let Err(why) = cluster.put_on_disks()
    {
        crate::machine::skipped(&format!("{test}: power"), &why);
        settings.kinds.retain(|kind| *kind != Kind::Power);
        if settings.kinds.is_empty() {
            return;
        }
    }
    let mut chaos = Chaos::new(cluster).await;
    let run = AssertUnwindSafe(chaos.run(&settings)).catch_unwind().await;
    let failure = match run {
        Ok(Ok(())) => return,
        Ok(Err(why)) => why,
        Err(panic) => format!("panicked: {}", words_of(&*panic)),
    };
    chaos.cluster.servers.keep_directory();
    let directory = chaos.cluster.servers.directory().display();
    panic!("{failure}\nthe data is kept in {directory}\nrepeat with: {}", settings.command());
}

/// What a panic says, but for the logs that may follow.
fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words");
    text.chars().take(2_000).collect()
}

/// Something that is wrong now.
struct Active {
    step: Step,
    until: Instant,
    clients: Option<Clients>,
}

/// Clients that are no good, until this is dropped.
enum Clients {
    Mute(#[expect(dead_code, reason = "it is held")] Mute),
    Flood(#[expect(dead_code, reason = "it is held")] Flood),
}

struct Chaos {
    cluster: Cluster,
    /// From one host to another.
    roads: BTreeMap<(u64, u64), Road>,
    active: Vec<Active>,
    /// Nodes whose end is expected.
    excused: BTreeSet<u64>,
    /// Nodes whose state was full: RocksDB may not continue, and then the host ends.
    was_full: BTreeSet<u64>,
    /// Nodes whose drain is yet to be ended.
    drained: BTreeSet<u64>,
    damages: Damages,
    began: Instant,
}

impl Chaos {
    async fn new(mut cluster: Cluster) -> Self {
        let mut roads = BTreeMap::new();
        let nodes: Vec<u64> = cluster.nodes().collect();
        for (from, to) in nodes.iter().flat_map(|from| nodes.iter().map(|to| (*from, *to))) {
            if from != to {
                let road = Road::new(cluster.servers.address(to).parse().unwrap()).await;
                cluster.servers.set_route(from, to, road.address().to_string());
                roads.insert((from, to), road);
            }
        }
        Self {
            cluster,
            roads,
            active: Vec::new(),
            excused: BTreeSet::new(),
            was_full: BTreeSet::new(),
            drained: BTreeSet::new(),
            damages: Damages::default(),
            began: Instant::now(),
        }
    }

    fn say(&self, what: &str) {
        println!("{:7.2} s  {what}", self.began.elapsed().as_secs_f64());
    }

    async fn run(&mut self, settings: &Settings) -> Result<(), String> {
        self.cluster.start_all();
        let nodes: Vec<u64> = self.cluster.nodes().collect();
        let control = self.cluster.client(&nodes, Duration::from_secs(5)).await;
        self.cluster.serves_all(&control, WELL_WITHIN).await;
        let large = control.table().put(LARGE_KEY, vec![7; LARGE_BYTES]).await;
        large.map_err(|error| error.to_string())?;
        let load = Load::start(&self.cluster).await;
        self.began = Instant::now();
        self.play(settings, &control).await?;
        let load = load.end().await?;
        self.say("the clients ended");
        let operations = load.tables.answered();
        let messages = load.queues.verify(&control).await?;
        let tables = Arc::clone(&load.tables);
        let checked = tokio::task::spawn_blocking(move || tables.verify(CHECKING)).await;
        let checked = checked.map_err(|error| error.to_string())??;
        self.await_well().await?;
        self.say(&format!(
            "all is well: {operations} operations answered of {checked}, linearizable; {messages} messages \
             acknowledged, none lost"
        ));
        self.cluster.servers.kill_all().await;
        Ok(())
    }

    async fn play(&mut self, settings: &Settings, control: &Client) -> Result<(), String> {
        let limit = Duration::from_secs(settings.seconds);
        for step in Plan::new(settings.seed, &settings.kinds, settings.nodes) {
            if self.began.elapsed() > limit {
                break;
            }
            let alone = self.active.iter().any(|active| active.step.takes_all());
            if !step.beside || alone || self.active.len() >= AT_A_TIME {
                let settles = self.active.iter().any(|active| active.step.settles);
                self.end_all().await?;
                if settles {
                    self.settle(control).await?;
                }
                tokio::time::sleep(step.pause).await;
            }
            self.restart_who_gave_up().await?;
            self.begin(step, control).await;
        }
        self.end_all().await?;
        self.settle(control).await
    }

    async fn begin(&mut self, step: Step, control: &Client) {
        self.say(&format!("begins: {step}"));
        let mut clients = None;
        let node = step.node;
        match step.kind {
            Kind::Kill => self.cluster.servers.kill(node).await,
            Kind::Power => self.lose_power(&step).await,
            Kind::Stop => self.cluster.servers.signal(node, Signal::STOP),
            Kind::Cut => self.cut(&step),
            Kind::MuteClients => clients = Some(Clients::Mute(self.mute(node, control).await)),
            Kind::Transfer => self.transfer(&step).await,
            Kind::Drain => self.drain(node).await,
            Kind::Damage => self.damage(&step).await,
            Kind::Descriptors => self.take_descriptors(&step),
            Kind::Flood => {
                let flood = Flood::connect(self.cluster.servers.address(node)).await;
                clients = Some(Clients::Flood(flood));
            }
            _ => self.lie(&step),
        }
        let until = Instant::now() + step.hold;
        self.active.push(Active { step, until, clients });
    }

    /// One host loses power, or all of them at one moment.
    async fn lose_power(&mut self, step: &Step) {
        let nodes = self.without_power(step);
        for node in &nodes {
            self.restart_if_ended(*node).await;
        }
        self.cluster.lose_power(&nodes).await;
    }

    fn without_power(&self, step: &Step) -> Vec<u64> {
        if step.takes_all() { self.cluster.nodes().collect() } else { vec![step.node] }
    }

    /// The host is down while a block of its state is damaged: what it holds in memory hides it.
    async fn damage(&mut self, step: &Step) {
        let (node, state) = (step.node, self.cluster.state(step.node));
        self.cluster.servers.kill(node).await;
        let damaged = self.damages.damage(&state, step.variant);
        self.cluster.faults(node).forget();
        self.cluster.servers.start(node, &[]);
        self.say(&match damaged {
            Some(file) => format!("damaged: {}", file.display()),
            None => format!("node {node} has no table left to be damaged"),
        });
    }

    /// No file can be opened, or only a few.
    fn take_descriptors(&self, step: &Step) {
        let more = (step.variant as usize % 4) * 2;
        self.cluster.servers.allow_more_files(step.node, more);
    }

    /// What the shim does.
    fn lie(&mut self, step: &Step) {
        let Step { kind, node, variant, .. } = *step;
        let faults = self.cluster.faults(node);
        let (log, state) = (self.cluster.log(node), self.cluster.state(node));
        let odd = variant % 2 == 1;
        let part = if odd { Operations::SYNC } else { Operations::CHANGES };
        let (slot, directory, operations, effect) = match kind {
            Kind::LogHangs => (Slot::Log, log, part, Effect::Hang),
            Kind::LogSlow => {
                let by = Duration::from_millis(20 + 40 * u64::from(variant));
                (Slot::Log, log, Operations::SYNC, Effect::Slow(by))
            }
            Kind::LogFails => {
                let error = if variant < 4 { Errno::IO } else { Errno::NOSPC };
                let part = if odd { Operations::SYNC } else { Operations::WRITE };
                (Slot::Log, log, part, Effect::Fail(error))
            }
            Kind::StateHangs => {
                let reads = if odd { Operations::READ } else { Operations::CHANGES };
                (Slot::State, state, Operations::CHANGES.and(reads), Effect::Hang)
            }
            Kind::StateFull => {
                let part = Operations::WRITE.and(Operations::NAMES);
                (Slot::State, state, part, Effect::Fail(Errno::NOSPC))
            }
            Kind::StateFails => {
                let part = Operations::WRITE.and(Operations::SYNC);
                (Slot::State, state, part, Effect::Fail(Errno::IO))
            }
            Kind::ClockAhead | Kind::ClockBehind => {
                let by = [60, 3_600, 3_600, 86_400][variant as usize % 4];
                faults.shift_clock(if kind == Kind::ClockAhead { by } else { -by });
                return;
            }
            _ => return,
        };
        faults.set(slot, &directory, operations, effect);
        if kind.may_end() {
            self.excused.insert(node);
        }
        if kind == Kind::StateFull {
            self.was_full.insert(node);
        }
    }

    /// The roads that a cut concerns: all of a node, all that begin there, or those to one other node.
    fn roads_of(&self, step: &Step) -> Vec<&Road> {
        let node = step.node;
        let other = node % self.cluster.nodes().count() as u64 + 1;
        let concerned = |(from, to): (u64, u64)| match step.variant % 3 {
            0 => from == node || to == node,
            1 => from == node,
            _ => (from, to) == (node, other) || (from, to) == (other, node),
        };
        self.roads.iter().filter(|(ends, _)| concerned(**ends)).map(|(_, road)| road).collect()
    }

    fn cut(&self, step: &Step) {
        self.roads_of(step).into_iter().for_each(Road::close);
    }

    async fn mute(&self, node: u64, control: &Client) -> Mute {
        let group = control.table().group_of(LARGE_KEY.as_bytes()).map_or(0, |group| group.get());
        Mute::connect(self.cluster.servers.address(node), group, LARGE_KEY).await
    }

    /// A command of an operator, which may come to nothing. Says whether it did not.
    async fn order(&self, arguments: &[&str]) -> bool {
        let at: Vec<&str> =
            self.cluster.nodes().map(|node| self.cluster.servers.address(node)).collect();
        let at = at.join(",");
        let arguments = [arguments, &["--at", &at]].concat();
        let ended = tokio::time::timeout(COMMAND, crate::process::run(&arguments)).await;
        ended.is_ok_and(|ended| ended.code == 0)
    }

    async fn transfer(&self, step: &Step) {
        let groups = self.cluster.groups().skip(step.variant as usize % 3).step_by(3);
        let to = step.node.to_string();
        for group in groups.map(|group| group.to_string()) {
            self.order(&["leader", "transfer", &group, "--to", &to]).await;
        }
    }

    async fn drain(&mut self, node: u64) {
        let id = node.to_string();
        let begun =
            ["drain", "begin", &id, "--no-wait", "--even-if-ineligible", "--expires", "120"];
        self.order(&begun).await;
        // One that seemed to fail may have begun.
        self.drained.insert(node);
    }

    /// Waits until everything that is wrong lasted as long as it was to, and heals it.
    async fn end_all(&mut self) -> Result<(), String> {
        for active in std::mem::take(&mut self.active) {
            tokio::time::sleep_until(active.until.into()).await;
            self.nobody_ended()?;
            self.end(&active.step).await;
            drop(active.clients);
            self.say(&format!("ends: {} at node {}", active.step.kind.name(), active.step.node));
        }
        Ok(())
    }

    async fn end(&mut self, step: &Step) {
        let node = step.node;
        match step.kind {
            Kind::Kill => {
                self.cluster.faults(node).forget();
                self.cluster.servers.start(node, &[]);
            }
            Kind::Power => {
                for node in self.without_power(step) {
                    self.cluster.servers.start(node, &[]);
                }
            }
            Kind::Stop => self.cluster.servers.signal(node, Signal::CONT),
            Kind::Cut => self.roads_of(step).into_iter().for_each(Road::open),
            Kind::ClockAhead | Kind::ClockBehind => self.cluster.faults(node).shift_clock(0),
            Kind::LogHangs if step.variant == FAILS_AT_LAST => self.fail_at_last(node).await,
            Kind::LogHangs | Kind::LogSlow => self.cluster.faults(node).heal(Slot::Log),
            Kind::StateHangs | Kind::StateFull => self.cluster.faults(node).heal(Slot::State),
            Kind::LogFails => self.end_failure(node, Slot::Log).await,
            Kind::StateFails => self.end_failure(node, Slot::State).await,
            Kind::Damage => {
                let address = self.cluster.servers.address(node);
                damage::read_all(address, self.cluster.groups()).await;
            }
            Kind::Descriptors => self.cluster.servers.allow_files(node),
            Kind::MuteClients | Kind::Transfer | Kind::Drain | Kind::Flood => {}
        }
    }

    /// What hung returns with an error.
    async fn fail_at_last(&mut self, node: u64) {
        self.excused.insert(node);
        self.cluster.faults(node).fail_what_hangs(Slot::Log, Errno::IO);
        let deadline = Instant::now() + ENDS_WITHIN;
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        while self.cluster.servers.ended(node).is_none() && Instant::now() < deadline {
            looks.tick().await;
        }
        self.end_failure(node, Slot::Log).await;
    }

    /// A host that saw a failure ends, and is started again.
    async fn end_failure(&mut self, node: u64, slot: Slot) {
        let faults = self.cluster.faults(node);
        faults.heal(slot);
        let seen = faults.hits(slot);
        let deadline = Instant::now() + if seen > 0 { ENDS_WITHIN } else { Duration::ZERO };
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        let mut ended = self.cluster.servers.ended(node);
        while ended.is_none() && Instant::now() < deadline {
            looks.tick().await;
            ended = self.cluster.servers.ended(node);
        }
        self.say(&format!("node {node} saw {seen} failures, and ended: {ended:?}"));
        self.restart_if_ended(node).await;
    }

    async fn restart_if_ended(&mut self, node: u64) {
        if self.cluster.servers.ended(node).is_some() {
            self.cluster.servers.kill(node).await;
            self.cluster.faults(node).forget();
            self.cluster.servers.start(node, &[]);
        }
    }

    /// No process ended that the test did not end.
    fn nobody_ended(&mut self) -> Result<(), String> {
        for node in self.cluster.nodes() {
            let Some(status) = self.cluster.servers.ended(node) else { continue };
            let log = self.cluster.servers.log(node);
            let no_room = log.contains(GAVE_UP) || log.contains(NO_ROOM_AT_START);
            let gave_up = self.was_full.contains(&node) && no_room;
            if !gave_up && !self.excused.contains(&node) {
                return Err(format!("node {node} ended unexpectedly with {status}: {log}"));
            }
        }
        Ok(())
    }

    /// Does what a supervisor of processes does.
    async fn restart_who_gave_up(&mut self) -> Result<(), String> {
        self.nobody_ended()?;
        for node in self.was_full.clone() {
            if self.cluster.servers.ended(node).is_some() {
                self.say(&format!("node {node} ended for lack of room for its state"));
                self.restart_if_ended(node).await;
            }
        }
        Ok(())
    }

    /// Everything is healed: every shard is served soon.
    async fn settle(&mut self, control: &Client) -> Result<(), String> {
        for node in std::mem::take(&mut self.excused) {
            self.restart_if_ended(node).await;
        }
        let began = Instant::now();
        self.restart_who_gave_up().await?;
        while !self.cluster.serves_within(control, LOOK_EVERY).await {
            if began.elapsed() > SERVED_WITHIN {
                return Err(format!(
                    "not every shard is served {SERVED_WITHIN:?} after the last healing"
                ));
            }
            self.restart_who_gave_up().await?;
        }
        self.say(&format!("every shard is served, {:?} after the last healing", began.elapsed()));
        while let Some(node) = self.drained.first().copied() {
            if self.order(&["drain", "end", &node.to_string()]).await {
                self.drained.remove(&node);
            } else if began.elapsed() > SERVED_WITHIN {
                return Err(format!("the drain of node {node} cannot be ended"));
            }
        }
        self.nobody_ended()
    }

    /// Nothing is wrong with the cluster, as an operator sees it.
    async fn await_well(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + WELL_WITHIN;
        let mut looks = tokio::time::interval(Duration::from_millis(500));
        loop {
            self.restart_who_gave_up().await?;
            let mut found = Vec::new();
            for node in self.cluster.nodes() {
                found.push(self.cluster.findings(node).await);
            }
            if found.iter().all(|found| found == "[]") {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("not well {WELL_WITHIN:?} after the last healing: {found:#?}"));
            }
            looks.tick().await;
        }
    }
}
