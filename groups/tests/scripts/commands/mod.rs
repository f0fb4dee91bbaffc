//! What a script may say. The list with explanations stands in `main.rs`.

mod arguments;
mod asking;
mod forge;
mod nodes;
mod policies;
mod setup;
mod time;
mod traffic;
mod view;

use datadriven::TestCase;
use shardhost_groups::NodeId;
use shardhost_groups::known_bugs::KnownBugs;
use shardhost_groups::worker::Input;

use crate::world::{Cluster, Done};
use arguments::Arguments;

/// What a trace says of a command that cannot be carried out.
pub const MISTAKE: &str = "mistake: ";

/// One script while it runs.
#[derive(Default)]
pub struct Script {
    cluster: Option<Cluster>,
    bugs: KnownBugs,
}

impl Script {
    /// A script in clusters in which these bugs are put back.
    pub fn with_bugs(bugs: KnownBugs) -> Self {
        Self { bugs, ..Self::default() }
    }

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
            self.cluster = Some(setup::create(&mut arguments, self.bugs)?);
        }
        let cluster = self.cluster.as_mut().ok_or("a script begins with a cluster")?;
        cluster.command(&command, &mut arguments)?;
        case.expect_empty().map_err(|error| error.to_string())?;
        Ok(quiet)
    }
}

impl Cluster {
    fn command(&mut self, command: &str, arguments: &mut Arguments<'_>) -> Done {
        match command {
            "cluster" => Ok(()),
            "tick" => self.tick_nodes(arguments),
            "run" => self.run_nodes(arguments),
            "campaign" => self.campaign_node(arguments),
            "elect" => self.elect_node(arguments),
            "stabilize" => self.stabilize_nodes(arguments),
            "pause" => self.pause_nodes(arguments),
            "deliver" => self.deliver(arguments),
            "hold" => self.hold(arguments),
            "release" => self.release(arguments),
            "lose" => self.lose(arguments),
            "partition" => self.partition(arguments),
            "heal" => self.heal(),
            "ship" => self.ship_snapshots(arguments),
            "forge" => self.forge(arguments),
            "propose" => self.propose(arguments),
            "read" => self.read(arguments),
            "cancel" => self.cancel(arguments),
            "transfer" => self.transfer(arguments),
            "change" | "replace" | "cancel-addition" => self.change(command, arguments),
            "barrier" => self.barrier(arguments),
            "snapshot" => self.take_snapshot(arguments),
            "require" => self.require(arguments),
            "advertise" => self.advertise(arguments),
            "policy" => self.policy(arguments),
            "reevaluate" => self.reevaluate(arguments),
            "persist" => self.each(arguments, |cluster, node| {
                cluster.write(node)?;
                cluster.sync(node)
            }),
            "write" => self.each(arguments, Self::write),
            "sync" => self.each(arguments, Self::sync),
            "flush" => self.each(arguments, Self::flush),
            "apply" => self.apply_on(arguments),
            "crash" => self.crash_node(arguments),
            "back-up" | "put-back" => self.copy(command, arguments),
            "wipe" => self.wipe(arguments),
            "restart" => self.restart(arguments),
            "found" => self.found(arguments),
            "close" => self.close(arguments),
            "stall" => self.stall(arguments),
            "hang" => self.hang(arguments),
            "resume" => self.resume(arguments),
            "fault" => self.fault(arguments),
            "mend" => self.each(arguments, Self::mend),
            "node-lost" => self.node_lost(arguments),
            "node-live" => self.node_found(arguments),
            "unreachable" => self.unreachable(arguments),
            "network" => self.show_network(),
            "status" | "disk" | "machine" | "membership" | "lease" => self.look(command, arguments),
            "check-hibernating" => self.each(arguments, |cluster, node| {
                cluster.input(node, Input::CheckHibernating { part: 0, of: 1 })
            }),
            "counters" => self.each(arguments, Self::show_counters),
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

    fn each(
        &mut self,
        arguments: &mut Arguments<'_>,
        mut act: impl FnMut(&mut Self, NodeId) -> Done,
    ) -> Done {
        self.named(arguments)?.into_iter().try_for_each(|node| act(self, node))
    }
}
