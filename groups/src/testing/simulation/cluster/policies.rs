//! What nodes say of themselves, what groups require, and what policies are asked.

use crate::policy::AdmissionRequest;
use crate::worker::Advert;
use crate::{GroupStatus, Requirement, RequirementMode};

use super::*;

/// Milliseconds between two changes of what nodes have or groups require, at most.
const CHANGE_EVERY: u64 = 1_500;

impl Cluster {
    /// Policies take their time.
    pub(super) fn ask_policies(&mut self, node: NodeId, request: AdmissionRequest) {
        let life = self.nodes[&node].life;
        let delay = self.chance.between(1, 60);
        self.after(delay, Event::Admission { node, life, request: Box::new(request) });
    }

    pub(super) fn admit(
        &mut self,
        node: NodeId,
        life: u64,
        request: &AdmissionRequest,
    ) -> Result<(), String> {
        if !self.is_running(node, life) {
            return Ok(());
        }
        let event = GroupEvent::Admission { term: request.term(), answer: request.ask() };
        self.input(node, Input::Group { group: request.group, epoch: request.epoch, event })
    }

    /// Whether the leader's users wait for a transfer.
    pub fn is_frozen(&self, node: NodeId, group: GroupId) -> bool {
        let core = self.nodes[&node].process.as_ref().and_then(|one| one.core.group(group));
        core.is_some_and(crate::core::GroupCore::is_frozen)
    }

    /// Nodes hear nothing more of what others say of themselves, or do again.
    pub const fn hush(&mut self, hushed: bool) {
        self.hushed = hushed;
    }

    /// From here on the node says this of itself.
    pub fn advertise(&mut self, id: NodeId, advert: Advert) -> Result<(), String> {
        self.tell(|| format!("{id:?} says {advert:?}"));
        let advert = Arc::new(advert);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        node.advert = Arc::clone(&advert);
        self.input(id, Input::OwnAdvert(advert))
    }

    /// From here on the node says this of itself to others, and does not know it.
    ///
    /// # Errors
    /// What a checker found.
    pub fn advertise_to_others(&mut self, id: NodeId, advert: Advert) -> Result<(), String> {
        self.tell(|| format!("{id:?} says {advert:?}, and does not know it"));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.advert = Arc::new(advert);
        }
        Ok(())
    }

    /// Whoever leads the group is asked to make this its requirement, whether it serves or not.
    pub fn require(&mut self, group: GroupId, requirement: Requirement) -> Result<(), String> {
        let leads = |node: &&Node| {
            let core = node.process.as_ref().and_then(|process| process.core.group(group));
            core.is_some_and(|core| core.status().is_leader())
        };
        let leader = self.nodes.values().filter(leads).max_by_key(|node| node.term_of(group));
        let Some(node) = leader.map(|node| node.id) else { return Ok(()) };
        self.tell(|| format!("{node:?} is asked for {requirement:?} of {group:?}"));
        let (waiter, _forgotten) = oneshot::channel();
        let order =
            MembershipOrder::Require { requirement, expecting: None, whoever_meets_it: true };
        let request = Box::new(MembershipRequest { order, waiter });
        self.input(node, Input::ChangeMembership { group, request })
    }

    /// Something changes about who may lead.
    pub(super) fn change_policies(&mut self) -> Result<(), String> {
        if !self.faulty {
            return Ok(());
        }
        let mut chance = self.chance.clone();
        chance.draw();
        let wait = chance.between(CHANGE_EVERY / 5, CHANGE_EVERY);
        self.after(wait, Event::Policy);
        let group = GroupId::new(chance.between(1, self.shape.groups));
        let node = self.pick_node(&mut chance);
        let what = chance.below(6);
        let lot = chance.below(4);
        self.chance = chance;
        match what {
            0 | 1 => self.require(group, requirement(lot)),
            2 => self.advertise(node, advert("fifo", lot == 0)),
            3 => self.advertise(node, advert("ssd", lot == 0)),
            4 => self.advertise(node, advert("both", false)),
            _ => self.advertise(node, Advert::default()),
        }
    }

    /// Everybody has everything, and nobody drains.
    pub(super) fn everybody_is_fit(&mut self) -> Result<(), String> {
        if !self.shape.policies {
            return Ok(());
        }
        for id in self.node_ids() {
            self.advertise(id, advert("both", false))?;
        }
        Ok(())
    }

    /// A node that lacks what it knows the group to require serves nobody.
    pub(super) fn serves_only_where_it_may(
        &self,
        id: NodeId,
        status: &GroupStatus,
    ) -> Result<(), String> {
        let requirement = &status.membership.requirement;
        let present = &self.nodes[&id].advert.capabilities;
        let lacks = requirement.lacking(present).next().is_some();
        // A sleeping group has no readers without a quorum; whatever wakes it looks first.
        if status.serving && !status.asleep && lacks && requirement.mode == RequirementMode::Hard {
            return Err(format!("{id:?} serves {:?} without {requirement}", status.id));
        }
        Ok(())
    }
}

fn requirement(lot: u64) -> Requirement {
    match lot {
        0 => Requirement::default(),
        1 => Requirement::soft(["fifo"]).unwrap(),
        2 => Requirement::hard(["fifo"]).unwrap(),
        _ => Requirement::hard(["fifo", "ssd"]).unwrap(),
    }
}

fn advert(what: &str, draining: bool) -> Advert {
    let names: &[&str] = if what == "both" { &["fifo", "ssd"] } else { &[what] };
    Advert { capabilities: names.iter().map(|name| (*name).to_owned()).collect(), draining }
}
