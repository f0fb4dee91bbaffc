//! What nodes say of themselves, what groups require, and what policies are asked.

use std::sync::atomic::Ordering;

use shardhost_groups::nodes::{Advertisement, Impairment};
use shardhost_groups::{GroupStatus, Requirement, RequirementMode};

use super::*;

/// Milliseconds between two changes of what nodes have or groups require, at most.
const CHANGE_EVERY: u64 = 1_500;

impl Cluster {
    /// Policies take their time, and some of them longer than a leader waits; now and then one
    /// panics, or gives no answer. They answer from what they know when they are asked.
    pub(super) fn ask_policies(&mut self, node: NodeId, request: AdmissionRequest) {
        let life = self.nodes[&node].life;
        let slow = self.faulty && self.chance.per_mille(150);
        let delay = if slow { self.chance.between(60, 9_000) } else { self.chance.between(1, 60) };
        self.checks.serving.asked(node, &request);
        let answer = match self.chance.below(if self.faulty { 40 } else { 1 }) {
            39 => return self.tell(|| format!("the policy of {node:?} hangs")),
            38 => Err(AdmissionFault { policy: "panics" }),
            _ => request.ask(),
        };
        self.after(delay, Event::Admission { node, life, request: Box::new(request), answer });
    }

    pub(super) fn admit(
        &mut self,
        node: NodeId,
        life: u64,
        request: &AdmissionRequest,
        answer: Result<Decision, AdmissionFault>,
    ) -> Result<(), String> {
        if !self.is_running(node, life) {
            return Ok(());
        }
        let (group, open_id, question) = (request.group, request.open_id, request.question);
        self.tell(|| format!("{node:?} {group:?} question {question} is answered: {answer:?}"));
        self.checks.serving.answered(node, request, answer == Ok(Decision::Serve));
        let event = GroupEvent::Admission { term: request.term(), question, answer };
        self.input(node, Input::Group { group, open_id, event })?;
        let status = self.status(node, group);
        status.map_or(Ok(()), |status| self.checks.serving.check(node, status))
    }

    /// From here on the policy of a node refuses leaderships, or does not, and says so.
    fn switch_policy(&mut self, id: NodeId, refuses: bool) -> Result<(), String> {
        self.tell(|| format!("the policy of {id:?} refuses from here on: {refuses}"));
        self.nodes[&id].refuses.store(refuses, Ordering::Relaxed);
        let groups: Vec<GroupId> = (1..=self.shape.groups).map(GroupId::new).collect();
        for group in groups {
            self.checks.serving.outdated(id, group);
            self.input(id, Input::Reevaluate { group })?;
        }
        Ok(())
    }

