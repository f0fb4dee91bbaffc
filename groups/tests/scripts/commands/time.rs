//! Commands by which time passes.

use shardhost_groups::{GroupId, NodeId};

use crate::commands::arguments::Arguments;
use crate::words;
use crate::world::{Cluster, Done};

impl Cluster {
    pub fn tick_nodes(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (nodes, count): (_, Option<u64>) = (self.named(arguments)?, arguments.maybe("count")?);
        (0..count.unwrap_or(1)).try_for_each(|_| nodes.iter().try_for_each(|node| self.tick(*node)))
    }

    /// Heartbeats and their answers are left out of the trace: time passes by them.
    pub fn run_nodes(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (nodes, ticks): (_, u64) = (self.named(arguments)?, arguments.one("ticks")?);
        self.hides_heartbeats = true;
        let done = (0..ticks).try_for_each(|_| {
            nodes.iter().try_for_each(|node| self.tick(*node))?;
            self.stabilize(&nodes)
        });
        self.hides_heartbeats = false;
        done
    }

    pub fn campaign_node(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (node, group) = (arguments.node("node")?, arguments.group()?);
        self.campaign(node, group)
    }

    /// Of the elections nothing is shown but who won.
    pub fn elect_node(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (node, group) = (arguments.node("node")?, arguments.maybe_group()?);
        self.elect(node, group)?;
        self.take_trace();
        self.show_roles(node, group)
    }

    fn show_roles(&mut self, node: NodeId, only: Option<GroupId>) -> Done {
        let groups: Vec<GroupId> = self.process(node)?.machines.keys().copied().collect();
        for group in groups.into_iter().filter(|group| only.is_none_or(|only| only == *group)) {
            let line = self.nodes[&node].status(group).map(words::role);
            self.say(format!("n{node} g{group} {}", line.unwrap_or_default()));
        }
        Ok(())
    }

    pub fn stabilize_nodes(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let nodes = self.named(arguments)?;
        self.stabilize(&nodes)
    }

    pub fn pause_nodes(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let length = arguments.one("milliseconds")?;
        self.each(arguments, |cluster, node| cluster.pause(node, length))
    }
}
