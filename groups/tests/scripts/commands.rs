//! What each command of a script does. The list with explanations stands in `main.rs`.

use bytes::Bytes;
use datadriven::TestCase;
use shardhost_groups::config::GroupsConfig;
use shardhost_groups::core::Proposal;
use shardhost_groups::leadership::LossCause;
use shardhost_groups::storage::{Member, SnapshotFault, StoreFault};
use shardhost_groups::worker::Input;
use shardhost_groups::{GroupId, LogIndex, Membership, NodeId, ReplicaId, Term};

use crate::arguments::Arguments;
use crate::cluster::{Cluster, Done};
use crate::forge;
use crate::network::{Fate, Pattern};
use crate::node::Part;
use crate::words;

/// What a trace says of a command that cannot be carried out.
pub const MISTAKE: &str = "mistake: ";

/// One script while it runs.
#[derive(Default)]
pub struct Script {
    cluster: Option<Cluster>,
}

impl Script {
    /// Runs one command and gives its trace.
    pub fn run(&mut self, case: &mut TestCase) -> String {
        let mut lines = match self.command(case) {
            Ok(true) => Vec::new(),
            Ok(false) => self.cluster.as_mut().map(Cluster::take_trace).unwrap_or_default(),
            Err(mistake) => vec![format!("{MISTAKE}{mistake}")],
        };
        if let Some(cluster) = self.cluster.as_mut() {
            cluster.take_trace();
        }
        lines.iter_mut().for_each(|line| line.push('\n'));
        lines.concat()
    }

    /// Whether the trace is not to be shown.
    fn command(&mut self, case: &mut TestCase) -> Result<bool, String> {
        let command = case.directive.clone();
        let mut arguments = Arguments(case);
        let quiet = arguments.flag("quiet")?;
        if command == "cluster" {
            self.cluster = Some(create(&mut arguments)?);
        }
        let cluster = self.cluster.as_mut().ok_or("a script begins with a cluster")?;
        cluster.command(&command, &mut arguments)?;
        case.expect_empty().map_err(|error| error.to_string())?;
        Ok(quiet)
    }
}

fn create(arguments: &mut Arguments<'_>) -> Result<Cluster, String> {
    let nodes: Option<u64> = arguments.maybe("nodes")?;
    let mut voters = arguments.nodes("voters")?;
    voters.extend((1..=nodes.unwrap_or(0)).filter_map(NodeId::new));
    let learners = arguments.nodes("learners")?;
    let mut membership = Membership::initial(voters.iter().chain(&learners).copied());
    for member in membership.members.values_mut() {
        if learners.contains(&member.node) {
            *member = Member::learner(member.node);
        }
    }
    let spare = arguments.nodes("spare")?;
    let groups = arguments.maybe("groups")?.unwrap_or(1);
    let keeps = arguments.flag("keeps")?;
    let config = config(arguments)?;
    let mut cluster = Cluster::new(config, &membership, &spare, keeps);
    cluster.create(groups, &membership)?;
    cluster.take_trace();
    Ok(cluster)
}

/// Settings; what is not given is such that nothing happens by itself.
fn config(arguments: &mut Arguments<'_>) -> Result<GroupsConfig, String> {
    let mut config = GroupsConfig::new(NodeId::must(1));
    config.sleep_after_ticks = arguments.maybe("sleep")?.unwrap_or(0);
    config.seed = arguments.maybe("seed")?.unwrap_or(0);
    config.log_trail_entries = arguments.maybe("trail")?.unwrap_or(config.log_trail_entries);
    config.log_keep_entries = arguments.maybe("keep-log")?.unwrap_or(config.log_keep_entries);
    config.snapshot_entries = arguments.maybe("snapshot-every")?.unwrap_or(config.snapshot_entries);
    config.max_append_bytes = arguments.maybe("append-bytes")?.unwrap_or(config.max_append_bytes);
    config.max_inflight_appends =
        arguments.maybe("inflight")?.unwrap_or(config.max_inflight_appends);
    config.max_apply_bytes_per_group =
        arguments.maybe("apply-bytes")?.unwrap_or(config.max_apply_bytes_per_group);
    Ok(config)
}