    /// What a client is answered is answered by a replica that serves: not by a leader that must
    /// not.
    pub(super) fn is_served(&self, id: NodeId, group: GroupId, what: &str) -> Result<(), String> {
        match self.status(id, group) {
            Some(status) if status.is_leader() && status.caretaker.is_some() => {
                Err(format!("{id:?} leads {group:?}, serves no users, and answered {what}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the leader's users wait for a transfer.
    pub fn is_frozen(&self, node: NodeId, group: GroupId) -> bool {
        let core = self.nodes[&node].process.as_ref().and_then(|one| one.core.group(group));
        core.is_some_and(shardhost_groups::core::GroupCore::is_frozen)
    }

    /// Nodes hear nothing more of what others say of themselves, or do again.
    pub const fn hush(&mut self, hushed: bool) {
        self.hushed = hushed;
    }

    /// From here on the node says this of itself.
    pub fn advertise(&mut self, id: NodeId, advertisement: Advertisement) -> Result<(), String> {
        self.tell(|| format!("{id:?} says {advertisement:?}"));
        let advertisement = Arc::new(advertisement);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        node.advertisement = Arc::clone(&advertisement);
        self.input(id, Input::OwnAdvertisement(advertisement))
    }

    /// From here on the node says this of itself to others, and does not know it.
    ///
    /// # Errors
    /// What a checker found.
    pub fn advertise_to_others(
        &mut self,
        id: NodeId,
        advertisement: Advertisement,
    ) -> Result<(), String> {
        self.tell(|| format!("{id:?} says {advertisement:?}, and does not know it"));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.advertisement = Arc::new(advertisement);
        }
        Ok(())
    }

    /// From here on the node says that it is impaired, until it says something else.
    ///
    /// # Errors
    /// What a checker found.
    pub fn impair(&mut self, id: NodeId, mode: RequirementMode) -> Result<(), String> {
        let impaired = Some(Impairment { reason: "the disk hangs".into(), mode });
        self.advertise(id, Advertisement { impaired, ..advertisement("both", false) })
    }

    /// The leader of the group is asked to make this its requirement, whether it serves or not.
    pub fn require(&mut self, group: GroupId, requirement: Requirement) -> Result<(), String> {
        let leads = |node: &&Node| {
            let core = node.process.as_ref().and_then(|process| process.core.group(group));
            core.is_some_and(|core| core.status().is_leader())
        };
        let leader = self.nodes.values().filter(leads).max_by_key(|node| node.term_of(group));
        let Some(node) = leader.map(|node| node.id) else { return Ok(()) };
        self.tell(|| format!("{node:?} is asked for {requirement:?} of {group:?}"));
        let (completion, _forgotten) = shardhost_groups::completion::answer();
        let order =
            MembershipOrder::Require { requirement, expecting: None, whoever_meets_it: true };
        let request = Box::new(MembershipRequest { order, completion });
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
        let what = chance.below(if self.shape.asks_policies { 9 } else { 6 });
        let lot = chance.below(4);
        self.chance = chance;
        match what {
            0 | 1 => self.require(group, requirement(lot)),
            2 => self.advertise(node, advertisement("fifo", lot == 0)),
            3 if lot == 1 => self.impair(node, RequirementMode::Hard),
            3 => self.advertise(node, advertisement("ssd", lot == 0)),
            4 if lot == 1 => self.impair(node, RequirementMode::Soft),
            4 if lot == 2 => {
                self.stall_machine(node, group, 4_000);
                Ok(())
            }
            4 => self.advertise(node, advertisement("both", false)),
            5 => self.advertise(node, Advertisement::default()),
            _ => self.switch_policy(node, lot < 2),
        }
    }

    /// Every node has every capability, and none drains.
    pub(super) fn everybody_is_fit(&mut self) -> Result<(), String> {
        if !self.shape.policies {
            return Ok(());
        }
        for id in self.node_ids() {
            self.advertise(id, advertisement("both", false))?;
            if self.nodes[&id].refuses.load(Ordering::Relaxed) {
                self.switch_policy(id, false)?;
            }
        }
        Ok(())
    }

    /// A node that lacks what it knows the group to require serves no users.
    pub(super) fn serves_only_where_it_may(
        &self,
        id: NodeId,
        status: &GroupStatus,
    ) -> Result<(), String> {
        self.checks.serving.check(id, status)?;
        let requirement = &status.membership.requirement;
        let present = &self.nodes[&id].advertisement.capabilities;
        let lacks = requirement.lacking(present).next().is_some();
        // A hibernating group has no readers without a quorum; whatever wakes it looks first.
        if status.serving
            && !status.hibernating
            && lacks
            && requirement.mode == RequirementMode::Hard
        {
            return Err(format!("{id:?} serves {:?} without {requirement}", status.id));
        }
        let impaired = self.nodes[&id].advertisement.impaired.as_ref();
        let hard = impaired.is_some_and(|why| why.mode == RequirementMode::Hard);
        if status.serving && !status.hibernating && (hard || status.stalled.is_some()) {
            return Err(format!("{id:?} serves {:?} while it is impaired", status.id));
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

fn advertisement(what: &str, draining: bool) -> Advertisement {
    let names: &[&str] = if what == "both" { &["fifo", "ssd"] } else { &[what] };
    let capabilities = names.iter().map(|name| (*name).to_owned()).collect();
    Advertisement { capabilities, draining, ..Advertisement::default() }
}
