//! A cluster of the suite as its lines see it: nodes that start, stop and die, groups of
//! journals, and what to wait for.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use shardhost_storage::{GroupId, LogIndex, LogPosition, NodeId, Term};
use tokio::time::Instant;

use super::{Cluster, Disks, JournalDisk, Keeps, Links, Start, Unmet};
use crate::network::Network;
use shardhost_groups::completion::Applied;
use shardhost_groups::config::GroupsConfig;
use shardhost_groups::machine::StateMachine;
use shardhost_groups::runtime::{Group, GroupSpec, Groups, StateMachineBox};
use shardhost_groups::status::GroupStatus;

/// How long anything may take before it counts as never happening.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// What a world is made with.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Settings of all groups; the node is set for each host.
    pub config: GroupsConfig,
    /// What journals have after their host died.
    pub keeps: Keeps,
    /// Whether there are other groups at work, as many as the scale sets.
    pub others: bool,
}

/// A cluster under test.
pub struct World {
    cluster: Box<dyn Cluster>,
    nodes: Vec<NodeId>,
    plan: Plan,
    hosts: Mutex<BTreeMap<NodeId, Groups>>,
    journals: Arc<Mutex<BTreeMap<(NodeId, GroupId), JournalDisk>>>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World of {:?}", self.nodes)
    }
}

/// A replica that leads, as of when it was looked for.
#[derive(Clone, Debug)]
pub struct Leader {
    pub node: NodeId,
    pub term: Term,
    group: Group,
}

impl Deref for Leader {
    type Target = Group;

    fn deref(&self) -> &Group {
        &self.group
    }
}

impl World {
    /// A world whose nodes do not run yet.
    #[must_use]
    pub fn new(cluster: Box<dyn Cluster>, nodes: Vec<NodeId>, plan: Plan) -> Self {
        Self { cluster, nodes, plan, hosts: Mutex::default(), journals: Arc::default() }
    }

    // ---- nodes ----

    /// All nodes, running or not.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// All nodes but one.
    pub fn others(&self, node: NodeId) -> Vec<NodeId> {
        self.nodes.iter().copied().filter(|other| *other != node).collect()
    }

    /// So many ticks.
    pub fn ticks(&self, count: u32) -> Duration {
        self.plan.config.tick * count
    }

    /// Waits for nothing but time, to show that something does not happen meanwhile.
    pub async fn time_passes(&self, ticks: u32) {
        tokio::time::sleep(self.ticks(ticks)).await;
    }

    /// The shortest election timeout.
    pub fn election_timeout(&self) -> Duration {
        self.plan.config.election_timeout()
    }

    /// The settings.
    pub fn config(&self) -> &GroupsConfig {
        &self.plan.config
    }

    fn start_of(&self, node: NodeId) -> Start {
        let mut config = self.plan.config.clone();
        config.node = node;
        let (journals, keeps) = (Arc::clone(&self.journals), self.plan.keeps);
        let machines = move |group| {
            let mut journals = journals.lock();
            let disk = journals.entry((node, group)).or_insert_with(|| JournalDisk::new(keeps));
            Box::new(disk.open()) as Box<dyn StateMachine>
        };
        Start { node, config, machines: Arc::new(machines) }
    }

    /// Starts a node and opens every group that it holds.
    pub async fn start(&self, node: NodeId) {
        let started = self.cluster.start(self.start_of(node)).await;
        self.adopt(node, started);
        self.open_all(node).await;
    }

    /// Starts a node and opens none of its groups.
    pub async fn start_closed(&self, node: NodeId) {
        let started = self.cluster.start(self.start_of(node)).await;
        self.adopt(node, started);
    }

    /// As [`World::start`], at another address.
    pub async fn start_elsewhere(&self, node: NodeId) -> Result<(), Unmet> {
        let start = self.cluster.start_elsewhere(self.start_of(node));
        let started = start.ok_or(Unmet("hosts that move to another address"))?.await;
        self.adopt(node, started);
        self.open_all(node).await;
        Ok(())
    }

