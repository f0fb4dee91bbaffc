//! What goes wrong, how often, and how all of it ends.

use shardhost_groups::core::TransferTarget;
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::{GroupId, MembershipChange, NodeId};
use shardhost_testing::simulation::Weather;

use super::host::Version;
use super::sabotage::Sabotage;
use super::shape::{any_advertisement, any_requirement};
use super::world::{Event, World};
use crate::catalog::{GroupRecord, Operation, Placement, PlannedMoves, PlannerMode};

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Undrain(NodeId),
    Calm,
    Release(NodeId),
    GoOn,
    Balance,
}

/// What befalls a planner whose orders have just left, and are long on their way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ambush {
    Crash,
    /// It reaches no other node any more, or no other node reaches it.
    CutOff,
    Delay,
}

impl World {
    /// Clients work, and things go wrong.
    pub(super) fn begin_faults(&mut self) {
        self.faulty = true;
        self.writing = true;
        self.cluster.clients_work(true);
        self.after(1_000, Event::NextFault);
        if self.sabotage == Sabotage::SecondBalancer {
            self.after(1_000, Event::Fault(Fault::Balance));
        }
    }

    pub(super) fn strike(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            // Nodes that are drained when the faults end stay drained.
            Fault::Undrain(_) if !self.faulty => Ok(()),
            Fault::Undrain(node) => self.drain(node, false),
            Fault::Calm => {
                self.cluster.weather = Weather::CALM;
                Ok(())
            }
            Fault::Release(node) => {
                self.stop_on(node, false);
                Ok(())
            }
            Fault::GoOn => self.let_planners_go_on(),
            Fault::Balance => self.second_balancer(),
        }
    }

    pub(super) fn next_fault(&mut self) -> Result<(), String> {
        if !self.faulty {
            return Ok(());
        }
        let pause = self.chance.between(300, 4_000);
        self.after(pause, Event::NextFault);
        let node = self.any_node();
        let lasts = self.chance.between(500, 6_000);
        match self.chance.below(19) {
            0 | 1 => self.crash(node, lasts),
            2 => self.crash_planner(lasts),
            3 => self.partition(lasts),
            4 => self.lay_ambush(),
            5 => self.cluster.stall(node, lasts.min(4_000)),
            6 => self.lag(node, lasts),
            7 => self.worsen_weather(lasts),
            8 | 9 => return self.flip_capabilities(node),
            10 | 11 => return self.begin_drain(node, lasts * 2),
            12 => return self.switch(lasts),
            13 => self.switch_here(node, lasts),
            14 => return self.change_group(),
            15 | 16 => return self.pin_somewhere(),
            17 => self.lay_ambush(),
            _ => return self.transfer_by_hand(),
        }
        Ok(())
    }

    fn any_node(&mut self) -> NodeId {
        self.cluster.pick_node(&mut self.chance)
    }

    fn any_group(&mut self) -> GroupId {
        GroupId::new(self.chance.between(1, self.shape.cluster.groups))
    }

    fn crash(&mut self, node: NodeId, lasts: u64) {
        let old = self.chance.per_mille(200);
        self.versions.insert(node, if old { Version::Old } else { Version::Current });
        let keep = usize::from(self.chance.per_mille(500));
        self.cluster.crash(node, keep);
        self.cluster.restart_later(node, lasts);
    }

    fn crash_planner(&mut self, lasts: u64) {
        if let Some(node) = self.catalog_leader() {
            self.crash(node, lasts);
        }
    }

    fn lay_ambush(&mut self) {
        self.ambush = self.chance.pick(&[Ambush::Crash, Ambush::CutOff, Ambush::Delay]);
    }

    /// The orders of a planner have left.
    pub(super) fn spring(&mut self, ambush: Ambush, planner: NodeId) {
        let lasts = self.chance.between(2_000, 6_000);
        match ambush {
            Ambush::Crash => self.crash(planner, lasts),
            Ambush::CutOff => self.cut_off(planner, lasts),
            Ambush::Delay => {}
        }
    }

    fn partition(&mut self, lasts: u64) {
        let nodes = self.cluster.node_ids();
        self.cluster.network.partition(&nodes, &mut self.chance);
        self.cluster.heal_network_later(lasts);
    }

    /// A node reaches no other, or no other reaches it, or both.
    fn cut_off(&mut self, node: NodeId, lasts: u64) {
        let way = self.chance.below(3);
        for other in self.cluster.node_ids() {
            if way != 1 {
                self.cluster.network.block(node, other);
            }
            if way != 2 {
                self.cluster.network.block(other, node);
            }
        }
        self.cluster.heal_network_later(lasts);
    }

    /// A node falls behind: its disk is slow, and its worker hangs for a moment.
    fn lag(&mut self, node: NodeId, lasts: u64) {
        let delay = self.chance.between(50, 400);
        self.cluster.slow_disk(node, delay);
        self.cluster.stall(node, lasts / 4);
    }

    fn worsen_weather(&mut self, lasts: u64) {
        self.cluster.weather = Weather {
            loss: self.chance.below(200),
            duplication: self.chance.below(100),
            delay: self.chance.between(1, 60),
            late: self.chance.below(100),
            late_orders: self.chance.below(500),
        };
        self.after(lasts, Event::Fault(Fault::Calm));
    }

    fn flip_capabilities(&mut self, node: NodeId) -> Result<(), String> {
        let draining = self.cluster.advertisement(node).draining;
        let advertisement = Advertisement { draining, ..any_advertisement(&mut self.chance) };
        self.advertise(node, advertisement)
    }

    pub(super) fn advertise(
        &mut self,
        node: NodeId,
        advertisement: Advertisement,
    ) -> Result<(), String> {
        self.watch.has(node, advertisement.clone());
        match self.sabotage {
            Sabotage::KeepAdvertisements => Ok(()),
            Sabotage::DeafCore => self.cluster.advertise_to_others(node, advertisement),
            _ => self.cluster.advertise(node, advertisement),
        }
    }

    pub(super) fn drain(&mut self, node: NodeId, draining: bool) -> Result<(), String> {
        let advertisement = Advertisement { draining, ..self.cluster.advertisement(node).clone() };
        self.advertise(node, advertisement)
    }

    fn begin_drain(&mut self, node: NodeId, lasts: u64) -> Result<(), String> {
        self.after(lasts, Event::Fault(Fault::Undrain(node)));
        self.checks.coverage.drains += 1;
        self.drain(node, true)
    }

    /// An operator switches planned moves off for a while, in one of several ways. Without a leader
    /// of the system group this is impossible.
    fn switch(&mut self, lasts: u64) -> Result<(), String> {
        if self.catalog_leader().is_none() {
            return Ok(());
        }
        self.after(lasts, Event::Fault(Fault::GoOn));
        let reason = "a fault".to_owned();
        let operation = match self.chance.below(4) {
            0 => Operation::SetPlannerMode { mode: PlannerMode::Off },
            1 => Operation::SetPlannerMode { mode: PlannerMode::Shadow },
            _ => Operation::SetPlannedMoves { moves: PlannedMoves::Stopped, reason },
        };
        self.change(operation)
    }

    pub(super) fn let_planners_go_on(&mut self) -> Result<(), String> {
        let (moves, reason) = (PlannedMoves::Allowed, String::new());
        self.change(Operation::SetPlannedMoves { moves, reason })?;
        self.change(Operation::SetPlannerMode { mode: PlannerMode::On })
    }

    fn switch_here(&mut self, node: NodeId, lasts: u64) {
        self.stop_on(node, true);
        self.after(lasts, Event::Fault(Fault::Release(node)));
    }

    fn stop_on(&mut self, node: NodeId, stopped: bool) {
        if let Some(host) = self.hosts.get_mut(&node) {
            host.stopped = stopped;
        }
    }

    /// A group asks for something else, or has other members.
    fn change_group(&mut self) -> Result<(), String> {
        let group = self.any_group();
        if self.chance.per_mille(600) {
            let requirement = any_requirement(&mut self.chance);
            return self.require(group, requirement);
        }
        let Some(leader) = self.server_of(group) else { return Ok(()) };
        let Some(status) = self.cluster.status(leader, group) else { return Ok(()) };
        let voters: Vec<NodeId> = status.membership.voters().map(|(_, node)| node).collect();
        let strangers: Vec<NodeId> =
            self.cluster.node_ids().into_iter().filter(|node| !voters.contains(node)).collect();
        let leaver = self.chance.pick(&voters);
        let Some((new, old)) = self.chance.pick(&strangers).zip(leaver) else { return Ok(()) };
        let change = MembershipChange::new().add_voter(new).remove(old);
        self.cluster.change_members(leader, group, change)
    }

    /// An operator wants a group to be led by a certain node, or does not mind any more.
    fn pin_somewhere(&mut self) -> Result<(), String> {
        let (group, node) = (self.any_group(), self.any_node());
        let pin = self.chance.per_mille(800).then_some(node);
        self.pin(group, pin)
    }

    pub(super) fn pin(&mut self, group: GroupId, pin: Option<NodeId>) -> Result<(), String> {
        // Impossible without a leader of the system group, or to a node that is no member.
        let pins = |record: &GroupRecord| pin.is_none_or(|pin| record.members().contains(&pin));
        let record = self.view().groups().get(&group);
        if self.catalog_leader().is_none() || !record.is_some_and(|record| pins(record)) {
            return Ok(());
        }
        let placement = Placement { pin, ..Placement::default() };
        self.change(Operation::SetPlacement { group, placement })
    }

    fn transfer_by_hand(&mut self) -> Result<(), String> {
        let group = self.any_group();
        let Some(from) = self.server_of(group) else { return Ok(()) };
        let to = TransferTarget::Node(self.any_node());
        self.watch.ordered(group, self.cluster.now());
        self.cluster.hand_over(from, group, to).map(drop)
    }

    /// Moves leaders back and forth, unknown to the planner.
    fn second_balancer(&mut self) -> Result<(), String> {
        if self.faulty {
            self.after(100, Event::Fault(Fault::Balance));
        }
        let group = self.any_group();
        let Some(from) = self.server_of(group) else { return Ok(()) };
        self.cluster.hand_over(from, group, TransferTarget::Furthest).map(drop)
    }

    /// All faults end. Capabilities, requirements and drains stay as they are; one node may stay
    /// drained.
    pub(super) fn heal(&mut self) -> Result<(), String> {
        self.faulty = false;
        self.ambush = None;
        self.cluster.clients_work(false);
        self.cluster.heal()?;
        self.versions.clear();
        for host in self.hosts.values_mut() {
            host.version = Version::Current;
            host.stopped = false;
        }
        self.let_planners_go_on()?;
        let drained = self.any_node();
        let stays = self.chance.per_mille(300);
        for node in self.cluster.node_ids() {
            self.drain(node, stays && node == drained)?;
        }
        Ok(())
    }
}
