//! How time passes: ticks, elections, and letting everything happen until nothing is left to do.

use shardhost_groups::worker::{GroupEvent, Input, TICK_SLOTS};
use shardhost_groups::{GroupId, NodeId, Role};

use crate::world::network::Pattern;
use crate::world::node::Part;
use crate::world::{Cluster, Done};

/// Turns of every node after which a cluster counts as one that does not come to rest.
const MAX_TURNS: usize = 500;
/// Ticks after which a replica should have campaigned: more than the longest election timeout.
const MAX_CAMPAIGN_TICKS: usize = 40;
const TICK_NANOSECONDS: u64 = 100_000_000;
/// Ticks after which a leader has sent a heartbeat.
const HEARTBEAT_TICKS: usize = 2;

impl Cluster {
    /// One tick of a node: all slots, so every group that is awake ticks once.
    pub fn tick(&mut self, id: NodeId) -> Done {
        for _ in 0..TICK_SLOTS {
            self.node(id)?.clock += TICK_NANOSECONDS / TICK_SLOTS as u64;
            if self.moves(id, Part::Worker) {
                self.begin(id)?.tick_slot();
                self.step_once(id)?;
            }
        }
        Ok(())
    }

    /// Time passes for a node that does nothing, as when its process is stopped.
    pub fn pause(&mut self, id: NodeId, milliseconds: u64) -> Done {
        self.node(id)?.clock += milliseconds * 1_000_000;
        Ok(())
    }

    /// A node ticks until its replica stands for election.
    pub fn campaign(&mut self, id: NodeId, group: GroupId) -> Done {
        for _ in 0..MAX_CAMPAIGN_TICKS {
            let role = self.node(id)?.status(group).map(|status| status.role.clone());
            match role.ok_or_else(|| format!("n{id} holds no group {group}"))? {
                Role::PreCandidate | Role::Candidate | Role::Leader => return Ok(()),
                _ => self.tick(id)?,
            }
        }
        Err(format!("n{id} g{group} does not campaign"))
    }

    /// A node ticks, and everything else happens, until it serves every group that it holds. Its
    /// next heartbeat carries the commit index.
    pub fn elect(&mut self, id: NodeId, only: Option<GroupId>) -> Done {
        let mut groups: Vec<GroupId> = self.process(id)?.machines.keys().copied().collect();
        groups.retain(|group| only.is_none_or(|only| only == *group));
        let nodes = self.node_ids();
        for _ in 0..MAX_CAMPAIGN_TICKS {
            let serves = |group: &GroupId| {
                self.nodes[&id].status(*group).is_some_and(|status| status.serving)
            };
            if groups.iter().all(serves) {
                (0..HEARTBEAT_TICKS).try_for_each(|_| self.tick(id))?;
                return self.stabilize(&nodes);
            }
            self.tick(id)?;
            self.stabilize(&nodes)?;
        }
        Err(format!("node {id} does not win its elections"))
    }

    /// Takes turns until nothing is on its way, unwritten or unapplied at these nodes.
    pub fn stabilize(&mut self, nodes: &[NodeId]) -> Done {
        for _ in 0..MAX_TURNS {
            let mut moved = false;
            for &id in nodes {
                moved |= self.turn(id)?;
            }
            if !moved {
                return Ok(());
            }
        }
        Err(format!("nothing comes to rest within {MAX_TURNS} turns"))
    }

    /// The policies of a node answer, if one was asked.
    fn ask_policies(&mut self, id: NodeId) -> Result<bool, String> {
        let Some(request) = self.process(id)?.admissions.pop_front() else { return Ok(false) };
        let (group, open_id) = (request.group, request.open_id);
        let event = GroupEvent::Admission {
            term: request.term(),
            question: request.question,
            answer: request.ask(),
        };
        self.input(id, Input::Group { group, open_id, event })?;
        Ok(true)
    }

    /// A node takes what arrived, writes, and applies. False when there was nothing to do.
    fn turn(&mut self, id: NodeId) -> Result<bool, String> {
        let mut moved = false;
        if self.moves(id, Part::Worker) {
            moved |= self.take_arrivals(id)?;
        }
        if self.moves(id, Part::Policies) {
            moved |= self.ask_policies(id)?;
        }
        if self.moves(id, Part::Disk) && self.process(id)?.has_writes() {
            moved = true;
            self.write(id)?;
            self.sync(id)?;
        }
        if self.moves(id, Part::Machine) && self.process(id)?.has_work() {
            moved = true;
            self.apply(id, None)?;
        }
        Ok(moved)
    }

    fn take_arrivals(&mut self, id: NodeId) -> Result<bool, String> {
        let mut moved = false;
        for from in self.node_ids() {
            let pattern = Pattern::link(from, id);
            let frame = self.network.take(&pattern, usize::MAX);
            if !frame.is_empty() {
                moved = true;
                self.arrive(from, id, frame.into_iter().map(|(_, message)| message).collect())?;
            }
            for shipping in self.shipments(&pattern) {
                moved = true;
                self.ship(shipping, false)?;
            }
        }
        Ok(moved)
    }
}