    /// Tries to start a node on the data of another one that does not run.
    pub async fn start_on_data_of(&self, node: NodeId, owner: NodeId) -> Result<String, Unmet> {
        let started = self.cluster.start_on_data_of(self.start_of(node), owner);
        let started = started.ok_or(Unmet("data that the wrong node could take"))?.await;
        Ok(started.expect_err("a node starts on the data of another one"))
    }

    fn adopt(&self, node: NodeId, started: Result<Groups, String>) {
        let groups = started.unwrap_or_else(|error| panic!("{node:?} does not start: {error}"));
        self.hosts.lock().insert(node, groups);
    }

    async fn open_all(&self, node: NodeId) {
        let stored = self.host(node).stored().expect("the log can be read");
        for meta in stored {
            self.open(node, meta.group).await;
        }
    }

    /// Stops a node in order.
    pub async fn stop(&self, node: NodeId) {
        self.hosts.lock().remove(&node);
        self.cluster.stop(node).await;
    }

    /// Kills a node.
    pub async fn kill(&self, node: NodeId) -> Result<(), Unmet> {
        let kill = self.cluster.kill(node).ok_or(Unmet("hosts that can be killed"))?;
        self.hosts.lock().remove(&node);
        kill.await;
        for ((of, _), journal) in self.journals.lock().iter() {
            if *of == node {
                journal.crash();
            }
        }
        Ok(())
    }

    /// Kills every node at the same time and starts them again.
    pub async fn kill_and_start_all(&self) -> Result<(), Unmet> {
        let kills: Vec<_> = self.nodes.iter().map(|node| self.kill(*node)).collect();
        for killed in futures::future::join_all(kills).await {
            killed?;
        }
        for node in &self.nodes {
            self.start(*node).await;
        }
        Ok(())
    }

    /// Stops everything.
    pub async fn end(&self) {
        for node in &self.nodes {
            self.release_journals(*node);
            self.stop(*node).await;
        }
    }

    /// Blocked state machines would keep their host from stopping.
    fn release_journals(&self, node: NodeId) {
        let journals = self.journals.lock();
        journals.iter().filter(|((of, _), _)| *of == node).for_each(|(_, one)| one.release());
    }

    /// The groups of a running node.
    pub fn host(&self, node: NodeId) -> Groups {
        let host = self.hosts.lock().get(&node).cloned();
        host.unwrap_or_else(|| panic!("{node:?} does not run"))
    }

    // ---- trouble ----

    /// Trouble between nodes.
    pub fn links(&self) -> Result<&dyn Links, Unmet> {
        self.cluster.links().ok_or(Unmet("links that can be cut"))
    }

    /// Cuts a node off from all others.
    pub fn isolate(&self, node: NodeId) -> Result<(), Unmet> {
        let links = self.links()?;
        for other in self.others(node) {
            links.cut_one_way(node, other);
            links.cut_one_way(other, node);
        }
        Ok(())
    }

    /// The network, for messages that are held back or counted.
    pub fn network(&self) -> Result<&Network, Unmet> {
        self.cluster.network().ok_or(Unmet("messages that can be held back and counted"))
    }

    /// Faults of disks.
    pub fn disks(&self) -> Result<&dyn Disks, Unmet> {
        self.cluster.disks().ok_or(Unmet("disks that fail on command"))
    }

    // ---- groups ----

    /// Creates a group with a voter on every node.
    pub async fn create(&self, group: GroupId) {
        self.create_on(group, &self.nodes).await;
    }