impl Cluster {
    fn command(&mut self, command: &str, arguments: &mut Arguments<'_>) -> Done {
        match command {
            "cluster" => Ok(()),
            "tick" | "campaign" | "elect" | "run" | "stabilize" | "pause" => {
                self.time(command, arguments)
            }
            "deliver" => self.deliver(arguments),
            "hold" | "lose" | "partition" | "heal" | "release" => self.rules(command, arguments),
            "ship" => self.ship_command(arguments),
            "forge" => self.forge(arguments),
            "propose" => self.propose(arguments),
            "read" | "transfer" | "cancel" | "change" | "replace" | "cancel-addition"
            | "snapshot" | "barrier" => self.ask(command, arguments),
            "persist" | "write" | "sync" | "apply" | "flush" => self.work(command, arguments),
            "crash" | "restart" | "close" | "stall" | "resume" | "fault" | "mend" => {
                self.fate_of_node(command, arguments)
            }
            "node-lost" | "node-live" | "unreachable" => self.neighbour(command, arguments),
            "status" | "disk" | "machine" | "network" | "membership" | "lease" => {
                self.look(command, arguments)
            }
            _ => Err(format!("there is no command {command}")),
        }
    }

    /// The nodes that `node=` names, or those that run.
    fn named(&self, arguments: &mut Arguments<'_>) -> Result<Vec<NodeId>, String> {
        let named = arguments.nodes("node")?;
        if !named.is_empty() {
            return Ok(named);
        }
        Ok(self.node_ids().into_iter().filter(|id| self.runs(*id)).collect())
    }

    fn time(&mut self, command: &str, arguments: &mut Arguments<'_>) -> Done {
        match command {
            "tick" => {
                let (nodes, count) = (self.named(arguments)?, arguments.maybe("count")?);
                (0..count.unwrap_or(1))
                    .try_for_each(|_: u64| nodes.iter().try_for_each(|node| self.tick(*node)))
            }
            "campaign" => {
                let (node, group) = (arguments.node("node")?, arguments.group()?);
                self.campaign(node, group)
            }
            "pause" => {
                let (nodes, length): (_, u64) =
                    (self.named(arguments)?, arguments.one("milliseconds")?);
                nodes.into_iter().try_for_each(|node| self.pause(node, length))
            }
            "elect" => {
                let (node, group) = (arguments.node("node")?, arguments.maybe_group()?);
                self.elect(node, group)?;
                self.take_trace();
                self.show_leaders(node, group)
            }
            "run" => {
                let (nodes, ticks): (_, u64) = (self.named(arguments)?, arguments.one("ticks")?);
                self.hides_heartbeats = true;
                let done = (0..ticks).try_for_each(|_| {
                    nodes.iter().try_for_each(|node| self.tick(*node))?;
                    self.stabilize(&nodes)
                });
                self.hides_heartbeats = false;
                done
            }
            _ => {
                let nodes = self.named(arguments)?;
                self.stabilize(&nodes)
            }
        }
    }

    fn show_leaders(&mut self, node: NodeId, only: Option<GroupId>) -> Done {
        let groups: Vec<GroupId> = self.process(node)?.machines.keys().copied().collect();
        for group in groups.into_iter().filter(|group| only.is_none_or(|only| only == *group)) {
            let line = self.nodes[&node].status(group).map(words::role);
            self.say(format!("n{node} g{group} {}", line.unwrap_or_default()));
        }
        Ok(())
    }

