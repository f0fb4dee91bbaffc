//! Commands about what happens to nodes, and what they know of each other.

use shardhost_groups::leadership::LossCause;
use shardhost_groups::nodes::Impairment;
use shardhost_groups::storage::{SnapshotFault, StoreFault};
use shardhost_groups::worker::{GroupEvent, Input};
use shardhost_groups::{LogIndex, Membership, NodeId, RequirementMode};

use crate::commands::arguments::Arguments;
use crate::world::node::Part;
use crate::world::{Cluster, Done};

impl Cluster {
    pub fn apply_on(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let group = arguments.maybe_group()?;
        self.each(arguments, |cluster, node| cluster.apply(node, group))
    }

    pub fn crash_node(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (node, keep) = (arguments.node("node")?, arguments.maybe("keep")?);
        self.crash(node, keep.unwrap_or(0))
    }

    /// The data directory is copied, or the copy put in its place.
    pub fn copy(&mut self, command: &str, arguments: &mut Arguments<'_>) -> Done {
        let node = arguments.node("node")?;
        let node = self.node(node)?;
        if command == "back-up" {
            node.back_up();
            return Ok(());
        }
        node.put_back()
    }

    /// The disk of a node that is down is replaced by an empty one.
    pub fn wipe(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let node = arguments.node("node")?;
        self.node(node)?.wipe()
    }

    pub fn restart(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let node = arguments.node("node")?;
        self.start(node)
    }

    /// A node creates a group with members of its own choice.
    pub fn found(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (node, group) = (arguments.node("node")?, arguments.group()?);
        let membership = Membership::initial(arguments.nodes("members")?);
        self.create_on(node, group, &membership)
    }

    pub fn close(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (node, group) = (arguments.node("node")?, arguments.group()?);
        self.input(node, Input::Close { group, cause: LossCause::Stopped, ending: None })
    }

    pub fn stall(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (node, part) = (arguments.node("node")?, part(arguments)?);
        self.node(node)?.stalled.insert(part);
        Ok(())
    }

    pub fn resume(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (node, part) = (arguments.node("node")?, part(arguments)?);
        self.node(node)?.stalled.remove(&part);
        Ok(())
    }

    /// A call into the machine of a group does not return, softly or hard; or calls end in time
    /// again.
    pub fn hang(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (node, mode): (_, String) = (arguments.node("node")?, arguments.one("mode")?);
        let group = arguments.group()?;
        let mode = match mode.as_str() {
            "soft" => Some(RequirementMode::Soft),
            "hard" => Some(RequirementMode::Hard),
            "over" => None,
            other => return Err(format!("mode={other} is none of soft, hard, over")),
        };
        match mode {
            Some(_) => self.node(node)?.stalled.insert(Part::Machine),
            None => self.node(node)?.stalled.remove(&Part::Machine),
        };
        let open_id = self.node(node)?.open_id_of(group).ok_or("it has no replica")?;
        let why = mode.map(|mode| Impairment { reason: "the machine hangs".into(), mode });
        let event = GroupEvent::Hung(why);
        self.input(node, Input::Group { group, open_id, event })
    }

    pub fn fault(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (node, what): (_, String) = (arguments.node("node")?, arguments.one("in")?);
        let group = arguments.group()?;
        let index = arguments.maybe("index")?.map(LogIndex::new);
        let node = self.node(node)?;
        match what.as_str() {
            "write" => node.disks.store.inject(StoreFault::Write),
            "sync" => node.disks.store.inject(StoreFault::Sync),
            "tail" => node.disks.store.inject(StoreFault::LoseTail),
            "reads" => node.disks.store.inject(StoreFault::Reads(group)),
            "entry" => {
                let index = index.ok_or("index= is missing")?;
                node.disks.store.inject(StoreFault::DamagedEntry(group, index));
            }
            "snapshots" => node.corrupt_snapshots(group),
            "machine" => node.corrupt_machine(group)?,
            "state" => node.lose_state(group)?,
            "space" => node.disks.snapshots.inject(SnapshotFault::NoSpace),
            other => return Err(format!("nothing can be wrong with {other}")),
        }
        Ok(())
    }

    pub fn node_lost(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let of = arguments.node("of")?;
        self.each_but(of, arguments, |cluster, node| {
            cluster.input(node, Input::NodeLost { node: of })
        })
    }

    pub fn node_found(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let of = arguments.node("of")?;
        self.each_but(of, arguments, |cluster, node| cluster.node_live(node, of))
    }

    /// The transport dropped messages to the replica of a group on another node.
    pub fn unreachable(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (of, group) = (arguments.node("of")?, arguments.group()?);
        self.each_but(of, arguments, |cluster, node| {
            let status = cluster.node(node)?.status(group);
            let replica = status.and_then(|status| status.membership.replica_on(of));
            let replica = replica.ok_or("there is no replica on that node")?;
            cluster.input(node, Input::Unreachable { replicas: vec![(group, replica)] })
        })
    }

    fn each_but(
        &mut self,
        of: NodeId,
        arguments: &mut Arguments<'_>,
        mut act: impl FnMut(&mut Self, NodeId) -> Done,
    ) -> Done {
        self.each(arguments, |cluster, node| if node == of { Ok(()) } else { act(cluster, node) })
    }
}

fn part(arguments: &mut Arguments<'_>) -> Result<Part, String> {
    let part: String = arguments.one("part")?;
    match part.as_str() {
        "disk" => Ok(Part::Disk),
        "machine" => Ok(Part::Machine),
        "worker" => Ok(Part::Worker),
        "policies" => Ok(Part::Policies),
        other => Err(format!("a node has no {other}")),
    }
}