    /// Creates a group with voters on these nodes.
    pub async fn create_on(&self, group: GroupId, voters: &[NodeId]) {
        let spec = GroupSpec::new(group, voters.iter().copied());
        for node in voters {
            let created = self.try_create(*node, spec.clone()).await;
            created.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// Creates one replica.
    pub async fn try_create(
        &self,
        node: NodeId,
        spec: GroupSpec,
    ) -> Result<Group, shardhost_groups::OpenGroupError> {
        let (groups, machine) = (self.host(node), self.machine(node, spec.id));
        blocking(move || groups.create(spec, machine)).await
    }

    /// Opens a replica that the log holds.
    pub async fn open(&self, node: NodeId, group: GroupId) -> Group {
        let (groups, machine) = (self.host(node), self.machine(node, group));
        let opened = blocking(move || groups.open(group, machine)).await;
        opened.unwrap_or_else(|error| panic!("{node:?} does not open {group:?}: {error}"))
    }

    fn machine(&self, node: NodeId, group: GroupId) -> StateMachineBox {
        Box::new(self.journal(node, group).open())
    }

    /// The journal of a replica.
    pub fn journal(&self, node: NodeId, group: GroupId) -> JournalDisk {
        let mut journals = self.journals.lock();
        journals.entry((node, group)).or_insert_with(|| JournalDisk::new(self.plan.keeps)).clone()
    }

    /// A replica on a running node.
    pub fn replica(&self, node: NodeId, group: GroupId) -> Group {
        let replica = self.host(node).group(group);
        replica.unwrap_or_else(|| panic!("{node:?} holds no replica of {group:?}"))
    }

    /// The replicas on all running nodes.
    pub fn replicas(&self, group: GroupId) -> Vec<(NodeId, Group)> {
        let hosts = self.hosts.lock().clone();
        let replicas = hosts.iter().filter_map(|(node, host)| Some((*node, host.group(group)?)));
        replicas.collect()
    }

    /// Whether every node runs and holds an open replica.
    pub fn is_everywhere(&self, group: GroupId) -> bool {
        self.replicas(group).len() == self.nodes.len()
    }

    /// The status of every replica, for people.
    pub fn statuses(&self, group: GroupId) -> String {
        let one = |(node, replica): (NodeId, Group)| {
            let status = replica.status();
            format!(
                "\n  {node:?}: {} of {:?}, leader {:?}, log {} to {}, committed {}, applied {}, \
                 snapshot {:?}, {}",
                status.role.name(),
                status.term,
                status.leader.map(|hint| hint.node),
                status.first,
                status.last,
                status.committed,
                status.applied,
                status.snapshot,
                if status.serving { "serves" } else { "does not serve" },
            )
        };
        self.replicas(group).into_iter().map(one).collect()
    }

    /// The replica that leads and serves, in the newest term. Waits for one.
    pub async fn leader(&self, group: GroupId) -> Leader {
        self.leader_among(group, &self.nodes).await
    }

    /// As [`World::leader`], on one of these nodes.
    pub async fn leader_among(&self, group: GroupId, nodes: &[NodeId]) -> Leader {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let replicas = self.replicas(group).into_iter();
            let leaders = replicas.filter(|(node, _)| nodes.contains(node)).filter_map(|one| {
                let status = one.1.status();
                status.serving.then(|| Leader { node: one.0, term: status.term, group: one.1 })
            });
            if let Some(leader) = leaders.max_by_key(|leader| leader.term) {
                return leader;
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "nobody leads {group:?} on {nodes:?}:{}", self.statuses(group));
            pause().await;
        }
    }

    /// The replicas that do not lead, once they know who does.
    pub async fn followers(&self, leader: &Leader) -> Vec<(NodeId, Group)> {
        let mut others = self.replicas(leader.id());
        others.retain(|(node, _)| *node != leader.node);
        for (_, replica) in &others {
            reached(replica, "knows the leader", |status| {
                status.leader.is_some_and(|hint| hint.node == leader.node)
            })
            .await;
        }
        others
    }

    /// Proposes a command that no journal holds yet to the leader, until it is applied, once.
    pub async fn propose(&self, group: GroupId, command: impl Into<Bytes>) -> Applied {
        let command = command.into();
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let leader = self.leader(group).await;
            let error = match answered("a proposal", leader.propose(command.clone())).await {
                Ok(applied) => return applied,
                Err(error) => error,
            };
            if !error.is_definite()
                && let Some(position) = self.outcome_of(group, &command, leader.term).await
            {
                return Applied::new(position.index, position.term, Bytes::new());
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "{command:?}: {error}{}", self.statuses(group));
            pause().await;
        }
    }