    fn deliver(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let pattern = arguments.pattern()?;
        let count = arguments.maybe("count")?.unwrap_or(usize::MAX);
        let drop = arguments.flag("drop")?;
        let keep = arguments.flag("keep")?;
        let duplicate = arguments.flag("duplicate")?;
        let reverse = arguments.flag("reverse")?;
        let mut taken = self.network.take(&pattern, count);
        if taken.is_empty() {
            return Err("there is nothing to deliver".to_owned());
        }
        if reverse {
            taken.reverse();
        }
        if keep {
            taken.iter().for_each(|(link, message)| self.network.hold(*link, message.clone()));
        }
        if duplicate {
            taken.extend(taken.clone());
        }
        // What goes over one link arrives as one frame.
        let mut frames: Vec<((NodeId, NodeId), Vec<_>)> = Vec::new();
        for (link, message) in taken {
            match frames.last_mut().filter(|(of, _)| *of == link) {
                Some((_, frame)) => frame.push(message),
                None => frames.push((link, vec![message])),
            }
        }
        for ((from, to), frame) in frames {
            if drop {
                frame
                    .iter()
                    .for_each(|one| self.say(format!("lost {}", words::message(from, to, one))));
            } else {
                self.arrive(from, to, frame)?;
            }
        }
        Ok(())
    }

    fn rules(&mut self, command: &str, arguments: &mut Arguments<'_>) -> Done {
        match command {
            "hold" => {
                let pattern = arguments.pattern()?;
                for (link, message) in self.network.take(&pattern, usize::MAX) {
                    self.network.hold(link, message);
                }
                self.network.rule(pattern, Fate::Held);
            }
            "release" => {
                let (pattern, drop) = (arguments.pattern()?, arguments.flag("drop")?);
                self.network.lift(Fate::Held);
                for (link, message) in self.network.release(&pattern) {
                    if !drop {
                        self.network.push(link, message);
                    }
                }
            }
            "lose" => {
                let pattern = arguments.pattern()?;
                self.network.take(&pattern, usize::MAX);
                self.network.rule(pattern, Fate::Lost);
            }
            "partition" => {
                let side = arguments.nodes("node")?;
                for here in self.node_ids().into_iter().filter(|id| side.contains(id)) {
                    for there in self.node_ids().into_iter().filter(|id| !side.contains(id)) {
                        for pattern in [Pattern::link(here, there), Pattern::link(there, here)] {
                            self.network.take(&pattern, usize::MAX);
                            self.network.rule(pattern, Fate::Lost);
                        }
                    }
                }
            }
            _ => self.network.lift(Fate::Lost),
        }
        Ok(())
    }

    fn ship_command(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (pattern, fails) = (arguments.pattern()?, arguments.flag("fail")?);
        let shipments = self.shipments(&pattern);
        if shipments.is_empty() {
            return Err("no snapshot is on its way".to_owned());
        }
        shipments.into_iter().try_for_each(|shipping| self.ship(shipping, fails))
    }

    fn forge(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (from, to) = (arguments.node("from")?, arguments.node("to")?);
        let group = arguments.group()?;
        let status = self.node(to)?.status(group);
        let replica_on = |node| {
            let replica = status.and_then(|status| status.membership.replica_on(node));
            replica.map_or(node.get(), ReplicaId::get)
        };
        let (default_from, default_to) = (replica_on(from), replica_on(to));
        let membership = status.map(|status| status.membership.clone());
        let mut message = forge::message(arguments)?;
        message.group = group.get();
        message.from_replica = arguments.maybe("from-replica")?.unwrap_or(default_from);
        message.to_replica = arguments.maybe("to-replica")?.unwrap_or(default_to);
        if let (Some(meta), Some(membership)) = (message.snapshot.as_mut(), membership) {
            let wire = shardhost_groups::storage::convert::membership_to_message(&membership);
            meta.membership = Some(wire);
        }
        self.arrive(from, to, vec![message])
    }

    fn propose(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (node, group) = (arguments.node("node")?, arguments.group()?);
        let in_term = arguments.maybe("term")?.map(Term::new);
        let through_barrier = arguments.flag("through-barrier")?;
        let data: Vec<String> = arguments.all("data")?;
        let proposals = data.into_iter().map(|text| {
            let pending = self.answers.proposal(group, format!("n{node} g{group} propose {text}"));
            Proposal { command: Bytes::from(text), in_term, through_barrier, pending }
        });
        let input = Input::Propose { group, proposals: proposals.collect() };
        if arguments.flag("round-goes-on")? {
            self.begin(node)?.handle(input);
            return Ok(());
        }
        self.input(node, input)
    }