    /// Where a command stands that was proposed in a term and whose outcome is unknown; `None`:
    /// nowhere. The first entry of a later leader decides about everything before it.
    async fn outcome_of(
        &self,
        group: GroupId,
        command: &Bytes,
        proposed_in: Term,
    ) -> Option<LogPosition> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let leader = self.leader(group).await;
            let contents = self.journal(leader.node, group).contents();
            let found = contents.commands.iter().find(|(_, held)| held == command);
            if let Some((position, _)) = found {
                return Some(*position);
            }
            // It serves, so it applied that entry before we looked.
            if leader.term > proposed_in {
                return None;
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "{command:?} stays unknown:{}", self.statuses(group));
            pause().await;
        }
    }

    /// Proposes a command to the leader until it is applied, however often. Returns its last
    /// position.
    pub async fn nudge(&self, group: GroupId, command: &'static str) -> LogIndex {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let leader = self.leader(group).await;
            match answered("a proposal", leader.propose(command)).await {
                Ok(applied) => return applied.index,
                Err(error) => {
                    let late = Instant::now() >= deadline;
                    assert!(!late, "{command:?}: {error}{}", self.statuses(group));
                }
            }
        }
    }

    /// Proposes `prefix` with each of these numbers.
    pub async fn propose_many(
        &self,
        group: GroupId,
        prefix: &str,
        numbers: std::ops::Range<u32>,
    ) -> Vec<String> {
        let commands: Vec<_> = numbers.map(|number| format!("{prefix}{number}")).collect();
        for command in &commands {
            self.propose(group, command.clone()).await;
        }
        commands
    }

    /// Proposes commands until a condition without a notification holds.
    pub async fn propose_until(&self, group: GroupId, what: &str, reached: impl Fn() -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        for number in 0_u32.. {
            if reached() {
                return;
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "never came to be: {what}:{}", self.statuses(group));
            self.propose(group, format!("until{number}")).await;
        }
    }

    /// Waits until every running replica applied what the leader has, and demands that all their
    /// journals are equal. Returns the commands.
    pub async fn settled(&self, group: GroupId) -> Vec<String> {
        let last = self.nudge(group, "settled").await;
        self.applied_everywhere(group, last).await;
        let mut texts = self.equal_texts(group);
        texts.retain(|text| text != "settled");
        texts
    }

    /// Waits until every running replica applied this.
    pub async fn applied_everywhere(&self, group: GroupId, index: LogIndex) {
        for (node, replica) in self.replicas(group) {
            let what = format!("{node:?} applied {index}");
            reached(&replica, &what, |status| status.applied >= index).await;
        }
    }

    fn equal_texts(&self, group: GroupId) -> Vec<String> {
        let replicas = self.replicas(group);
        let texts: Vec<_> = replicas
            .iter()
            .map(|(node, _)| self.journal(*node, group).contents().commands)
            .collect();
        let shortest = texts.iter().map(Vec::len).min().unwrap_or(0);
        for other in &texts {
            assert_eq!(other[..shortest], texts[0][..shortest], "replicas differ");
        }
        let shortest = texts.into_iter().min_by_key(Vec::len).unwrap_or_default();
        shortest.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).collect()
    }
}

/// Waits for a state of a replica.
#[track_caller]
pub fn reached<'a>(
    replica: &'a Group,
    what: &'a str,
    condition: impl FnMut(&GroupStatus) -> bool + 'a,
) -> impl Future<Output = Arc<GroupStatus>> + 'a {
    let place = std::panic::Location::caller();
    async move {
        let met = replica.wait_for(condition, TIMEOUT).await;
        let status = replica.status();
        met.unwrap_or_else(|| panic!("{place}: never came to be: {what}: {status:?}"))
    }
}

/// Waits for anything.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "never came to be: {what}");
        pause().await;
    }
}

/// Waits for an answer, but not for ever.
pub async fn answered<T>(what: &str, answer: impl IntoFuture<Output = T>) -> T {
    let answer = tokio::time::timeout(TIMEOUT, answer.into_future()).await;
    answer.unwrap_or_else(|_| panic!("never answered: {what}"))
}

/// Between two looks at a condition without a notification.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

/// Runs something that blocks.
pub async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(run).await.expect("it panicked")
}