    fn work(&mut self, command: &str, arguments: &mut Arguments<'_>) -> Done {
        let nodes = self.named(arguments)?;
        let group = arguments.maybe_group()?;
        for node in nodes {
            match command {
                "persist" => {
                    self.write(node)?;
                    self.sync(node)?;
                }
                "write" => self.write(node)?,
                "sync" => self.sync(node)?,
                "apply" => self.apply(node, group)?,
                _ => self.flush(node)?,
            }
        }
        Ok(())
    }

    fn fate_of_node(&mut self, command: &str, arguments: &mut Arguments<'_>) -> Done {
        let node = arguments.node("node")?;
        match command {
            "crash" => {
                let keep = arguments.maybe("keep")?.unwrap_or(0);
                self.crash(node, keep)
            }
            "restart" => self.start(node),
            "close" => {
                let (group, cause) = (arguments.group()?, LossCause::Stopped);
                self.input(node, Input::Close { group, cause, done: None })
            }
            "fault" => self.fault(node, arguments),
            "mend" => {
                self.node(node)?.store.heal();
                self.node(node)?.snapshots.heal();
                Ok(())
            }
            _ => {
                let part: String = arguments.one("part")?;
                let part = match part.as_str() {
                    "disk" => Part::Disk,
                    "machine" => Part::Machine,
                    "worker" => Part::Worker,
                    other => return Err(format!("a node has no {other}")),
                };
                let stalled = &mut self.node(node)?.stalled;
                if command == "stall" {
                    stalled.insert(part)
                } else {
                    stalled.remove(&part)
                };
                Ok(())
            }
        }
    }

    fn fault(&mut self, node: NodeId, arguments: &mut Arguments<'_>) -> Done {
        let what: String = arguments.one("in")?;
        let group = arguments.group()?;
        let index = arguments.maybe("index")?.map(LogIndex::new);
        let node = self.node(node)?;
        match what.as_str() {
            "write" => node.store.inject(StoreFault::Write),
            "sync" => node.store.inject(StoreFault::Sync),
            "reads" => node.store.inject(StoreFault::Reads(group)),
            "entry" => {
                let index = index.ok_or("index= is missing")?;
                node.store.inject(StoreFault::DamagedEntry(group, index));
            }
            "space" => node.snapshots.inject(SnapshotFault::NoSpace),
            other => return Err(format!("nothing can be wrong with {other}")),
        }
        Ok(())
    }

    fn neighbour(&mut self, command: &str, arguments: &mut Arguments<'_>) -> Done {
        let (nodes, of) = (self.named(arguments)?, arguments.node("of")?);
        let group = arguments.group()?;
        for node in nodes.into_iter().filter(|node| *node != of) {
            match command {
                "node-lost" => self.input(node, Input::NodeLost { node: of })?,
                "node-live" => self.node_live(node, of)?,
                _ => {
                    let status = self.node(node)?.status(group);
                    let replica = status.and_then(|status| status.membership.replica_on(of));
                    let replica = replica.ok_or("there is no replica on that node")?;
                    let replicas = vec![(group, replica)];
                    self.input(node, Input::Unreachable { replicas })?;
                }
            }
        }
        Ok(())
    }

    fn look(&mut self, command: &str, arguments: &mut Arguments<'_>) -> Done {
        if command == "network" {
            return self.show_network();
        }
        let mut nodes = arguments.nodes("node")?;
        if nodes.is_empty() {
            nodes = self.node_ids();
        }
        let group = arguments.maybe_group()?;
        let peers = arguments.flag("peers")?;
        for node in nodes {
            match command {
                "status" => self.show_status(node, group, peers)?,
                "disk" => self.show_disk(node, group)?,
                "membership" => self.show_membership(node, group)?,
                "lease" => self.show_lease(node, group)?,
                _ => self.show_machine(node, group)?,
            }
        }
        Ok(())
    }
}
